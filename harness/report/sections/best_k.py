"""Which draft length suits each drafter, by prediction and by the clock."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from harness.report.figures import Figure, Values, colour, facet, intervals, lines, over_k, plain, series
from harness.report.run import Run
from harness.report.tables import MISSING, Table, interval, number
from harness.results.summary import ALL, CellRow

TITLE = "Draft length"


def tables(run: Run) -> list[Table]:
    """Per domain and drafter the draft length with the best prediction and the one with the best clock."""
    cells = [r for r in run.shown if r.k is not None and not r.lossy and r.loop == "own" and (plain(r) or r.domain == ALL)]
    lowest = min((r.temperature for r in cells), default=0.0)
    groups: dict[tuple[str, str], list[CellRow]] = {}
    for row in cells:
        if row.temperature == lowest and not {"rank", "round"} & set(row.settings):
            groups.setdefault((row.domain, row.label), []).append(row)
    domains = sorted(dict.fromkeys(domain for domain, _ in groups), key=lambda domain: domain != ALL)
    rows = [_line(*key, groups[key]) for domain in domains for key in groups if key[0] == domain]
    headers = ("domain", "drafter", "best K by prediction", "predicted", "best K by the clock", "measured [95%]")
    return [Table("Best draft length", headers, tuple(rows), 2, open=True)]


def _line(domain: str, drafter: str, rows: Sequence[CellRow]) -> tuple[str, ...]:
    promised = max((r for r in rows if r.predicted), key=lambda r: r.predicted or 0.0, default=None)
    clocked = max((r for r in rows if r.clocked and r.speed), key=lambda r: r.speed.value if r.speed else 0.0, default=None)
    return (
        domain,
        drafter,
        str(promised.k) if promised else MISSING,
        number(promised.predicted, 2, "x") if promised else MISSING,
        str(clocked.k) if clocked else MISSING,
        interval(clocked.speed, 2, "x") if clocked else MISSING,
    )


def figures(run: Run) -> list[Figure]:
    """Tokens per target pass and speedup over the draft length."""
    return [*_tau(run), *_speed(run)]


def _tau(run: Run) -> list[Figure]:
    unique = {(r.domain, series(r), r.k): r for r in over_k(run.own)}
    values = intervals(unique.values(), "tau")
    if not values:
        return []
    chart = lines(values, "K:Q", "draft length K", "tokens per target pass")
    caption = "A longer draft pays only while this climbs faster than what drafting and verifying one more token costs."
    return [Figure("Tokens per target pass over the draft length", caption, chart)]


def _speed(run: Run) -> list[Figure]:
    values: Values = []
    for row in over_k(run.own):
        shared = {"domain": row.domain, "drafter": series(row), "K": row.k}
        if row.predicted:
            values.append({**shared, "kind": "predicted", "speedup": row.predicted})
        if row.clocked and row.speed:
            values.append({**shared, "kind": "measured", "speedup": row.speed.value})
    if not values:
        return []
    ticks = sorted({int(v["K"]) for v in values})
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("K:Q", title="draft length K", axis=alt.Axis(values=ticks, format="d")),
        y=alt.Y("speedup:Q", title="speedup (×)", scale=alt.Scale(zero=False)),
        color=colour(values, "drafter"),
        tooltip=["drafter:N", "kind:N", "K:Q", alt.Tooltip("speedup:Q", format=".2f")],
    )
    dashed = base.transform_filter("datum.kind == 'predicted'").mark_line(strokeDash=[5, 4], point=alt.OverlayMarkDef(size=15))
    points = base.transform_filter("datum.kind == 'measured'").mark_point(filled=True, size=80)
    caption = "Dashed: predicted from acceptance and the calibrated costs of a draft step and of verification. Dots: measured."
    return [Figure("Speedup over the draft length", caption, facet(alt.layer(dashed, points), values))]


def sentences(run: Run) -> list[str]:
    """None."""
    return []
