"""What training did to each adapter, what an adapter gains at home and loses elsewhere, and what swaps cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from harness.core.schema import Measured
from harness.report.figures import WIDTH, Figure, Values, colour, order
from harness.report.run import Run
from harness.report.tables import MISSING, Table, number
from harness.results.summary import CellRow

TITLE = "Training"


def tables(run: Run) -> list[Table]:
    """Training and swaps."""
    measured = run.manifest.measured
    found = (training_table(measured, run.shown), swap_table(measured))
    return [table for table in found if table is not None]


def sentences(run: Run) -> list[str]:
    """Which adapters have no weights of their own, so that their cells ran with the plain draft, and which come with the package."""
    measured = run.manifest.measured
    adapters, shipped = measured.adapters, [name for name in measured.adapters if name in measured.installed]
    untrained = [name for name, a in adapters.items() if not a["rounds"] and name not in shipped]
    rejected = [name for name, a in adapters.items() if a["rounds"] and not any(r["accepted"] for r in a["rounds"])]
    whys = (
        f"too few failure cases to train {', '.join(untrained)} on" if untrained else "",
        f"no round of {', '.join(rejected)} raised validation acceptance" if rejected else "",
    )
    why = "; ".join(filter(None, whys))
    left_out = [f"{why[0].upper()}{why[1:]}: these cells ran with the plain draft and are left out."] if why else []
    return left_out + ([f"Of the package, not trained here: {', '.join(shipped)}."] if shipped else [])


def training_table(measured: Measured, rows: Sequence[CellRow]) -> Table | None:
    """One line per adapter: its last round, validation acceptance before and after, and when training has paid for itself."""
    lines = []
    for name, adapter in measured.adapters.items():
        rounds, domain = adapter["rounds"], adapter["domain"]
        if name in measured.installed:
            continue
        if not rounds:
            lines.append((name, domain, "too few failure cases to train on", *[MISSING] * 6))
            continue
        last = rounds[-1]
        verdict = "kept" if last["accepted"] else "rejected, the old draft stays"
        verdict += _noise(last.get("gain"))
        before, after = rounds[0]["before"].get(domain), last["after"].get(domain)
        others = [last["after"][d] - rounds[0]["before"][d] for d in last["after"] if d != domain]
        numbers = (
            f"{number(before)} to {number(after)}",
            number(min(others)) if others else MISSING,
            str(sum(r["steps"] for r in rounds)),
            str(sum(r["tokens"] for r in rounds)),
            number(sum(r["train_s"] for r in rounds), 0, " s"),
            _break_even(rows, name, domain, sum(r["train_s"] for r in rounds)),
        )
        lines.append((name, domain, f"round {last['round']}: {verdict}", *numbers))
    if not lines:
        return None
    metric = next(iter(measured.adapters.values()))["metric"]
    headers = ("adapter", "domain", "result", f"validation {metric}", "worst other domain", "updates", "tokens", "training", "pays after")
    return Table("Training", headers, tuple(lines), left=3)


def _noise(gain: Mapping[str, Any] | None) -> str:
    """Says so where the interval of a round's gain contains 0; ``gain`` is that of a round record."""
    if not gain or not gain["value"] or gain["low"] is None:
        return ""
    return ", gain within noise" if gain["low"] <= 0 <= gain["high"] else ""


def _break_even(rows: Sequence[CellRow], name: str, domain: str, train_s: float) -> str:
    """Emitted tokens after which the saved decoding time equals the training time."""
    timed = [r for r in rows if r.domain == domain and r.tok_s and r.temperature == 0 and r.loop == "own"]
    for adapted in (r for r in timed if r.drafter == "adapter" and r.adapter == name and "around" not in r.settings):
        plain = next((r for r in timed if r.drafter == "generic" and r.k == adapted.k), None)
        if plain is None or plain.tok_s is None or adapted.tok_s is None:
            continue
        saved = 1 / plain.tok_s - 1 / adapted.tok_s
        return f"{train_s / saved:,.0f} tokens" if saved > 0 else "never"
    return MISSING


def swap_table(measured: Measured) -> Table | None:
    """The bank's policies: swap time, memory and what a draft step costs."""
    swaps = measured.swaps
    if not swaps:
        return None
    lines = [
        (s["policy"], number(1000 * s["swap_s"], 2, " ms"), number(s["held_bytes"] / 2**20, 1, " MiB"), number(s["step_ratio"], 2, "x"))
        for s in swaps
    ]
    return Table("Adapter swaps", ("policy", "swap", "memory held", "draft step"), tuple(lines), left=1)


def figures(run: Run) -> list[Figure]:
    """Acceptance over rank and training rounds, and of every adapter on every domain."""
    ranks = _curve([r for r in run.own if "rank" in r.settings], "rank", "Adapter rank", "adapter rank")
    rounds = _curve([r for r in run.own if "round" in r.settings], "round", "Training rounds", "rounds of training on failures")
    return [figure for figure in (ranks, rounds, _forgetting(run.own)) if figure is not None]


def _curve(rows: Sequence[CellRow], setting: str, title: str, axis: str) -> Figure | None:
    own = [r for r in rows if r.rate and r.settings.get("adapter_domain", r.domain) == r.domain]
    values: Values = [
        {"x": r.settings[setting], "domain": r.domain, "value": r.rate.value, "low": r.rate.low, "high": r.rate.high, "n": r.n}
        for r in own
        if r.rate
    ]
    if len({v["x"] for v in values}) < 2:
        return None
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("x:Q", title=axis, axis=alt.Axis(values=sorted({v["x"] for v in values}), format="d")), color=colour(values)
    )
    band = base.transform_filter("datum.low !== null").mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("value:Q", title="accepted / drafted tokens", scale=alt.Scale(zero=False)),
        tooltip=["domain:N", "x:Q", alt.Tooltip("value:Q", format=".3f"), "n:Q"],
    )
    chart = alt.layer(band, line).properties(width=WIDTH, height=260)
    return Figure(title, f"Acceptance of each domain's own adapter over the {axis}, with 95% bands.", chart)


def _forgetting(rows: Sequence[CellRow]) -> Figure | None:
    cells: dict[tuple[Any, str], dict[str, Any]] = {}
    for row in rows:
        trained = row.settings.get("adapter_domain")
        if trained and row.rate and not {"rank", "round", "around"} & set(row.settings):
            entry = {"adapter": trained, "domain": row.domain, "rate": row.rate.value, "text": f"{row.rate.value:.2f}"}
            cells.setdefault((trained, row.domain), entry)
    if not any(adapter != domain for adapter, domain in cells):
        return None
    values = list(cells.values())
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("domain:N", title="prompts of", sort=order(values, "domain"), axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("adapter:N", title="adapter trained on", sort=order(values, "adapter")),
    )
    boxes = base.mark_rect().encode(color=alt.Color("rate:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1])))
    text = base.mark_text(fontSize=14).encode(text="text:N", color=alt.value("#111"))
    chart = alt.layer(boxes, text).properties(width=alt.Step(110), height=alt.Step(46))
    return Figure("Forgetting", "Acceptance of every adapter on every domain: what an adapter gains at home it may lose elsewhere.", chart)
