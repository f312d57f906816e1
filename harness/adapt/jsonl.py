"""Append-only JSON lines that survive a crash: one fsync per line, a torn last line is cut off on open."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.records import SCHEMA_VERSION


def repair_tail(path: Path) -> int:
    """Cut a torn last line (no newline, or not JSON) off ``path``; return the bytes removed (0: intact or absent)."""
    if not path.exists():
        return 0
    data = path.read_bytes()
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
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                version = row.pop("schema_version")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise HarnessError(f"{path}:{number} is not a record", "Restore the file from a backup, or delete that line.") from error
            if not isinstance(version, int) or version > SCHEMA_VERSION:
                raise HarnessError(f"{path}:{number} has schema version {version}, newer than {SCHEMA_VERSION}", "Update the harness.")
            yield row


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader or a crash sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
