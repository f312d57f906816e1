"""Progress of a run: a bar with the time left on a terminal, one plain line per sample elsewhere; and of long loops inside training."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from harness.core.records import Record
from harness.core.terminal import show
from harness.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console


T = TypeVar("T")

LOG = logging.getLogger("harness")
"""The one channel of notes."""
NOTE_EVERY_S = 20.0
"""Seconds between the notes of one loop."""


class NowAndThen:
    """Says yes at most once per ``every_s`` seconds, :data:`NOTE_EVERY_S` by default; the first time after as long, or at once."""

    def __init__(self, *, at_once: bool = False, every_s: float | None = None) -> None:
        self._every_s = NOTE_EVERY_S if every_s is None else every_s
        self._last = -math.inf if at_once else time.monotonic()

    def due(self, always: bool = False) -> bool:
        """Is it time for a note? ``always`` makes it so."""
        now = time.monotonic()
        if always or now - self._last >= self._every_s:
            self._last = now
            return True
        return False


def note(line: str) -> None:
    """Say what is going on, to whoever listens: :func:`notes_to`, or a program's own handler of the logger ``harness``."""
    LOG.info(line)


@contextlib.contextmanager
def notes_to(told: Callable[[str], object]) -> Iterator[None]:
    """Pass every note inside the block to ``told``; what it raises ends the work."""
    handler, before = _Told(told), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)


class _Told(logging.Handler):
    """Hands lines to a function, whose exceptions reach the caller."""

    def __init__(self, told: Callable[[str], object]) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told(record.getMessage())


def counted(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass ``items`` on and note now and then how many of the ``total`` are done: nothing where it goes fast."""
    progress = noting(total, what)
    for number, item in enumerate(items, start=1):
        yield item
        progress(number)


def noting(total: int, what: str) -> Callable[[int], None]:
    """A function that takes how many of the ``total`` are done, and notes it now and then."""
    timer = NowAndThen()

    def progress(done: int) -> None:
        if done < total and timer.due():
            note(f"  {done} of {total} {what}")

    return progress


class Progress:
    """Counts finished records.

    Args:
        console: where to show it.
        total: records still to make.
        done: records found from before.
    """

    def __init__(self, console: Console, *, total: int, done: int = 0) -> None:
        self._console, self._total, self._count = console, total, 0
        self._bar: Any = None
        self._task: Any = None
        if done and total:
            show(console, f"{done} records are there already, {total} to go")

    def __enter__(self) -> Progress:
        if self._console.is_terminal and self._total:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("decoding", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def replayed(self, records: Sequence[Record]) -> None:
        """Show that a drafter was replayed along many answers at once."""
        self._count += len(records)
        first, lengths = records[0], ", ".join(dict.fromkeys(str(record.k) for record in records))
        name = f"{first.adapter or first.drafter} k={lengths}"
        if self._bar is not None:
            self._bar.update(self._task, advance=len(records), description=printable(name))
            return
        answers = len({record.sample_id for record in records})
        show(self._console, f"[{self._count}/{self._total}] {name}: replayed along {answers} answers")

    def advance(self, record: Record) -> None:
        """Show one more finished record."""
        self._count += 1
        name = f"{record.drafter or 'target only'}{'' if record.k is None else f' k={record.k}'}"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=printable(f"{record.domain} {name}"))
            return
        tau = record.tau or 0
        time_taken = "" if record.wall_s is None else f" in {record.wall_s:.2f} s"
        show(
            self._console,
            f"[{self._count}/{self._total}] {record.sample_id} {name}: {record.emitted} tokens{time_taken}, {tau:.2f} per target pass",
        )
