"""Prompts a draft is distilled on: training splits and prompt templates of every domain, none of them near an evaluation prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets import load_samples
from harness.datasets.local import shipped_file
from harness.datasets.promptbank import GENERATORS, prompts
from harness.datasets.spec import DatasetName, DatasetSpec, Split
from harness.datasets.splits import leaks
from harness.distill.distill_config import RolloutConfig

_DATASETS: dict[str, tuple[DatasetName, ...]] = {
    "math": ("gsm8k", "wordproblems"),
    "code": ("humaneval",),
    "chat": ("chat",),
    "structured": ("structured",),
}


def training_samples(config: RolloutConfig) -> list[Sample]:
    """Training prompts with the domains mixed evenly from the start, so that every prefix of the list is a fair sample.

    Raises:
        HarnessError: unknown domain, or a dataset file that cannot be read.
    """
    evaluation = evaluation_samples(config, list(config.prompts))
    columns = [_domain_samples(config, domain, count, evaluation)[config.skip.get(domain, 0) :] for domain, count in config.prompts.items()]
    placed = [((i + 0.5) / len(column), d, s) for d, column in enumerate(columns) for i, s in enumerate(column)]
    return [sample for _, _, sample in sorted(placed, key=lambda item: item[:2])]


def repeated_samples(config: RolloutConfig) -> list[Sample]:
    """The datasets' own training prompts once per further answer, under ids of their own, the domains mixed evenly."""
    if not config.more_answers:
        return []
    own = [s for s in training_samples(config.model_copy(update={"skip": {}})) if not s.id.startswith("bank/")]
    wanted = {domain: range(config.skip_answers.get(domain, 0) + 1, n + 1) for domain, n in config.more_answers.items()}
    most = max(config.more_answers.values())
    return [replace(s, id=f"{s.id}#{i}") for i in range(1, most + 1) for s in own if i in wanted.get(s.domain, ())]


def evaluation_samples(config: RolloutConfig, domains: Sequence[str]) -> list[Sample]:
    """Validation and test prompts of the domains' datasets: nothing near them is trained on."""
    splits: tuple[Split, ...] = ("validation", "test")
    return [s for domain in domains for split in splits for s in _dataset_samples(config, domain, split)]


def held_out_samples(config: RolloutConfig, per_domain: int) -> list[Sample]:
    """At most ``per_domain`` prompts of each domain's test split, picked by a stable hash; no draft trains on them."""
    found: list[Sample] = []
    for domain in config.prompts:
        own = _dataset_samples(config, domain, "test")
        found += sorted(own, key=lambda s: hashlib.sha256(s.id.encode()).digest())[:per_domain]
    return found


def split_by_temperature(samples: list[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Samples answered greedily, and the ``share`` of them that is sampled, spread evenly over the list."""
    sampled = [int((i + 1) * share) > int(i * share) for i in range(len(samples))]
    return [s for s, hot in zip(samples, sampled, strict=True) if not hot], [s for s, hot in zip(samples, sampled, strict=True) if hot]


def _domain_samples(config: RolloutConfig, domain: str, count: int, evaluation: list[Sample]) -> list[Sample]:
    if domain not in _DATASETS:
        raise HarnessError(f"no training prompts for domain {domain!r}", f"Use one of {', '.join(_DATASETS)}.")
    found = list(_dataset_samples(config, domain, "train"))[:count]
    if domain in GENERATORS and len(found) < count:
        bank = prompts(domain, count - len(found), config.seed)
        found += [Sample(id=f"bank/{domain}/{config.seed}-{i}", domain=domain, prompt=p, split="train") for i, p in enumerate(bank)]
    leaking = {train for train, _ in leaks(found, evaluation)}
    while leaking:  # one evaluation prompt names one training prompt at a time
        found = [s for s in found if s.id not in leaking]
        leaking = {train for train, _ in leaks(found, evaluation)}
    return found


def _dataset_samples(config: RolloutConfig, domain: str, split: Split) -> list[Sample]:
    return list(_iter_dataset_samples(config, domain, split))


def _iter_dataset_samples(config: RolloutConfig, domain: str, split: Split) -> Iterator[Sample]:
    for name in _DATASETS.get(domain, ()):
        if name == "gsm8k" and not config.gsm8k_path:
            continue
        if name in ("chat", "structured") and not shipped_file(name).is_file():
            continue
        size = max(config.prompts.get(domain, 0), 1000) if name == "wordproblems" else None
        path = config.gsm8k_path if name == "gsm8k" else None
        spec = DatasetSpec(dataset=name, split=split, path=path, size=size)
        yield from (replace(s, domain=domain) for s in load_samples(spec, seed=config.seed))
