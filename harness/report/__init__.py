"""Reports of a run: Markdown, CSV and one HTML file, all computed from the raw records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import write_atomic
from harness.core.terminal import show
from harness.report.run import Run, load_run, make_run
from harness.results.summary import CellRow, summarise

__all__ = ["CellRow", "Run", "load_run", "make_run", "report_texts", "show_recommendation", "show_table", "summarise", "write_reports"]


def report_texts(run: Run) -> dict[str, str]:
    """File name to content of every report; the same records give the same texts."""
    from harness.report.cells_csv import render_csv
    from harness.report.html import render_html
    from harness.report.markdown import render
    from harness.report.sections.recommendation import recommendation_json, settings_yaml

    return {"report.md": render(run), "cells.csv": render_csv(run.rows), "report.html": render_html(run)} | {
        "recommendation.json": recommendation_json(run),
        "settings.yaml": settings_yaml(run),
    }


def write_reports(run: Run, out: Path) -> list[Path]:
    """Write every file of :func:`report_texts` into ``out``, and the charts into ``out/charts``; returns the paths of the files.

    Raises:
        HarnessError: ``out`` cannot be written.
    """
    from harness.report.pictures import write_pictures

    texts = report_texts(run)
    try:
        for name, text in texts.items():
            write_atomic(out / name, text)
        write_pictures(run, out)
    except OSError as error:
        raise HarnessError(f"cannot write to {out}: {error.strerror or error}", "Free some space or choose another folder.") from error
    return [out / name for name in texts]


def show_table(run: Run, console: Any) -> None:
    """Print the main table and the findings; as Markdown where the output is no terminal. A run that only replays shows its acceptance."""
    from harness.report.markdown import markdown_table
    from harness.report.sections import findings
    from harness.report.sections.acceptance import acceptance_table
    from harness.report.sections.result import first_table
    from harness.report.tables import rich_table

    if run.unfinished:
        show(console, run.unfinished)
    timed = any(row.drafter is not None and row.clocked for row in run.shown)
    for table in (first_table(run), *(() if timed else (acceptance_table(run),))):
        show(console, rich_table(table) if console.is_terminal else markdown_table(table) + "\n")
    for sentence in findings(run):
        show(console, f"• {sentence}")


def show_recommendation(run: Run, page: Path, console: Any) -> None:
    """Print what a run ends with: what to use, the command line, where the page is."""
    from harness.report.sections.recommendation import paragraph

    show(console, f"\n{paragraph(run)}\n  {run.recommendation.command}\n{page}")
