"""From a suite and its samples to the list of things to decode and to replay. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from harness.core.cell import RecordKey, Settings, one_cell
from harness.core.limits import LOOKUP_NGRAM
from harness.core.records import Sample
from harness.results.manifest import Manifest
from harness.suite.cells import Cell
from harness.suite.chains import adapter_names, chain_of, needed_chains
from harness.suite.suite import recorded_suite

Method = Literal["decode", "replay", "answer"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sample to decode or replay in one cell."""

    cell: Cell
    sample: Sample
    seed: int
    method: Method
    repeat: int = 0
    """Which of several equal decodes."""
    adapter: str | None = None
    """Name of the trained adapter, where the cell has one."""

    @cached_property
    def key(self) -> RecordKey:
        """Equals :func:`harness.core.cell.record_key` of the record this job will write."""
        c = self.cell
        cell = one_cell(
            c.experiment, c.domain, c.drafter, self.adapter, c.k, c.rule, c.temperature, c.loop, self.method, c.lossy,
            Settings(settings_of(c)).key,
        )  # fmt: skip
        return RecordKey(cell, self.sample.id, self.seed, self.repeat)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run does, in order."""

    prompts: tuple[tuple[Sample, tuple[Job, ...]], ...]
    """Decode jobs prompt by prompt: baselines first, the others in an order that rotates from prompt to prompt."""
    replays: tuple[Job, ...]
    """Jobs whose counts come from the target's answers."""
    answers: tuple[Job, ...] = ()
    """The target's answers, made in batches, where a suite clocks only some prompts: greedy ones, then sampled ones by temperature."""

    @property
    def decodes(self) -> list[Job]:
        """All decode jobs."""
        return [job for _, jobs in self.prompts for job in jobs]

    @property
    def jobs(self) -> dict[RecordKey, Job]:
        """Everything, by the key of the record it will write."""
        return {job.key: job for job in (*self.answers, *self.decodes, *self.replays)}

    def clocking(self, counts: Mapping[str, int]) -> Plan:
        """The plan with a clock on the first prompts alone, as many as ``counts`` says of a cell's :func:`candidate`."""
        prompts = tuple(
            (sample, tuple(job for job in jobs if i < counts.get(candidate(job.cell), 0))) for i, (sample, jobs) in enumerate(self.prompts)
        )
        return dataclasses.replace(self, prompts=prompts)


def settings_of(cell: Cell) -> dict[str, Any]:
    """Settings of a cell that are no field of :class:`~harness.core.records.Record`; defaults are left out."""
    values: dict[str, Any] = {
        "lenience": cell.lenience if cell.lenience != 1 else None,
        "layers": cell.layers,
        "ngram": cell.ngram if cell.ngram not in (None, LOOKUP_NGRAM) else None,
        "rank": cell.rank,
        "round": cell.round,
        "adapter_domain": cell.adapter_domain,
        "installed": cell.installed,
        "around": cell.around,
        **dict(cell.options),
    }
    return {name: value for name, value in values.items() if value is not None}


def candidate(cell: Cell) -> str:
    """What a cell is one domain of, as :func:`candidate_of` names it."""
    return candidate_of(cell.experiment, cell.drafter, cell.k, settings_of(cell))


def candidate_of(experiment: str, drafter: str | None, k: int | str | None, settings: Mapping[str, Any] | None) -> str:
    """A greedy way of decoding in words, the same for a cell, its records and its rows."""
    name = f"{drafter or 'the target alone'}" + ("" if k is None else f" with K = {k}")
    own = ", ".join(f"{key} {value}" for key, value in sorted((settings or {}).items()))
    return f"{experiment}: {name} ({own})" if own else f"{experiment}: {name}"


def make_plan(
    cells: Sequence[Cell],
    samples: Sequence[Sample],
    seed: int,
    adapter: Callable[[Cell], str | None] = lambda cell: None,
    *,
    clocked: int | None = None,
    repeats: int = 1,
    sampled: bool = True,
) -> Plan:
    """Assign every cell to decoding, to replay or to both, and interleave the decode jobs prompt by prompt.

    A cell is replayed when replay is exact for it and its domain has a baseline at its temperature; it is decoded when it asks for a
    clock, or cannot be replayed. Samples are replayed where the target answers in batches, which keep their probabilities.

    Args:
        cells: from :meth:`harness.suite.suite.Suite.cells`.
        samples: prompts of all domains.
        seed: of every job.
        adapter: name of the trained adapter that a cell runs with.
        clocked: prompts per domain that are decoded; on all others a cell has counts from replay alone, and the target answers in
            batches. None decodes all prompts, and replays only what asks for no clock.
        repeats: decodes of one prompt in one cell.
        sampled: replay samples too, which runs of older versions did not.
    """
    own = [c for c in cells if c.temperature == 0 or (sampled and clocked is not None)]
    baselines = {(c.domain, c.temperature): c for c in reversed(own) if c.drafter is None}
    replayed = [c for c in own if c.replayable and (c.domain, c.temperature) in baselines and (clocked is not None or _simple(c))]
    decoded = [c for c in cells if c.timed or c not in replayed]
    by_domain: dict[str, list[Sample]] = {}
    for sample in samples:
        by_domain.setdefault(sample.domain, []).append(sample)
    timed = [sample for group in by_domain.values() for sample in group[:clocked]]

    def job(cell: Cell, sample: Sample, method: Method, repeat: int = 0) -> Job:
        return Job(cell=cell, sample=sample, seed=seed, method=method, adapter=adapter(cell), repeat=repeat)

    temperatures = sorted({temperature for _, temperature in baselines}) if clocked is not None else []
    answered = [(baselines[s.domain, t], s) for t in temperatures for s in samples if (s.domain, t) in baselines]
    return Plan(
        answers=tuple(job(cell, s, "answer") for cell, s in answered),
        prompts=tuple(
            (s, tuple(job(cell, s, "decode", repeat) for repeat in range(repeats) for cell in _interleaved(decoded, s, i + repeat)))
            for i, s in enumerate(_round_robin(timed))
        ),
        replays=tuple(job(c, s, "replay") for c in replayed for s in by_domain.get(c.domain, ())),
    )


def _simple(cell: Cell) -> bool:
    """Replayed instead of decoded where every prompt has a clock: a plain drafter at a fixed length."""
    special = cell.layers is not None or cell.ngram not in (None, LOOKUP_NGRAM) or cell.options
    return not (cell.timed or special) and cell.drafter != "router" and isinstance(cell.k, int)


def _interleaved(cells: Sequence[Cell], sample: Sample, index: int) -> Iterator[Cell]:
    own = [cell for cell in cells if cell.domain == sample.domain]
    first = [cell for cell in own if cell.drafter is None]
    rest = [cell for cell in own if cell.drafter is not None]
    turn = index % len(rest) if rest else 0
    yield from (*first, *rest[turn:], *rest[:turn])


def _round_robin(samples: Sequence[Sample]) -> list[Sample]:
    """Take the domains in turn, so that an interrupted run has prompts of every domain."""
    by_domain: dict[str, list[Sample]] = {}
    for sample in samples:
        by_domain.setdefault(sample.domain, []).append(sample)
    longest = max(map(len, by_domain.values()), default=0)
    return [group[i] for i in range(longest) for group in by_domain.values() if i < len(group)]


def recorded_plan(manifest: Manifest, samples: Sequence[Sample]) -> Plan:
    """The plan that a run followed, from its manifest alone and its prompts.

    Raises:
        HarnessError: the manifest's suite is none of this version.
    """
    suite = recorded_suite(manifest.suite)
    order = {sample: i for i, sample in enumerate(manifest.prompts)}
    samples = sorted(samples, key=lambda sample: order.get(sample.id, len(order)))
    skipped = manifest.measured.skipped
    cells = [c for c in suite.cells() if not (c.loop == "mlx-lm" and c.drafter is not None and c.experiment in skipped)]
    cells = [c for c in cells if c.outer not in manifest.measured.without_memory]
    cells = [c for c in cells if manifest.measured.without_draft is None or not c.needs_draft]
    facts = manifest.measured.adapters
    shipped = {own["domain"] for name, own in facts.items() if name in manifest.measured.installed}
    names = adapter_names(needed_chains(cells, list(suite.domains), shipped))

    def adapter(cell: Cell) -> str | None:
        if cell.drafter != "adapter" or cell.round == 0 or cell.installed:
            return cell.installed
        name = names[chain_of(cell, shipped), cell.round or 1]
        return name if name in facts and facts[name]["hash"] else None

    how: dict[str, Any] = {"clocked": suite.clocked, "repeats": suite.repeats, "sampled": manifest.measured.samples_replayed}
    plan = make_plan(cells, samples, suite.seed, adapter, **how)
    return plan if manifest.measured.race is None else plan.clocking(manifest.measured.race["clocked"])


def foreign(plan: Plan, keys: Iterable[RecordKey]) -> list[str]:
    """Which of the records with these keys the plan does not have, a line each: another cell, prompt, seed or domain."""
    jobs, found = plan.jobs, []
    for key in keys:
        if key not in jobs:
            c = key.cell
            cell = f"{c.experiment} {c.drafter or 'target only'} k={c.k}"
            found.append(f"{key.sample_id} in {cell} ({c.method}, domain {c.domain}, seed {key.seed}) is not of this run's plan")
    return found
