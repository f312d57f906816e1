"""The result on every domain."""

from __future__ import annotations

from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.sections.result import COUNTS, DIVERGED, domain_rows, speeds
from harness.report.tables import Table, cell_table, timed_rows

TITLE = "By domain"


def tables(run: Run) -> list[Table]:
    """The first table's columns per domain; none where the first table shows nothing else."""
    own = domain_rows(run.shown)
    columns = [*COUNTS, ("tokens", lambda r: f"{r.counts.emitted:.0f}"), DIVERGED]
    return [cell_table(TITLE, own, columns, first=speeds(own))] if len(own) < len(timed_rows(run.shown)) else []


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """None."""
    return []
