"""The stages of a run in order, and decoding with a clock: calibrate, warm up, time, audit, score, one record per job."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.core import machine, stats
from harness.core.interrupt import StopRequest
from harness.core.progress import Progress, note
from harness.core.records import Generation, Load, Record, Sample, Try
from harness.decode.length import AUTO_MAX_K, Costs
from harness.results.work import cost_label
from harness.run.context import DRAFT, FREE, Bench, Context, draft_of, generate_job, score_answer
from harness.run.counting import answer_all, replay_all
from harness.suite.cells import Cell
from harness.suite.plan import Job, Plan, settings_of

if TYPE_CHECKING:
    from rich.console import Console

REFERENCE_TOKENS = 8
"""Tokens of the fixed workload that is timed before, between and after the cells to see drift."""
WARMUP_TOKENS = 4
DISTURBED = 1.4
"""An answer that takes this many times what its own rounds take by the run's medians is decoded again."""
TRIES = 3
"""How often at most."""


def execute(context: Context, plan: Plan, stop: StopRequest, console: Console) -> Plan:
    """All stages that need the models; stops between records when asked to. Returns the plan."""
    work, todo = context.work, [job for job in (*plan.answers, *plan.decodes, *plan.replays) if job.key not in context.store]
    decodes = [job for job in todo if job.method == "decode"]
    if not stop.requested:
        answer_all(context, plan.answers, stop)
    if todo and context.clock and not stop.requested:
        note("calibrating and warming up" if decodes else "checking the machine")
        with context.stages("calibrate"):
            work.calibrate(context, [job.cell for job in todo])
            work.warm_up(context, decodes, todo[0].sample)
    with Progress(console, total=len([job for job in todo if job.method != "answer"]), done=len(context.store)) as progress:
        for record in work.decode(context, plan.prompts, lambda: stop.requested, todo[0].sample if todo else None):
            progress.advance(record)
        if not stop.requested:
            replay_all(context, plan, stop, progress)
    if todo and not stop.requested:
        work.look(context, todo[0].sample, "the last cell")
    return plan


def calibrate(bench: Bench, cells: Sequence[Cell]) -> None:
    """Calibrate every drafter whose costs are asked for."""
    wanted = [cell for cell in cells if cell.drafter is not None and (cell.k == "auto" or cell.timed)]
    calibration = dict(bench.facts.measured.calibration)
    lengths = [AUTO_MAX_K if cell.k == "auto" else cell.k for cell in cells]
    max_k = max([8, *(k for k in lengths if isinstance(k, int))])
    measured: dict[tuple[Any, Any], Any] = {}
    distinct = {(cell.drafter, cell.layers, cell.around): cell for cell in wanted}.values()
    for cell in sorted(distinct, key=lambda cell: draft_of(cell) == FREE):
        name, own = cost_label(cell.drafter, settings_of(cell)), draft_of(cell)
        if own not in measured:
            drafted = measured.get(DRAFT) if own == FREE else None
            measured[own] = _without_draft(*drafted) if drafted else bench.engine.calibrate(bench.pair, cell, max_k)
        bench.costs[name], calibration[name] = measured[own]
    bench.facts.update(calibration=calibration)


def warm_up(bench: Bench, decodes: Sequence[Job]) -> None:
    """Run each kind of cell once untimed."""
    kinds = {(j.cell.drafter, j.cell.around, j.adapter, j.cell.k, j.cell.loop, j.cell.rule, j.cell.layers): j for j in decodes}
    for job in kinds.values():
        generate_job(bench, job, WARMUP_TOKENS)


def _without_draft(costs: Any, facts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same verification, and drafts for nothing."""
    return (costs.without_draft() if isinstance(costs, Costs) else costs), {
        **facts,
        "c": 0.0,
        "once": 0.0,
        "draft_step_s": None,
    }


def decode_job(bench: Bench, job: Job) -> Record:
    """Decode one sample in one cell, again where something disturbed its clock, audit it against the baseline and score it."""
    cell, sample = job.cell, job.sample
    cut = bench.clock_tokens is not None and not cell.lossy
    max_tokens = bench.clock_limit if cut else bench.max_tokens
    tries: list[tuple[Record, float]] = []
    while True:
        with bench.stages("decode"):
            stolen, started = machine.steal_s() or 0.0, time.perf_counter()
            generation, reused = generate_job(bench, job, max_tokens)
            load = machine.load((machine.steal_s() or 0.0) - stolen, time.perf_counter() - started)
        if not tries and cell.drafter is None and cell.temperature == 0:
            bench.baselines.setdefault(sample.id, generation.tokens)
        record = _record(bench, job, generation, load, reused)
        expected = bench.timings.seconds(record)
        tries.append((record, expected or 0.0))
        if expected is None or not bench.clock or generation.wall_s <= DISTURBED * expected or len(tries) == TRIES:
            break
    best, _ = min(tries, key=lambda found: found[0].wall_s or 0.0)
    others = [Try(wall_s=r.wall_s, expected_s=s, load=r.load) for r, s in tries if r is not best and r.wall_s is not None]
    bench.timings.add(best)
    score = None if cut else score_answer(bench, sample, best.tokens or (), bench.target(sample.id))
    return dataclasses.replace(best, tries=tuple(others), score=score, **_audit(bench, job, best))


def _audit(bench: Bench, job: Job, record: Record) -> dict[str, Any]:
    """Whether the output was compared with the baseline's, and where it differs."""
    cell, baseline = job.cell, bench.baselines.get(job.sample.id)
    if cell.drafter is None or cell.temperature or cell.lossy or baseline is None or record.tokens is None:
        return {"compared": False}
    if baseline == record.tokens:
        return {"compared": True}
    with bench.stages("check"):
        found = bench.engine.classify(bench.pair, bench.prompts[job.sample.id], baseline, record.tokens)
    return {"compared": True, "divergence": found}


def _record(bench: Bench, job: Job, generation: Generation, load: Load, reused: int) -> Record:
    cell, sample = job.cell, job.sample
    return Record(
        experiment=cell.experiment, method="decode", loop=cell.loop, sample_id=sample.id, domain=sample.domain, drafter=cell.drafter,
        adapter=job.adapter, k=cell.k, rule=cell.rule, temperature=cell.temperature, seed=job.seed, repeat=job.repeat, lossy=cell.lossy,
        prompt_tokens=generation.prompt_tokens, rounds=generation.rounds, drafted=generation.drafted, accepted=generation.accepted,
        rejected=generation.rejected, accept_lengths=generation.accept_lengths, draft_lengths=generation.draft_lengths,
        emitted=generation.emitted, finish=generation.finish, reused_tokens=reused, prefill_s=generation.prefill_s,
        ttft_s=generation.ttft_s, draft_s=generation.draft_s, verify_s=generation.verify_s, route_s=generation.route_s,
        swap_s=generation.swap_s, wall_s=generation.wall_s, tokens=generation.tokens,
        thinking=bench.thinking(sample.id, generation.tokens), settings=settings_of(cell), profile=generation.profile,
        choice=generation.drafter if cell.drafter == "router" else None, sources=generation.sources,
        draft_times_s=generation.draft_times_s, verify_times_s=generation.verify_times_s, load=load,
    )  # fmt: skip


def check_verification(bench: Bench, after: str) -> None:
    """Measure v(5), for the manifest to keep in order. What looks like a rise is measured again."""
    known = bench.facts.measured.verification
    with bench.stages("calibrate"):
        now = bench.engine.verification(bench.pair)
        if stats.slower_verification([*known[:1], {"after": after, "v": now}]):
            now = min(now, bench.engine.verification(bench.pair))
    bench.facts.update(verification=(*known, {"after": after, "v": now}))


def time_reference(bench: Bench, sample: Sample, after: str) -> None:
    """Time a fixed short decode, and v(5); the manifest keeps all of them in order."""
    if not bench.clock:
        return
    check_verification(bench, after)
    prompt = bench.prompts[sample.id][-32:]
    started = time.perf_counter()
    with bench.stages("calibrate"):
        bench.engine.generate(bench.pair, prompt, drafter=None, max_tokens=REFERENCE_TOKENS)
    elapsed = time.perf_counter() - started
    bench.facts.update(reference_s=(*bench.facts.measured.reference_s, elapsed))


def remember_records(bench: Bench, records: Sequence[Record]) -> None:
    """Take the greedy target outputs of an interrupted run for audit and replay, and its clocks."""
    machine = bench.facts.measured.reference_machine
    for record in records:
        if machine in (None, record.machine):
            bench.timings.add(record)
        if record.drafter is None and record.temperature == 0 and record.tokens is not None and record.method == "decode":
            bench.baselines.setdefault(record.sample_id, record.tokens)
