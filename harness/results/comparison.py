"""What changed between two runs, as data: settings and machine, and every cell that both have, whatever its experiment is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core import stats
from harness.core.cell import FIELDS, CellId
from harness.core.counts import Counts, columns, total
from harness.core.records import Record
from harness.core.stats import Estimate
from harness.results import speedup
from harness.results.manifest import Manifest, read_manifest
from harness.results.reading import read_records
from harness.results.summary import CellRow, PromptRow, summarise

_IDENTITY = ("pair", "suite", "suite_hash", "models", "code", "packages", "machine", "seeds")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One cell in both runs, over the prompts of both."""

    cell: CellId
    """Without experiment and method."""
    prompts: int
    a: Counts
    b: Counts
    rate: Estimate | None
    """Rate of B less rate of A, paired by prompt; None where one of them drafted nothing."""
    speedup: Estimate | None
    """Speedup of B over speedup of A, on the prompts with a clock in both; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run B against run A."""

    a: str
    b: str
    fields: tuple[tuple[str, Any, Any], ...]
    """Name, value in A and value in B of what the runs do not share."""
    cells: tuple[Change, ...]
    only_a: tuple[CellId, ...]
    only_b: tuple[CellId, ...]
    other_prompts: tuple[str, ...]
    """Ids that stand for another prompt in the other run; these are not compared."""


def compare_runs(folder_a: Path, folder_b: Path) -> Comparison:
    """Compare two runs.

    Raises:
        HarnessError: a run cannot be read.
    """
    a, b = read_manifest(folder_a), read_manifest(folder_b)
    records_a, records_b = read_records(folder_a), read_records(folder_b)
    cells_a, cells_b = _cells(a, records_a), _cells(b, records_b)
    prompts_a, prompts_b = _prompts(a, records_a), _prompts(b, records_b)
    shared = {sample for sample, prompt in prompts_a.items() if prompts_b.get(sample) == prompt}
    changes = [_change(cell, cells_a[cell], cells_b[cell], shared) for cell in cells_a if cell in cells_b]
    return Comparison(
        a=a.run, b=b.run, fields=tuple(_changed_fields(a, b)), cells=tuple(change for change in changes if change is not None),
        only_a=tuple(cell for cell in cells_a if cell not in cells_b), only_b=tuple(cell for cell in cells_b if cell not in cells_a),
        other_prompts=tuple(sorted({*prompts_a} & {*prompts_b} - shared)),
    )  # fmt: skip


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON types."""
    return {
        "a": comparison.a,
        "b": comparison.b,
        "fields": [{"name": name, "a": old, "b": new} for name, old, new in comparison.fields],
        "cells": [
            {
                "cell": _named(c.cell), "prompts": c.prompts, "a": _numbers(c.a), "b": _numbers(c.b),
                "rate": c.rate and dataclasses.asdict(c.rate), "speedup": c.speedup and dataclasses.asdict(c.speedup),
            }
            for c in comparison.cells
        ],
        "only_a": [_named(cell) for cell in comparison.only_a],
        "only_b": [_named(cell) for cell in comparison.only_b],
        "other_prompts": list(comparison.other_prompts),
    }  # fmt: skip


def _named(cell: CellId) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in FIELDS if name not in ("experiment", "method")}


def _numbers(counts: Counts) -> dict[str, Any]:
    return {**dataclasses.asdict(counts), "rate": counts.rate, "alpha": counts.alpha, "tau": counts.tau}


def _cells(manifest: Manifest, records: Sequence[Record]) -> dict[CellId, CellRow]:
    """Rows by what is the same in two runs; of rows that differ in experiment or method alone, the one with the most prompts."""
    found: dict[CellId, CellRow] = {}
    for row in summarise(records, manifest.measured.calibration, pooled=False, machine=manifest.measured.reference_machine):
        cell = dataclasses.replace(row.cell, domain=row.domain, experiment="", method="")
        if cell not in found or row.n > found[cell].n:
            found[cell] = row
    return found


def _prompts(manifest: Manifest, records: Iterable[Record]) -> dict[str, str]:
    """Sample id to what tells its prompt from another: its hash, or its length in runs that stored none."""
    return {r.sample_id: manifest.prompts.get(r.sample_id, f"{r.prompt_tokens} tokens") for r in records}


def _change(cell: CellId, row_a: CellRow, row_b: CellRow, shared: set[str]) -> Change | None:
    """None where the two have no prompt in common."""
    in_b = {prompt.sample_id: prompt for prompt in row_b.prompts}
    both = [(prompt, in_b[prompt.sample_id]) for prompt in row_a.prompts if prompt.sample_id in in_b and prompt.sample_id in shared]
    if not both:
        return None
    a, b = total(x for x, _ in both), total(y for _, y in both)
    drafted = a.rate is not None and b.rate is not None
    rate = stats.difference(columns((y for _, y in both), "rate"), columns((x for x, _ in both), "rate")) if drafted else None
    return Change(cell=cell, prompts=len(both), a=a, b=b, rate=rate, speedup=_speed(both))


def _speed(both: Sequence[tuple[PromptRow, PromptRow]]) -> Estimate | None:
    pairs = [(y.pair, x.pair) for x, y in both if x.pair is not None and y.pair is not None]
    return speedup.change([new for new, _ in pairs], [old for _, old in pairs])


def _changed_fields(a: Manifest, b: Manifest) -> Iterator[tuple[str, Any, Any]]:
    first, second = dataclasses.asdict(a), dataclasses.asdict(b)
    for name in _IDENTITY:
        yield from _differences(name, first[name], second[name])


def _differences(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            yield from _differences(f"{name}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(f"{name}[{i}]", x, y)
    elif a != b:
        yield name, a, b
