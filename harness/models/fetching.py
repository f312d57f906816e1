"""Progress of fetching and converting models: a bar on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from harness.core.terminal import say
from harness.core.text import printable
from harness.models.sources import Progress

_LINE_EVERY_S = 10.0


@contextlib.contextmanager
def show_progress(progress: Progress | None = None) -> Iterator[Progress]:
    """Yield ``progress``, or one that shows a bar; nothing appears until the first call."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        with _bar() as shown:
            yield shown
    else:
        yield _lines()


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int | None) -> None:
            stage = "converting" if what.startswith("converting") else "fetching"
            if stage not in tasks:
                tasks[stage] = bar.add_task(printable(what), total=total)
            bar.update(tasks[stage], description=printable(what), completed=done, total=total)

        yield show


def _lines() -> Progress:
    last_what, last_at = "", 0.0

    def show(what: str, done: int, total: int | None) -> None:
        nonlocal last_what, last_at
        now = time.monotonic()
        if what == last_what and now - last_at < _LINE_EVERY_S:
            return
        last_what, last_at = what, now
        share = f" {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
        say(f"{what}{share}", err=True)

    return show
