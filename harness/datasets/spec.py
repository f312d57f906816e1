"""What a suite says about one dataset, and the registry of datasets. Imports only pydantic, so that validation stays fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.core.errors import did_you_mean
from harness.core.records import Sample
from harness.core.yamlfile import Strict

DATASETS = {
    "humaneval": "harness.datasets.humaneval:HUMANEVAL",
    "gsm8k": "harness.datasets.gsm8k:GSM8K",
    "wordproblems": "harness.datasets.generated:WORDPROBLEMS",
    "gsm_symbolic": "harness.datasets.generated:GSM_SYMBOLIC",
    "chat": "harness.datasets.local:CHAT",
    "structured": "harness.datasets.local:STRUCTURED",
    "local": "harness.datasets.local:LOCAL",
    "hf": "harness.datasets.hub:HUB",
}
"""Every dataset by name, and where its :class:`Dataset` stands: one line here and one object in a module add one."""


def _known_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(f"{name!r} is not allowed, {did_you_mean(name, list(DATASETS))}")
    return name


DatasetName = Annotated[str, AfterValidator(_known_dataset), Field(examples=list(DATASETS))]
Split = Literal["train", "validation", "test", "all"]
OWN_KEYS = ("path", "name", "config", "part", "prompt", "reference", "turns", "size")
"""Keys that only some datasets take."""


class DatasetSpec(Strict):
    """Which prompts to take."""

    dataset: DatasetName
    """``humaneval``, ``gsm8k``, ``wordproblems``, ``gsm_symbolic``, ``chat``, ``structured``, ``local`` for a file of your own, or ``hf``
    for a dataset of the Hugging Face hub."""
    path: str | None = None
    """File of prompts, relative to the suite file or the working directory: required for ``local`` (JSONL, JSON, CSV, TSV or Parquet),
    optional for ``gsm8k`` (JSONL)."""
    name: str | None = None
    """Hub dataset such as ``org/name``, or a local folder of data files; required for ``hf``."""
    config: str | None = None
    """Configuration of the hub dataset, where it has several."""
    part: str | None = None
    """The hub's own split to read, such as ``train`` or ``train[:5000]``; its ``train`` when absent. ``split`` then divides its prompts."""
    prompt: str | None = None
    """Column or key with the prompt, text or messages; found by itself where it is called ``prompt``, ``messages`` or ``conversations``."""
    reference: str | None = None
    """Column or key with the right answer; ``reference`` when absent."""
    turns: Literal["last", "all"] | None = None
    """Of a conversation, answer its ``last`` user turn, or ``all`` of them, each after what the file says came before; ``last`` when
    absent."""
    split: Split = "test"
    """Part of the dataset to take the prompts from."""
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """At most this many prompts, picked by a stable hash; a larger limit only adds prompts. All when absent."""
    size: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many problems to generate before splitting; only for ``wordproblems`` and ``gsm_symbolic`` (default 1000)."""

    @model_validator(mode="after")
    def _fits_the_dataset(self) -> DatasetSpec:
        takes, given = find_dataset(self.dataset).takes, [key for key in OWN_KEYS if getattr(self, key) is not None]
        if unknown := next((key for key in given if key not in takes), None):
            own = f"; its own keys are {', '.join(takes)}" if takes else ""
            raise ValueError(f"dataset {self.dataset} takes no {unknown}{own}")
        if missing := next((key for key, required in takes.items() if required and key not in given), None):
            raise ValueError(f"dataset {self.dataset} needs a {missing}")
        return self


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where prompts come from."""

    domain: str
    """Domain of its samples when the suite names none."""
    load: Callable[[DatasetSpec, int, bool], list[Sample]]
    """``load(spec, seed, offline)``: all its prompts, with their splits. HarnessError where it cannot."""
    check: Callable[[DatasetSpec, str | None], None] = lambda spec, domain: None
    """``check(spec, domain)`` raises what loading for a domain would, without the network."""
    takes: dict[str, bool]
    """Those of :data:`OWN_KEYS` that it reads; True: required."""


def find_dataset(name: str) -> Dataset:
    """The dataset of a name in :data:`DATASETS`."""
    module, _, attribute = DATASETS[name].partition(":")
    found: Dataset = getattr(importlib.import_module(module), attribute)
    return found
