"""Speed from robust costs: what a cell's rounds take by the medians of the run, over every prompt that has counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.core import stats
from harness.core.records import Finish, Record, Score
from harness.core.round_sources import MODEL, accepted_by
from harness.core.stats import Estimate
from harness.results.clock import Clock
from harness.results.groups import Groups, grouped
from harness.results.work import Array, Work, work_of

MOST_FOLDS = 20
"""Groups of prompts that are left out in turn to see how much the clocks' medians depend on them."""
Times = tuple[Array, Array]
"""Two times of every prompt, in the same order: of the target alone, or another cell, and of the cell."""
Graded = tuple[Score | None, Finish]
"""What says how good an answer is."""


class Timing:
    """The clocks of a run, whole and without each prompt in turn.

    Args:
        records: all records of the run.
    """

    def __init__(self, records: Sequence[Record] | Groups) -> None:
        groups = grouped(records)
        clocked = [cell for cell in groups.cells if cell.method == "decode" and cell.loop == "own"]
        ids = groups.samples(clocked)
        fold = {sample: i % MOST_FOLDS for i, sample in enumerate(ids)}
        self._whole = Clock()
        for cell in clocked:
            for record in groups.of([cell]):
                self._whole.add(record, fold[record.sample_id])
        folds = range(min(len(ids), MOST_FOLDS))
        self._without = [self._whole.without(i) for i in folds] if len(folds) > 1 else []
        answered = [cell for cell in groups.cells if cell.method == "answer" and cell.temperature == 0]
        self._answers: dict[str, Graded] = {r.sample_id: (r.score, r.finish) for cell in answered for r in groups.of([cell])}

    def answers(self, group: Sequence[Record]) -> list[Graded]:
        """The target's whole answers that lossless records stand for; empty where there are none, or the cell has outputs of its own."""
        lossless = all(r.temperature == 0 and not r.lossy for r in group)
        return [self._answers[s] for s in dict.fromkeys(r.sample_id for r in group) if s in self._answers] if lossless else []

    def seconds(self, work: Work) -> Times | None:
        """What the target alone and the cell take, by prompt; None where a shape of round was never timed."""
        return _times(self._whole, work)

    def speedup(self, group: Sequence[Record] | Work) -> Estimate | None:
        """The target alone over a cell, pooled over its prompts; None where a shape of round was never timed."""
        work = group if isinstance(group, Work) else work_of(group)
        return self._ratio(lambda clock: _times(clock, work))

    def lead(self, group: Sequence[Record], other: Sequence[Record]) -> Estimate | None:
        """The time of ``other`` over that of ``group`` on the prompts of both, above 1 where ``group`` is faster; as :meth:`speedup`."""
        shared = {r.sample_id for r in group} & {r.sample_id for r in other}
        if not shared:
            return None
        first, second = (work_of([r for r in side if r.sample_id in shared]) for side in (group, other))
        place = {sample: i for i, sample in enumerate(second.samples)}
        order = [place[sample] for sample in first.samples]

        def times(clock: Clock) -> Times | None:
            ours, theirs = clock.cell_s(first), clock.cell_s(second)
            return None if ours is None or theirs is None else (theirs[order], ours)

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
        logs = np.array([math.log(top.sum() / bottom.sum()) for top, bottom in others])
        error = math.sqrt((len(logs) - 1) * float(np.var(logs))) if len(logs) > 1 else stats.CLOCK
        return stats.widened(estimate, error, freedom=max(1, len(logs) - 1))


def _times(clock: Clock, work: Work) -> Times | None:
    """Seconds of the target alone and of the cell, by prompt."""
    base, cell = clock.target_s(work), clock.cell_s(work)
    return None if base is None or cell is None else (base, cell)


def shares(group: Sequence[Record]) -> Mapping[str, float]:
    """Share of the emitted tokens by who proposed them; empty where that is not known of every round."""
    told = [_sources(r) for r in group]
    if any(sources is None or len(sources) != r.rounds for sources, r in zip(told, group, strict=True)):
        return {}
    rounds = (found for sources, r in zip(told, group, strict=True) for found in zip(sources or (), r.accept_lengths, strict=True))
    emitted = sum(r.emitted for r in group)
    return {source: n / emitted for source, n in accepted_by(rounds).most_common()}


def _sources(r: Record) -> Sequence[str] | None:
    """Who proposed in each round; a draft alone does not say so when it is replayed."""
    alone = r.drafter in ("generic", "adapter", "router") and "around" not in r.settings
    return (MODEL,) * len(r.accept_lengths) if r.sources is None and alone else r.sources
