"""Read a JSONL file strictly: every bad line is named. Standard library only."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

_SHOWN = 5
"""Bad lines named before the rest is counted."""


def read_jsonl(path: Path, *, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file (``.gz`` allowed); blank lines are skipped.

    Args:
        path: file to read, UTF-8, a byte order mark is tolerated.
        required: keys that every object must have as non-empty text.

    Raises:
        HarnessError: missing, unreadable or empty file, or bad lines (the first few with line number and reason).
    """
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row, reason = _parse(line, required)
        if reason:
            bad.append(f"  {path}:{number}: {reason}")
        rows.append(row)
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise HarnessError(
            "\n".join([f"bad lines in {path}:", *bad[:_SHOWN]]) + more, "Each line must be one JSON object; fix these lines."
        )
    if not rows:
        raise HarnessError(f"{path} holds no prompts", "Add one JSON object per line.")
    return rows


def _read_text(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise HarnessError(
            f"no dataset file {path}", "Check the path; it is relative to the suite file or the working directory."
        ) from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise HarnessError(f"cannot read {path}: {error}", "Give a readable UTF-8 JSONL file.") from error


def _parse(line: str, required: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the object and an empty reason, or an empty object and what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if not isinstance(row, dict):
        return {}, "not a JSON object"
    for key in required:
        if key not in row:
            near = f" (it has {', '.join(map(str, row))})" if row else ""
            return {}, f"the key {key!r} is missing{near}"
        if not isinstance(row[key], str) or not row[key].strip():
            return {}, f"{key!r} must be non-empty text"
    return row, ""
