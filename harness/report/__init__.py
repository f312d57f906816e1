"""Reports of a run: Markdown, CSV and one HTML file, all computed from the raw records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import write_atomic
from harness.core.records import Record
from harness.core.terminal import show
from harness.results.store import Manifest, read_run
from harness.results.summary import CellRow, summarise

__all__ = ["CellRow", "Run", "load_run", "report_texts", "show_table", "summarise", "write_reports"]


@dataclass(frozen=True)
class Run:
    """A run as its reports need it: read and summarised once."""

    manifest: Manifest
    records: Sequence[Record]
    rows: Sequence[CellRow]


def load_run(folder: Path) -> Run:
    """Read and summarise a run folder.

    Raises:
        HarnessError: the run cannot be read, or has no record yet.
    """
    return make_run(*read_run(folder))


def make_run(manifest: Manifest, records: Sequence[Record]) -> Run:
    """Summarise what :func:`harness.results.store.read_run` returned."""
    return Run(manifest, records, summarise(records, manifest.measured.get("calibration")))


def report_texts(run: Run) -> dict[str, str]:
    """File name to content of every report; the same records give the same texts."""
    from harness.report.cells_csv import render_csv
    from harness.report.html import render_html
    from harness.report.markdown import render
    from harness.results.router_rows import compare_router

    router = compare_router(run.records)
    return {
        "report.md": render(run.rows, run.manifest, router),
        "cells.csv": render_csv(run.rows),
        "report.html": render_html(run.rows, run.manifest, router),
    }


def write_reports(run: Run, out: Path) -> list[Path]:
    """Write ``report.md``, ``cells.csv`` and ``report.html`` into ``out``; returns their paths.

    Raises:
        HarnessError: ``out`` cannot be written.
    """
    texts = report_texts(run)
    try:
        for name, text in texts.items():
            write_atomic(out / name, text)
    except OSError as error:
        raise HarnessError(f"cannot write to {out}: {error.strerror or error}", "Free some space or choose another folder.") from error
    return [out / name for name in texts]


def show_table(run: Run, console: Any) -> None:
    """Print the main table and the findings; as Markdown where the output is no terminal. A run that only replays shows its acceptance."""
    from harness.report.findings import findings, unfinished
    from harness.report.markdown import markdown_table
    from harness.report.tables import acceptance_table, first_table, rich_table

    for sentence in unfinished(run.rows, run.manifest):
        show(console, sentence)
    timed = any(row.drafter is not None and row.method == "decode" for row in run.rows)
    for table in (first_table(run.rows), *(() if timed else (acceptance_table(run.rows),))):
        show(console, rich_table(table) if console.is_terminal else markdown_table(table) + "\n")
    for sentence in findings(run.rows, run.manifest.measured):
        show(console, f"• {sentence}")
