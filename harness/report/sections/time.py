"""Where the time of a run went by stage, and inside the rounds of a profiled one."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from harness.core.schema import Measured
from harness.core.walltime import MODEL_STAGES, OWN_STAGES
from harness.report.figures import COLOURS, WIDTH, Figure, name_of
from harness.report.run import Run
from harness.report.tables import Table, cell_table
from harness.results.summary import ALL, PROFILE_PARTS, CellRow

TITLE = "Where the time goes"
_NAMES = {"prefill_s": "prefill", "draft_s": "draft", "verify_s": "verify", "sync_s": "sync", "host_s": "host", "other_s": "other"}
CAPTION = (
    "Prefill: processing the prompt. Draft and verify: launching the models and waiting for them. Sync: reading results to the host. "
    "Host: the rest of a round, in Python. Other: between rounds. A profiled round waits for each part, so profile and race in two runs."
)


_STAGES = {
    "train": "answers, training and router fits",
    "calibrate": "calibration and warm-up",
    "answer": "answers of the target in batches",
    "decode": "decoding the timed cells",
    "replay": "replaying the other cells",
    "check": "spot checks of replay, divergences",
    "load": "reading datasets and models",
    "score": "scoring answers",
}


def stage_table(measured: Measured) -> Table | None:
    """Seconds and share of the wall time by stage, up to the writing of the report; None for runs that did not record them."""
    time_s = measured.time_s
    if not time_s:
        return None
    named = {_STAGES[name]: time_s.get(name, 0.0) for name in (*MODEL_STAGES, *OWN_STAGES) if name != "answer" or name in time_s}
    named["planning, records, everything else"] = time_s["total"] - sum(named.values())
    lines = [(name, f"{seconds:.1f} s", f"{seconds / time_s['total']:.1%}") for name, seconds in named.items()]
    return Table("Where the run's time went", ("stage", "time", "share"), tuple(lines), left=1)


def profile_table(rows: Sequence[CellRow]) -> Table | None:
    """Milliseconds per round and the share of the wall time that each part took; None without a profiled cell."""
    shown = [row for row in rows if row.profile]
    columns = [("ms per round", lambda r: f"{_rounds_s(r) / r.counts.rounds * 1000:.2f}")]
    for part, name in _NAMES.items():
        columns.append((name, lambda r, part=part: f"{_share(r, part):.1%}"))  # type: ignore[misc]
    return cell_table("Where the time goes", shown, columns) if shown else None


def _share(row: CellRow, part: str) -> float:
    profile = row.profile or {}
    return profile[part] / sum(profile.values())


def _rounds_s(row: CellRow) -> float:
    """Seconds inside rounds."""
    return sum((row.profile or {})[part] for part in PROFILE_PARTS)


def profile_figure(rows: Sequence[CellRow]) -> Figure | None:
    """Milliseconds per emitted token by part, one bar per cell over all domains."""
    profiled = [row for row in rows if row.profile]
    pooled = [row for row in profiled if row.domain == ALL] or profiled
    order = list(_NAMES.values())
    values = [
        {
            "cell": name_of(row),
            "part": name,
            "order": i,
            "ms": (row.profile or {})[part] * 1000 / row.counts.emitted,
            "share": _share(row, part),
        }
        for row in pooled
        for i, (part, name) in enumerate(_NAMES.items())
    ]
    if not values:
        return None
    cells = list(dict.fromkeys(str(v["cell"]) for v in values))
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            y=alt.Y("cell:N", title=None, sort=cells, axis=alt.Axis(labelLimit=320)),
            x=alt.X("ms:Q", title="milliseconds per emitted token", stack="zero"),
            color=alt.Color("part:N", title=None, sort=order, scale=alt.Scale(domain=order, range=list(COLOURS)[: len(order)]),
                            legend=alt.Legend(orient="top")),
            order=alt.Order("order:Q"),
            tooltip=["cell:N", "part:N", alt.Tooltip("ms:Q", format=".2f"), alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=WIDTH, height=alt.Step(30))
    )  # fmt: skip
    return Figure("Where the time goes", CAPTION, chart)


def tables(run: Run) -> list[Table]:
    """Parts of the rounds, and stages of the run."""
    found = (profile_table(run.shown), stage_table(run.manifest.measured))
    return [table for table in found if table is not None]


def figures(run: Run) -> list[Figure]:
    """Milliseconds per emitted token by part."""
    figure = profile_figure(run.shown)
    return [figure] if figure else []


def sentences(run: Run) -> list[str]:
    """None."""
    return []
