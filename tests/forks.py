"""Processes of their own for the tests, forked from one that has imported what takes long: a second instead of five."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SLOW_IMPORTS = ["torch", "transformers.models.auto.tokenization_auto", "transformers.activations", "altair", "typer.main"]
"""What takes long and starts no thread: mlx starts some, which a fork would not have."""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(SLOW_IMPORTS)


@dataclass(frozen=True)
class Running:
    """A process that has done its imports and works."""

    process: Any
    output: Path

    def said(self) -> str:
        """What it has written to standard output and error so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def ends(self, timeout_s: float) -> bool:
        """Wait for its end; False where it still runs after so long."""
        self.process.join(timeout_s)
        return self.process.exitcode is not None


@contextlib.contextmanager
def started(work: Callable[..., object], *arguments: Any, terminal: str | None = None) -> Iterator[Running]:
    """Call a function of a module in a process of its own, which is killed at the end of the block; ``terminal`` is a device to talk to."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as output:
        ready, tell = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_work, args=(tell, output.name, terminal, work, arguments))
        process.start()
        try:
            tell.close()
            assert ready.poll(600), "the imports took more than ten minutes"
            ready.recv()
            yield Running(process, Path(output.name))
        finally:
            process.kill()
            process.join()


def _work(ready: Connection, output: str, terminal: str | None, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    if terminal is None:
        sys.stdout = sys.stderr = open(output, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    else:
        for descriptor in range(3):
            os.dup2(os.open(terminal, os.O_RDWR), descriptor)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w", closefd=False) for n in range(3))
    import harness.adapt.training.campaign
    import harness.answers.mlx_batch
    import harness.models.pair  # noqa: F401

    ready.send(None)
    work(*arguments)


def command(arguments: list[str], cache: Path | None = None) -> None:
    """The command line, with a cache of its own where one is named."""
    from harness.cli import main

    os.environ["OMP_NUM_THREADS"] = "1"
    if cache is not None:
        os.environ["HARNESS_CACHE"] = str(cache)
    main(arguments)


def finished(work: Callable[..., object], *arguments: Any, kill_after_s: float | None = None) -> tuple[bool, float]:
    """Call a function in a process of its own, killed so long after its imports; whether it finished, and the seconds it took."""
    with started(work, *arguments) as running:
        began = time.perf_counter()
        running.ends(600 if kill_after_s is None else kill_after_s)
        wall_s = time.perf_counter() - began
        running.process.kill()
        running.process.join()
        assert running.process.exitcode in (0, -signal.SIGKILL), running.said()
        return running.process.exitcode == 0, wall_s
