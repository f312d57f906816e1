"""Where the wall clock disagrees with the run's own rounds, and what else the machine did meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from harness.core.records import Load, Record
from harness.core.stats import Estimate
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Table, interval, name_in_words, timed_rows, where
from harness.results.summary import row_cells

TITLE = "Clock"
MOST = 3
"""Cells that are named, at most."""
WAITED = 10.0
"""Percent of waiting for a processor above which others were at work."""
STOLEN = 0.02
"""Share of stolen time above which the host was at work for others."""


def tables(run: Run) -> list[Table]:
    """None."""
    return []


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """How many answers were decoded again, and cells whose two speedups differ by more than their intervals."""
    records = run.groups.of(cell for cell in run.groups.cells if cell.method == "decode")
    return [*_again(run, records), *_apart(run, records)]


def _again(run: Run, records: Sequence[Record]) -> list[str]:
    again = sum(bool(r.tries) for r in records)
    if not again:
        return []
    why = _meanwhile(run, [one.load for r in records for one in r.tries])
    return [f"{again} of {len(records)} timed answers were decoded again, as their clock was disturbed{f': {why}' if why else ''}."]


def _apart(run: Run, records: Sequence[Record]) -> list[str]:
    apart = [row for row in timed_rows(run.shown) if _disjoint(row.robust, row.speedup)]
    if not apart:
        return []
    named = [f"{name_in_words(r)} on {where(r)} {interval(r.robust, 2, 'x')} and {interval(r.speedup, 2, 'x')}" for r in apart[:MOST]]
    named += [f"{len(apart) - MOST} more"] if len(apart) > MOST else []
    of_row = row_cells(run.groups)
    cells = {cell for row in apart for cell in of_row[row.cell]}
    why = _meanwhile(run, [r.load for r in run.groups.of(c for c in cells if c.method == "decode")])
    why = why or "no other load was seen: heat, or prompts with a clock that are unlike the others"
    return [f"By the medians of the rounds and by the wall clock alone, beyond their intervals: {'; '.join(named)}. Meanwhile {why}."]


def _disjoint(a: Estimate | None, b: Estimate | None) -> bool:
    if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def _meanwhile(run: Run, loads: Iterable[Load | None]) -> str:
    """What else the machine did, by the medians of what was noted; empty where it did nothing else."""
    known, cores = [load for load in loads if load is not None], run.manifest.machine.get("cores") or 1
    pressure, steal, average = (_median(getattr(load, name) for load in known) for name in ("pressure", "steal", "average"))
    found = [f"processes waited for a processor {pressure:.0f}% of the time"] if pressure > WAITED else []
    found += [f"the host gave {steal:.0%} of the processors away"] if steal > STOLEN else []
    found += [f"{average:.1f} processes ran or waited on {cores} cores"] if average > cores + 0.5 else []
    return ", ".join(found)


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else 0.0
