"""The worker's side: one thread that computes, the pair it keeps loaded, and the one function that tasks go through."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hmac import compare_digest
from typing import Any, TypeVar

import dask
from distributed import WorkerPlugin, get_worker

from harness.cluster import sent_files as files
from harness.cluster.address import TOKEN, badge, token, versions
from harness.cluster.pairs import PairSpec, load_spec
from harness.core import machine
from harness.core.errors import HarnessError

T = TypeVar("T")

NAME = "harness"
"""Of the plugin."""
_COMPUTING = ThreadPoolExecutor(1, "computing")
"""The one thread of a process that touches models: mlx keeps its streams, and OpenMP its pool, by thread."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of a task."""

    worker: str
    address: str
    machine: str
    """Kind of machine, :attr:`Seat.machine`."""
    value: Any = None
    """What the function returned."""
    error: tuple[str, str] | None = None
    """Problem and advice of a :class:`harness.core.errors.HarnessError`."""
    lacking: tuple[str, ...] = ()
    """SHA-256 of files that the task needs and this worker lacks."""


class Seat(WorkerPlugin):
    """What a worker process keeps between tasks.

    Args:
        threads: threads of its models, where they were set.
    """

    name = NAME

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.worker = ""
        """Its name, while a task runs."""
        self._kept: dict[str, Any] = {}

    def setup(self, worker: Any) -> None:
        """Called by Dask where the worker starts: a Ctrl-C in the client's terminal is the client's to handle."""
        if worker.nanny and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides its clocks."""
        from harness.models.blas import blas_name, mx

        own = machine.machine_facts()
        threads = self.threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or own["threads"]
        return {**own, "threads": threads, "device": str(mx.default_device()), "blas": blas_name()}

    @property
    def machine(self) -> str:
        """Kind of machine: those of one kind share clocks."""
        facts = self.facts
        return f"{facts['processor']}, {facts['threads']} threads, {facts['device']}, {facts['blas']}"

    def keep(self, key: str, make: Callable[[], T]) -> T:
        """What is kept under ``key``, made on first use."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def pair(self, spec: PairSpec) -> Any:
        """The pair, loaded on first use; another one that is loaded makes room for it."""
        if f"pair {spec}" not in self._kept:
            self._kept.clear()
        return self.keep(f"pair {spec}", lambda: load_spec(spec))


def seat() -> Seat:
    """The seat of the task that runs on this thread.

    Raises:
        HarnessError: the worker was not started by the harness.
    """
    found = getattr(_TASK, "seat", None)
    if found is None:
        raise HarnessError("this worker was not started by the harness", "Start it with `harness worker`.")
    assert isinstance(found, Seat)
    return found


_TASK = threading.local()


def perform(name: str, packed: bytes, word: str) -> Reply:
    """What every task runs: one of the harness's own functions, on the thread that computes.

    Args:
        name: ``module:function`` of the harness.
        packed: pickled arguments, and files by SHA-256 that this worker lacked before.
        word: the client's token.
    """
    worker = get_worker()
    own = worker.plugins.get(NAME)
    if not isinstance(own, Seat):
        problem = (f"worker {worker.name} was not started by the harness", "Start it with `harness worker`.")
        return Reply(worker=str(worker.name), address=worker.address, machine="", error=problem)
    return _COMPUTING.submit(_seated, own, worker, name, packed, word).result()


def _seated(own: Seat, worker: Any, name: str, packed: bytes, word: str) -> Reply:
    own.worker, _TASK.seat = str(worker.name), own
    at = {"worker": own.worker, "address": worker.address}
    try:
        if not compare_digest(word.encode(), token().encode()):
            raise HarnessError("the token is another one", f"Set {TOKEN} to the same word on all machines.")
        function = _function(name)
        call, sent = pickle.loads(packed)
        files.keep(sent)
        return Reply(**at, machine=own.machine, value=function(*call))
    except files.LackingError as error:
        return Reply(**at, machine=own.machine, lacking=error.hashes)
    except HarnessError as error:
        return Reply(**at, machine="", error=(f"worker {own.worker}: {error.problem}", error.advice))
    finally:
        _TASK.seat = None


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] | None = None
    if module.startswith("harness."):
        with contextlib.suppress(ModuleNotFoundError):
            found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found) or found.__module__ != module:  # what a module of the harness merely imports is not the harness's own
        raise HarnessError(f"{name} is no function of the harness", "Use the harness as the client.")
    return found


def hello() -> dict[str, str]:
    """The versions of this process, for a client that asks who may join."""
    return versions()


def as_worker(threads: int) -> dict[str, Any]:
    """How every worker process is started, whoever starts it: keywords of Dask's ``Nanny``.

    Args:
        threads: CPU threads of its models.
    """
    dask.config.set(
        {  # what Dask does beside the work, which is all on one thread here
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,  # give every large array's pages back to the system
            "distributed.worker.profile.enabled": False,  # look a hundred times per second at what the threads do
            "distributed.admin.tick.interval": "1s",  # wake up fifty times per second to see whether it is late
        }
    )
    return {
        "memory_limit": 0,
        "resources": {badge(): 1},
        "plugins": (Seat(threads),),
        "silence_logs": logging.CRITICAL,
        "env": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), str(threads)),
    }
