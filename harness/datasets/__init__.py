"""Prompts: every dataset behind one :class:`~harness.core.records.Sample`, with leak-free splits."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets.conversation import place_of
from harness.datasets.spec import DATASETS, DatasetSpec, find_dataset

__all__ = ["DATASETS", "DatasetSpec", "check_dataset", "find_dataset", "load_samples"]


def check_dataset(spec: DatasetSpec, domain: str | None = None) -> None:
    """Check without loading that the dataset can be read for ``domain``: file present and well formed, optional package installed.

    Raises:
        HarnessError: names the file and line, or the package to install.
    """
    find_dataset(spec.dataset).check(spec, domain)


def load_samples(spec: DatasetSpec, *, domain: str | None = None, seed: int = 0, offline: bool = False) -> list[Sample]:
    """Load the prompts a suite asks for.

    The split is assigned over the whole dataset; ``limit`` then keeps the samples with the smallest hash of their id, so a
    larger limit only adds prompts. Turns of a conversation stay together, in their order.

    Args:
        spec: dataset, split and limit.
        domain: replaces the samples' own domain.
        seed: seed of generated datasets.
        offline: never ask the hub.

    Raises:
        HarnessError: the dataset cannot be read, or has no prompt in this split.
    """
    if domain:
        check_dataset(spec, domain)
    samples = find_dataset(spec.dataset).load(spec, seed, offline)
    chosen = [s for s in samples if spec.split in ("all", s.split)]
    if not chosen:
        raise HarnessError(
            f"dataset {spec.path or spec.name or spec.dataset} has no prompts in split {spec.split!r} ({len(samples)} in all)",
            "Add prompts, or use `split: all`.",
        )
    if spec.limit is not None:
        chosen = sorted(chosen, key=_order)[: spec.limit]
    return [replace(s, domain=domain or s.domain) for s in chosen]


def _order(sample: Sample) -> tuple[bytes, int]:
    """Where a sample stands when only some are taken."""
    own, turn = place_of(sample) or (sample.id, 0)
    return hashlib.blake2b(own.encode(), digest_size=8).digest(), turn
