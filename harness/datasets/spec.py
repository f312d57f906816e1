"""What a suite says about one dataset. Imports only pydantic, so that validation stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.core.yamlfile import Strict

DatasetName = Literal["humaneval", "gsm8k", "wordproblems", "gsm_symbolic", "chat", "structured", "local"]
Split = Literal["train", "validation", "test", "all"]


class DatasetSpec(Strict):
    """Which prompts to take."""

    dataset: DatasetName
    """``humaneval``, ``gsm8k``, ``wordproblems``, ``gsm_symbolic``, ``chat``, ``structured``, or ``local`` for a file of your own."""
    path: str | None = None
    """JSONL file, relative to the suite file or the working directory: required for ``local``, optional for ``gsm8k``."""
    split: Split = "test"
    """Part of the dataset to take the prompts from."""
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """At most this many prompts, picked by a stable hash; a larger limit only adds prompts. All when absent."""
    size: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many problems to generate before splitting; only for ``wordproblems`` and ``gsm_symbolic`` (default 1000)."""

    @model_validator(mode="after")
    def _fits_the_dataset(self) -> DatasetSpec:
        if self.dataset == "local" and not self.path:
            raise ValueError("dataset local needs a path to a JSONL file")
        if self.path and self.dataset not in ("local", "gsm8k"):
            raise ValueError(f"dataset {self.dataset} takes no path; use dataset local for a file of your own")
        if self.size and self.dataset not in GENERATED:
            raise ValueError(f"dataset {self.dataset} has a fixed size; use limit to take fewer prompts")
        return self


GENERATED = ("wordproblems", "gsm_symbolic")
"""Datasets made by a seeded generator."""
DEFAULT_SIZE = 1000
"""Problems generated when ``size`` is absent."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Where a dataset comes from."""

    module: str
    """Module with ``load(spec) -> list[Sample]``."""
    domain: str
    """Domain of its samples when the suite names none."""


DATASETS: dict[str, DatasetInfo] = {
    "humaneval": DatasetInfo(module="harness.datasets.humaneval", domain="code"),
    "gsm8k": DatasetInfo(module="harness.datasets.gsm8k", domain="math"),
    "wordproblems": DatasetInfo(module="harness.datasets.generated", domain="math"),
    "gsm_symbolic": DatasetInfo(module="harness.datasets.generated", domain="math"),
    "chat": DatasetInfo(module="harness.datasets.local", domain="chat"),
    "structured": DatasetInfo(module="harness.datasets.local", domain="structured"),
    "local": DatasetInfo(module="harness.datasets.local", domain="local"),
}


def shipped_file(name: str) -> Path:
    """Path of a dataset that ships with the package (``chat``, ``structured``)."""
    return Path(__file__).parent / "data" / f"{name}.jsonl"
