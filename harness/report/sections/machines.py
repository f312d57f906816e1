"""Speed on every kind of machine of a cluster: clocks of two kinds are never pooled, counts are."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Column, Table, interval, number
from harness.results.recommend import ranked_rows
from harness.results.summary import CellRow, summarise

TITLE = "Kinds of machine"
BEST = 3
"""Cells per kind, the fastest first."""


def kinds(run: Run) -> list[str]:
    """Kinds of machine that were calibrated, that of the other tables first."""
    measured = run.manifest.measured
    found = dict.fromkeys(facts["machine"] for facts in measured.workers.values())
    return sorted(found, key=lambda kind: kind != measured.reference_machine)


def tables(run: Run) -> list[Table]:
    """The fastest cells of every kind, where there are several."""
    found = kinds(run)
    if len(found) < 2:
        return []
    header = ("machine", "workers", "drafter", "K", "clocked", "speedup", "predicted")
    lines = [line for kind in found for line in _lines(run, kind)]
    return [Table("Speed by kind of machine", header, tuple(lines), left=1)]


def _lines(run: Run, kind: str) -> list[tuple[str, ...]]:
    workers = [facts for facts in run.manifest.measured.workers.values() if facts["machine"] == kind]
    calibration = next((facts["calibration"] for facts in workers if facts["calibration"]), {})
    rows: Sequence[CellRow] = ranked_rows(summarise(run.records, calibration, machine=kind))[:BEST]
    columns: list[Column] = [
        ("drafter", lambda r: r.label),
        ("K", lambda r: "" if r.k is None else str(r.k)),
        ("clocked", lambda r: str(r.clocked)),
        ("speedup", lambda r: interval(r.speed, 2, "x")),
        ("predicted", lambda r: number(r.predicted, 2, "x")),
    ]
    names = str(len({facts["worker"] for facts in workers}))
    return [(kind, names, *(cell(row) for _, cell in columns)) for row in rows]


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """On how many workers, and of which kind the clocks are."""
    workers, found = len({facts["worker"] for facts in run.manifest.measured.workers.values()}), kinds(run)
    if not workers:
        return []
    counted = f"Counts are pooled over {workers} workers" if workers > 1 else "One worker of a cluster did the work"
    if len(found) < 2:
        return [f"{counted}."]
    others = f"{len(found) - 1} other kind{'s' if len(found) > 2 else ''}"
    return [f"{counted}; clocks are not: speeds are those of {found[0]}, and “{TITLE}” has those of {others}."]
