"""Every timed cell once, the best first, the target alone last; and in words what is faster and what could not be shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.core.stats import Estimate
from harness.report.figures import Figure, Values, dots, intervals
from harness.report.run import Run
from harness.report.tables import (
    MISSING,
    ON,
    Column,
    Table,
    cell_table,
    diverged,
    interval,
    name_in_words,
    number,
    point,
    timed_rows,
    where,
)
from harness.results.summary import ALL, CellRow, corrected_speedups

TITLE = "Result"
ALPHA = 0.05
"""Family-wise error of the speed claims of one report (Holm)."""
WILD = 2.0
"""Intervals are drawn up to this many times the value."""
MANY = 12
"""With more timed cells than this, or several domains, only the fastest and those that are shown to be slower get a sentence."""

SPEEDUP: Column = ("speedup [95%]", lambda r: interval(r.speedup, 2, "x"))
ROBUST: Column = ("robust [95%]", lambda r: interval(r.robust, 2, "x"))
COUNTS: tuple[Column, ...] = (
    ("rate", lambda r: point(r.rate)),
    ("alpha", lambda r: point(r.alpha)),
    ("tau", lambda r: point(r.tau, 2)),
    ("tok/s", lambda r: number(r.tok_s, 1)),
    ("n", lambda r: str(r.n)),
)
CLOCKED: Column = ("clocked", lambda r: str(r.clocked))
DIVERGED: Column = ("diverged", diverged)


def tables(run: Run) -> list[Table]:
    """Speed, acceptance and divergences of every timed cell, its speedup on each domain beside the pooled one."""
    return [first_table(run)]


def first_table(run: Run) -> Table:
    """The first table of the report."""
    shown = first_rows(run.shown)
    speed = {(row.domain, row.cell): row.speed for row in timed_rows(run.shown)}
    several = any(row.domain == ALL for row in shown)
    domains = dict.fromkeys(row.domain for row in timed_rows(run.shown) if several and row.domain != ALL)
    by_domain: list[Column] = [
        (f"{ON}{domain}", lambda r, domain=domain: _point(speed.get((domain, r.cell))))  # type: ignore[misc]
        for domain in domains
    ]
    clocked = [CLOCKED] if any(row.clocked != row.n for row in shown) else []
    table = cell_table(TITLE, shown, [*by_domain, *COUNTS, *clocked, DIVERGED], first=speeds(shown))
    return _marked(table, shown.index(run.best_row)) if run.recommendation.verdict == "faster" and run.best_row else table


def speeds(rows: Sequence[CellRow]) -> list[Column]:
    """The columns of speed: the robust one where the rounds have times, and the ratio of the wall times."""
    return [*([ROBUST] if any(row.robust for row in rows) else []), SPEEDUP]


def _marked(table: Table, row: int) -> Table:
    """The table with a star at what to use."""
    cells = list(table.rows[row])
    cells[1] = f"★\u00a0{cells[1]}"
    return dataclasses.replace(table, rows=(*table.rows[:row], tuple(cells), *table.rows[row + 1 :]), marked=row)


def first_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows of the first table: every timed cell once, pooled where it ran on several domains.

    The fastest first; below it other temperatures and lossy cells, then cells of a single domain, the target alone last.
    """
    timed = timed_rows(rows)
    pooled = {row.cell for row in timed if row.domain == ALL}
    shown = [row for row in timed if row.domain == ALL or row.cell not in pooled]
    return sorted(shown, key=lambda row: (row.drafter is None, bool(pooled) and row.domain != ALL, _rank(row)))


def _rank(row: CellRow) -> tuple[bool, bool, float, bool, float]:
    return row.drafter is None, row.lossy, row.temperature, row.speedup is None or row.speedup.low is None, -_value(row)


def domain_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows of the table by domain: in each domain the order of the first table."""
    domains = list(dict.fromkeys(row.domain for row in rows))
    own = [row for row in timed_rows(rows) if row.domain != ALL]
    return sorted(own, key=lambda row: (domains.index(row.domain), _rank(row)))


def _point(estimate: Estimate | None) -> str:
    return MISSING if estimate is None else number(estimate.value, 2, "x")


def figures(run: Run) -> list[Figure]:
    """Speedups with their intervals, best first."""
    best_first = [row.cell for row in first_rows(run.shown)]
    rows = sorted((row for row in timed_rows(run.shown) if row.speed), key=lambda row: best_first.index(row.cell))
    values = intervals(rows, "speed")
    caption = "Right of the dashed line is faster than the target alone. Bars are 95% intervals over prompts."
    title = "speedup over the target alone (×)"
    return [Figure("Speedup", caption, dots(values, title, reference=1.0, domain=_range(values)))] if values else []


def _range(values: Values) -> tuple[float, float]:
    """Ends of the axis: every value and its interval, cut where a wild one would squeeze the others."""
    lows = [max(v["low"] or v["value"], v["value"] / WILD) for v in values]
    highs = [min(v["high"] or v["value"], v["value"] * WILD) for v in values]
    return min(1.0, *lows) * 0.98, max(1.0, *highs) * 1.02


def sentences(run: Run) -> list[str]:
    """Where there are few cells a sentence each, else the fastest on each domain and what is shown to be slower."""
    cells = [row for row in timed_rows(run.shown) if row.speed is not None]
    speedups = [estimate for estimate in corrected_speedups(cells) if estimate is not None]
    said = {id(row): _sentence(row, speedup, len(cells)) for row, speedup in zip(cells, speedups, strict=True)}
    domains = sorted(dict.fromkeys(r.domain for r in cells), key=lambda d: d != ALL)
    if len(domains) == 1 and len(cells) <= MANY:
        return [text[0].upper() + text[1:] for text in said.values()]
    exact = [r for r in cells if not r.lossy and not r.temperature] or cells
    best = [max((r for r in exact if r.domain == d), key=_value) for d in domains if any(r.domain == d for r in exact)]
    slow = [
        f"{name_in_words(row)} on {where(row)} {interval(row.speed, 2, 'x')}"
        for row, speedup in zip(cells, speedups, strict=True)
        if speedup.p is not None and speedup.p < ALPHA and speedup.value < 1
    ]
    first = [_fastest(row, said[id(row)]) for row in best]
    return first + ([f"Slower than the target alone: {'; '.join(slow)}."] if slow else [])


def _fastest(row: CellRow, sentence: str) -> str:
    if _value(row) > 1:
        return sentence[0].upper() + sentence[1:]
    closest = f"{name_in_words(row)} came closest at {interval(row.speed, 2, 'x')}, n = {row.n}"
    return f"On {where(row)}, nothing ran faster than the target alone: {closest}."


def _value(row: CellRow) -> float:
    return row.speed.value if row.speed else 0.0


def _sentence(row: CellRow, speedup: Estimate, cells: int) -> str:
    """``speedup`` is the row's, corrected for the number of cells."""
    p, name = speedup.p, name_in_words(row)
    if p is None:
        return f"on {where(row)}, {name} ran at {speedup.value:.2f}x the target alone; n = {speedup.n} is too few for an interval."
    if p >= ALPHA and speedup.excludes(1.0):
        return (
            f"on {where(row)}, {name} ran at {interval(speedup, 2, 'x')} the target alone, n = {speedup.n}; "
            f"among {cells} cells that may be chance (p = {p:.2g} after Holm's correction)."
        )
    if p >= ALPHA:
        detectable = number(speedup.detectable, 2, "x")
        return (
            f"on {where(row)}, no difference in speed between {name} and the target alone could be shown at n = {speedup.n} "
            f"({interval(speedup, 2, 'x')}; detectable: {detectable})."
        )
    word = "faster" if speedup.value > 1 else "slower"
    return f"on {where(row)}, {name} is {word} than the target alone: {interval(speedup, 2, 'x')}, n = {speedup.n}."
