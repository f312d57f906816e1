"""Decode and replay the jobs of a plan: warm up, time, audit, score, write one record each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.core import machine, stats
from harness.core.interrupt import StopRequest
from harness.core.progress import Progress
from harness.core.records import Generation, Record, Sample, Score, Trajectory
from harness.core.terminal import show
from harness.core.walltime import Stages
from harness.decode.length import AUTO_MAX_K
from harness.results.store import RunStore
from harness.run.engine import TRAINED, Engine
from harness.run.trained import Trained
from harness.suite.plan import Job, Plan, settings_of

if TYPE_CHECKING:
    from rich.console import Console

REFERENCE_TOKENS = 8
"""Tokens of the fixed workload that is timed before, between and after the cells to see drift."""
WARMUP_TOKENS = 4


@dataclass(kw_only=True)
class Context:
    """What the stages of one run share."""

    max_tokens: int
    pair: Any
    engine: Engine
    store: RunStore
    trained: Trained = field(default_factory=Trained)
    costs: dict[str, Any] = field(default_factory=dict)
    profile: bool = False
    """Record where the time of each round goes."""
    clock: bool = True
    """Calibrate, warm up, and look now and then whether the machine became slower; False where only counts are wanted."""
    prompts: dict[str, list[int]] = field(default_factory=dict)
    baselines: dict[str, tuple[int, ...]] = field(default_factory=dict)
    scores: dict[tuple[str, tuple[int, ...]], Score] = field(default_factory=dict)
    stages: Stages = field(default_factory=Stages)


def execute(context: Context, plan: Plan, stop: StopRequest, console: Console) -> None:
    """All stages that need the models; stops between records when asked to."""
    todo = [job for job in (*plan.decodes, *plan.replays) if job.key not in context.store]
    if todo and context.clock and not stop.requested:
        show(console, "calibrating and warming up")
        with context.stages("calibrate"):
            _prepare(context, todo)
    checkpoints = {len(plan.prompts) * part // 4 for part in (1, 2, 3)}
    with Progress(console, total=len(todo), done=len(context.store)) as progress:
        for i, (_, jobs) in enumerate(plan.prompts):
            for job in jobs:
                if stop.requested:
                    break
                if job.key not in context.store:
                    record = _decode(context, job)
                    context.store.append(record)
                    progress.advance(record)
            if i in checkpoints and todo and not stop.requested:
                _time_reference(context, todo[0].sample, f"{i + 1} of {len(plan.prompts)} prompts")
        if not stop.requested:
            _replay(context, plan.replays, progress)
    if todo and not stop.requested:
        _time_reference(context, todo[0].sample, "the last cell")
    peak = max(context.store.manifest.measured.peak_memory_bytes, machine.peak_memory_bytes())
    context.store.update(peak_memory_bytes=peak)


def _prepare(context: Context, todo: Sequence[Job]) -> None:
    """Calibrate every drafter, run each kind of cell once untimed, and time the reference workload."""
    decodes = [job for job in todo if job.method == "decode"]
    cells = {(job.cell.drafter, job.cell.layers): job.cell for job in todo if job.cell.drafter is not None}
    lengths = [AUTO_MAX_K if job.cell.k == "auto" else job.cell.k for job in todo]
    max_k = max([8, *(k for k in lengths if isinstance(k, int))])
    calibration = dict(context.store.manifest.measured.calibration)
    measured: dict[tuple[Any, Any], Any] = {}
    for (drafter, layers), cell in cells.items():
        name = drafter_label(drafter, {"layers": layers} if layers else {})
        own = ("generic" if drafter in TRAINED else drafter, layers)
        if own not in measured:
            measured[own] = context.engine.calibrate(context.pair, cell, max_k)
        context.costs[name], calibration[name] = measured[own]
    context.store.update(calibration=calibration)
    for job in {(j.cell.drafter, j.adapter, j.cell.k, j.cell.loop, j.cell.rule, j.cell.layers): j for j in decodes}.values():
        _generate(context, job, WARMUP_TOKENS)
    _time_reference(context, todo[0].sample, "calibration")


def drafter_label(drafter: str | None, settings: dict[str, Any]) -> str:
    """Name of a drafter in tables, calibration and charts: ``target only``, ``early_exit (layers 4)``, ``lookup``."""
    own = ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))
    return (drafter or "target only") + (f" ({own})" if own else "")


def _generate(context: Context, job: Job, max_tokens: int) -> Generation:
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
        settings["costs"] = context.costs[drafter_label(cell.drafter, {"layers": cell.layers} if cell.layers else {})]
    if context.profile:
        settings["profile"] = True
    context.trained.activate(job.adapter)
    if cell.drafter == "adapter":
        settings["drafter"] = context.trained.drafter(job.adapter)
    if cell.drafter == "router":
        del settings["drafter"]
        return context.trained.route(context.pair, cell, job.sample.prompt, **settings)
    return context.engine.generate(context.pair, context.prompts[job.sample.id], **settings)


def _decode(context: Context, job: Job) -> Record:
    """Decode one sample in one cell, audit it against the baseline and score it."""
    cell, sample = job.cell, job.sample
    with context.stages("decode"):
        generation = _generate(context, job, context.max_tokens)
    if cell.drafter is None and cell.temperature == 0:
        context.baselines.setdefault(sample.id, generation.tokens)
    baseline = context.baselines.get(sample.id)
    compared = cell.drafter is not None and cell.temperature == 0 and not cell.lossy and baseline is not None
    divergence = None
    if compared and baseline != generation.tokens:
        with context.stages("check"):
            divergence = context.engine.classify(context.pair, context.prompts[sample.id], baseline, generation.tokens)
    return Record(
        experiment=cell.experiment, method="decode", loop=cell.loop, sample_id=sample.id, domain=sample.domain, drafter=cell.drafter,
        adapter=job.adapter, k=cell.k, rule=cell.rule, temperature=cell.temperature, seed=job.seed, lossy=cell.lossy,
        prompt_tokens=generation.prompt_tokens, rounds=generation.rounds, drafted=generation.drafted, accepted=generation.accepted,
        rejected=generation.rejected, accept_lengths=generation.accept_lengths, draft_lengths=generation.draft_lengths,
        emitted=generation.emitted, finish=generation.finish, prefill_s=generation.prefill_s, ttft_s=generation.ttft_s,
        draft_s=generation.draft_s, verify_s=generation.verify_s, route_s=generation.route_s, swap_s=generation.swap_s,
        wall_s=generation.wall_s, tokens=generation.tokens, divergence=divergence, compared=compared,
        settings=settings_of(cell), score=_score(context, sample, generation), profile=generation.profile,
        choice=generation.drafter if cell.drafter == "router" else None, draft_times_s=generation.draft_times_s,
        verify_times_s=generation.verify_times_s,
    )  # fmt: skip


def _score(context: Context, sample: Sample, generation: Generation) -> Score:
    """Score an answer once per distinct output: equal outputs have equal scores."""
    key = (sample.id, generation.tokens)
    if key not in context.scores:
        baseline = context.baselines.get(sample.id)
        target_text = None if baseline is None else context.pair.decode(baseline)
        with context.stages("score"):
            score = context.engine.score(sample, generation.text, target_text=target_text)
        context.scores[key] = dataclasses.replace(score, reason=score.reason[:200], details={})
    return context.scores[key]


def _replay(context: Context, jobs: Sequence[Job], progress: Any) -> None:
    """Take the counts of untimed cells from the baseline's greedy tokens."""
    _target_ties(context, jobs)
    groups: dict[tuple[str | None, str | None], list[Job]] = {}
    for job in jobs:
        if job.key not in context.store:
            groups.setdefault((job.cell.drafter, job.adapter), []).append(job)
    for (drafter, adapter), group in groups.items():
        trajectories = [_trajectory(context, sample) for sample in {job.sample.id: job.sample for job in group}.values()]
        ks = sorted({job.cell.k for job in group if isinstance(job.cell.k, int)})
        context.trained.activate(adapter)
        source = context.trained.drafter(adapter) if drafter == "adapter" else drafter
        started = time.perf_counter()
        with context.stages("replay"):
            rows = context.engine.replay(context.pair, trajectories, [source], ks)
        replay_s = time.perf_counter() - started
        by_key = {(row.sample_id, row.k): row for row in rows}
        finish = {t.sample_id: t for t in trajectories}
        records = [_replayed(job, by_key[job.sample.id, job.cell.k], finish[job.sample.id]) for job in group]
        context.store.extend(records)
        for record in records:
            progress.advance(record)
        _spot_check(context, group[0], records, replay_s)


def _target_ties(context: Context, jobs: Sequence[Job]) -> None:
    """Keep in the manifest how many near-ties of the target each replayed answer has: there another machine may answer otherwise."""
    known = context.store.manifest.measured.target_ties
    samples = {job.sample.id: job.sample for job in jobs if job.sample.id not in known}
    if samples:
        with context.stages("check"):
            found = context.engine.ties(context.pair, [_trajectory(context, sample) for sample in samples.values()])
        context.store.update(target_ties={**known, **dict(zip(samples, found, strict=True))})


def _spot_check(context: Context, job: Job, records: Sequence[Record], replay_s: float) -> None:
    """Decode one replayed sample for real; the manifest keeps whether tokens and counts of every round are equal, and what replay took."""
    replayed = records[0]
    with context.stages("check"):
        decoded = _generate(context, job, context.max_tokens)
    checks = context.store.manifest.measured.spot_checks
    equal = (decoded.accept_lengths, decoded.draft_lengths) == (replayed.accept_lengths, replayed.draft_lengths)
    near_ties = context.store.manifest.measured.target_ties[job.sample.id] + (replayed.near_ties or 0)
    check = {
        "drafter": job.adapter or job.cell.drafter,
        "sample_id": job.sample.id,
        "k": job.cell.k,
        "equal": equal and decoded.tokens == context.baselines[job.sample.id],
        "near_ties": near_ties,
        "replay_s": replay_s,
        "replayed": len(records),
    }
    context.store.update(spot_checks=[*checks, check])


def _trajectory(context: Context, sample: Sample) -> Trajectory:
    tokens = context.baselines[sample.id]
    ended = bool(tokens) and tokens[-1] in context.pair.eos_token_ids
    return Trajectory(
        sample_id=sample.id,
        domain=sample.domain,
        prompt_tokens=tuple(context.prompts[sample.id]),
        tokens=tokens,
        finish="eos" if ended else "length",
        max_tokens=context.max_tokens,
    )


def _replayed(job: Job, row: Any, trajectory: Trajectory) -> Record:
    cell = job.cell
    return Record(
        experiment=cell.experiment, method="replay", loop=cell.loop, sample_id=job.sample.id, domain=job.sample.domain,
        drafter=cell.drafter, adapter=job.adapter, k=cell.k, rule=cell.rule, temperature=cell.temperature, seed=job.seed,
        prompt_tokens=len(trajectory.prompt_tokens), rounds=row.rounds, drafted=row.drafted, accepted=row.accepted,
        rejected=row.rejected, accept_lengths=row.accept_lengths, draft_lengths=row.draft_lengths, emitted=row.emitted,
        finish=trajectory.finish, settings=settings_of(cell), near_ties=row.near_ties,
    )  # fmt: skip


def check_verification(context: Context, after: str) -> None:
    """Measure v(5), for the manifest to keep in order. What looks like a rise is measured again."""
    known = context.store.manifest.measured.verification
    with context.stages("calibrate"):
        now = context.engine.verification(context.pair)
        if stats.slower_verification([*known[:1], {"after": after, "v": now}]):
            now = min(now, context.engine.verification(context.pair))
    context.store.update(verification=[*known, {"after": after, "v": now}])


def _time_reference(context: Context, sample: Sample, after: str) -> None:
    """Time a fixed short decode, and v(5); the manifest keeps all of them in order."""
    if not context.clock:
        return
    check_verification(context, after)
    prompt = context.prompts[sample.id][-32:]
    started = time.perf_counter()
    with context.stages("calibrate"):
        context.engine.generate(context.pair, prompt, drafter=None, max_tokens=REFERENCE_TOKENS)
    elapsed = time.perf_counter() - started
    context.store.update(reference_s=[*context.store.manifest.measured.reference_s, elapsed])


def remember_baselines(context: Context, records: Sequence[Record]) -> None:
    """Take the greedy target outputs of an interrupted run for audit and replay."""
    for record in records:
        if record.drafter is None and record.temperature == 0 and record.tokens is not None:
            context.baselines.setdefault(record.sample_id, record.tokens)
