"""What the answers of a cell consist of: everything that their time depends on, given what each part of it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.records import Record
from harness.core.round_sources import LOOKED_UP, MODEL, expanded, model_steps

Array = NDArray[np.float64]


def cost_label(drafter: str | None, settings: Mapping[str, Any]) -> str:
    """Whose drafting costs the same: ``generic``, ``early_exit (layers 4)``, ``adapter (around hybrid)``; empty for the target alone."""
    own = ", ".join(f"{name} {settings[name]}" for name in ("layers", "around") if settings.get(name))
    return f"{drafter} ({own})" if own else drafter or ""


def drafting(source: str, drafted: int) -> tuple[str, int]:
    """Whose time a round's drafting takes, and how many tokens of it."""
    own = expanded(source, drafted)
    steps = model_steps(source, drafted)
    return (MODEL, steps) if steps else (LOOKED_UP.get(own[0], own[0]) if own else source, drafted)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The answers of one cell, prompt by prompt."""

    label: str
    """:func:`cost_label` of the cell."""
    samples: tuple[str, ...]
    """Ids of the prompts, in order of first appearance."""
    answers: Array
    """(n,) answers to each prompt."""
    prompt_tokens: Array
    """(n,) tokens of their prompts that the target read."""
    rounds: Array
    """(n,)"""
    emitted: Array
    """(n,)"""
    shapes: tuple[tuple[str, int], ...]
    """Kinds of rounds: who proposed, and how many tokens."""
    prompts: NDArray[np.int64]
    """(m,) index of a prompt,"""
    kinds: NDArray[np.int64]
    """(m,) index of a shape,"""
    times: Array
    """(m,) and how often it occurs there."""

    def by_prompt(self, shape_s: Sequence[float]) -> Array:
        """(n,) seconds of all rounds of a prompt, given those of each shape."""
        return np.bincount(self.prompts, self.times * np.asarray(shape_s, float)[self.kinds], len(self.samples)).astype(float)


def work_of(records: Sequence[Record]) -> Work:
    """The work behind records of one cell."""
    first = records[0]
    samples = {sample: i for i, sample in enumerate(dict.fromkeys(r.sample_id for r in records))}
    own = np.fromiter((samples[r.sample_id] for r in records), np.int64, len(records))
    known: dict[tuple[str, int], int] = {}
    triples: list[tuple[int, int, int]] = []
    for i, r in zip(own.tolist(), records, strict=True):
        sources = r.sources or (MODEL,) * len(r.draft_lengths)
        counted = Counter(zip(sources, r.draft_lengths, strict=True))
        triples += [(i, known.setdefault(shape, len(known)), n) for shape, n in counted.items()]
    prompts, kinds, times = np.array(triples, np.int64).reshape(-1, 3).T

    def summed(name: str) -> Array:
        return np.bincount(own, np.fromiter((getattr(r, name) for r in records), float, len(records)), len(samples)).astype(float)

    return Work(
        label=cost_label(first.drafter, first.settings), samples=tuple(samples),
        answers=np.bincount(own, minlength=len(samples)).astype(float),
        prompt_tokens=summed("read_tokens"), rounds=summed("rounds"), emitted=summed("emitted"),
        shapes=tuple(known), prompts=prompts, kinds=kinds, times=times.astype(float),
    )  # fmt: skip
