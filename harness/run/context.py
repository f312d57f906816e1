"""What the stages of one run share, and how a job's sample is decoded in its cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.core.drafter_kinds import DRAFTERS, split_name
from harness.core.protocols import LoadedPair
from harness.core.records import Generation, Place, Record, Sample, Score, Trajectory
from harness.core.schema import Measured
from harness.core.walltime import Stages
from harness.decode.length import Costs
from harness.decode.passes import Passes
from harness.results.clock import Clock
from harness.results.store import RunStore
from harness.results.thinking_counts import thinking_tokens
from harness.results.work import cost_label
from harness.run.chain_task import Crew
from harness.run.engine import TRAINED, Engine
from harness.run.trained import Trained
from harness.run.turns import Turns
from harness.suite.cells import Cell
from harness.suite.plan import Job, settings_of

DRAFT, PARALLEL, FREE = ("draft", None), ("parallel", None), ("free", None)
"""What several drafters share: the pair's draft, its parallel draft, and no model but the target."""


class Facts(Protocol):
    """Keeps what decoding learns about the machine: the store of a run, or a worker's notebook."""

    @property
    def measured(self) -> Measured:
        """What is known by now."""

    def update(self, **measured: Any) -> None:
        """Replace fields of it."""


class Notebook:
    """Facts that are kept in memory alone."""

    def __init__(self) -> None:
        self.measured = Measured()

    def update(self, **measured: Any) -> None:
        """Replace fields."""
        self.measured = dataclasses.replace(self.measured, **measured)


@dataclass(kw_only=True)
class Bench:
    """What decoding and replaying need: a loaded pair, and what is known of the answers and of the machine's speed."""

    max_tokens: int
    clock_tokens: int | None = None
    """Longest lossless answer with a clock, which is not scored; None is ``max_tokens``."""
    pair: LoadedPair
    engine: Engine
    facts: Facts
    trained: Trained = field(default_factory=Trained)
    costs: dict[str, Any] = field(default_factory=dict)
    """Cost label to calibrated costs."""
    timings: Clock = field(default_factory=Clock)
    """What the rounds of this run took so far, on machines of one kind."""
    clock: bool = True
    """Calibrate, warm up, and look now and then whether the machine became slower; False where only counts are wanted."""
    profile: bool = False
    """Record where the time of each round goes."""
    prompts: dict[str, list[int]] = field(default_factory=dict)
    baselines: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Greedy outputs of the target, decoded one at a time."""
    answers: dict[tuple[str, float], Trajectory] = field(default_factory=dict)
    """Outputs of the target, made in batches, by sample id and temperature."""
    passes: dict[Any, Passes[Any]] = field(default_factory=dict)
    """(what drafts, adapter) -> what it said along the answers."""
    scores: dict[tuple[str, tuple[int, ...]], Score] = field(default_factory=dict)
    stages: Stages = field(default_factory=Stages)
    turns: Turns = field(default_factory=Turns)
    """Caches of the conversations under way."""

    @property
    def clock_limit(self) -> int:
        """Longest answer whose end does not matter."""
        return min(self.max_tokens, self.clock_tokens or self.max_tokens)

    def thinking(self, sample_id: str, tokens: Sequence[int]) -> int | None:
        """How many tokens of an answer are thinking; None for models that do not mark it."""
        markers = getattr(self.pair, "think_markers", None)
        return None if markers is None else thinking_tokens(self.prompts[sample_id], tokens, markers)

    def target(self, sample_id: str) -> tuple[int, ...] | None:
        """The target's own greedy answer, the whole one where there is one; None where it gave none."""
        found = self.answers.get((sample_id, 0.0))
        return self.baselines.get(sample_id) if found is None else found.tokens


Until = Callable[[], bool]
"""True once no more is to be begun."""
Prompt = tuple[Sample, Sequence[Job]]
"""A prompt, and the jobs that decode it with a clock."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What replaying some jobs of a group gave."""

    group: int
    """Number of the group."""
    records: tuple[Record, ...]
    seconds: float
    """That the replay took."""


class Executor(Protocol):
    """Who does the work of a run: this process, or the workers of a cluster. Both run the same functions."""

    crew: Crew | None
    """Who trains; this process where None."""

    @property
    def width(self) -> int:
        """Prompts that are decoded at the same time."""

    def answer(self, context: Context, samples: Sequence[Sample], **sampled: Any) -> Iterable[Trajectory]:
        """The target's greedy answers, or its samples at a ``temperature`` by a ``seed``, made in batches."""

    def placed(self, trajectory: Trajectory) -> Place | None:
        """Where an answer was made; None where it is this process, or the cache."""

    def calibrate(self, context: Context, cells: Sequence[Cell]) -> None:
        """Measure every drafter whose costs are asked for, and keep them in the context and the store."""

    def warm_up(self, context: Context, jobs: Sequence[Job], sample: Sample) -> None:
        """Run each kind of cell once untimed, then the reference clock on ``sample``."""

    def decode(self, context: Context, prompts: Sequence[Prompt], until: Until, sample: Sample | None = None) -> Iterator[Record]:
        """Decode what the store lacks with a clock, all jobs of a prompt on one machine; every record is stored before it is yielded.

        Where ``sample`` is given, the reference clock runs on it now and then.
        """

    def look(self, context: Context, sample: Sample, after: str) -> None:
        """Run the reference clock."""

    def ties(self, context: Context, answers: Sequence[Trajectory]) -> list[int]:
        """Per answer, the positions where another machine may flip the target's favourite."""

    def replay(self, context: Context, groups: Sequence[Sequence[Job]], until: Until) -> Iterator[Replayed]:
        """Counts of groups of jobs that are replayed alike, in parts as they are ready."""

    def check(self, context: Context, job: Job, max_tokens: int) -> Generation:
        """Decode one job for real."""


@dataclass(kw_only=True)
class Context(Bench):
    """What the stages of one run share: the bench, where records go, and who does the work."""

    store: RunStore
    work: Executor
    spot_checks: bool = True
    """Decode one sample of every replay as a check."""


def costs_now(bench: Bench, cell: Cell) -> Any:
    """What a cell's ``auto`` goes by: the calibration, and what the run's own rounds have shown since."""
    label = cost_label(cell.drafter, settings_of(cell))
    calibrated = bench.costs[label]
    if not isinstance(calibrated, Costs):
        return calibrated
    c, v = bench.timings.costs(label, calibrated.c, calibrated.v)
    return Costs(c=calibrated.c if calibrated.once else c, v=v, once=calibrated.once)  # a round of one pass says nothing of a token


def draft_of(cell: Cell) -> tuple[Any, Any]:
    """What drafts in a cell, which decides its costs: the same for all cells of the pair's draft, and for all that run only the target."""
    kind = DRAFTERS.get(split_name(cell.drafter or "")[1])
    if cell.drafter in TRAINED or (kind is not None and kind.needs_draft and not kind.needs_parallel):
        return DRAFT
    if kind is not None and kind.needs_parallel:
        return PARALLEL
    return FREE if kind is not None and kind.model_free else (cell.drafter, cell.layers)


def generate_job(bench: Bench, job: Job, max_tokens: int) -> tuple[Generation, int]:
    """Decode one job's sample in its cell; also how many tokens of its prompt an earlier turn had read."""
    cell = job.cell
    settings: dict[str, Any] = {
        "drafter": cell.drafter,
        "temperature": cell.temperature,
        "max_tokens": max_tokens,
        "seed": job.seed,
        "loop": cell.loop,
        **bench.engine.settings(cell),
    }
    if cell.drafter is not None:
        settings.update(k=cell.k, rule=cell.rule, lenience=cell.lenience)
    if cell.k == "auto":
        settings["costs"] = costs_now(bench, cell)
    if bench.profile:
        settings["profile"] = True
    if (caches := bench.turns.caches(job.sample)) is not None:
        settings["caches"] = caches
    bench.trained.activate(job.adapter)
    if cell.drafter == "adapter":
        settings["drafter"] = bench.trained.drafter(job.adapter, bench.pair, cell.around)
    if cell.drafter == "router":
        del settings["drafter"]
        generation = bench.trained.route(bench.pair, cell, job.sample.asked, **settings)
    else:
        generation = bench.engine.generate(bench.pair, bench.prompts[job.sample.id], **settings)
    return generation, caches.reused if caches is not None else 0


def score_answer(bench: Bench, sample: Sample, tokens: tuple[int, ...], target: tuple[int, ...] | None) -> Score:
    """Score an answer beside the target's, once per distinct output: equal outputs have equal scores."""
    key = (sample.id, tokens)
    if key not in bench.scores:
        with bench.stages("score"):
            target_text = None if target is None else bench.pair.decode(target)
            score = bench.engine.score(sample, bench.pair.decode(tokens), target_text=target_text)
        bench.scores[key] = dataclasses.replace(score, reason=score.reason[:200], details={})
    return bench.scores[key]
