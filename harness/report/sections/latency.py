"""How long the first token, every further token and a whole answer take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from harness.report.figures import PANEL, Figure, Values, colour, name_of, order, step
from harness.report.run import Run
from harness.report.tables import MISSING, Column, Table, cell_table, timed_rows
from harness.results.summary import CellRow

TITLE = "Latency"


def tables(run: Run) -> list[Table]:
    """Percentiles of time to first token, time per further token and total."""
    columns: list[Column] = []
    for title, name in (("first token", "ttft_s"), ("per token", "token_s"), ("total", "total_s")):
        for i, level in enumerate((50, 90, 99)):
            columns.append((f"{title} p{level}", lambda r, name=name, i=i: _ms(getattr(r, name), i)))  # type: ignore[misc]
    return [cell_table("Latency in milliseconds", timed_rows(run.shown), columns)]


def _ms(values: Sequence[float] | None, i: int) -> str:
    return MISSING if values is None else f"{values[i] * 1000:.1f}"


def figures(run: Run) -> list[Figure]:
    """The same percentiles on every domain."""
    figure = _latency(run.own)
    return [figure] if figure else []


def _latency(rows: Sequence[CellRow]) -> Figure | None:
    names = (("first token", "ttft_s"), ("per token", "token_s"), ("whole answer", "total_s"))
    values = [
        {"cell": name_of(row), "domain": row.domain, "what": what, "p50": ms[0], "p90": ms[1], "p99": ms[2]}
        for row in rows
        for what, field in names
        for ms in [[v * 1000 for v in getattr(row, field) or ()]]
        if ms
    ]
    if not values:
        return None
    panels = [_latency_panel([v for v in values if v["what"] == what], what, first=i == 0) for i, (what, _) in enumerate(names)]
    caption = "Milliseconds: dot the median, tick the 90th percentile, line to the 99th."
    return Figure(TITLE, caption, alt.hconcat(*panels, spacing=24))


def _latency_panel(values: Values, title: str, *, first: bool) -> Any:
    axis = alt.Axis(labelLimit=260, grid=True) if first else alt.Axis(labels=False, ticks=False, grid=True)
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("cell:N", title=None, sort=order(values, "cell"), axis=axis),
        yOffset=alt.YOffset("domain:N", sort=order(values, "domain")),
        color=colour(values),
        tooltip=["cell:N", "domain:N", *(alt.Tooltip(f"{p}:Q", format=".1f") for p in ("p50", "p90", "p99"))],
    )
    line = base.mark_rule(strokeWidth=1.5, opacity=0.7).encode(x="p50:Q", x2="p99:Q")
    dot = base.mark_point(filled=True, size=55, opacity=1).encode(x=alt.X("p50:Q", title=f"{title} (ms)"))
    tick = base.mark_tick(thickness=2, size=9).encode(x="p90:Q")
    return alt.layer(line, dot, tick).properties(width=PANEL - 40, height=alt.Step(step(values)))


def sentences(run: Run) -> list[str]:
    """None."""
    return []
