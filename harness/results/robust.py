"""Speed from robust costs: what a cell's rounds take by the medians of the run, over every prompt that has counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.core import stats
from harness.core.records import Record
from harness.core.round_sources import expanded
from harness.core.stats import Estimate
from harness.results.clock import Clock


class Timing:
    """The clocks of a run, whole and without each prompt in turn.

    Args:
        records: all records of the run.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        decoded = [r for r in records if r.method == "decode" and r.verify_times_s is not None]
        ids = list(dict.fromkeys(r.sample_id for r in decoded))
        folds = [ids[i::MOST_FOLDS] for i in range(min(len(ids), MOST_FOLDS))]
        self._whole = Clock(decoded)
        self._without = [Clock(r for r in decoded if r.sample_id not in fold) for fold in map(set, folds)] if len(folds) > 1 else []
        self._answers = {r.sample_id: r for r in records if r.method == "answer"}

    def answers(self, group: Sequence[Record]) -> list[Record]:
        """The target's whole answers that lossless records stand for; empty where there are none, or the cell has outputs of its own."""
        lossless = all(r.temperature == 0 and not r.lossy for r in group)
        return [self._answers[s] for s in dict.fromkeys(r.sample_id for r in group) if s in self._answers] if lossless else []

    def seconds(self, records: Sequence[Record]) -> tuple[float, float] | None:
        """What the target alone and the cell take for records of one prompt; None where a shape of round was never timed."""
        times = _times(self._whole, records)
        return None if times is None else (sum(times[0]), sum(times[1]))

    def speedup(self, group: Sequence[Record]) -> Estimate | None:
        """The target alone over a cell, pooled over its prompts; None where a shape of round was never timed."""
        return self._ratio(lambda clock: _times(clock, group))

    def lead(self, group: Sequence[Record], other: Sequence[Record]) -> Estimate | None:
        """The time of ``other`` over that of ``group`` on the prompts of both, above 1 where ``group`` is faster; as :meth:`speedup`."""
        shared = {r.sample_id for r in group} & {r.sample_id for r in other}
        first, second = ([r for r in side if r.sample_id in shared] for side in (group, other))

        def times(clock: Clock) -> Times | None:
            ours, theirs = _by_prompt(clock, first), _by_prompt(clock, second)
            if ours is None or theirs is None:
                return None
            return [theirs[s][1] for s in ours], [ours[s][1] for s in ours]

        return self._ratio(times)

    def _ratio(self, times: Callable[[Clock], Times | None]) -> Estimate | None:
        """Ratio of two times per prompt, its interval over the prompts and over the clocks."""
        whole = times(self._whole)
        if whole is None:
            return None
        estimate = stats.ratio(*whole)
        if estimate is None or estimate.error is None:
            return estimate
        others = [t for clock in self._without if (t := times(clock)) is not None]
        logs = np.array([math.log(sum(top) / sum(bottom)) for top, bottom in others])
        error = math.sqrt((len(logs) - 1) * float(np.var(logs))) if len(logs) > 1 else stats.CLOCK
        return stats.widened(estimate, error, freedom=max(1, len(logs) - 1))


MOST_FOLDS = 20
"""Groups of prompts that are left out in turn to see how much the clocks' medians depend on them."""


Times = tuple[list[float], list[float]]
"""Two times of every prompt, in the same order."""


def _times(clock: Clock, group: Sequence[Record]) -> Times | None:
    """Seconds of the target alone and of the cell, per prompt."""
    prompts = _by_prompt(clock, group)
    return None if prompts is None else ([base for base, _ in prompts.values()], [cell for _, cell in prompts.values()])


def _by_prompt(clock: Clock, group: Sequence[Record]) -> dict[str, list[float]] | None:
    """Sample id to the seconds of the target alone and of the cell."""
    prompts: dict[str, list[float]] = {}
    for record in group:
        base, cell = clock.plain_seconds(record), clock.seconds(record) if record.draft_lengths else None
        if base is None or cell is None:
            return None
        sums = prompts.setdefault(record.sample_id, [0.0, 0.0])
        sums[0] += base
        sums[1] += cell
    return prompts


def shares(group: Sequence[Record]) -> Mapping[str, float]:
    """Share of the emitted tokens by who proposed them."""
    if any(r.sources is None for r in group):
        return {}
    rounds = [pair for record in group for pair in zip(record.sources or (), record.accept_lengths, strict=True)]
    accepted = Counter(source for text, n in rounds for source in expanded(text, n))
    emitted = sum(r.emitted for r in group)
    return {source: n / emitted for source, n in accepted.most_common()}
