"""Append-only JSON lines that survive a crash: one fsync per line, a torn last line is cut off on open."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import parse_json, read_bytes, this_version
from harness.core.records import SCHEMA_VERSION

FILE_BYTES = 4 * 2**30
"""A larger journal is refused."""
_ADVICE = "Restore the file from a backup, or delete that line."


def repair_tail(path: Path) -> int:
    """Cut a torn last line (no newline, or not JSON) off ``path``; return the bytes removed (0: intact or absent)."""
    if not path.exists():
        return 0
    data = read_bytes(path, most=FILE_BYTES)
    keep = data.rfind(b"\n") + 1
    if keep == len(data) and keep:
        start = data.rfind(b"\n", 0, keep - 1) + 1
        if not _is_json(data[start:keep]):
            keep = start
    if keep < len(data):
        with path.open("r+b") as file:
            file.truncate(keep)
            os.fsync(file.fileno())
    return len(data) - keep


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows with ``schema_version`` in one call at the end of the file and sync it to disk."""
    lines = "".join(json.dumps({"schema_version": SCHEMA_VERSION, **row}, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows without their ``schema_version``; nothing when the file does not exist.

    Raises:
        HarnessError: a line is not a JSON object, or was written by a newer version.
    """
    if not path.exists():
        return
    for number, line in enumerate(read_bytes(path, most=FILE_BYTES).splitlines(), start=1):
        where = f"{path}:{number}"
        yield this_version(parse_json(line, where, advice=_ADVICE), where, advice=_ADVICE)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line, "the line")
    except HarnessError:
        return False
    return True
