"""Any dataset of the Hugging Face hub, or a local folder of data files, by the column its prompts stand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.paths import expand
from harness.core.records import Sample
from harness.datasets.jsonl_file import refuse
from harness.datasets.local import normalised, problem_of, samples
from harness.datasets.rows_file import check_count
from harness.datasets.spec import Dataset, DatasetSpec
from harness.datasets.splits import assign_splits
from harness.datasets.table import from_hub


def load(spec: DatasetSpec, seed: int, offline: bool) -> list[Sample]:
    """Return the prompts of one part of the dataset; rows as :func:`harness.datasets.local.load` takes them.

    Raises:
        HarnessError: no such dataset, part or column, rows without a prompt, or more rows than can be compared.
    """
    name, part = spec.name or "", spec.part or "train"
    folder = expand(name)
    where = f"{name}, {part}"
    rows: Any = from_hub(str(folder.absolute()) if os.path.isdir(folder) else name, spec.config, part, offline=offline)
    check_count(len(rows), where)
    plain = [{key: cell for key, cell in row.items() if cell is not None} for row in rows]
    reasons = ((number, problem_of(row, spec=spec, domain=None)) for number, row in enumerate(plain, start=1))
    bad = [f"row {number}: {reason}" for number, reason in reasons if reason]
    refuse(Path(where), bad, "Name the column of the prompts with `prompt:`.")
    source = f"hf/{Path(name).name}"
    return assign_splits(samples(normalised(plain, spec, source, where), source, HUB.domain))


def _check(spec: DatasetSpec, domain: str | None) -> None:
    folder = expand(spec.name or "")
    if not os.path.isdir(folder) and (folder.is_absolute() or (spec.name or "").count("/") > 1 or (spec.name or "").startswith(".")):
        raise HarnessError(f"there is no folder {folder}", "Name a dataset of the hub (org/name), or a folder of data files.")


HUB = Dataset(
    domain="hf",
    load=load,
    check=_check,
    takes={"name": True, "config": False, "part": False, "prompt": False, "reference": False, "turns": False},
)
