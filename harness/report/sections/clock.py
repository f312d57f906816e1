"""Where the wall clock disagrees with the run's own rounds, and what else the machine did meanwhile."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from harness.core.records import Load, Record
from harness.core.stats import Estimate
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Table, interval, name_in_words, timed_rows, where
from harness.results.groups import OneKind
from harness.results.robust import Timing
from harness.results.summary import ALL, CellRow, row_cells

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
    cells = [cell for cell in run.groups.cells if cell.method == "decode"]
    return [*_again(run, run.groups.of(cells)), *_apart(run)]


def _again(run: Run, records: Sequence[Record]) -> list[str]:
    again = sum(bool(r.tries) for r in records)
    if not again:
        return []
    why = _meanwhile(run, [one.load for r in records for one in r.tries])
    return [f"{again} of {len(records)} timed answers were decoded again, as their clock was disturbed{f': {why}' if why else ''}."]


def _apart(run: Run) -> list[str]:
    """A sentence per cell, those that are furthest apart first."""
    apart = [row for row in timed_rows(run.shown) if _disjoint(row.robust, row.speedup)]
    if not apart:
        return []
    machine = run.manifest.measured.reference_machine
    clocked = run.groups if machine is None else OneKind(run.groups, machine)
    timing, of_row = Timing(clocked), row_cells(run.groups)
    apart.sort(key=_distance, reverse=True)
    found = []
    for row in apart[:MOST]:
        own = [r for r in clocked.of(c for c in of_row[row.cell] if c.method == "decode") if row.domain in (ALL, r.domain)]
        by_rounds, by_clock = interval(row.robust, 2, "x"), interval(row.speedup, 2, "x")
        found.append(
            f"{name_in_words(row)} on {where(row)} has {by_rounds} by the medians of the rounds, n = {row.n}, and {by_clock} by the wall "
            f"clock, n = {row.clocked}: {_why(run, timing.speedup(own), row.speedup, own)}."
        )
    rest = len(apart) - MOST
    return [*found, *([f"So have {rest} other cells two speedups beyond each other's intervals."] if rest > 0 else [])]


def _distance(row: CellRow) -> float:
    assert row.robust is not None
    assert row.speedup is not None
    return abs(math.log(row.robust.value / row.speedup.value))


def _why(run: Run, here: Estimate | None, by_clock: Estimate | None, own: Sequence[Record]) -> str:
    """Other prompts, where the medians say of the clocked ones what the clock says; else what else the machine did."""
    if here is not None and not _disjoint(here, by_clock):
        return f"the clocked prompts are unlike the others, {here.value:.2f}x by the medians too"
    return _meanwhile(run, [r.load for r in own]) or "no other load was seen, so perhaps heat"


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
