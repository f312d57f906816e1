"""What the stages of one run share, and how a job's sample is decoded in its cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.core.protocols import LoadedPair
from harness.core.records import Generation, Sample, Score, Trajectory
from harness.core.walltime import Stages
from harness.decode.length import Costs
from harness.results.clock import Clock
from harness.results.store import RunStore
from harness.results.thinking import thinking_tokens
from harness.results.work import cost_label
from harness.run.engine import Engine
from harness.run.trained import Trained
from harness.run.turns import Turns
from harness.suite.experiments import Cell
from harness.suite.plan import Job, settings_of


@dataclass(kw_only=True)
class Context:
    """What the stages of one run share."""

    max_tokens: int
    clock_tokens: int | None = None
    """Longest lossless answer with a clock, which is not scored; None is ``max_tokens``."""
    pair: LoadedPair
    engine: Engine
    store: RunStore
    trained: Trained = field(default_factory=Trained)
    costs: dict[str, Any] = field(default_factory=dict)
    """Cost label to calibrated costs."""
    timings: Clock = field(default_factory=Clock)
    """What the rounds of this run took so far."""
    clock: bool = True
    """Calibrate, warm up, and look now and then whether the machine became slower; False where only counts are wanted."""
    spot_checks: bool = True
    """Decode one sample of every replay as a check."""
    profile: bool = False
    """Record where the time of each round goes."""
    prompts: dict[str, list[int]] = field(default_factory=dict)
    baselines: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Greedy outputs of the target, decoded one at a time."""
    answers: dict[str, Trajectory] = field(default_factory=dict)
    """Greedy outputs of the target, made in batches."""
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
        return self.answers[sample_id].tokens if sample_id in self.answers else self.baselines.get(sample_id)


def costs_now(context: Context, cell: Cell) -> Any:
    """What a cell's ``auto`` goes by: the calibration, and what the run's own rounds have shown since."""
    label = cost_label(cell.drafter, settings_of(cell))
    calibrated = context.costs[label]
    if not isinstance(calibrated, Costs):
        return calibrated
    c, v = context.timings.costs(label, calibrated.c, calibrated.v)
    return Costs(c=calibrated.c if calibrated.once else c, v=v, once=calibrated.once)  # a round of one pass says nothing of a token


def generate_job(context: Context, job: Job, max_tokens: int) -> tuple[Generation, int]:
    """Decode one job's sample in its cell; also how many tokens of its prompt an earlier turn had read."""
    cell = job.cell
    settings: dict[str, Any] = {
        "drafter": cell.drafter,
        "temperature": cell.temperature,
        "max_tokens": max_tokens,
        "seed": job.seed,
        "loop": cell.loop,
        **context.engine.settings(cell),
    }
    if cell.drafter is not None:
        settings.update(k=cell.k, rule=cell.rule, lenience=cell.lenience)
    if cell.k == "auto":
        settings["costs"] = costs_now(context, cell)
    if context.profile:
        settings["profile"] = True
    if (caches := context.turns.caches(job.sample)) is not None:
        settings["caches"] = caches
    context.trained.activate(job.adapter)
    if cell.drafter == "adapter":
        settings["drafter"] = context.trained.drafter(job.adapter, context.pair, cell.around)
    if cell.drafter == "router":
        del settings["drafter"]
        generation = context.trained.route(context.pair, cell, job.sample.asked, **settings)
    else:
        generation = context.engine.generate(context.pair, context.prompts[job.sample.id], **settings)
    return generation, caches.reused if caches is not None else 0


def score_answer(context: Context, sample: Sample, tokens: tuple[int, ...], target: tuple[int, ...] | None) -> Score:
    """Score an answer beside the target's, once per distinct output: equal outputs have equal scores."""
    key = (sample.id, tokens)
    if key not in context.scores:
        with context.stages("score"):
            target_text = None if target is None else context.pair.decode(target)
            score = context.engine.score(sample, context.pair.decode(tokens), target_text=target_text)
        context.scores[key] = dataclasses.replace(score, reason=score.reason[:200], details={})
    return context.scores[key]
