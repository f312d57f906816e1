"""What the charts of a report share: names of cells and series, colours, panels by domain, dots and lines with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from harness.core.stats import Estimate
from harness.results.summary import ALL, CellRow

WIDTH = 840
"""Width in pixels of a chart over the whole page."""
PANEL = 330
"""Width in pixels of one panel where several stand side by side."""
POOLED = "#75828f"
"""Colour of all domains together, seen on white and on black."""
COLOURS = ("#2f7fd0", "#e0823d", "#4a9d5b", "#a65fb0", "#c9a227", "#5aa7b8", "#c9525f", "#8d8d8d")

Values = list[dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and one sentence on how to read it."""

    title: str
    caption: str
    chart: Any

    @property
    def name(self) -> str:
        """Name of its files."""
        return self.title.lower().replace(" ", "-")


def name_of(row: CellRow) -> str:
    """Drafter with its draft length and temperature, as the charts label it."""
    parts = [row.label, f"K={row.k}" if row.k is not None else "", f"T={row.temperature:g}" if row.temperature else ""]
    return " ".join(part for part in (*parts, row.rule if row.rule != "match" else "") if part)


def series(row: CellRow) -> str:
    """Name of a line: the adapters of the domains are one line, each at home."""
    if row.drafter != "adapter" or "installed" in row.settings:
        return row.label
    return f"{row.settings['around']} with own adapter" if "around" in row.settings else "own adapter"


def plain(row: CellRow) -> bool:
    """True for drafters, adapters at home included; False for the target alone and the cells of the adapter studies."""
    studied = {"rank", "round"} & set(row.settings)
    return row.drafter is not None and not studied and row.settings.get("adapter_domain", row.domain) == row.domain


def intervals(rows: Iterable[CellRow], field: str) -> Values:
    """One value with its interval per row that has the estimate ``field``."""
    values = []
    for row in rows:
        estimate: Estimate | None = getattr(row, field)
        if estimate is not None:
            entry = {"cell": name_of(row), "domain": row.domain, "drafter": series(row), "n": row.n, "K": row.k, "value": estimate.value}
            values.append({**entry, "low": estimate.low, "high": estimate.high})
    return values


def order(values: Values, field: str) -> list[Any]:
    """Values of a field in the order in which they appear, all domains together last."""
    return sorted(dict.fromkeys(v[field] for v in values), key=lambda value: field == "domain" and value == ALL)


def colour(values: Values, field: str = "domain") -> Any:
    """Colour by ``field``, in the order in which its values appear."""
    legend = alt.Legend(orient="top", labelLimit=300, symbolOpacity=1, symbolType="circle")
    names = order(values, field)
    colours = [POOLED if name == ALL else COLOURS[i % len(COLOURS)] for i, name in enumerate(names)]
    return alt.Color(f"{field}:N", title=None, sort=names, scale=alt.Scale(domain=names, range=colours), legend=legend)


def facet(chart: Any, values: Values) -> Any:
    """One panel per domain, three in a row."""
    panel = chart.properties(width=PANEL, height=200)
    return panel.facet(facet=alt.Facet("domain:N", title=None, sort=order(values, "domain")), columns=3)


def dots(values: Values, title: str, *, reference: float | None, domain: tuple[float, float] | None = None) -> Any:
    """Dot per cell and domain with its interval, cells on the y axis."""
    scale = alt.Scale(domain=list(domain), zero=False, nice=False) if domain else alt.Scale(zero=False, nice=True)
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("cell:N", title=None, sort=order(values, "cell"), axis=alt.Axis(labelLimit=320, grid=True)),
        yOffset=alt.YOffset("domain:N", sort=order(values, "domain")),
        color=colour(values),
        tooltip=["cell:N", "domain:N", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
                 alt.Tooltip("high:Q", format=".3f"), "n:Q"],
    )  # fmt: skip
    bars = base.transform_filter("datum.low !== null").mark_rule(strokeWidth=2, opacity=0.75, clip=True)
    bars = bars.encode(x=alt.X("low:Q"), x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("value:Q", title=title, scale=scale))
    layers = [bars, points]
    if reference is not None:
        data = alt.Data(values=[{"at": reference}])
        layers.insert(0, alt.Chart(data).mark_rule(strokeDash=[5, 4], color="#888").encode(x="at:Q"))
    return alt.layer(*layers).properties(width=WIDTH, height=alt.Step(step(values)))


def step(values: Values) -> int:
    """Height of one line in pixels: cells with one domain stand further apart."""
    return 16 if len(order(values, "domain")) > 1 else 30


def lines(values: Values, x: str, x_title: str, y_title: str) -> Any:
    """Lines with interval bands, one panel per domain, one colour per drafter."""
    ticks = sorted({v[x.split(":")[0]] for v in values})
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X(x, title=x_title, axis=alt.Axis(values=ticks, format="d")), color=colour(values, "drafter")
    )
    band = base.transform_filter("datum.low !== null").mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
    tooltip = ["drafter:N", x, alt.Tooltip("value:Q", format=".3f"), "n:Q"]
    line = base.mark_line(point=True).encode(y=alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=False)), tooltip=tooltip)
    return facet(alt.layer(band, line), values)


def over_k(rows: Sequence[CellRow]) -> list[CellRow]:
    """Cells of drafters that ran with at least two draft lengths."""
    greedy = [r for r in rows if plain(r) and isinstance(r.k, int) and r.temperature == 0]
    lengths: dict[str, set[Any]] = {}
    for row in greedy:
        lengths.setdefault(series(row), set()).add(row.k)
    return [row for row in greedy if len(lengths[series(row)]) > 1]
