"""The one speedup: time per token of the target alone over that of a cell, on the same prompts, long answers weighing more.

Report, gate and comparison of runs all go through here, so that they weigh prompts the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.core import stats
from harness.core.records import Record
from harness.core.stats import Estimate

Pair = tuple[float, float, float, float]
"""Seconds and tokens of the target alone, seconds and tokens of a cell, of one prompt."""
Baselines = Mapping[Any, Record]
"""The target's own timed answers by :func:`base_key`."""


def base_key(record: Record) -> tuple[str, float, int]:
    """What a record and the target's own answer to it share."""
    return record.sample_id, record.temperature, record.seed


def baselines(records: Iterable[Record]) -> Baselines:
    """The target's own timed answers of a run."""
    found: dict[Any, Record] = {}
    for record in records:
        if record.drafter is None and record.method == "decode":
            found.setdefault(base_key(record), record)
    return found


def pair_of(records: Sequence[Record], base: Baselines) -> Pair | None:
    """Sums over the answers to one prompt that have a baseline, of equal length where greedy; None where there is none."""
    found = [(base.get(base_key(r)), r) for r in records if r.drafter is not None]
    matched = [
        (b.wall_s, b.emitted, r.wall_s, r.emitted)
        for b, r in found
        if b is not None and b.wall_s is not None and r.wall_s is not None and (r.temperature > 0 or b.emitted == r.emitted)
    ]
    if not matched:
        return None
    base_s, base_tokens, cell_s, cell_tokens = (float(sum(values)) for values in zip(*matched, strict=True))
    return base_s, base_tokens, cell_s, cell_tokens


def value(pairs: Iterable[Pair]) -> float:
    """The speedup over prompts."""
    base_s, base_tokens, cell_s, cell_tokens = np.array(list(pairs), float).sum(axis=0)
    return float(base_s / base_tokens / (cell_s / cell_tokens))


def speedup(pairs: Sequence[Pair]) -> Estimate | None:
    """The speedup with its interval, paired by prompt; None without prompts."""
    if not pairs:
        return None
    base_s, base_tokens, cell_s, cell_tokens = np.array(pairs, float).T
    if (base_tokens == cell_tokens).all():
        return stats.ratio(base_s, cell_s)
    return stats.relative((base_s, base_tokens), (cell_s, cell_tokens))


def change(new: Sequence[Pair], old: Sequence[Pair]) -> Estimate | None:
    """A speedup over another on the same prompts, one pair of each per prompt; None without prompts."""
    if not new:
        return None
    a, b = np.array(new, float).T, np.array(old, float).T
    return stats.relative((a[0], a[1]), (a[2], a[3]), (b[0], b[1]), (b[2], b[3]))
