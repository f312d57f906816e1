"""Tables of the report as headers and text cells, shared by Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.files import printable
from harness.core.stats import Estimate
from harness.results.summary import ALL, CellRow, corrected_speedups

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "–"
"""Shown where there is no value."""
ON = "on "
"""Start of the headers of the speedups by domain."""


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 2
    """How many leading columns are text, aligned left."""


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number with fixed digits, or the sign for missing."""
    return MISSING if value is None else f"{value:.{digits}f}{unit}"


def interval(estimate: Estimate | None, digits: int = 3, unit: str = "") -> str:
    """``1.21x [1.10, 1.33]``; without the brackets where there is no interval."""
    if estimate is None:
        return MISSING
    text = number(estimate.value, digits, unit)
    return text if estimate.low is None else f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def point(estimate: Estimate | None, digits: int = 3) -> str:
    """The value alone."""
    return MISSING if estimate is None else number(estimate.value, digits)


def diverged(row: CellRow) -> str:
    """Divergences of compared outputs, as ``1 of 12``."""
    if not row.compared:
        return MISSING
    return f"{len(row.divergences)} of {row.compared}"


Column = tuple[str, Callable[[CellRow], str]]

_NAMES: tuple[Column, ...] = (
    ("domain", lambda r: r.domain),
    ("drafter", lambda r: r.label),
    ("K", lambda r: MISSING if r.k is None else str(r.k)),
)
_RULE: Column = ("rule", lambda r: r.rule if r.drafter else MISSING)
_TEMPERATURE: Column = ("T", lambda r: f"{r.temperature:g}")
_EXPERIMENT: Column = ("experiment", lambda r: r.experiment)


def _names(rows: Sequence[CellRow]) -> list[Column]:
    """Columns that tell the rows apart: rule, temperature and experiment only where they are needed."""
    names = list(_NAMES)
    for column in (_RULE, _TEMPERATURE):
        if len({column[1](row) for row in rows if row.drafter is not None}) > 1:
            names.append(column)
    if len({tuple(get(row) for _, get in names) for row in rows}) < len(rows):
        names.append(_EXPERIMENT)
    return names


def cell_table(title: str, rows: Sequence[CellRow], columns: Iterable[Column]) -> Table:
    """One line per cell: the columns that tell the cells apart, then ``columns``."""
    names = _names(rows)
    chosen = [*names, *columns]
    return Table(title, tuple(name for name, _ in chosen), tuple(tuple(get(row) for _, get in chosen) for row in rows), len(names))


def timed_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows of the cells that were decoded against the clock."""
    return [row for row in rows if row.method == "decode"]


def first_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows of the first table: every timed cell once.

    Cells that ran on several domains are pooled, the target alone first, then the fastest; cells of a single domain follow.
    """
    timed = timed_rows(rows)
    pooled = {row.cell: row for row in timed if row.domain == ALL}
    ranked = sorted(pooled.values(), key=lambda row: (row.drafter is not None, -row.speedup.value if row.speedup else 0.0))
    return [*ranked, *(row for row in timed if row.cell not in pooled)]


def first_table(rows: Sequence[CellRow]) -> Table:
    """Acceptance, speed and divergences of every timed cell, its speedup on each domain beside the pooled one."""
    shown = first_rows(rows)
    speed = {(row.domain, row.cell): row.speedup for row in timed_rows(rows)}
    several = any(row.domain == ALL for row in shown)
    domains = dict.fromkeys(row.domain for row in timed_rows(rows) if several and row.domain != ALL)
    by_domain: list[Column] = [
        (f"{ON}{domain}", lambda r, domain=domain: number(_value(speed.get((domain, r.cell))), 2, "x"))  # type: ignore[misc]
        for domain in domains
    ]
    return cell_table("Result", shown, [_RESULT[0], *_RESULT[2 if several else 1 : -1], *by_domain, _RESULT[-1]])


def domain_table(rows: Sequence[CellRow]) -> Table | None:
    """The first table's columns per domain; None where the first table shows nothing else."""
    own = [row for row in timed_rows(rows) if row.domain != ALL]
    return cell_table("By domain", own, _RESULT) if len(own) < len(timed_rows(rows)) else None


_RESULT: tuple[Column, ...] = (
    ("n", lambda r: str(r.n)),
    ("tokens", lambda r: str(r.tokens)),
    ("rate", lambda r: point(r.rate)),
    ("alpha", lambda r: point(r.alpha)),
    ("tau", lambda r: point(r.tau, 2)),
    ("tok/s", lambda r: number(r.tok_s, 1)),
    ("speedup [95%]", lambda r: interval(r.speedup, 2, "x")),
    ("diverged", diverged),
)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def acceptance_table(rows: Sequence[CellRow]) -> Table:
    """Acceptance with intervals, pooled and per prompt; replayed cells included."""
    columns: list[Column] = [
        ("prompts", lambda r: str(r.n)),
        ("source", lambda r: r.method),
        ("drafted", lambda r: f"{r.drafted:.0f}"),
        ("accepted", lambda r: f"{r.accepted:.0f}"),
        ("rate, pooled", lambda r: interval(r.rate)),
        ("rate, per prompt", lambda r: number(r.rate_per_prompt)),
        ("alpha", lambda r: interval(r.alpha)),
        ("tau", lambda r: interval(r.tau, 2)),
    ]
    return cell_table("Acceptance", [row for row in rows if row.drafter is not None], columns)


def position_tables(rows: Sequence[CellRow]) -> list[Table]:
    """Acceptance by draft position, marginal and conditional."""
    shown = [row for row in rows if row.marginal and row.drafter is not None]
    depth = max((len(row.marginal) for row in shown), default=0)
    tables = []
    for kind in ("marginal", "conditional"):
        columns: list[Column] = [(str(j + 1), lambda r, j=j, kind=kind: _at(getattr(r, kind), j)) for j in range(depth)]  # type: ignore[misc]
        tables.append(cell_table(f"Acceptance by position, {kind}", shown, columns))
    return tables if shown else []


def _at(values: Sequence[float | None], j: int) -> str:
    return number(values[j]) if j < len(values) else MISSING


def speed_table(rows: Sequence[CellRow]) -> Table:
    """Predicted and measured speedup, loop efficiency."""
    shown = [row for row in timed_rows(rows) if row.speedup]
    detectable = {id(row): e.detectable if e else None for row, e in zip(shown, corrected_speedups(shown), strict=True)}
    columns: list[Column] = [
        ("measured", lambda r: interval(r.speedup, 2, "x")),
        ("predicted", lambda r: number(r.predicted, 2, "x")),
        ("loop efficiency", lambda r: number(r.efficiency, 2)),
        ("detectable difference", lambda r: number(detectable[id(r)], 2, "x")),
        ("prompts left out", lambda r: str(r.unpaired)),
    ]
    return cell_table("Measured and predicted speedup", shown, columns)


def latency_table(rows: Sequence[CellRow]) -> Table:
    """Percentiles of time to first token, time per further token and total, in milliseconds."""
    columns: list[Column] = []
    for title, name in (("first token", "ttft_s"), ("per token", "token_s"), ("total", "total_s")):
        for i, level in enumerate((50, 90, 99)):
            columns.append((f"{title} p{level}", lambda r, name=name, i=i: _ms(getattr(r, name), i)))  # type: ignore[misc]
    return cell_table("Latency in milliseconds", timed_rows(rows), columns)


def _ms(values: Sequence[float] | None, i: int) -> str:
    return MISSING if values is None else f"{values[i] * 1000:.1f}"


def quality_table(rows: Sequence[CellRow]) -> Table | None:
    """Scores per cell; None when nothing was scored."""
    shown = [row for row in timed_rows(rows) if row.quality and row.domain != ALL]
    columns: list[Column] = [
        ("metric", lambda r: r.quality.metric if r.quality else MISSING),
        ("score", lambda r: number(r.quality.mean if r.quality else None)),
        ("scored", lambda r: str(r.quality.scored if r.quality else 0)),
        ("unscored", lambda r: str(r.quality.unscored if r.quality else 0)),
        ("cut at the token limit", lambda r: str(r.quality.cut if r.quality else 0)),
    ]
    return cell_table("Quality", shown, columns) if shown else None


def divergence_table(rows: Sequence[CellRow]) -> Table | None:
    """Every divergence with its first position and logit gap; None when there is none."""
    lines = [
        (row.label, str(row.k), sample, str(d.position), f"{d.gap:.2e}", d.kind)
        for row in rows
        if row.domain != ALL
        for sample, d in row.divergences
    ]
    headers = ("drafter", "K", "sample", "position", "gap (nats)", "kind")
    return Table("Divergences from the target's greedy output", headers, tuple(lines), 3) if lines else None


def rich_table(table: Table) -> RichTable:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown: Any = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for i, header in enumerate(table.headers):
        shown.add_column(Text(header), justify="left" if i < table.left else "right", overflow="fold")
    domain = None
    for row in table.rows:
        if domain is not None and row[0] != domain:
            shown.add_section()
        domain = row[0]
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown  # type: ignore[no-any-return]
