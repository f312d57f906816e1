"""From a suite and its samples to the list of things to decode and to replay. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.experiments import Cell
from harness.records import Sample
from harness.store import Key, settings_key

TRAINED = ("adapter", "router")
"""Drafters that need trained adapters."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sample to decode or replay in one cell."""

    cell: Cell
    sample: Sample
    seed: int
    method: str
    """``decode`` or ``replay``."""
    adapter: str | None = None
    """Name of the trained adapter, where the cell has one."""

    @property
    def key(self) -> Key:
        """Equals :func:`harness.store.record_key` of the record this job will write."""
        c = self.cell
        return (
            c.experiment, self.sample.id, c.drafter, self.adapter, c.k, c.rule, c.temperature, self.seed, c.mode, self.method,
            settings_key(settings_of(c)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run does, in order."""

    prompts: tuple[tuple[Sample, tuple[Job, ...]], ...]
    """Decode jobs prompt by prompt: baselines first, the others in an order that rotates from prompt to prompt."""
    replays: tuple[Job, ...]
    """Jobs whose counts come from the baseline's greedy tokens."""
    skipped: tuple[Cell, ...]
    """Cells that need trained adapters."""

    @property
    def decodes(self) -> list[Job]:
        """All decode jobs."""
        return [job for _, jobs in self.prompts for job in jobs]


def settings_of(cell: Cell) -> dict[str, Any]:
    """Settings of a cell that are no field of :class:`~harness.records.Record`; defaults are left out."""
    values: dict[str, Any] = {
        "lenience": cell.lenience if cell.lenience != 1 else None,
        "layers": cell.layers,
        "ngram": cell.ngram if cell.ngram not in (None, 3) else None,
        "rank": cell.rank,
        "round": cell.round,
        "adapter_domain": cell.adapter_domain,
    }
    return {name: value for name, value in values.items() if value is not None}


def make_plan(cells: Sequence[Cell], samples: Sequence[Sample], seed: int) -> Plan:
    """Assign every cell to decoding or replay and interleave the decode jobs prompt by prompt.

    A cell is replayed when it asks for no clock, replay is exact for it, and its domain has a greedy baseline.
    """
    usable = [cell for cell in cells if cell.drafter not in TRAINED]
    baselines = {cell.domain for cell in usable if cell.drafter is None and cell.temperature == 0}
    replayed = [cell for cell in usable if _replayable(cell) and cell.domain in baselines]
    decoded = [cell for cell in usable if cell not in replayed]
    return Plan(
        prompts=tuple((s, tuple(_interleaved(decoded, s, i, seed))) for i, s in enumerate(_round_robin(samples))),
        replays=tuple(Job(cell=c, sample=s, seed=seed, method="replay") for c in replayed for s in samples if s.domain == c.domain),
        skipped=tuple(cell for cell in cells if cell.drafter in TRAINED),
    )


def _replayable(cell: Cell) -> bool:
    return not (cell.timed or cell.drafter is None or cell.temperature or cell.lossy or settings_of(cell)) and isinstance(cell.k, int)


def _interleaved(cells: Sequence[Cell], sample: Sample, index: int, seed: int) -> Iterator[Job]:
    own = [cell for cell in cells if cell.domain == sample.domain]
    first = [cell for cell in own if cell.drafter is None]
    rest = [cell for cell in own if cell.drafter is not None]
    turn = index % len(rest) if rest else 0
    for cell in (*first, *rest[turn:], *rest[:turn]):
        yield Job(cell=cell, sample=sample, seed=seed, method="decode")


def _round_robin(samples: Sequence[Sample]) -> list[Sample]:
    """Take the domains in turn, so that an interrupted run has prompts of every domain."""
    by_domain: dict[str, list[Sample]] = {}
    for sample in samples:
        by_domain.setdefault(sample.domain, []).append(sample)
    longest = max(map(len, by_domain.values()), default=0)
    return [group[i] for i in range(longest) for group in by_domain.values() if i < len(group)]
