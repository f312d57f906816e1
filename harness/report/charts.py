"""Charts of the HTML report, each an altair chart or None when the run has no such cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from harness.core.stats import Estimate
from harness.results.summary import ALL, CellRow

WIDTH = 840
PANEL = 330
"""Width in pixels of one panel where several stand side by side."""
FEW_ROUNDS = 8
"""Draft positions that fewer rounds reached are not drawn."""
POOLED = "#1d2733"
"""Colour of all domains together."""
COLOURS = ("#2f6fb3", "#e0823d", "#4a9d5b", "#a65fb0", "#c9a227", "#5aa7b8", "#b8485a", "#7d7d7d")


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and one sentence on how to read it."""

    title: str
    caption: str
    chart: Any


Values = list[dict[str, Any]]


def figures(rows: Sequence[CellRow], router: Sequence[Mapping[str, Any]] = ()) -> list[Figure]:
    """Every figure the rows have data for, in reading order.

    Args:
        rows: from :func:`harness.results.summary.summarise`.
        router: from :func:`harness.results.router_rows.compare_router`.
    """
    own = [row for row in rows if row.domain != ALL]
    several = len({row.domain for row in own}) > 1
    everything, rows = rows, own if several else rows
    makers: tuple[Callable[[Sequence[CellRow]], Figure | None], ...] = (
        _positions, _tau_over_k, _speed_over_k, _rank_curve, _rounds_curve, _forgetting,
    )  # fmt: skip
    found = [_speedup(everything), _acceptance(everything), *(make(rows) for make in makers), _router(router), _latency(rows)]
    return [figure for figure in found if figure is not None]


def name_of(row: CellRow) -> str:
    """Drafter with its draft length and temperature, as the charts label it."""
    parts = [row.label, f"K={row.k}" if row.k is not None else "", f"T={row.temperature:g}" if row.temperature else ""]
    return " ".join(part for part in (*parts, row.rule if row.rule != "match" else "") if part)


def _intervals(rows: Iterable[CellRow], field: str) -> Values:
    values = []
    for row in rows:
        estimate: Estimate | None = getattr(row, field)
        if estimate is not None:
            entry = {"cell": name_of(row), "domain": row.domain, "drafter": _series(row), "n": row.n, "K": row.k, "value": estimate.value}
            values.append({**entry, "low": estimate.low, "high": estimate.high})
    return values


def _colour(values: Values, field: str = "domain") -> Any:
    """Colour by ``field``, in the order in which its values appear."""
    legend = alt.Legend(orient="top", labelLimit=300, symbolOpacity=1, symbolType="circle")
    order = _order(values, field)
    colours = [POOLED if name == ALL else COLOURS[i % len(COLOURS)] for i, name in enumerate(order)]
    return alt.Color(f"{field}:N", title=None, sort=order, scale=alt.Scale(domain=order, range=colours), legend=legend)


def _order(values: Values, field: str) -> list[Any]:
    return list(dict.fromkeys(v[field] for v in values))


def _facet(chart: Any, values: Values) -> Any:
    """One panel per domain, three in a row."""
    panel = chart.properties(width=PANEL, height=200)
    return panel.facet(facet=alt.Facet("domain:N", title=None, sort=_order(values, "domain")), columns=3)


def _dots(values: Values, title: str, *, reference: float | None, domain: tuple[float, float] | None = None) -> Any:
    """Dot per cell and domain with its interval, cells on the y axis."""
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False, nice=True)
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("cell:N", title=None, sort=_order(values, "cell"), axis=alt.Axis(labelLimit=320, grid=True)),
        yOffset=alt.YOffset("domain:N", sort=_order(values, "domain")),
        color=_colour(values),
        tooltip=["cell:N", "domain:N", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
                 alt.Tooltip("high:Q", format=".3f"), "n:Q"],
    )  # fmt: skip
    bars = base.transform_filter("datum.low !== null").mark_rule(strokeWidth=2, opacity=0.75).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("value:Q", title=title, scale=scale))
    layers = [bars, dots]
    if reference is not None:
        data = alt.Data(values=[{"at": reference}])
        layers.insert(0, alt.Chart(data).mark_rule(strokeDash=[5, 4], color="#666").encode(x="at:Q"))
    return alt.layer(*layers).properties(width=WIDTH, height=alt.Step(_step(values)))


def _step(values: Values) -> int:
    """Height of one line in pixels: cells with one domain stand further apart."""
    return 16 if len(_order(values, "domain")) > 1 else 30


def _speedup(rows: Sequence[CellRow]) -> Figure | None:
    values = _intervals((r for r in rows if r.speedup), "speedup")
    caption = "Right of the dashed line is faster than the target alone. Bars are 95% intervals over prompts."
    return Figure("Speedup", caption, _dots(values, "speedup over the target alone (×)", reference=1.0)) if values else None


def _acceptance(rows: Sequence[CellRow]) -> Figure | None:
    timed = [r for r in rows if r.drafter and r.method == "decode" and r.rate]
    values = _intervals(timed or [r for r in rows if r.drafter], "rate")
    chart = _dots(values, "accepted / drafted tokens", reference=None, domain=(0, 1)) if values else None
    return Figure("Acceptance", "How many of the drafted tokens the target kept, with 95% intervals.", chart) if chart else None


def _positions(rows: Sequence[CellRow]) -> Figure | None:
    longest: dict[tuple[str, str], CellRow] = {}
    for row in rows:
        if row.marginal and row.temperature == 0 and _plain(row):
            key = (row.domain, _series(row))
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
            color=_colour(values, "drafter"),
            strokeDash=alt.StrokeDash("kind:N", title=None, sort=["marginal", "conditional"], legend=None),
            tooltip=["drafter:N", "kind:N", "position:O", alt.Tooltip("acceptance:Q", format=".3f"), "rounds:Q"],
        )
    )
    caption = (
        "Solid: kept up to this position, of all drafts this long (marginal). Dashed: kept where everything before was (conditional). "
        f"Positions that fewer than {FEW_ROUNDS} rounds reached are left out."
    )
    return Figure("Acceptance by position", caption, _facet(chart, values))


def _plain(row: CellRow) -> bool:
    """True for drafters, adapters at home included; False for the target alone and the cells of the adapter studies."""
    studied = {"rank", "round"} & set(row.settings)
    return row.drafter is not None and not studied and row.settings.get("adapter_domain", row.domain) == row.domain


def _series(row: CellRow) -> str:
    """Name of a line: the adapters of the domains are one line, each at home."""
    return "own adapter" if row.drafter == "adapter" else row.label


def _over_k(rows: Sequence[CellRow]) -> list[CellRow]:
    """Cells of drafters that ran with at least two draft lengths."""
    greedy = [r for r in rows if _plain(r) and isinstance(r.k, int) and r.temperature == 0]
    lengths: dict[str, set[Any]] = {}
    for row in greedy:
        lengths.setdefault(_series(row), set()).add(row.k)
    return [row for row in greedy if len(lengths[_series(row)]) > 1]


def _tau_over_k(rows: Sequence[CellRow]) -> Figure | None:
    unique = {(r.domain, _series(r), r.k): r for r in _over_k(rows)}
    values = _intervals(unique.values(), "tau")
    if not values:
        return None
    chart = _lines(values, "K:Q", "draft length K", "tokens per target pass")
    caption = "A longer draft pays only while this climbs faster than what drafting and verifying one more token costs."
    return Figure("Tokens per target pass over the draft length", caption, chart)


def _lines(values: Values, x: str, x_title: str, y_title: str) -> Any:
    """Lines with interval bands, one panel per domain, one colour per drafter."""
    ticks = sorted({v[x.split(":")[0]] for v in values})
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X(x, title=x_title, axis=alt.Axis(values=ticks, format="d")), color=_colour(values, "drafter")
    )
    band = base.transform_filter("datum.low !== null").mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
    tooltip = ["drafter:N", x, alt.Tooltip("value:Q", format=".3f"), "n:Q"]
    line = base.mark_line(point=True).encode(y=alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=False)), tooltip=tooltip)
    return _facet(alt.layer(band, line), values)


def _speed_over_k(rows: Sequence[CellRow]) -> Figure | None:
    values = []
    for row in _over_k(rows):
        shared = {"domain": row.domain, "drafter": _series(row), "K": row.k}
        if row.predicted:
            values.append({**shared, "kind": "predicted", "speedup": row.predicted})
        if row.speedup:
            values.append({**shared, "kind": "measured", "speedup": row.speedup.value})
    if not values:
        return None
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X(
            "K:Q", title="draft length K", axis=alt.Axis(values=sorted({int(r.k) for r in _over_k(rows) if r.k is not None}), format="d")
        ),
        y=alt.Y("speedup:Q", title="speedup (×)", scale=alt.Scale(zero=False)),
        color=_colour(values, "drafter"),
        tooltip=["drafter:N", "kind:N", "K:Q", alt.Tooltip("speedup:Q", format=".2f")],
    )
    lines = base.transform_filter("datum.kind == 'predicted'").mark_line(strokeDash=[5, 4], point=alt.OverlayMarkDef(size=15))
    dots = base.transform_filter("datum.kind == 'measured'").mark_point(filled=True, size=80)
    chart = _facet(alt.layer(lines, dots), values)
    caption = "Dashed: predicted from acceptance and the calibrated costs of a draft step and of verification. Dots: measured."
    return Figure("Speedup over the draft length", caption, chart)


def _rank_curve(rows: Sequence[CellRow]) -> Figure | None:
    return _curve([r for r in rows if r.experiment and "rank" in r.settings], "rank", "Adapter rank", "adapter rank")


def _rounds_curve(rows: Sequence[CellRow]) -> Figure | None:
    return _curve([r for r in rows if "round" in r.settings], "round", "Training rounds", "rounds of training on failures")


def _curve(rows: Sequence[CellRow], setting: str, title: str, axis: str) -> Figure | None:
    own = [r for r in rows if r.rate and r.settings.get("adapter_domain", r.domain) == r.domain]
    values = [
        {"x": r.settings[setting], "domain": r.domain, "value": r.rate.value, "low": r.rate.low, "high": r.rate.high, "n": r.n}
        for r in own
        if r.rate
    ]
    if len({v["x"] for v in values}) < 2:
        return None
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("x:Q", title=axis, axis=alt.Axis(values=sorted({v["x"] for v in values}), format="d")), color=_colour(values)
    )
    band = base.transform_filter("datum.low !== null").mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("value:Q", title="accepted / drafted tokens", scale=alt.Scale(zero=False)),
        tooltip=["domain:N", "x:Q", alt.Tooltip("value:Q", format=".3f"), "n:Q"],
    )
    chart = alt.layer(band, line).properties(width=WIDTH, height=260)
    return Figure(title, f"Acceptance of each domain's own adapter over the {axis}, with 95% bands.", chart)


def _forgetting(rows: Sequence[CellRow]) -> Figure | None:
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        trained = row.settings.get("adapter_domain")
        if trained and row.rate and not {"rank", "round"} & set(row.settings):
            entry = {"adapter": trained, "domain": row.domain, "rate": row.rate.value, "text": f"{row.rate.value:.2f}"}
            cells.setdefault((trained, row.domain), entry)
    if not any(adapter != domain for adapter, domain in cells):
        return None
    values = list(cells.values())
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("domain:N", title="prompts of", sort=_order(values, "domain"), axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("adapter:N", title="adapter trained on", sort=_order(values, "adapter")),
    )
    boxes = base.mark_rect().encode(color=alt.Color("rate:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1])))
    text = base.mark_text(fontSize=14).encode(text="text:N", color=alt.value("#111"))
    chart = alt.layer(boxes, text).properties(width=alt.Step(110), height=alt.Step(46))
    return Figure("Forgetting", "Acceptance of every adapter on every domain: what an adapter gains at home it may lose elsewhere.", chart)


def _router(comparison: Sequence[Mapping[str, Any]]) -> Figure | None:
    if not comparison:
        return None
    order = ["best fixed", "router", "oracle"]
    values = [dict(entry) for entry in comparison]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            y=alt.Y("domain:N", title=None, sort=_order(values, "domain")),
            yOffset=alt.YOffset("choice:N", sort=order),
            x=alt.X("rate:Q", title="mean over prompts of accepted / drafted tokens"),
            color=alt.Color(
                "choice:N",
                title=None,
                sort=order,
                scale=alt.Scale(domain=order, range=["#9aa5b1", "#2f6fb3", "#4a9d5b"]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["domain:N", "choice:N", "name:N", alt.Tooltip("rate:Q", format=".3f")],
        )
        .properties(width=WIDTH, height=alt.Step(18))
    )
    return Figure("Router", "The router against the best single drafter and against the best drafter of every prompt.", chart)


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
    return Figure("Latency", caption, alt.hconcat(*panels, spacing=24))


def _latency_panel(values: Values, title: str, *, first: bool) -> Any:
    axis = alt.Axis(labelLimit=260, grid=True) if first else alt.Axis(labels=False, ticks=False, grid=True)
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("cell:N", title=None, sort=_order(values, "cell"), axis=axis),
        yOffset=alt.YOffset("domain:N", sort=_order(values, "domain")),
        color=_colour(values),
        tooltip=["cell:N", "domain:N", *(alt.Tooltip(f"{p}:Q", format=".1f") for p in ("p50", "p90", "p99"))],
    )
    line = base.mark_rule(strokeWidth=1.5, opacity=0.7).encode(x="p50:Q", x2="p99:Q")
    dot = base.mark_point(filled=True, size=55, opacity=1).encode(x=alt.X("p50:Q", title=f"{title} (ms)"))
    tick = base.mark_tick(thickness=2, size=9).encode(x="p90:Q")
    return alt.layer(line, dot, tick).properties(width=PANEL - 20, height=alt.Step(_step(values)))
