"""Read a JSONL file strictly: every bad line is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import parse_json, read_text
from harness.core.text import printable
from harness.datasets.conversation import TEXT_CHARACTERS

_SHOWN = 5
"""Bad lines named before the rest is counted."""


def read_jsonl(
    path: Path, *, required: Sequence[str] = (), check: Callable[[dict[str, Any]], str | None] = lambda row: None
) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file (``.gz`` allowed); blank lines are skipped.

    Args:
        path: file to read, UTF-8, a byte order mark is tolerated.
        required: keys that every object must have as non-empty text.
        check: says what else is wrong with an object that has them.

    Raises:
        HarnessError: missing, unreadable or empty file, or bad lines (the first few with line number and reason).
    """
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    advice = "Give a readable UTF-8 JSONL file; its path is relative to the suite file or the working directory."
    for number, line in enumerate(read_text(path, advice=advice).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = parse_json(line, where)
        except HarnessError as error:
            bad.append(error.problem)
            continue
        reasons = [_not_text(row, key) for key in required]
        bad += [f"{where}: {reason}" for reason in (reasons if any(reasons) else [check(row)]) if reason]
        rows.append(row)
    refuse(path, bad, "Each line must be one JSON object; fix these lines.")
    if not rows:
        raise HarnessError(f"{path} holds no prompts", "Add one JSON object per line.")
    return rows


def refuse(path: Path, bad: Sequence[str], advice: str) -> None:
    """Raise when there are bad lines: the first few, and how many more."""
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        lines = [f"  {printable(line, 400)}" for line in bad[:_SHOWN]]
        raise HarnessError("\n".join([f"bad lines in {path}:", *lines]) + more, advice)


def _not_text(row: dict[str, Any], key: str) -> str | None:
    """What is wrong with a required key; None when it is text of a sensible length."""
    if key not in row:
        return f"the key {key!r} is missing" + (f" (it has {', '.join(row)})" if row else "")
    if not isinstance(row[key], str) or not row[key].strip():
        return f"{key!r} must be non-empty text"
    return f"{key!r} has more than {TEXT_CHARACTERS} characters" if len(row[key]) > TEXT_CHARACTERS else None
