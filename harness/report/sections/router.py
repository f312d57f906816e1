"""The router between the best single drafter and the best drafter of every prompt."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from harness.report.figures import WIDTH, Figure, order
from harness.report.run import Run
from harness.report.tables import Table, number
from harness.results.router_rows import oracle_gap_recovery
from harness.results.summary import ALL

TITLE = "Router"


def tables(run: Run) -> list[Table]:
    """Best fixed drafter, router and oracle per domain, and the share of the gap that the router closes."""
    lines = []
    for entry in run.router:
        recovery = oracle_gap_recovery(run.router, entry["domain"]) if entry["choice"] == "router" else None
        lines.append((entry["domain"], entry["choice"], entry["name"], str(entry["n"]), number(entry["tau"], 2), number(recovery, 2)))
    return [Table(TITLE, ("domain", "choice", "drafter", "n", "tau, per prompt", "oracle gap recovered"), tuple(lines), left=3)]


def figures(run: Run) -> list[Figure]:
    """Tokens per target pass of the three choices on every domain."""
    if not run.router:
        return []
    choices = ["best fixed", "router", "oracle"]
    values = [dict(entry) for entry in run.router]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            y=alt.Y("domain:N", title=None, sort=order(values, "domain")),
            yOffset=alt.YOffset("choice:N", sort=choices),
            x=alt.X("tau:Q", title="mean over prompts of tokens per target pass"),
            color=alt.Color(
                "choice:N",
                title=None,
                sort=choices,
                scale=alt.Scale(domain=choices, range=["#9aa5b1", "#2f7fd0", "#4a9d5b"]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["domain:N", "choice:N", "name:N", alt.Tooltip("tau:Q", format=".3f")],
        )
        .properties(width=WIDTH, height=alt.Step(18))
    )
    return [Figure(TITLE, "The router against the best single drafter and against the best drafter of every prompt.", chart)]


def sentences(run: Run) -> list[str]:
    """What routing costs, or that there was nothing to route to."""
    if run.router_has_no_choice:
        return ["No adapter was kept that the router could choose: it ran with the plain draft and is left out."]
    routed = [row for row in run.shown if row.route_s is not None]
    routed = [row for row in routed if row.domain == ALL] or routed
    if not routed:
        return []
    swap = _ms([row.swap_s for row in routed])
    took = f"Routing took {_ms([row.route_s for row in routed])} ms per prompt" + (f", adapter swap {swap} ms" if swap else "")
    return [f"{took}, counted in the router's speedup."]


def _ms(seconds: Sequence[float | None]) -> str:
    """Milliseconds, from the least to the most; empty where nothing is known."""
    known = [f"{1000 * s:.1f}" for s in sorted(s for s in seconds if s is not None)]
    return " to ".join(dict.fromkeys((known[0], known[-1]))) if known else ""
