"""Two run folders compared as the command does it, for tests that read the text."""

from __future__ import annotations

from pathlib import Path

from harness.report.compare import compare_text
from harness.results.comparison import compare_runs


def compare(a: Path, b: Path) -> str:
    """Markdown of the comparison."""
    return compare_text(compare_runs(a, b))
