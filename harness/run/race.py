"""A run that clocks only what can still win: counts of everything by replay first, then a clock on fewer and fewer candidates."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from harness.core.interrupt import StopRequest
from harness.core.progress import Progress, note
from harness.core.records import Record
from harness.core.stats import Estimate
from harness.results.recommend import ALPHA, SAME
from harness.results.robust import Timing
from harness.results.summary import ALL, CellRow, summarise
from harness.run.context import Context
from harness.run.counting import answer_all, replay_all
from harness.suite.plan import Job, Plan, candidate, candidate_of

if TYPE_CHECKING:
    from rich.console import Console

MARGIN = 0.15
"""What is predicted to be slower than the best by more than this part is not clocked: predictions are off by less."""
CLOSE = 0.03
"""Of one drafter only lengths are clocked whose predictions are this close to its best: their costs are the same, so less is uncertain."""
FIRST_LOOK = 3
"""Prompts that are clocked before anything is left out; one of every domain where there are more."""
CHECK_EVERY = 5
"""Prompts between two looks at whether the machine keeps its speed."""

Ended = Literal["", "decided", "time", "prompts"]
Speeds = Mapping[str, Estimate | None]
"""Candidate to a ratio of times; None where a shape of its rounds was never timed."""


def race(context: Context, plan: Plan, stop: StopRequest, console: Console) -> Plan:
    """All stages of a run whose suite says ``race``; returns the part of the plan that is clocked.

    After every prompt the candidates are compared on the counts of all prompts, by the medians of the rounds so far. What is shown to be
    slower than the best, or than the target alone, is dropped. It ends when nothing is open, or the time or the prompts are used up.
    """
    facts = context.store.measured.race
    over = facts is not None and facts["ended"] in ("decided", "prompts")
    if not stop.requested:
        answer_all(context, plan.answers, stop)
    if not (over or stop.requested):
        note("calibrating")
        with context.stages("calibrate"):
            context.work.calibrate(context, [job.cell for job in plan.jobs.values()])
        with Progress(console, total=sum(job.key not in context.store for job in plan.replays)) as progress:
            replay_all(context, plan, stop, progress)
    if not (over or stop.requested):
        _Race(context, plan, console).run(stop)
    facts = context.store.measured.race
    return plan if facts is None else plan.clocking(facts["clocked"])


class _Race:
    """Where the race stands."""

    def __init__(self, context: Context, plan: Plan, console: Console) -> None:
        self.context, self.plan, self.console = context, plan, console
        self.domains = {job.cell.domain for job in plan.answers}
        self.target = candidate(plan.answers[0].cell)
        self.records = list(context.store.records)
        self.counts: dict[str, list[Record]] = {}
        """Candidate to its counts on all prompts."""
        for r in self.records:
            if r.method == "replay":
                self.counts.setdefault(candidate_of(r.experiment, r.drafter, r.k, r.settings), []).append(r)
        known = context.store.measured.race
        self.clocked = dict(known["clocked"]) if known else dict.fromkeys((self.target, *self._entries()), 0)
        self.dropped = list(known["dropped"]) if known else []

    @property
    def left(self) -> list[str]:
        """Drafting candidates that can still win."""
        return [name for name in self.clocked if name != self.target and name not in self.dropped]

    def run(self, stop: StopRequest) -> None:
        """Clock prompt by prompt."""
        prompts = self.plan.prompts
        start, last_s, decided, width = self._start(), 0.0, False, self.context.work.width
        note(f"{len(self.counts)} ways of drafting counted, on the clock: {', '.join(map(_short, self.left))}")
        with self.context.stages("calibrate"):
            self.context.work.warm_up(self.context, [job for _, jobs in prompts for job in self._racing(jobs)], prompts[0][0])
        with Progress(self.console, total=(len(self.left) + 1) * (len(prompts) - start)) as progress:
            for i in range(start, len(prompts), width):
                if stop.interrupted or stop.left_s <= last_s:
                    break
                began = time.monotonic()
                done = self._clock(i, width, stop, progress)
                if not stop.interrupted and (decided := self._decided(done)):
                    break
                last_s = time.monotonic() - began
        if not stop.interrupted:
            self.context.work.look(self.context, prompts[0][0], "the last cell")
            self._keep("decided" if decided else "prompts" if self.clocked[self.target] == len(prompts) else "time")

    def _start(self) -> int:
        """The first prompt to look at: a killed run may have broken off within some of the last ones."""
        clocked = self.clocked[self.target]
        prompts = self.plan.prompts[:clocked]
        unfinished = (i for i, (_, jobs) in enumerate(prompts) if any(j.key not in self.context.store for j in self._racing(jobs)))
        return min(next(unfinished, clocked), max(0, clocked - 1))

    def _clock(self, i: int, width: int, stop: StopRequest, progress: Progress) -> int:
        """The next prompts with the target alone and everything that is left; the manifest says so before the first record is written.

        Returns:
            How many prompts of the plan are clocked then.
        """
        prompts = self.plan.prompts[i : i + width]
        done = i + len(prompts)
        self.clocked |= dict.fromkeys((self.target, *self.left), max(done, self.clocked[self.target]))
        self._keep("")
        racing = [(sample, self._racing(jobs)) for sample, jobs in prompts]
        for record in self.context.work.decode(self.context, racing, lambda: stop.interrupted):
            self.records.append(record)
            progress.advance(record)
        if not stop.interrupted and done // CHECK_EVERY > i // CHECK_EVERY:
            self.context.work.look(self.context, prompts[-1][0], f"{done} of {len(self.plan.prompts)} prompts")
        return done

    def _racing(self, jobs: Sequence[Job]) -> list[Job]:
        racing = (self.target, *self.left)
        return [job for job in jobs if candidate(job.cell) in racing]

    def _keep(self, ended: Ended) -> None:
        self.context.store.update(race={"clocked": dict(self.clocked), "dropped": list(self.dropped), "ended": ended})

    def _entries(self) -> list[str]:
        rows = summarise(self.records, self.context.store.measured.calibration)
        scope = ALL if len(self.domains) > 1 else next(iter(self.domains))
        return entries([row for row in rows if row.drafter is not None and row.domain in (scope, row.settings.get("adapter_domain"))])

    def _decided(self, prompts: int) -> bool:
        """Compare what is left after so many prompts and drop what cannot win; True when nothing is open any more."""
        if prompts < max(FIRST_LOOK, len(self.domains)):
            return False
        timing = Timing(self.records)
        speeds = {name: timing.speedup(self.counts[name]) for name in self.left}
        best = fastest(speeds)
        leads = {name: timing.lead(self.counts[best], self.counts[name]) for name in speeds if best not in (None, name)}
        for name in losers(speeds, leads, looks=prompts, tried=len(self.clocked)):
            self.dropped.append(name)
            speed = speeds[name]
            note(f"after {prompts} prompts {_short(name)} is out" + (f", at {speed.value:.2f}x" if speed else ""))
        return settled(best, {name: speeds[name] for name in self.left}, leads, tried=len(self.clocked))


def entries(rows: Sequence[CellRow]) -> list[str]:
    """What to clock: of every drafter the best fixed length and each policy, as far as their predictions are near the best ones.

    What has no prediction is not judged by it.
    """
    families: dict[tuple[str | None, str], list[CellRow]] = {}
    for row in rows:
        families.setdefault((row.drafter, row.settings.key), []).append(row)
    top = max((row.predicted for row in rows if row.predicted), default=1.0)
    found: list[CellRow] = []
    for family in families.values():
        promise = {row.k: row.predicted for row in family if row.predicted}
        least = max(min(top, (1 - MARGIN) * max(1.0, top)), (1 - CLOSE) * max(promise.values(), default=0.0))
        fixed = max((k for k in promise if isinstance(k, int)), key=lambda k: promise[k], default=None)
        wanted = [k for k in promise if promise[k] >= least and (k == fixed or isinstance(k, str))]
        found += [row for row in family if row.k in wanted or not row.predicted]
    return [candidate_of(row.experiment, row.drafter, row.k, row.settings) for row in found]


def fastest(speeds: Speeds) -> str | None:
    """The candidate with the highest speedup; None where none is known."""
    known = {name: speed.value for name, speed in speeds.items() if speed is not None}
    return max(known, key=lambda name: known[name], default=None)


def losers(speeds: Speeds, leads: Speeds, *, looks: int, tried: int) -> list[str]:
    """Candidates that are shown to be slower than the target alone, or than the best.

    Args:
        speeds: speedup over the target alone.
        leads: time of a candidate over that of the best.
        looks: how often there was a look by now. Look n may err with a part of 6 / (pi n)^2 of :data:`ALPHA`: all of them add up to it.
        tried: candidates that are compared.
    """
    level = ALPHA * 6 / (math.pi * looks) ** 2 / tried
    slower = [name for name, speed in speeds.items() if _shown(speed, level) < 0]
    return slower + [name for name, lead in leads.items() if name not in slower and _shown(lead, level) > 0]


def _shown(ratio: Estimate | None, level: float) -> int:
    """1 where a ratio of times is shown to be above 1, -1 where below, else 0."""
    if ratio is None or ratio.p is None or ratio.p >= level:
        return 0
    return 1 if ratio.value > 1 else -1


def settled(best: str | None, speeds: Speeds, leads: Speeds, *, tried: int) -> bool:
    """Whether nothing is open among what is left (``speeds``): the best is known to be faster than the target alone, or as fast, and the
    others to be as fast as the best. Two speeds within :data:`SAME` of each other are as good as each other."""
    if best is None or best not in speeds:
        return not speeds
    known = _shown(speeds[best], ALPHA / tried) > 0 or _alike(speeds[best])
    return known and all(_alike(leads[name]) for name in speeds if name != best)


def _alike(ratio: Estimate | None) -> bool:
    if ratio is None or ratio.low is None or ratio.high is None:
        return False
    return ratio.low >= 1 / (1 + SAME) and ratio.high <= 1 + SAME


def _short(name: str) -> str:
    """A candidate without the entry of the suite it stands in."""
    return name.partition(": ")[2]
