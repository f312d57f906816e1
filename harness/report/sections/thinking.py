"""Acceptance while the model thinks and while it answers, where it does both."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.counts import Counts, total
from harness.core.records import Record
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Column, Table, cell_table, number
from harness.results.summary import ALL, CellRow, row_cells
from harness.results.thinking_counts import counted_by_part

TITLE = "Thinking and answer"


def tables(run: Run) -> list[Table]:
    """Counts of both parts, of every cell that drafts; none where no model thought."""
    if not run.groups.thinks:
        return []
    cells = row_cells(run.groups)
    drafted = [row for row in run.shown if row.drafter is not None]
    counts = {(row.cell, row.domain): _parts(row, run.groups.of(cells[row.cell])) for row in drafted}
    columns: list[Column] = [("thinking tokens", lambda r: f"{counts[r.cell, r.domain][0].emitted:.0f}")]
    for i, part in enumerate(("thinking", "answer")):
        columns.append((f"rate, {part}", lambda r, i=i: number(counts[r.cell, r.domain][i].rate)))  # type: ignore[misc]
        columns.append((f"tau, {part}", lambda r, i=i: number(counts[r.cell, r.domain][i].tau, 2)))  # type: ignore[misc]
    return [cell_table(TITLE, drafted, columns)]


def _parts(row: CellRow, records: Sequence[Record]) -> tuple[Counts, Counts]:
    both = [parts for record in records if row.domain in (ALL, record.domain) and (parts := counted_by_part(record)) is not None]
    return total(first for first, _ in both), total(second for _, second in both)


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """None."""
    return []
