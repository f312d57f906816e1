"""The work of a run on a worker: plain functions over plain data, around the same code that a run in one process calls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.cluster import sent_files as files
from harness.cluster.pairs import PairSpec
from harness.cluster.seat import Seat, seat
from harness.core import machine
from harness.core.errors import HarnessError
from harness.core.paths import found_memory
from harness.core.records import Generation, Place, Record, Trajectory
from harness.results.clock import Clock
from harness.run.context import Bench, Notebook, generate_job
from harness.run.counting import replayed
from harness.run.engine import real_engine
from harness.run.jobs import calibrate, decode_job, time_reference, warm_up
from harness.run.trained import Trained
from harness.suite.cells import Cell, Recipe
from harness.suite.plan import Job

CHECK_EVERY = 10
"""Prompts between two looks at whether a machine keeps its speed."""
SAME_TOKENS = 32
"""Tokens of the answers that kinds of machine are compared by."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker has to know of a run."""

    run: str
    """Tells one client's work from another's."""
    spec: PairSpec
    max_tokens: int
    clock_tokens: int | None
    clock: bool
    profile: bool
    memory: str | None = None
    """SHA-256 of the pair's memory, where a cell drafts from it."""
    trained: bool = False
    """The run has adapters or routers, if only the plain draft came out of their training."""
    adapters: tuple[tuple[str, files.Folder], ...] = ()
    """Name and files of every adapter."""
    routers: tuple[tuple[Recipe, int | str, str | None], ...] = ()
    """What each router is for, and the SHA-256 of its file; None where there was nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a worker knows of its machine."""

    calibration: str
    """What records call it."""
    facts: Mapping[str, Any]
    """As :class:`harness.core.schema.WorkerFacts`."""
    machine: Mapping[str, Any]
    """Facts of its machine."""


@dataclass(kw_only=True)
class _Station:
    """What a worker keeps of a run."""

    bench: Bench
    ready: bool = False
    """Calibrated."""
    warm: bool = False
    clocked: int = 0
    """Prompts."""
    at: Seat = field(default_factory=seat)
    since: str = field(default_factory=machine.utc_now)

    @property
    def calibration(self) -> str:
        """What records call its costs."""
        return f"{self.at.worker} since {self.since}"

    def learned(self) -> Learned:
        """As the client keeps it."""
        measured = self.bench.facts.measured
        facts = {"worker": self.at.worker, "machine": self.at.machine, "calibration": dict(measured.calibration)}
        clocks = {"reference_s": list(measured.reference_s), "verification": list(measured.verification)}
        return Learned(calibration=self.calibration, facts=facts | clocks, machine=self.at.facts)

    def placed(self, record: Record, *, clocked: bool = False) -> Record:
        """The record with where it was made."""
        own = self.calibration if clocked else None
        return dataclasses.replace(record, place=Place(worker=self.at.worker, machine=self.at.machine, calibration=own))

    def calibrated(self, cells: Sequence[Cell]) -> None:
        """Measure the costs once."""
        if self.bench.clock and not self.ready:
            calibrate(self.bench, cells)
        self.ready = True


def learned(setup: Setup, cells: Sequence[Cell]) -> Learned:
    """Calibrate, where that was not done yet."""
    station = _station(setup)
    station.calibrated(cells)
    return station.learned()


def decoded(
    setup: Setup, cells: Sequence[Cell], prompt: Sequence[int], jobs: Sequence[Job], answer: Trajectory | None
) -> tuple[list[Record], Learned]:
    """Decode all jobs of a prompt with a clock, on costs and medians of this machine's own.

    Args:
        setup: of the run.
        cells: of the run, whose costs are measured where that was not done yet.
        prompt: its token ids.
        jobs: of one sample, baselines first.
        answer: the target's whole answer, where it gave one in a batch.
    """
    station = _station(setup)
    sample = jobs[0].sample
    bench = _with(station.bench, {sample.id: prompt}, [answer] if answer else [])
    try:
        station.calibrated(cells)
        if setup.clock and not station.warm:
            warm_up(bench, jobs)
            time_reference(bench, sample, "calibration")
        station.warm = True
        records = [station.placed(decode_job(bench, job), clocked=True) for job in jobs]
        station.clocked += 1
        if station.clocked % CHECK_EVERY == 0:
            time_reference(bench, sample, f"{station.clocked} prompts on this worker")
    finally:
        _left(bench)
    return records, station.learned()


def replayed_jobs(setup: Setup, jobs: Sequence[Job], answers: Sequence[Trajectory], costs: Mapping[str, Any]) -> tuple[list[Record], float]:
    """Counts of jobs that are replayed alike, and the seconds it took.

    Args:
        setup: of the run.
        jobs: of one group.
        answers: the target's to their prompts.
        costs: of the whole run, for ``auto``: counts of all workers pool.
    """
    station = _station(setup)
    bench = _with(
        dataclasses.replace(station.bench, costs=dict(costs), timings=Clock()), {t.sample_id: t.prompt_tokens for t in answers}, answers
    )
    started = time.perf_counter()
    try:
        records = [station.placed(record) for record in replayed(bench, jobs)]
    finally:
        _left(bench)
    return records, time.perf_counter() - started


def ties(setup: Setup, answers: Sequence[Trajectory]) -> list[int]:
    """Per answer, the positions where another machine may flip the target's favourite."""
    bench = _station(setup).bench
    return bench.engine.ties(bench.pair, answers)


def checked(setup: Setup, prompt: Sequence[int], job: Job, max_tokens: int) -> Generation:
    """Decode one job for real; its ``auto`` has no costs here, so it must have none."""
    bench = _with(_station(setup).bench, {job.sample.id: prompt}, [])
    try:
        generation, _ = generate_job(bench, job, max_tokens)
        return generation
    finally:
        _left(bench)


def counted(setup: Setup, prompt: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens and accepted tokens per round of a short greedy answer: what machines of every kind must have in common."""
    bench = _station(setup).bench
    drafter = "lookup" if bench.pair.draft is None else "generic"
    found = bench.engine.generate(bench.pair, list(prompt), drafter=drafter, k=4, max_tokens=min(SAME_TOKENS, setup.max_tokens))
    return found.tokens, found.accept_lengths


def _station(setup: Setup) -> _Station:
    own = seat()
    pair = own.pair(setup.spec)
    found: _Station = own.keep(f"run {setup.run}", lambda: _new_station(setup, pair))
    return found


def _new_station(setup: Setup, pair: Any) -> _Station:
    """What a worker needs for a run.

    Raises:
        LackingError: files of adapters or routers are not here.
        HarnessError: the pair's memory is not here, or is another one.
    """
    if setup.memory is not None:
        _check_memory(setup.memory, pair)
    bench = Bench(
        max_tokens=setup.max_tokens,
        clock_tokens=setup.clock_tokens,
        pair=pair,
        engine=real_engine(),
        facts=Notebook(),
        trained=_trained(setup, pair),
        clock=setup.clock,
        profile=setup.profile,
    )
    return _Station(bench=bench)


def _check_memory(digest: str, pair: Any) -> None:
    from harness.decode.memory import pair_memory

    if found_memory(pair.name) is None or pair_memory(pair).hash != digest:
        raise HarnessError(f"the memory of {pair.name!r} is not the client's", "Copy the client's memory to that machine's cache.")


def _trained(setup: Setup, pair: Any) -> Trained:
    if not setup.trained:
        return Trained()
    from harness.adapt.routers.routed import load_router
    from harness.adapt.training.bank import AdapterBank

    files.require([*(digest for _, folder in setup.adapters for _, digest in folder), *(d for *_, d in setup.routers if d is not None)])
    folders = {name: files.unpacked(folder) for name, folder in setup.adapters}
    routers: dict[Any, Any] = {}
    for recipe, k, digest in setup.routers:
        path = None if digest is None else files.fetched(digest)
        routers[recipe, k] = None if path is None else load_router(pair.name, folders, path=path, offline=setup.spec.offline)
    return Trained(bank=AdapterBank(pair.draft, folders, policy="cached"), routers=routers)


def _with(bench: Bench, prompts: Mapping[str, Sequence[int]], answers: Sequence[Trajectory]) -> Bench:
    """The bench with these prompts and answers alone."""
    ids = {sample: list(prompt) for sample, prompt in prompts.items()}
    return dataclasses.replace(bench, prompts=ids, answers={(t.sample_id, t.temperature): t for t in answers}, baselines={}, scores={})


def _left(bench: Bench) -> None:
    """Leave the draft as it was: other work on this worker uses it too."""
    bench.trained.activate(None)
