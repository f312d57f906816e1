"""Measured beside predicted speed."""

from __future__ import annotations

from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Column, Table, cell_table, interval, number, timed_rows
from harness.results.summary import corrected_speedups

TITLE = "Prediction"


def tables(run: Run) -> list[Table]:
    """Predicted and measured speedup, loop efficiency, detectable difference."""
    shown = [row for row in timed_rows(run.shown) if row.speedup]
    detectable = {id(row): e.detectable if e else None for row, e in zip(shown, corrected_speedups(shown), strict=True)}
    columns: list[Column] = [
        ("measured", lambda r: interval(r.speedup, 2, "x")),
        ("predicted", lambda r: number(r.predicted, 2, "x")),
        ("loop efficiency", lambda r: number(r.efficiency, 2)),
        ("detectable difference", lambda r: number(detectable[id(r)], 2, "x")),
        ("prompts left out", lambda r: str(r.unpaired)),
    ]
    return [cell_table("Measured and predicted speedup", shown, columns)]


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """None."""
    return []
