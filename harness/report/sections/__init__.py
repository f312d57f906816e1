"""The parts of a report in reading order. A new one is one file with ``tables``, ``figures`` and ``sentences``, and one line below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.sections import (
    acceptance,
    adapters,
    best_k,
    clock,
    domains,
    latency,
    lossless,
    machine,
    machines,
    prompts,
    quality,
    recommendation,
    replay,
    result,
    router,
    speed,
    thinking,
    time,
)
from harness.report.tables import Table


class Section(Protocol):
    """What a file of this folder offers; each part may be empty."""

    TITLE: str

    def tables(self, run: Run) -> Sequence[Table]:
        """Tables below the section's heading; one without rows is left out."""
        ...

    def figures(self, run: Run) -> Sequence[Figure]:
        """Charts of the page."""
        ...

    def sentences(self, run: Run) -> Sequence[str]:
        """Findings: plain sentences for the first screen."""
        ...


SECTIONS: tuple[Section, ...] = (
    recommendation,
    result,
    lossless,
    best_k,
    domains,
    prompts,
    acceptance,
    thinking,
    speed,
    quality,
    replay,
    router,
    adapters,
    latency,
    time,
    machines,
    clock,
    machine,
)


def findings(run: Run) -> list[str]:
    """Sentences of every section, those of the recommendation apart."""
    return [sentence for section in SECTIONS if section is not recommendation for sentence in section.sentences(run)]


def tables(run: Run) -> list[Table]:
    """Every table that has lines, and that of the result."""
    return [table for section in SECTIONS for table in section.tables(run) if table.rows or section is result]


def figures(run: Run) -> list[Figure]:
    """Every chart the run has data for."""
    return [figure for section in SECTIONS for figure in section.figures(run)]
