"""Run a suite: samples, pair, calibration, then every prompt through all of its cells, one durable record each."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import scoring
from harness.core import machine
from harness.core.drafter_kinds import needs_memory, remembers
from harness.core.errors import HarnessError
from harness.core.interrupt import StopRequest
from harness.core.paths import found_memory
from harness.core.progress import note, notes_to
from harness.core.protocols import LoadedPair
from harness.core.records import Sample
from harness.core.terminal import show
from harness.core.walltime import Stages
from harness.datasets.splits import refuse_leaks
from harness.models.head_config import read_head_config
from harness.models.naming import pair_name
from harness.results.manifest import Manifest, prompt_hash, read_manifest, resume_command, run_folder
from harness.results.parquet import read_groups
from harness.results.store import RunStore, check_writable, new_run_name
from harness.run.context import Context, Executor
from harness.run.engine import Engine, real_engine
from harness.run.estimate import remember
from harness.run.here import ThisProcess
from harness.run.jobs import check_verification, execute, remember_records
from harness.run.keep_texts import keep_texts
from harness.run.race import race
from harness.run.trained import Trained, check_configs, routes_to_memory
from harness.suite.cells import Cell
from harness.suite.plan import Plan, foreign, make_plan, recorded_plan

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cluster.client import Cluster
    from harness.models.shards import Shards
    from harness.suite.suite import Suite


def run_suite(
    suite: Suite,
    *,
    results_dir: Path,
    resume: str | None = None,
    offline: bool = False,
    fallback: bool = False,
    profile: bool = False,
    clock: bool = True,
    minutes: float | None = None,
    console: Console | None = None,
    engine: Engine | None = None,
    shards: Shards | None = None,
    cluster: Cluster | None = None,
) -> Path:
    """Decode every sample of the suite in every cell and write the run folder and its report.

    Args:
        suite: from :func:`harness.suite.suite.load_suite`.
        results_dir: folder of the run folders; reports go to ``reports/`` beside it.
        resume: name or path of an interrupted run to go on with.
        offline: use only what is in the cache.
        fallback: where the pair's draft is missing or does not fit, leave out the cells that need one; the report says so.
        profile: record where the time of each round goes; cells of mlx-lm's loop have no profile.
        clock: False leaves out calibration, warm-up and the checks that the machine keeps its speed: counts do not need them. The report
            then predicts no speedup.
        minutes: stop after as many with what is known by then; None takes what it takes.
        console: where to show progress; a new one on stdout when None.
        engine: replaces models and decoding in tests.
        shards: the processes that share the target, this one their first; None keeps it in this process.
        cluster: whose workers decode, replay and train; this process does where None.

    Returns:
        The run folder.

    Raises:
        HarnessError: results cannot be written, a dataset or pair cannot be read, a prompt is too long,
            or the run to resume was made with something else.
        KeyboardInterrupt: interrupted; everything finished is on disk and in a partial report.
    """
    from rich.console import Console

    until = time.monotonic() + 60 * minutes if minutes is not None else math.inf
    console = console or Console()
    check_configs(suite.cells(), pair_name(suite.models))
    if not clock and suite.race:
        raise HarnessError("a race is run by the clock", "Run without --no-clock, or with --set race=false.")
    if not clock and any(cell.k == "auto" for cell in suite.cells()):
        raise HarnessError(
            "k: auto weighs costs that only a calibration measures", "Run without --no-clock, or drop the entries with k: auto."
        )
    check_writable(results_dir)
    folder = run_folder(results_dir, resume) if resume else results_dir / new_run_name(suite.name, pair_name(suite.models), results_dir)
    engine = engine or real_engine()
    facts = {**machine.machine_facts(), **engine.facts(), **(shards.facts() if shards else {})}
    facts |= {} if cluster is None else {"cluster": "yes"}
    with ExitStack() as held:
        store = held.enter_context(_reopened(folder, suite, facts)) if resume else None
        before = None if store is None else store.manifest
        stages = Stages(before.measured.time_s if before else None)
        with stages("load"):
            samples = _samples(suite, engine, offline)
            if store is not None:
                _same_prompts(dict.fromkeys(store.manifest.prompts, ""), dict.fromkeys((sample.id for sample in samples), ""))
                _no_foreign(store, recorded_plan(store.manifest, samples))
            warnings = _warn(samples, before, console)
            given = {"fallback": fallback, "draft_context": suite.draft_context, "shards": shards, "lazy": cluster is not None}
            pair = engine.load_pair(suite.models, offline=offline, **{name: value for name, value in given.items() if value})
            prompts = {sample.id: pair.encode(sample.asked) for sample in samples}
            memory = _memory(suite, pair, samples)
        identity = {sample.id: prompt_hash(prompts[sample.id], sample.reference) for sample in samples}
        manifest = _manifest(folder.name, suite, pair, engine.dtype(pair), facts, identity, memory)
        if store is None:
            store = held.enter_context(RunStore.create(folder, manifest))
        else:
            _same("models", store.manifest.models, manifest.models)
            _same_prompts(store.manifest.prompts, manifest.prompts)
        held.enter_context(notes_to(partial(show, console)))
        stop = held.enter_context(StopRequest(console, until))
        if store.repaired_bytes:
            note(f"moved a half-written last line ({store.repaired_bytes} bytes) to {folder}/records.torn")
        store.update(warnings=warnings)
        keep_texts(folder, samples, store.records, pair.decode)
        context = Context(
            max_tokens=suite.max_tokens,
            clock_tokens=suite.clocked and suite.clock_tokens,
            pair=pair,
            engine=engine,
            store=store,
            facts=store,
            work=_executor(cluster, pair, suite, offline, stop),
            prompts=prompts,
            profile=profile,
            clock=clock,
            spot_checks=not suite.race,
            stages=stages,
        )
        unfinished = True
        with suppress(Stopped):
            cells = _possible(context, suite.cells(), fallback)
            if clock and cluster is None:
                check_verification(context, "loading")
            load = partial(engine.load_samples, offline=offline)
            with stages("train"):
                context.trained = _train(context, suite, cells, samples, load, stop)
            remember_records(context, store.records)
            plan = make_plan(cells, samples, suite.seed, context.trained.adapter, clocked=suite.clocked, repeats=suite.repeats)
            store.update(planned=len(plan.jobs), samples_replayed=True)
            plan = (race if suite.race else execute)(context, plan, stop, console)
            store.update(planned=len(plan.jobs))
            unfinished = any(key not in store for key in plan.jobs)
        store.update(peak_memory_bytes=max(store.measured.peak_memory_bytes, machine.peak_memory_bytes()))
        if unfinished:
            store.update(status="interrupted", time_s=stages.seconds())
        else:
            store.finish(time_s=stages.seconds())
        keep_texts(folder, samples, store.records, pair.decode)
        generic = store.measured.calibration.get("generic")
        if cluster is None:
            remember(pair.name, store.records, generic["c"] if generic else None)
    if len(store):
        _report(store, console)
    if unfinished:
        what = "interrupted" if stop.interrupted else "the time was up before the counts were complete"
        show(console, f"{what}; go on with: {resume_command(store.manifest)}")
    if stop.interrupted:
        raise KeyboardInterrupt
    return folder


class Stopped(Exception):
    """Ctrl-C while training."""


def _executor(cluster: Cluster | None, pair: LoadedPair, suite: Suite, offline: bool, stop: StopRequest) -> Executor:
    """Who does the work."""
    if cluster is None:
        return ThisProcess()
    from harness.run.spread import OnCluster

    spec = cluster.spec_of(pair, suite.models, offline=offline, draft_context=suite.draft_context)
    work = OnCluster(cluster, spec, one_kind=suite.race)
    work.until = lambda: stop.interrupted
    return work


def _possible(context: Context, cells: Sequence[Cell], fallback: bool) -> list[Cell]:
    """Leave out what this pair cannot do, and note it for the report: mlx-lm's own loop needs a draft with the target's vocabulary."""
    draft = context.pair.draft
    own_ids = draft is not None and (draft.token_map is not None or draft.translation is not None)
    skipped = [c for c in cells if own_ids and c.loop == "mlx-lm" and c.drafter is not None]
    forgotten = [c for c in cells if found_memory(context.pair.name) is None and needs_memory(c.outer)]
    alone = [c for c in cells if c.needs_draft] if fallback and draft is None else []
    context.store.update(
        skipped=tuple(sorted({c.experiment for c in skipped})),
        without_memory=tuple(sorted({c.outer for c in forgotten if c.outer})),
        without_draft=(getattr(context.pair, "without_draft", None) or "it was named without a draft") if alone else None,
    )
    return [c for c in cells if c not in (*skipped, *forgotten, *alone)]


def _train(context: Context, suite: Suite, cells: Sequence[Cell], samples: Sequence[Sample], load: Any, stop: StopRequest) -> Trained:
    """Train what the suite's cells need; a resumed run must find the adapters it began with."""

    def check() -> None:
        if stop.requested:
            raise Stopped

    crew = {} if context.work.crew is None else {"crew": context.work.crew}
    trained = context.engine.train(context.pair, suite, cells, samples, load, check, **crew)
    before, facts = context.store.measured.adapters, trained.facts()
    for name, adapter in before.items():
        _same(f"adapters.{name}.hash", adapter["hash"], facts["adapters"].get(name, {}).get("hash"))
    if known := context.store.manifest.measured.installed:
        _same("installed", dict(known), facts["installed"])
    context.store.update(**facts)
    return trained


def reports_folder(folder: Path) -> Path:
    """Where the reports of a run folder go: ``reports/<run>`` beside the results folder."""
    return folder.resolve().parent.parent / "reports" / folder.name


def _samples(suite: Suite, engine: Engine, offline: bool) -> list[Sample]:
    samples = []
    for domain, spec in suite.domains.items():
        samples += engine.load_samples(spec, domain=domain, seed=suite.seed, offline=offline)
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise HarnessError(f"sample id {sample.id!r} occurs twice", "Give every prompt its own id, and use each dataset in one domain.")
        seen.add(sample.id)
    return samples


def _memory(suite: Suite, pair: LoadedPair, samples: Sequence[Sample]) -> dict[str, str]:
    """Name the pair's memory in the manifest where a cell drafts from it, and refuse one that knows the prompts of this run."""
    if found_memory(pair.name) is None or not any(remembers(cell.outer) or routes_to_memory(cell) for cell in suite.cells()):
        return {}
    from harness.decode.memory import pair_memory

    memory = pair_memory(pair)
    refuse_leaks(memory.samples(), samples)
    return {"memory": memory.hash}


def _warn(samples: Sequence[Sample], before: Manifest | None, console: Console) -> list[str]:
    """Say before the models load what this machine cannot do for ``samples``; the report repeats it, also for a part run elsewhere."""
    text = scoring.warning(samples)
    if text:
        show(console, f"Warning: {text}", "yellow")
    return list(dict.fromkeys([*(before.measured.warnings if before else ()), *filter(None, [text])]))


def _manifest(
    name: str, suite: Suite, pair: LoadedPair, dtype: str, facts: dict[str, Any], prompts: Mapping[str, str], memory: dict[str, str]
) -> Manifest:
    return Manifest(
        run=name,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pair=pair.name,
        suite=suite.resolved(),
        suite_hash=suite.hash(),
        models={**_model_facts(pair, dtype), **memory},
        code=machine.code_state(),
        packages=machine.package_versions(),
        machine=facts,
        seeds=(suite.seed,),
        prompts=prompts,
    )


def _model_facts(pair: LoadedPair, dtype: str) -> dict[str, str | None]:
    draft, folder = pair.draft, getattr(pair, "head_folder", None)
    return {
        "target": pair.target_hash,
        "draft": None if draft is None else draft.hash,
        "draft_vocab": None if draft is None else draft.vocab_hash,
        "draft_name": None if draft is None else draft.name,
        "dtype": dtype,
        **({} if folder is None else {"head": read_head_config(folder).sha256}),
        **({} if draft is None or draft.translation is None else {"translated": draft.translation.reason}),
        **({} if (most := getattr(pair.config, "draft_context", None)) is None else {"draft_context": str(most)}),
    }


def _reopened(folder: Path, suite: Suite, now: Mapping[str, Any]) -> RunStore:
    """An interrupted run, opened to go on with; its records are read here once."""
    _same_before_loading(read_manifest(folder), suite, now)
    return RunStore.resume(folder, read_groups)


def _same_before_loading(before: Manifest, suite: Suite, now: Mapping[str, Any]) -> None:
    """Refuse to resume a run made with another suite, other code or packages, or on another machine."""
    if before.suite_hash != suite.hash():
        _same("suite", before.suite, suite.resolved())
        raise HarnessError("cannot resume: suite_hash differs", "Start a new run.")
    _same("code.hash", before.code.get("hash"), machine.source_hash())
    _same("packages", before.packages, machine.package_versions())
    if before.machine.get("cluster") != now.get("cluster"):
        where = "a cluster" if before.machine.get("cluster") else "one machine"
        raise HarnessError(f"cannot resume: the run was started on {where}", "Go on in the same way: with --cluster, or without it.")
    names = {*before.machine, *now} - {"memory_bytes"} if now.get("cluster") is None else set()  # workers have clocks of their own
    for name in sorted(names):
        if before.machine.get(name) != now.get(name):
            raise HarnessError(
                f"cannot resume: the run was made with {name} {before.machine.get(name)!r}, here it is {now.get(name)!r}; "
                "clocks of two machines must not mix in one run",
                "Go on where the run was started, or start a new run here.",
            )


def _no_foreign(store: RunStore, plan: Plan) -> None:
    """Refuse to resume a run that holds records of other cells or prompts than its own."""
    found = foreign(plan, store.keys())
    if found:
        raise HarnessError(
            f"cannot resume: {store.folder} holds {len(found)} foreign records: {found[0]}",
            "Restore records.jsonl from a copy, or start a new run.",
        )


def _same_prompts(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to resume when an id stands for another prompt or another reference answer than in the run."""
    changed = [sample for sample in {**before, **now} if before.get(sample) != now.get(sample)]
    if changed:
        raise HarnessError(
            f"cannot resume: {len(changed)} of {len(now)} prompts or their references are not those of the run, such as {changed[0]!r}",
            "Start a new run, or restore the dataset that the interrupted run was started with.",
        )


def _same(name: str, before: Any, now: Any) -> None:
    """Raise at the first differing field, named by its path."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if key not in ("description", "path"):
                _same(f"{name}.{key}", before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            _same(f"{name}[{i}]", old, new)
    elif before != now:
        raise HarnessError(
            f"cannot resume: {name} was {before!r} in the run, is {now!r} now",
            "Start a new run, or restore what the interrupted run was started with.",
        )


def _report(store: RunStore, console: Console) -> None:
    from harness.report import make_run, show_recommendation, show_table, write_reports
    from harness.results.texts import read_texts

    whole = len(store.records) == len(store)
    run = make_run(store.manifest, store.records if whole else read_groups(store.folder), read_texts(store.folder))
    reports = reports_folder(store.folder)
    write_reports(run, reports)
    show_table(run, console)
    show(console, f"records: {store.folder}")
    show_recommendation(run, reports / "report.html", console)
