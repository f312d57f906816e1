"""The whole decision in one call: everything on this machine that can draft for a target, raced on one's own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapt.adapters.adapter_folder import read_info
from harness.adapt.adapters.names import installed
from harness.adapt.shelf import seen_prompts
from harness.core import machine
from harness.core.drafter_kinds import DrafterKind, drafter_kind, drafter_kinds
from harness.core.errors import HarnessError
from harness.core.paths import found_memory, found_parallel
from harness.core.progress import note, notes_to
from harness.core.terminal import show
from harness.datasets import DatasetSpec, check_dataset, load_samples
from harness.datasets.splits import leaks
from harness.models.naming import find_pair
from harness.results.manifest import read_manifest, run_folder
from harness.run.runner import run_suite
from harness.suite.experiments import AnyExperiment, Baseline, Drafters, DynamicLength, InstalledAdapters
from harness.suite.suite import Suite, recorded_suite

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cluster.client import Cluster
    from harness.core.records import Sample

LENGTHS: tuple[int | DynamicLength, ...] = ("auto", 1, 2, 3, 4, 6, 8)
"""Draft lengths that are counted."""
OWN = "own"
"""Domain of a file of one's own."""
SHIPPED = {"code": "humaneval", "math": "wordproblems", "chat": "chat", "structured": "structured"}
"""Domains where no file is given, and their datasets."""
FEW, MANY = 8, 40
"""Prompts per shipped domain, and of a file."""
CLOCK_TOKENS = 32
"""Longest answer with a clock."""
ROOM = 0.8
"""Part of the machine's memory that models may take."""
AROUND = ("generic", "cascade")
"""What an adapter drafts in: alone, and together with everything else."""


@dataclass(frozen=True, kw_only=True)
class Entrants:
    """What can draft for a target here."""

    drafters: tuple[str, ...]
    adapters: tuple[str, ...]
    """Adapters of the draft, installed or of the package."""
    left_out: dict[str, str]
    """Drafter, or adapter, to the reason why not."""


def choose(
    models: str,
    *,
    results_dir: Path,
    prompts: Path | None = None,
    limit: int | None = None,
    max_tokens: int = 128,
    minutes: float = 20,
    resume: str | None = None,
    offline: bool = False,
    console: Console,
    cluster: Cluster | None = None,
) -> Path:
    """Race everything that can draft for a target, and report what to use.

    Args:
        models: the target, alone or with a draft, or a configured pair.
        results_dir: folder of the run folders.
        prompts: JSONL file with a prompt per line; a few of every shipped domain when None.
        limit: prompts per domain; :data:`FEW` shipped ones or :data:`MANY` of a file when None.
        max_tokens: longest answer.
        minutes: after as many it ends with what is known.
        resume: an interrupted run to go on with, or one whose time was up; its prompts and settings count.
        offline: use only what is in the cache.
        console: where to show progress.
        cluster: whose workers count and clock; this process does where None.

    Returns:
        The run folder; ``harness report`` and ``harness compare`` take it like any other.

    Raises:
        HarnessError: as :func:`harness.run.runner.run_suite`, a target that does not fit into memory, or nothing to compare.
    """
    if resume is None:
        with notes_to(partial(show, console)):
            models = with_family_draft(models)
            suite = choice_suite(models, prompts, limit=limit, max_tokens=max_tokens, offline=offline)
    else:
        suite = recorded_suite(read_manifest(run_folder(results_dir, resume)).suite)
        if suite.models not in (models, f"{models}+auto") or not suite.race:
            raise HarnessError(f"run {resume} is no choice for {models}", "Name the run and the target that it was started with.")
    options: dict[str, Any] = {"resume": resume, "minutes": minutes, "offline": offline, "cluster": cluster}
    return run_suite(suite, results_dir=results_dir, fallback=True, console=console, **options)


def with_family_draft(models: str) -> str:
    """The target with the draft of its family, where it was named without one and that draft is on this machine."""
    from harness.models.weights import is_cached

    if find_pair(models).config.draft is not None or models.endswith("+none"):
        return models
    try:
        named = find_pair(f"{models}+auto")
    except HarnessError:  # no family is known, or none of its models is small enough
        return models
    if named.config.draft is not None and is_cached(named.config.draft, named.base):
        note(f"with the draft of its family: {named.name}")
        return f"{models}+auto"
    note(f"the draft of its family is not on this machine; harness choose {models}+auto fetches it")
    return models


def choice_suite(models: str, prompts: Path | None, *, limit: int | None, max_tokens: int, offline: bool) -> Suite:
    """The suite that compares what can draft for a target here."""
    if prompts is None:
        domains = {name: DatasetSpec(dataset=dataset, limit=limit or FEW) for name, dataset in SHIPPED.items()}  # type: ignore[arg-type]
    else:
        domains = {OWN: DatasetSpec(dataset="local", path=str(prompts.absolute()), split="all", limit=limit or MANY)}
    for name, spec in domains.items():
        check_dataset(spec, name)
    samples = [s for name, spec in domains.items() for s in load_samples(spec, domain=name, offline=offline)]
    found = entrants(models, samples, offline=offline)
    for name, why in found.left_out.items():
        note(f"without {name}: {why}")
    entries: list[AnyExperiment] = [Baseline(kind="baseline"), Drafters(kind="drafters", drafters=found.drafters, k=LENGTHS)]
    if found.adapters:
        entries.append(InstalledAdapters(kind="adapters", adapters=found.adapters, around=AROUND, k=LENGTHS))
    return Suite(
        name="choose",
        description=f"What drafts fastest for {models}",
        models=models,
        max_tokens=max_tokens,
        clocked=max(spec.limit or 1 for spec in domains.values()),
        clock_tokens=min(CLOCK_TOKENS, max_tokens),
        race=True,
        domains=domains,
        experiments=entries,
    )


def entrants(models: str, samples: Sequence[Sample], *, offline: bool) -> Entrants:
    """Drafters that a target can use on this machine, with these prompts.

    Raises:
        HarnessError: the target does not fit into memory, or cannot be fetched.
    """
    from harness.models.size import loaded_bytes
    from harness.models.weights import pull_pair

    folders, named = pull_pair(models, offline=offline), find_pair(models)
    sizes = {role: loaded_bytes(folder.path, named.config.dtype) for role, folder in folders.items() if folder is not None}
    room = int(ROOM * machine.machine_facts()["memory_bytes"])
    if sizes["target"] > room:
        raise HarnessError(f"the target takes {_gb(sizes['target'])}, this machine has room for {_gb(room)}", "Choose a smaller target.")
    no_draft = None if "draft" in sizes else "the pair has no draft model"
    if sum(sizes.values()) > room:
        no_draft = f"target and draft take {_gb(sum(sizes.values()))}, this machine has room for {_gb(room)}"
    no_memory = _memory_problem(named.name, samples)
    no_head = None if named.config.head else "the pair has no head"
    no_parallel = "the pair has no parallel adapter" if found_parallel(named.name) is None else None
    left_out: dict[str, str] = {}
    kinds = _candidates(head=no_head is None, parallel=no_parallel is None)
    for name, kind in kinds.items():
        needs = kind.needs_memory if found_memory(named.name) is None else kind.remembers
        reasons = {no_draft: kind.needs_draft, no_memory: needs, no_parallel: kind.needs_parallel, no_head: kind.needs_head}
        why = next((reason for reason, wanted in reasons.items() if reason and wanted), None)
        if why:
            left_out[name] = why
    draft = None if no_draft else folders["draft"]
    adapters = _adapters(named.name, draft.hash, samples, left_out) if draft else ()
    return Entrants(drafters=tuple(name for name in kinds if name not in left_out), adapters=adapters, left_out=left_out)


def _adapters(pair: str, draft_hash: str, samples: Sequence[Sample], left_out: dict[str, str]) -> tuple[str, ...]:
    """Adapters, installed or of the package, that fit the draft and are not known to have been trained on these prompts."""
    found = []
    for name, folder in installed(pair, draft_hash).items():
        try:
            read_info(folder, draft_hash)
            known = seen_prompts(folder, samples)
        except HarnessError as error:
            left_out[f"adapter {name}"] = error.problem
            continue
        if known:
            left_out[f"adapter {name}"] = f"it was trained on these prompts, such as {known[0]}"
        else:
            found.append(name)
    return tuple(found)


def _candidates(*, head: bool, parallel: bool) -> dict[str, DrafterKind]:
    """Every drafter, and what runs a draft with a head or parallel drafts in its place, where the pair has these."""
    kinds = drafter_kinds()
    inner = [name for name, kind in kinds.items() if kind.inner and (head or not kind.needs_head) and (parallel or not kind.needs_parallel)]
    composed = [f"{name}+{own}" for own in inner for name, kind in kinds.items() if kind.takes_draft and kind.free]
    return kinds | {name: drafter_kind(name) for name in composed}


def _memory_problem(pair_name: str, samples: Sequence[Sample]) -> str | None:
    """Why a pair's memory may not draft for these prompts; None where it may."""
    from harness.decode.memory import Memory

    path = found_memory(pair_name)
    if path is None:
        return "the pair has no memory"
    known = leaks(Memory(path).samples(), samples)
    return f"the pair's memory knows answers to these prompts, such as {known[0][1]}" if known else None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
