"""What changed between two runs, in words: settings and machine first, then every cell that both have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.report.escape import markdown
from harness.report.markdown import markdown_table
from harness.report.tables import MISSING, Table, interval, number
from harness.results.comparison import Change, Comparison


def compare_text(found: Comparison) -> str:
    """Markdown that says how run B differs from run A."""
    parts = [f"# {markdown(found.a)} and {markdown(found.b)}", "## What the runs are"]
    fields = tuple((name, _short(a), _short(b)) for name, a, b in found.fields)
    parts.append(markdown_table(Table("", ("field", "A", "B"), fields, 3)) if fields else "Same suite, models, code, packages and machine.")
    rows = tuple(_row(change) for change in found.cells if change.rate is not None)
    headers = ("cell", "prompts", "rate A", "rate B", "B - A [95%]", "tau A", "tau B", "speedup B / A [95%]")
    parts += ["## Cells in both", markdown_table(Table("", headers, rows, 1)) if rows else "None that drafts."]
    lists = {
        "Other prompts under the same ids, not compared": map(_short, found.other_prompts),
        "Only in A": map(str, found.only_a),
        "Only in B": map(str, found.only_b),
    }
    for title, items in lists.items():
        parts += _listed(title, items)
    return "\n\n".join(parts) + "\n"


def _listed(title: str, items: Iterable[str]) -> list[str]:
    lines = [f"- {markdown(item)}" for item in items]
    return [f"## {title}", "\n".join(lines)] if lines else []


def _row(change: Change) -> tuple[str, ...]:
    rates, taus = ([number(getattr(side, name), digits) for side in (change.a, change.b)] for name, digits in (("rate", 3), ("tau", 2)))
    moved = change.rate.signed() if change.rate else MISSING
    return str(change.cell), str(change.prompts), *rates, moved, *taus, interval(change.speedup, 2)


def _short(value: Any) -> str:
    text = MISSING if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
