"""The tables below a report's first screen, in one order for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.report import tables
from harness.report.profile_tables import profile_table, stage_table
from harness.report.tables import Table
from harness.report.training_tables import router_table, swap_table, training_table
from harness.results.summary import CellRow


def details(rows: Sequence[CellRow], measured: Mapping[str, Any], router: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Every further table that has lines.

    Args:
        rows: from :func:`harness.results.summary.summarise`.
        measured: the manifest's ``measured``.
        router: from :func:`harness.results.router_rows.compare_router`.
    """
    found = [
        tables.divergence_table(rows),
        tables.domain_table(rows),
        router_table(router),
        training_table(measured, rows),
        swap_table(measured),
        tables.acceptance_table(rows),
        tables.speed_table(rows),
        *tables.position_tables(rows),
        tables.latency_table(rows),
        profile_table(rows),
        tables.quality_table(rows),
        stage_table(measured),
    ]
    return [table for table in found if table is not None and table.rows]
