"""JSONL files of prompts: the shipped ``chat`` and ``structured`` sets and any file of the user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.number import parse_number
from harness.core.records import Sample
from harness.core.text import printable
from harness.datasets.jsonl_file import read_jsonl
from harness.datasets.spec import DATASETS, DatasetSpec, shipped_file
from harness.datasets.splits import assign_splits
from harness.datasets.table import from_rows

NAME_CHARACTERS = 200
"""Longest id or domain."""


def load(spec: DatasetSpec, *, seed: int, offline: bool) -> list[Sample]:
    """Return the prompts of a file with one object per line.

    Keys: ``prompt`` (text); optional ``id``, ``domain``, and ``reference`` (a mapping, or one value that becomes ``answer``).

    Raises:
        HarnessError: as :func:`read_rows`.
    """
    source = _source(spec)
    default = DATASETS[spec.dataset].domain
    return assign_splits(
        [
            Sample(
                id=row["id"],
                domain=row["domain"] or default,
                prompt=row["prompt"],
                reference=json.loads(row["reference"]),
                source=source,
            )
            for row in from_rows(read_rows(spec))
        ]
    )


def read_rows(spec: DatasetSpec, domain: str | None = None) -> list[dict[str, str]]:
    """Return the lines of a file as text columns.

    Args:
        spec: the file.
        domain: replaces the lines' own. In the domain ``math`` a reference answer must be a number.

    Raises:
        HarnessError: bad lines, a bad value of an optional key, or an id used twice.
    """

    def wrong(row: Mapping[str, Any]) -> str | None:
        answer = (_reference(row.get("reference")) or {}).get("answer")
        if (domain or row.get("domain")) != "math" or answer is None or parse_number(answer) is not None:
            return None
        return f"the reference answer {answer[:80]!r} is not a number"

    path = Path(spec.path) if spec.path else shipped_file(spec.dataset)
    rows = [_row(row, i, _source(spec), path) for i, row in enumerate(read_jsonl(path, required=("prompt",), check=wrong))]
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise HarnessError(f"{path}: the id {row['id']!r} is used twice", "Give every prompt its own id, or none.")
        seen.add(row["id"])
    return rows


def _source(spec: DatasetSpec) -> str:
    """What the ids of a file begin with."""
    return Path(spec.path).stem if spec.path else spec.dataset


def _row(row: Mapping[str, Any], index: int, source: str, path: Path) -> dict[str, str]:
    """Normalise one line to text columns, so that mixed types of optional keys cannot clash."""
    number = row.get("id")
    own = _name(str(number) if isinstance(number, int) and not isinstance(number, bool) else number, "id", f"{path}: prompt {index + 1}")
    own = str(index) if own is None else own
    return {
        "id": own if own.startswith(f"{source}/") else f"{source}/{own}",
        "domain": _name(row.get("domain"), "domain", f"{path}: prompt {own}") or "",
        "prompt": row["prompt"],
        "reference": json.dumps(_reference(row.get("reference"))),
    }


def _name(value: Any, key: str, where: str) -> str | None:
    """An id or a domain: short text on one line; null counts as absent."""
    one_line = isinstance(value, str) and printable(value).splitlines() == [value]
    if value is None or (one_line and value.strip() and len(value) <= NAME_CHARACTERS):
        return value
    problem = f"the {key} must be one line of at most {NAME_CHARACTERS} characters, got {printable(repr(value), 100)}"
    raise HarnessError(f"{where}: {problem}", "Quote it, or shorten it.")


def _reference(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    items = value if isinstance(value, dict) else {"answer": value}
    return {str(key): item if isinstance(item, str) else json.dumps(item) for key, item in items.items()}
