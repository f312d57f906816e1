"""Reports of a run: Markdown, CSV and one HTML file, all computed from the raw records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.records import Record
from harness.report.summary import CellRow, summarise
from harness.store import Manifest, read_manifest, read_records, write_atomic
from harness.terminal import show

__all__ = ["CellRow", "Run", "load_run", "show_table", "summarise", "write_reports"]


@dataclass(frozen=True)
class Run:
    """A run as its reports need it: read and summarised once."""

    manifest: Manifest
    records: Sequence[Record]
    rows: Sequence[CellRow]


def load_run(folder: Path) -> Run:
    """Read and summarise a run folder.

    Raises:
        HarnessError: the run cannot be read.
    """
    manifest, records = read_manifest(folder), read_records(folder)
    return Run(manifest, records, summarise(records, manifest.measured.get("calibration")))


def write_reports(run: Run, out: Path) -> list[Path]:
    """Write ``report.md``, ``cells.csv`` and ``report.html`` into ``out``; returns their paths.

    Raises:
        HarnessError: ``out`` cannot be written.
    """
    from harness.report.cells_csv import render_csv
    from harness.report.html import render_html
    from harness.report.markdown import render
    from harness.report.router import compare_router

    router = compare_router(run.records)
    texts = {
        "report.md": render(run.rows, run.manifest, router),
        "cells.csv": render_csv(run.rows),
        "report.html": render_html(run.rows, run.manifest, router),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomic(out / name, text)
    except OSError as error:
        raise HarnessError(f"cannot write to {out}: {error.strerror or error}", "Free some space or choose another folder.") from error
    return [out / name for name in texts]


def show_table(run: Run, console: Any) -> None:
    """Print the main table and the findings; as Markdown where the output is no terminal."""
    from harness.report.findings import findings
    from harness.report.markdown import markdown_table
    from harness.report.tables import first_table, rich_table

    if console.is_terminal:
        show(console, rich_table(first_table(run.rows)))
    else:
        show(console, markdown_table(first_table(run.rows)) + "\n")
    for sentence in findings(run.rows, run.manifest.measured):
        show(console, f"• {sentence}")
