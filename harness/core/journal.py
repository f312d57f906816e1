"""Append-only lines of JSON, each with its checksum and synced as it is written: a killed process loses at most the line it was writing."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import open_regular, parse_json, read_bytes, this_version
from harness.core.records import SCHEMA_VERSION

FILE_BYTES = 4 * 2**30
"""A larger journal is refused."""
_ADVICE = "Restore the file from a backup, or delete that line."
_BLOCK = 2**20
_CHECKSUM = re.compile(rb'^(.*),"checksum":"([0-9a-f]{8})"\}$', re.DOTALL)


def encode_line(row: Mapping[str, Any]) -> bytes:
    """One line: the row as JSON with a CRC-32 of everything before it as the last field."""
    body = json.dumps(row, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    return body[:-1] + b',"checksum":"%08x"}\n' % zlib.crc32(body[:-1])


def decode_line(line: bytes, where: str = "the line") -> dict[str, Any] | None:
    """The JSON object of one line without its newline, or None when the checksum does not fit.

    Raises:
        HarnessError: what the checksum covers is no JSON object; ``where`` begins the sentence.
    """
    match = _CHECKSUM.match(line)
    if match is None or zlib.crc32(match[1]) != int(match[2], 16):
        return None
    return parse_json(match[1] + b"}", where, advice=_ADVICE)


def repair_tail(path: Path, torn: Path | None = None) -> int:
    """Take bytes after the last complete line away, to the end of ``torn`` where it is given; a line that lacks only its newline is kept.

    Returns:
        How many bytes were taken.
    """
    tail = _tail(path) if path.exists() else b""
    if not tail:
        return 0
    whole = decode_line(tail) is not None
    with open(path, "r+b") as file:
        if whole:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            if torn is not None:
                _add(torn, tail + b"\n")
            file.truncate(os.fstat(file.fileno()).st_size - len(tail))
        file.flush()
        os.fsync(file.fileno())
    return 0 if whole else len(tail)


def _tail(path: Path) -> bytes:
    """What stands behind the last newline, read from the end."""
    tail = b""
    with open_regular(path) as file:
        end = file.seek(0, os.SEEK_END)
        while end and b"\n" not in tail:
            start = max(0, end - _BLOCK)
            file.seek(start)
            tail = file.read(end - start) + tail
            end = start
    return tail[tail.rfind(b"\n") + 1 :]


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as they stand in a file, with ``schema_version``."""
    return b"".join(encode_line({"schema_version": SCHEMA_VERSION, **row}) for row in rows)


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows in one call at the end of the file and sync it to disk."""
    data = lines(rows)
    if data:
        path.parent.mkdir(parents=True, exist_ok=True)
        _add(path, data)


def _add(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows without their ``schema_version``; nothing when the file does not exist. Lines of earlier versions have no checksum.

    Raises:
        HarnessError: a line is damaged or no JSON object, or was written by a newer version.
    """
    if not path.exists():
        return
    for number, line in enumerate(read_bytes(path, most=FILE_BYTES).splitlines(), start=1):
        where = f"{path}:{number}"
        row = decode_line(line, where)
        if row is None and _CHECKSUM.match(line):
            raise HarnessError(f"{where} is damaged: its checksum does not fit", _ADVICE)
        yield this_version(parse_json(line, where, advice=_ADVICE) if row is None else row, where, advice=_ADVICE)
