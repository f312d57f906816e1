"""What a finished run tells an experiment tracker: its numbers by cell, the report's tables, and the report's files."""

from __future__ import annotations

from pathlib import Path

from harness.core.tracking import Tracker
from harness.report.run import Run
from harness.report.sections import tables
from harness.results.summary import CellRow

MEASURES = ("rate", "alpha", "tau", "speed")
"""Fields of a row that are told, each with its interval's ends."""


def track_run(run: Run, reports: Path, tracker: Tracker) -> None:
    """Tell a tracker everything a run's report says.

    Args:
        run: the run.
        reports: folder of its report.
        tracker: who is told.
    """
    tracker.log({name: value for row in run.shown for name, value in numbers(row).items()})
    for table in tables(run):
        if table.rows:
            tracker.table(table.title, table.headers, table.rows)
    for name in ("report.html", "report.md", "cells.csv", "recommendation.json", "settings.yaml"):
        if (reports / name).is_file():
            tracker.file(reports / name)


def numbers(row: CellRow) -> dict[str, float]:
    """A row's measures under names such as ``code/lookup K=4/rate``, those of the interval's ends with ``low`` and ``high`` behind."""
    way = row.label + ("" if row.k is None else f" K={row.k}") + (f" T={row.temperature:g}" if row.temperature else "")
    where = f"{row.domain}/{way}{'' if row.method == 'decode' else ' ' + row.method}"
    found: dict[str, float] = {}
    for measure in MEASURES:
        estimate = getattr(row, measure)
        if estimate is not None:
            ends = {"": estimate.value, " low": estimate.low, " high": estimate.high}
            found |= {f"{where}/{measure}{end}": value for end, value in ends.items() if value is not None}
    return found
