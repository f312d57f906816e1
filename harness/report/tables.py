"""Tables of the report as headers and text cells, shared by Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.stats import Estimate
from harness.core.text import printable
from harness.results.summary import ALL, CellRow

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "–"
"""Shown where there is no value."""
ON = "on "
"""Start of the headers of the speedups by domain."""
COLOURED = ("draft", "lookup", "memory")
"""Who is told from the target in an answer's text, each by a colour."""


@dataclass(frozen=True)
class Text:
    """What the page shows below a row when asked."""

    prompt: str
    answer: tuple[tuple[str, str], ...]
    """Stretches of the answer, each with who proposed it: ``draft``, ``lookup`` or ``memory``; empty for the target."""


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 2
    """How many leading columns are text, aligned left."""
    marked: int | None = None
    """Row that stands out."""
    texts: tuple[Text | None, ...] = ()
    """A text per row, for the page."""
    open: bool = False
    """The page shows it without a click."""


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


def where(row: CellRow) -> str:
    """A row's domain in a sentence."""
    return "all domains together" if row.domain == ALL else row.domain


def name_in_words(row: CellRow) -> str:
    """Drafter, draft length and temperature in a sentence."""
    return f"{row.label}{'' if row.k is None else f' (K = {row.k})'}{f' at T = {row.temperature:g}' if row.temperature else ''}"


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


def cell_table(title: str, rows: Sequence[CellRow], columns: Iterable[Column], *, first: Sequence[Column] = ()) -> Table:
    """One line per cell: the columns that tell the cells apart, then ``columns``; ``first`` stand right after domain, drafter and K."""
    names = _names(rows)
    start, rest = names[: len(_NAMES)], names[len(_NAMES) :]
    chosen = [*start, *first, *rest, *columns]
    left = len(start) if first else len(names)
    return Table(title, tuple(name for name, _ in chosen), tuple(tuple(get(row) for _, get in chosen) for row in rows), left)


def timed_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows of the cells that were decoded against the clock."""
    return [row for row in rows if row.clocked]


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
