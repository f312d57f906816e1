"""How much of what was drafted the target kept, over all positions and by position."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from harness.report.figures import Figure, colour, dots, facet, intervals, plain, series
from harness.report.run import Run
from harness.report.tables import MISSING, Column, Table, cell_table, interval, number
from harness.results.summary import CellRow

TITLE = "Acceptance"
FEW_ROUNDS = 8
"""Draft positions that fewer rounds reached are not drawn."""


def tables(run: Run) -> list[Table]:
    """Acceptance with intervals, pooled and per prompt, replayed cells included; then by who proposed, and by draft position."""
    return [acceptance_table(run), _source_table(run.shown), *_position_tables(run.shown)]


def acceptance_table(run: Run) -> Table:
    """Counts and acceptance of every cell that drafts."""
    columns: list[Column] = [
        ("prompts", lambda r: str(r.n)),
        ("source", lambda r: r.method),
        ("drafted", lambda r: f"{r.counts.drafted:.0f}"),
        ("accepted", lambda r: f"{r.counts.accepted:.0f}"),
        ("rate, pooled", lambda r: interval(r.rate)),
        ("rate, per prompt", lambda r: number(r.rate_per_prompt)),
        ("alpha", lambda r: interval(r.alpha)),
        ("tau", lambda r: interval(r.tau, 2)),
    ]
    return cell_table(TITLE, [row for row in run.shown if row.drafter is not None], columns)


def _source_table(rows: Sequence[CellRow]) -> Table:
    """Who proposed which share of the tokens, of every cell with more than one source; the rest are the target's own."""

    def share(source: str) -> Column:
        return source, lambda r: f"{r.sources.get(source, 0.0):.0%}"

    shown = [row for row in rows if len(row.sources) > 1]
    sources = dict.fromkeys(source for row in shown for source in row.sources)
    return cell_table("Who proposed", shown, [*map(share, sources), ("target", lambda r: f"{max(0.0, 1 - sum(r.sources.values())):.0%}")])


def _position_tables(rows: Sequence[CellRow]) -> list[Table]:
    """Marginal and conditional acceptance at position 1, 2, ..."""
    shown = [row for row in rows if row.marginal and row.drafter is not None]
    depth = max((len(row.marginal) for row in shown), default=0)
    found = []
    for kind in ("marginal", "conditional"):
        columns: list[Column] = [(str(j + 1), lambda r, j=j, kind=kind: _at(getattr(r, kind), j)) for j in range(depth)]  # type: ignore[misc]
        found.append(cell_table(f"Acceptance by position, {kind}", shown, columns))
    return found if shown else []


def _at(values: Sequence[float | None], j: int) -> str:
    return number(values[j]) if j < len(values) else MISSING


def figures(run: Run) -> list[Figure]:
    """Acceptance of every cell, and by position."""
    return [figure for figure in (_rates(run.shown), _positions(run.own)) if figure is not None]


def _rates(rows: Sequence[CellRow]) -> Figure | None:
    timed = [r for r in rows if r.drafter and r.method == "decode" and r.rate]
    values = intervals(timed or [r for r in rows if r.drafter], "rate")
    chart = dots(values, "accepted / drafted tokens", reference=None, domain=(0, 1)) if values else None
    return Figure(TITLE, "How many of the drafted tokens the target kept, with 95% intervals.", chart) if chart else None


def _positions(rows: Sequence[CellRow]) -> Figure | None:
    longest: dict[tuple[str, str], CellRow] = {}
    for row in rows:
        if row.marginal and row.temperature == 0 and plain(row):
            key = (row.domain, series(row))
            if key not in longest or len(row.marginal) > len(longest[key].marginal):
                longest[key] = row
    values = [
        {"domain": domain, "drafter": label, "position": j + 1, "acceptance": value, "kind": kind, "rounds": rounds}
        for (domain, label), row in longest.items()
        for kind in ("marginal", "conditional")
        for j, (value, rounds) in enumerate(zip(getattr(row, kind), row.reached, strict=True))
        if value is not None and rounds >= FEW_ROUNDS
    ]
    if not values:
        return None
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=35))
        .encode(
            x=alt.X("position:O", title="position in the draft", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("acceptance:Q", scale=alt.Scale(domain=[0, 1]), title="acceptance"),
            color=colour(values, "drafter"),
            strokeDash=alt.StrokeDash("kind:N", title=None, sort=["marginal", "conditional"], legend=None),
            tooltip=["drafter:N", "kind:N", "position:O", alt.Tooltip("acceptance:Q", format=".3f"), "rounds:Q"],
        )
    )
    caption = (
        "Solid: kept up to this position, of all drafts this long (marginal). Dashed: kept where everything before was (conditional). "
        f"Positions that fewer than {FEW_ROUNDS} rounds reached are left out."
    )
    return Figure("Acceptance by position", caption, facet(chart, values))


def sentences(run: Run) -> list[str]:
    """None."""
    return []
