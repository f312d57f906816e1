"""Checksummed lines of records.jsonl, and the repair of a last line that a killed process left half-written."""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from harness.core.files import open_regular, parse_json
from harness.core.records import Record, to_dict

_BLOCK = 2**20
_CHECKSUM = re.compile(rb'^(.*),"checksum":"([0-9a-f]{8})"\}$', re.DOTALL)


def encode_line(record: Record) -> bytes:
    """One line of records.jsonl: the record as JSON with a CRC-32 of everything before it as the last field."""
    body = json.dumps(to_dict(record), separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    return body[:-1] + b',"checksum":"%08x"}\n' % zlib.crc32(body[:-1])


def decode_line(line: bytes, where: str = "the line") -> dict[str, Any] | None:
    """The JSON object of one line without its newline, or None when the checksum does not fit.

    Raises:
        HarnessError: what the checksum covers is no JSON object; ``where`` begins the sentence.
    """
    match = _CHECKSUM.match(line)
    if match is None or zlib.crc32(match[1]) != int(match[2], 16):
        return None
    return parse_json(match[1] + b"}", where)


def repair_tail(path: Path, torn: Path) -> int:
    """Move bytes after the last complete line of ``path`` to ``torn``; a complete line that lacks only its newline is kept.

    Returns:
        How many bytes were moved.
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
            with open(torn, "ab") as kept:
                kept.write(tail + b"\n")
                os.fsync(kept.fileno())
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
