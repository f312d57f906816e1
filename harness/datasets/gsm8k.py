"""GSM8K: grade-school word problems from the hub (``openai/gsm8k``) or a local JSONL file with ``question`` and ``answer``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.core.errors import HarnessError
from harness.core.number import parse_number, shown
from harness.core.records import Sample
from harness.datasets.generated import ask
from harness.datasets.jsonl_file import read_jsonl
from harness.datasets.spec import Dataset, DatasetSpec
from harness.datasets.splits import assign_splits
from harness.datasets.table import from_hub, from_rows

_HUB_SHARES = (0.9, 0.1, 0.0)
"""The hub's train part gives train and validation; its test part stays the test split."""


def load(spec: DatasetSpec, seed: int, offline: bool) -> list[Sample]:
    """Return the problems; ``reference`` has ``answer`` (final number) and ``solution``.

    A local file is split by hash like every dataset. From the hub, the official test part is the test split, together with
    the few training rows that nearly repeat one of its problems.

    Raises:
        HarnessError: unreadable file, an answer that does not end in a number, or a hub that does not answer.
    """
    if spec.path:
        path = Path(spec.path)
        return assign_splits(_samples(from_rows(read_rows(path)), f"gsm8k/{path.stem}"))
    parts = {part: _samples(from_hub("openai/gsm8k", "main", part, offline=offline), f"gsm8k/{part}") for part in ("train", "test")}
    pinned = {sample.id: "test" for sample in parts["test"]}
    return assign_splits([*parts["train"], *parts["test"]], shares=_HUB_SHARES, pinned=pinned)


def _samples(rows: Iterable[Mapping[str, str]], prefix: str) -> list[Sample]:
    return [_sample(row, f"{prefix}/{i}") for i, row in enumerate(rows)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a local file; one whose answer does not end in a number is refused with its line."""
    return read_jsonl(path, required=("question", "answer"), check=_problem)


def _problem(row: Mapping[str, str]) -> str | None:
    """What keeps a row's answer from being a reference."""
    _, marker, answer = row["answer"].rpartition("####")
    if not marker:
        return "the answer has no #### before its final number, as in `reasoning #### 42`"
    return None if parse_number(answer) is not None else f"the answer ends in {answer.strip()[:80]!r}, which is not a number"


def _sample(row: Mapping[str, str], sample_id: str) -> Sample:
    solution, _, answer = row["answer"].rpartition("####")
    number = parse_number(answer)
    if number is None:
        raise HarnessError(f"{sample_id}: {_problem(row)}", "Report it to the dataset's authors, or give a local file with `path:`.")
    return Sample(
        id=sample_id,
        domain="math",
        prompt=ask(row["question"]),
        reference={"answer": shown(number), "solution": solution.strip()},
        source="gsm8k",
    )


def _check(spec: DatasetSpec, domain: str | None) -> None:
    if spec.path:
        read_rows(Path(spec.path))


GSM8K = Dataset(domain="math", load=load, check=_check, takes={"path": False})
