"""What changed between two runs: settings and machine first, then every cell that both have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import stats
from harness.gate import Cells, cells_of, describe
from harness.report.escape import markdown
from harness.report.markdown import markdown_table
from harness.report.tables import MISSING, Table
from harness.stats import Estimate
from harness.store import Manifest, read_manifest, read_records

_IDENTITY = ("pair", "suite", "suite_hash", "models", "code", "packages", "machine", "seeds")


def compare(folder_a: Path, folder_b: Path) -> str:
    """Markdown that says how run B differs from run A.

    Raises:
        HarnessError: a run cannot be read.
    """
    a, b = read_manifest(folder_a), read_manifest(folder_b)
    cells_a, cells_b = cells_of(read_records(folder_a)), cells_of(read_records(folder_b))
    fields = tuple(_changed_fields(a, b))
    parts = [f"# {markdown(a.run)} and {markdown(b.run)}", "## What the runs are"]
    parts.append(markdown_table(Table("", ("field", "A", "B"), fields, 3)) if fields else "Same suite, models, code, packages and machine.")
    both = [name for name in cells_a if name in cells_b]
    rows = tuple(row for name in both if (row := _row(name, cells_a, cells_b)) is not None)
    headers = ("cell", "prompts", "rate A", "rate B", "B - A [95%]", "speedup B / A [95%]")
    parts += ["## Cells in both", markdown_table(Table("", headers, rows, 1)) if rows else "None that drafts."]
    for title, own, other in (("A", cells_a, cells_b), ("B", cells_b, cells_a)):
        alone = [describe(name) for name in own if name not in other]
        if alone:
            parts += [f"## Only in {title}", "\n".join(f"- {markdown(name)}" for name in alone)]
    return "\n\n".join(parts) + "\n"


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


def _row(name: str, cells_a: Cells, cells_b: Cells) -> tuple[str, ...] | None:
    a, b = cells_a[name], cells_b[name]
    common = [s for s in a if s in b]
    columns = [np.array([cell[s][count] for s in common], float) for cell in (a, b) for count in ("accepted", "drafted")]
    if not common or not columns[1].sum() or not columns[3].sum():
        return None
    change = stats.difference((columns[2], columns[3]), (columns[0], columns[1]))
    rates = [f"{columns[i].sum() / columns[i + 1].sum():.3f}" for i in (0, 2)]
    return describe(name), str(len(common)), *rates, _interval(change, "+.3f"), _interval(_speed(a, b, common), ".2f")


def _speed(a: Mapping[str, Any], b: Mapping[str, Any], samples: list[str]) -> Estimate | None:
    if not all("cell_s" in cell[s] for cell in (a, b) for s in samples):
        return None
    new, old = ([np.array([cell[s][key] for s in samples], float) for key in ("base_s", "cell_s")] for cell in (b, a))
    return stats.relative((new[0], new[1]), (old[0], old[1]))


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return MISSING
    text = format(estimate.value, form)
    return text if estimate.low is None else f"{text} [{estimate.low:{form}}, {estimate.high:{form}}]"
