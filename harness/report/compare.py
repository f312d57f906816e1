"""What changed between two runs: settings and machine first, then every cell that both have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from harness.core import stats
from harness.core.counts import columns, total
from harness.core.records import Record
from harness.core.stats import Estimate
from harness.report.escape import markdown
from harness.report.markdown import markdown_table
from harness.report.tables import MISSING, Table, number
from harness.results import speedup
from harness.results.reference import Answer, cell_name, cells_of
from harness.results.store import Manifest, read_manifest, read_records

_IDENTITY = ("pair", "suite", "suite_hash", "models", "code", "packages", "machine", "seeds")


def compare(folder_a: Path, folder_b: Path) -> str:
    """Markdown that says how run B differs from run A.

    Raises:
        HarnessError: a run cannot be read.
    """
    a, b = read_manifest(folder_a), read_manifest(folder_b)
    records_a, records_b = read_records(folder_a), read_records(folder_b)
    cells_a, cells_b = cells_of(records_a), cells_of(records_b)
    fields = tuple(_changed_fields(a, b))
    parts = [f"# {markdown(a.run)} and {markdown(b.run)}", "## What the runs are"]
    parts.append(markdown_table(Table("", ("field", "A", "B"), fields, 3)) if fields else "Same suite, models, code, packages and machine.")
    prompts_a, prompts_b = _prompts(a, records_a), _prompts(b, records_b)
    shared = {sample for sample, prompt in prompts_a.items() if prompts_b.get(sample) == prompt}
    both = [name for name in cells_a if name in cells_b]
    rows = tuple(row for name in both if (row := _row(name, cells_a[name], cells_b[name], shared)) is not None)
    headers = ("cell", "prompts", "rate A", "rate B", "B - A [95%]", "speedup B / A [95%]")
    parts += ["## Cells in both", markdown_table(Table("", headers, rows, 1)) if rows else "None that drafts."]
    others = sorted({*prompts_a} & {*prompts_b} - shared)
    if others:
        parts += ["## Other prompts under the same ids, not compared", "\n".join(f"- {markdown(_short(sample))}" for sample in others)]
    for title, own, other in (("A", cells_a, cells_b), ("B", cells_b, cells_a)):
        alone = [str(cell_name(name)) for name in own if name not in other]
        if alone:
            parts += [f"## Only in {title}", "\n".join(f"- {markdown(name)}" for name in alone)]
    return "\n\n".join(parts) + "\n"


def _prompts(manifest: Manifest, records: Iterable[Record]) -> dict[str, str]:
    """Sample id to what tells its prompt from another: its hash, or its length in runs that stored none."""
    return {r.sample_id: manifest.prompts.get(r.sample_id, f"{r.prompt_tokens} tokens") for r in records}


def _changed_fields(a: Manifest, b: Manifest) -> Iterator[tuple[str, str, str]]:
    first, second = dataclasses.asdict(a), dataclasses.asdict(b)
    for name in _IDENTITY:
        yield from _differences(name, first[name], second[name])


def _differences(name: str, a: Any, b: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            yield from _differences(f"{name}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(f"{name}[{i}]", x, y)
    elif a != b:
        yield name, _short(a), _short(b)


def _short(value: Any) -> str:
    text = MISSING if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _row(name: str, cell_a: Mapping[str, Answer], cell_b: Mapping[str, Answer], shared: Set[str]) -> tuple[str, ...] | None:
    a, b = ([cell[s] for s in cell_a if s in cell_b and s in shared] for cell in (cell_a, cell_b))
    rates = [total(side).rate for side in (a, b)]
    if None in rates:
        return None
    change = stats.difference(columns(b, "rate"), columns(a, "rate"))
    return str(cell_name(name)), str(len(a)), *map(number, rates), _interval(change, "+.3f"), _interval(_speed(a, b), ".2f")


def _speed(a: Sequence[Answer], b: Sequence[Answer]) -> Estimate | None:
    pairs = [(y.pair, x.pair) for x, y in zip(a, b, strict=True) if x.pair is not None and y.pair is not None]
    return speedup.change([new for new, _ in pairs], [old for _, old in pairs])


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return MISSING
    text = format(estimate.value, form)
    return text if estimate.low is None else f"{text} [{estimate.low:{form}}, {estimate.high:{form}}]"
