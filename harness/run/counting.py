"""Counts without a clock: the target's answers in batches, and every drafter replayed along them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.cell import record_key
from harness.core.interrupt import StopRequest
from harness.core.limits import ended
from harness.core.progress import counted, note, noting
from harness.core.records import Record, Trajectory
from harness.decode.passes import Passes
from harness.run.context import Bench, Context, costs_now, draft_of, score_answer
from harness.suite.cells import Cell
from harness.suite.plan import Job, Plan, settings_of

HALF_TIE = 0.004
"""Nats between two choices that half precision cannot tell from a near-tie; wider than a near-tie, so that none is missed."""


def answer_all(context: Context, jobs: Sequence[Job], stop: StopRequest) -> None:
    """Let the target answer every prompt, in batches, greedily first; each answer is scored and becomes one record."""
    for temperature in sorted({job.cell.temperature for job in jobs}):
        if not stop.requested:
            _answer(context, [job for job in jobs if job.cell.temperature == temperature], temperature, stop)


def _answer(context: Context, jobs: Sequence[Job], temperature: float, stop: StopRequest) -> None:
    """The answers at one temperature."""
    todo = [job for job in jobs if job.key not in context.store]
    if todo:
        note(f"the target answers {len(todo)} prompts{f' at temperature {temperature:g}' if temperature else ''}")
    with context.stages("answer"):
        by_id = {job.sample.id: job for job in jobs}
        sampled = {"temperature": temperature, "seed": jobs[0].seed} if temperature else {}
        found = context.work.answer(context, [job.sample for job in jobs], **sampled)
        for trajectory in counted(found, len(jobs), "answered"):
            if stop.requested:
                return
            job = by_id[trajectory.sample_id]
            context.answers[job.sample.id, temperature] = trajectory
            if job.key not in context.store:
                context.store.append(_answered(context, job, trajectory))


def _answered(context: Context, job: Job, t: Trajectory) -> Record:
    cell, n = job.cell, len(t.tokens)
    target = context.target(t.sample_id) if cell.temperature else t.tokens
    return Record(
        experiment=cell.experiment, method="answer", loop=cell.loop, sample_id=t.sample_id, domain=t.domain, drafter=None, k=None,
        temperature=cell.temperature, seed=job.seed, prompt_tokens=len(t.prompt_tokens), rounds=n, drafted=0, accepted=0, rejected=0,
        accept_lengths=(0,) * n, draft_lengths=(0,) * n, emitted=n, finish=t.finish, tokens=t.tokens,
        thinking=context.thinking(t.sample_id, t.tokens), score=score_answer(context, job.sample, t.tokens, target),
        place=context.work.placed(t),
    )  # fmt: skip


def replay_all(context: Context, plan: Plan, stop: StopRequest, progress: Any) -> None:
    """Take the counts of every job that needs no clock from the target's answers."""
    _target_ties(context, plan.replays)
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in plan.replays:
        if job.key not in context.store:
            alike.setdefault(_alike(job), []).append(job)
    groups = list(alike.values())
    done, first, known = [0] * len(groups), dict[int, Record](), context.store.measured.replayed
    records, seconds = (known["records"], known["seconds"]) if known else (0, 0.0)
    for part in context.work.replay(context, groups, lambda: stop.requested):
        context.store.extend(part.records)
        progress.replayed(part.records)
        done[part.group] += len(part.records)
        records, seconds = records + len(part.records), seconds + part.seconds
        group = groups[part.group]
        if (found := next((r for r in part.records if record_key(r) == group[0].key), None)) is not None:
            first[part.group] = found
        if context.spot_checks and done[part.group] == len(group):
            context.store.update(replayed={"records": records, "seconds": seconds})
            _spot_check(context, group[0], first[part.group])
    if groups:
        context.store.update(replayed={"records": records, "seconds": seconds})


def _alike(job: Job) -> tuple[Any, ...]:
    """Jobs that are replayed together: one draft pass gives every fixed length."""
    cell = job.cell
    return (
        cell.drafter,
        cell.around,
        job.adapter,
        cell.layers,
        cell.ngram,
        cell.options,
        cell.recipe if cell.drafter == "router" else None,
        (cell.temperature, cell.rule),
        _policy(cell),
    )


def _policy(cell: Cell) -> Any:
    return cell.k if isinstance(cell.k, str) or cell.drafter == "router" else None


def replayed(bench: Bench, group: Sequence[Job]) -> list[Record]:
    """Counts of jobs that are replayed alike, from the target's answers that the bench holds."""
    if group[0].cell.drafter == "router":
        return _routed(bench, group)
    answers = {job.sample.id: answer(bench, job) for job in group}
    rows = _rows(bench, group[0], list(answers.values()), sorted({job.cell.k for job in group}, key=str))
    by_key = {(row.sample_id, row.k): row for row in rows}
    return [_record(bench, job, by_key[job.sample.id, job.cell.k], answers[job.sample.id]) for job in group]


def _rows(bench: Bench, job: Job, answers: Sequence[Trajectory], ks: Sequence[Any]) -> list[Any]:
    """Replay rows of a job's drafter with its adapter in place."""
    cell, adapter = job.cell, job.adapter
    bench.trained.activate(adapter)
    source = bench.trained.drafter(adapter, bench.pair, cell.around) if cell.drafter == "adapter" else cell.drafter
    how = {"costs": costs_now(bench, cell)} if "auto" in ks else {}
    return _replay(bench, job, adapter, source, answers, ks, how)


def _replay(
    bench: Bench, job: Job, adapter: str | None, source: Any, answers: Sequence[Trajectory], ks: Sequence[Any], how: Mapping[str, Any]
) -> list[Any]:
    """Rows of a drafter around a draft with one adapter, from what that draft said before where that is known."""
    cell = job.cell
    known, progress = bench.passes.setdefault((draft_of(cell), adapter), Passes()), noting(len(answers), "answers replayed")
    settings = bench.engine.settings(cell)
    if cell.temperature:
        settings |= {"temperature": cell.temperature, "rule": cell.rule, "seed": job.seed}
    return bench.engine.replay(bench.pair, answers, [source], ks, known=known, progress=progress, **how, **settings)


def _routed(bench: Bench, group: Sequence[Job]) -> list[Record]:
    """Counts of a router: each prompt with the drafter it would choose."""
    cell = group[0].cell
    choices = {job.sample.id: bench.trained.choose(cell, job.sample.asked) for job in group}
    rows: dict[str, Any] = {}
    for arm in dict.fromkeys(choices.values()):
        own = [answer(bench, job) for job in group if choices[job.sample.id] == arm]
        rows |= {row.sample_id: row for row in _arm_rows(bench, group[0], arm, own)}
    return [
        dataclasses.replace(_record(bench, job, rows[job.sample.id], answer(bench, job)), choice=choices[job.sample.id]) for job in group
    ]


def _arm_rows(bench: Bench, job: Job, arm: str, answers: Sequence[Trajectory]) -> list[Any]:
    """Replay rows of one of the router's arms."""
    from harness.adapt.routers.arms import arm_drafter, arm_parts, costs_of

    cell = job.cell
    source = arm_drafter(bench.pair, bench.trained.bank, arm, cell.around)
    if source is None:
        return _plain(answers)
    how = {"costs": costs_of(arm, costs_now(bench, cell), cell.around)} if cell.k == "auto" else {}
    return _replay(bench, job, arm_parts(arm)[1], source, answers, [cell.k], how)


def _plain(answers: Sequence[Trajectory]) -> list[Any]:
    """Replay rows of answers that a router decodes without drafting."""
    from harness.decode.replay import ReplayRow

    shared: dict[str, Any] = {"drafter": "plain", "k": 0, "drafted": 0, "accepted": 0, "rejected": 0}
    return [
        ReplayRow(
            sample_id=t.sample_id, domain=t.domain, rounds=n, emitted=n, accept_lengths=(0,) * n, draft_lengths=(0,) * n,
            sources=("",) * n, **shared,
        )
        for t in answers
        for n in [len(t.tokens)]
    ]  # fmt: skip


def _record(bench: Bench, job: Job, row: Any, t: Trajectory) -> Record:
    cell = job.cell
    return Record(
        experiment=cell.experiment, method="replay", loop=cell.loop, sample_id=job.sample.id, domain=job.sample.domain,
        drafter=cell.drafter, adapter=job.adapter, k=cell.k, rule=cell.rule, temperature=cell.temperature, seed=job.seed,
        prompt_tokens=len(t.prompt_tokens), rounds=row.rounds, drafted=row.drafted, accepted=row.accepted,
        rejected=row.rejected, accept_lengths=row.accept_lengths, draft_lengths=row.draft_lengths, emitted=row.emitted,
        finish=t.finish, thinking=bench.thinking(t.sample_id, t.tokens),
        settings=settings_of(cell), near_ties=row.near_ties, sources=row.sources,
    )  # fmt: skip


def answer(bench: Bench, job: Job) -> Trajectory:
    """The target's answer that a job is replayed along: from a batch, or a greedy one as it was decoded with a clock."""
    sample = job.sample
    if (found := bench.answers.get((sample.id, job.cell.temperature))) is not None:
        return found
    tokens = bench.baselines[sample.id]
    prompt = bench.prompts[sample.id]
    by_model = bool(tokens) and tokens[-1] in bench.pair.eos_token_ids
    return Trajectory(
        sample_id=sample.id,
        domain=sample.domain,
        prompt_tokens=tuple(prompt),
        tokens=tokens,
        finish="eos" if by_model else ended(bench.pair.context_tokens, len(prompt), len(tokens)),
        max_tokens=bench.max_tokens,
    )


def _target_ties(context: Context, jobs: Sequence[Job]) -> None:
    """Keep in the manifest how many near-ties of the target each replayed answer has: there another machine may answer otherwise."""
    known = context.store.measured.target_ties
    greedy = {job.sample.id: job for job in jobs if job.sample.id not in known and job.cell.temperature == 0}
    whole = [answer(context, job) for job in greedy.values()]
    found = {t.sample_id: n for t in whole if (n := _close(t)) is not None}
    rest = [t for t in whole if t.sample_id not in found]
    if rest:
        with context.stages("check"):
            found |= dict(zip((t.sample_id for t in rest), context.work.ties(context, rest), strict=True))
    if found:
        context.store.update(target_ties={**known, **found})


def _close(t: Trajectory) -> int | None:
    """Positions where the target's first two choices are close by the half-precision probabilities that its answer keeps; None without."""
    if t.top_logprobs is None:
        return None
    return sum(len(top) > 1 and bool(top[0] - top[1] < HALF_TIE) for top in t.top_logprobs)


def _spot_check(context: Context, job: Job, record: Record) -> None:
    """Decode one replayed sample for real; the manifest keeps whether tokens and counts of every round are equal.

    Left out are policies that learn their costs while the run goes on, since another moment has other costs, and samples, since
    decoding draws others.
    """
    if job.cell.k == "auto" or job.cell.temperature:
        return
    whole = answer(context, job)
    with context.stages("check"):
        limit = context.clock_limit
        decoded = context.work.check(context, job, limit)
    checks = context.store.measured.spot_checks
    ended = decoded.emitted < limit or limit == context.max_tokens
    rounds = None if ended else _settled(decoded.accept_lengths, job.cell.k, limit)
    equal = all(getattr(decoded, name)[:rounds] == getattr(record, name)[:rounds] for name in ("accept_lengths", "draft_lengths"))
    near_ties = context.store.measured.target_ties[job.sample.id] + (record.near_ties or 0)
    check = {
        "drafter": job.adapter or job.cell.drafter,
        "sample_id": job.sample.id,
        "k": job.cell.k,
        "equal": equal and decoded.tokens == whole.tokens[: decoded.emitted],
        "near_ties": near_ties,
    }
    context.store.update(spot_checks=(*checks, check))


def _settled(accepted: Sequence[int], k: Any, limit: int) -> int:
    """Rounds of an answer cut at ``limit`` tokens that the cut did not shorten."""
    position, rounds = 0, 0
    longest = k if isinstance(k, int) else max(accepted, default=0) + 8
    for n in accepted:
        if position + longest + 1 > limit:
            break
        position, rounds = position + n + 1, rounds + 1
    return rounds
