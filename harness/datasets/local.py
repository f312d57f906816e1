"""JSONL files of prompts: the shipped ``chat`` and ``structured`` sets and any file of the user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.datasets.jsonl import read_jsonl
from harness.datasets.spec import DATASETS, DatasetSpec, shipped_file
from harness.datasets.splits import assign_splits
from harness.datasets.table import from_rows
from harness.errors import HarnessError
from harness.records import Sample


def load(spec: DatasetSpec, *, seed: int, offline: bool) -> list[Sample]:
    """Return the prompts of a file with one object per line.

    Keys: ``prompt`` (text); optional ``id``, ``domain``, and ``reference`` (a mapping, or one value that becomes ``answer``).

    Raises:
        HarnessError: bad lines, a bad value of an optional key, or an id used twice.
    """
    path = Path(spec.path) if spec.path else shipped_file(spec.dataset)
    source = path.stem if spec.dataset == "local" else spec.dataset
    rows = [_row(row, i, source, path) for i, row in enumerate(read_jsonl(path, required=("prompt",)))]
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise HarnessError(f"{path}: the id {row['id']!r} is used twice", "Give every prompt its own id, or none.")
        seen.add(row["id"])
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
            for row in from_rows(rows)
        ]
    )


def _row(row: Mapping[str, Any], index: int, source: str, path: Path) -> dict[str, str]:
    """Normalise one line to text columns, so that mixed types of optional keys cannot clash."""
    own = str(row.get("id", index))
    domain = row.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise HarnessError(f"{path}: prompt {own}: the domain must be text, got {domain!r}", "Quote it.")
    return {
        "id": own if own.startswith(f"{source}/") else f"{source}/{own}",
        "domain": domain or "",
        "prompt": row["prompt"],
        "reference": json.dumps(_reference(row.get("reference"))),
    }


def _reference(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    items = value if isinstance(value, dict) else {"answer": value}
    return {str(key): item if isinstance(item, str) else json.dumps(item) for key, item in items.items()}
