"""Reports of a run: Markdown, CSV and one HTML file, all computed from the raw records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.report.summary import CellRow, summarise
from harness.store import Manifest, read_manifest, read_records, write_atomically

__all__ = ["CellRow", "load_rows", "show_table", "summarise", "write_reports"]


def load_rows(folder: Path) -> tuple[Manifest, list[CellRow]]:
    """Manifest and summary rows of a run folder.

    Raises:
        HarnessError: the run cannot be read.
    """
    manifest = read_manifest(folder)
    return manifest, summarise(read_records(folder), manifest.measured.get("calibration"))


def write_reports(folder: Path, out: Path) -> list[Path]:
    """Write ``report.md``, ``cells.csv`` and ``report.html`` of a run folder into ``out``; returns their paths.

    Raises:
        HarnessError: the run cannot be read, or ``out`` cannot be written.
    """
    from harness.report.cells_csv import render_csv
    from harness.report.html import render_html
    from harness.report.markdown import render
    from harness.report.router import compare_router

    manifest, records = read_manifest(folder), read_records(folder)
    rows = summarise(records, manifest.measured.get("calibration"))
    router = compare_router(records)
    texts = {
        "report.md": render(rows, manifest, router),
        "cells.csv": render_csv(rows),
        "report.html": render_html(rows, manifest, router),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(out / name, text)
    except OSError as error:
        raise HarnessError(f"cannot write to {out}: {error.strerror or error}", "Free some space or choose another folder.") from error
    return [out / name for name in texts]


def show_table(folder: Path, console: Any) -> None:
    """Print the main table and the findings; as Markdown where the output is no terminal."""
    from harness.report.findings import findings
    from harness.report.markdown import markdown_table
    from harness.report.tables import first_table, rich_table

    manifest, rows = load_rows(folder)
    if console.is_terminal:
        console.print(rich_table(first_table(rows)))
    else:
        console.print(markdown_table(first_table(rows)) + "\n", markup=False, highlight=False, soft_wrap=True)
    for sentence in findings(rows, manifest.measured):
        console.print(f"• {sentence}", markup=False, highlight=False, soft_wrap=True)
