"""GSM8K: grade-school word problems from the hub (``openai/gsm8k``) or a local JSONL file with ``question`` and ``answer``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.datasets.generated import ask, final_number
from harness.datasets.jsonl import read_jsonl
from harness.datasets.spec import DatasetSpec
from harness.datasets.splits import assign_splits
from harness.datasets.table import from_hub, from_rows
from harness.errors import HarnessError
from harness.records import Sample

_HUB_SHARES = (0.9, 0.1, 0.0)
"""The hub's train part gives train and validation; its test part stays the test split."""


def load(spec: DatasetSpec, *, seed: int, offline: bool) -> list[Sample]:
    """Return the problems; ``reference`` has ``answer`` (final number) and ``solution``.

    A local file is split by hash like every dataset. From the hub, the official test part is the test split, together with
    the few training rows that nearly repeat one of its problems.

    Raises:
        HarnessError: unreadable file, an answer without a final number, or a hub that does not answer.
    """
    if spec.path:
        path = Path(spec.path)
        return assign_splits(_samples(from_rows(read_jsonl(path, required=("question", "answer"))), f"gsm8k/{path.stem}"))
    parts = {part: _samples(from_hub("openai/gsm8k", "main", part, offline=offline), f"gsm8k/{part}") for part in ("train", "test")}
    pinned = {sample.id: "test" for sample in parts["test"]}
    return assign_splits([*parts["train"], *parts["test"]], shares=_HUB_SHARES, pinned=pinned)


def _samples(rows: Iterable[Mapping[str, str]], prefix: str) -> list[Sample]:
    return [_sample(row, f"{prefix}/{i}") for i, row in enumerate(rows)]


def _sample(row: Mapping[str, str], sample_id: str) -> Sample:
    solution, marker, answer = row["answer"].rpartition("####")
    number = final_number(answer)
    if not marker or number is None:
        raise HarnessError(f"{sample_id}: the answer has no final number after ####", "Write answers as `reasoning #### 42`.")
    return Sample(
        id=sample_id,
        domain="math",
        prompt=ask(row["question"]),
        reference={"answer": number, "solution": solution.strip()},
        source="gsm8k",
    )
