"""The client's side: workers found and checked, tasks handed out and, where their worker is lost, handed out again."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, Security

from harness.cluster.address import Address, badge, read_address, token, versions
from harness.cluster.certificates import certificates
from harness.cluster.pairs import PairSpec, check_room, spec_of
from harness.cluster.seat import Reply, as_worker, hello, perform
from harness.core.errors import HarnessError
from harness.core.progress import note
from harness.core.protocols import LoadedPair

WAIT_S = 120.0
"""Seconds until a worker must be there."""
RECONNECT_S = 600.0
"""Seconds that a scheduler may be gone."""
TRY_S = 10.0
"""Seconds of one try to reach it."""
AGAIN_S = 45.0
"""Seconds without any worker of this machine after which they are started anew."""
LOOK_S = 5.0
"""Seconds between two looks at who is there."""
POLL_S = 0.01
"""Seconds between two looks whether a task has ended."""
AHEAD = 2
"""Tasks per worker that are handed out: the one it works on, and the next."""
DEATHS = 3
"""Workers that one task may kill, each time with as many tries as Dask allows."""
_ADVICE = "Start it with `dask scheduler`, and workers with `harness worker`; finished records are kept."

Call = tuple[Any, ...]
Sources = Mapping[str, Path]
"""SHA-256 of files that tasks may need to where they are."""


class GoneError(Exception):
    """The scheduler is not there any more."""


class Cluster:
    """Workers that run the harness's own functions. A context manager.

    Args:
        address: of a scheduler, or how many processes to start here.
        processes: False puts local workers into this process, for tests.

    Raises:
        HarnessError: no scheduler or no worker answers, or a worker has other versions.
    """

    def __init__(self, address: str | Address, *, processes: bool = True) -> None:
        self.address = read_address(address) if isinstance(address, str) else address
        self.seen: dict[str, str] = {}
        """Address of every worker that has answered, to its kind of machine."""
        self._badge, self._word = badge(), token()
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "10 GiB"})  # a task may carry answers to train on
        self._own = _start_local(self.address.workers, processes) if self.address.workers else None
        self._looked, self._workers = 0.0, list[str]()
        self._refused: dict[str, str] = {}
        """Address of workers that may not work to why."""
        self._bound: dict[str, frozenset[str]] = {}
        try:
            self._client = self._connect(WAIT_S)
            self._wait_for_workers(WAIT_S, strict=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; local workers end."""
        for part in (getattr(self, "_client", None), self._own):
            if part is not None:
                with contextlib.suppress(Exception):  # whatever it is, the work is done
                    part.close()

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers that may have tasks; looked up every :data:`LOOK_S`."""
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._look()
            self._looked = now
        return self._workers

    def spec_of(self, pair: LoadedPair, models: str, *, offline: bool = False, draft_context: int | None = None) -> PairSpec:
        """A pair that is open here, for these workers: :func:`harness.cluster.pairs.spec_of`.

        Raises:
            HarnessError: it does not fit into this machine's memory as often as workers were started here.
        """
        spec = spec_of(pair, models, offline=offline, draft_context=draft_context)
        if self.address.workers:
            check_room(spec, self.address.workers)
        return spec

    def each(
        self,
        function: Callable[..., Any],
        calls: Sequence[Call],
        *,
        sources: Sources | None = None,
        only: str | None = None,
        until: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, Reply]]:
        """Run ``function(*call)`` for every call on some worker; yields its number and the reply as they come, every number once.

        Args:
            function: one of the harness's own.
            calls: arguments, sent with every task.
            sources: files that workers may lack.
            only: kind of machine that the tasks are for.
            until: no more is done once this is true.

        Raises:
            HarnessError: a task failed, its workers die of it, or the scheduler stays away.
        """
        waiting, running, alone_since = deque(range(len(calls))), dict[Any, int](), time.monotonic()
        sent, deaths = dict[int, dict[str, bytes]](), Counter[int]()
        try:
            while (waiting or running) and not until():
                try:
                    able = self._able(only)
                    while waiting and len(running) < AHEAD * len(able):
                        future = self._submit(function, calls[waiting[0]], sent.get(waiting[0], {}), able if only else None)
                        running[future] = waiting.popleft()
                    ended = self._ended(running)
                except (GoneError, OSError):
                    waiting.extendleft(sorted(running.values(), reverse=True))
                    running.clear()
                    self._reconnect()
                    continue
                for future in ended:
                    number = running.pop(future)
                    reply = self._reply(future, number, deaths)
                    if reply is not None and not reply.lacking and only in (None, reply.machine):
                        sent.pop(number, None)
                        yield number, reply
                        continue
                    waiting.appendleft(number)
                    if reply is not None and reply.lacking:
                        sent[number] = _read(reply.lacking, sources or {})
                if able:
                    alone_since = time.monotonic()
                elif self._own is not None and time.monotonic() - alone_since > AGAIN_S:
                    alone_since = time.monotonic()
                    self._start_again()
                elif time.monotonic() - alone_since > RECONNECT_S:
                    raise HarnessError(f"no worker{f' of the kind {only}' if only else ''} is left at {self.address.text}", _ADVICE)
                if not ended:
                    time.sleep(POLL_S)
        finally:
            if running:
                with contextlib.suppress(Exception):  # a connection that is gone has nothing to cancel
                    self._client.cancel(list(running))

    def all(self, function: Callable[..., Any], calls: Sequence[Call], **options: Any) -> list[Reply]:
        """Replies of :meth:`each` in the order of the calls."""
        found = dict(self.each(function, calls, **options))
        return [found[number] for number in range(len(calls)) if number in found]

    # --- parts ---

    def _able(self, only: str | None) -> list[str]:
        """Workers that may have a task; those whose kind of machine is not known yet are tried."""
        return [address for address in self.workers if only is None or self.seen.get(address, only) == only]

    def _submit(self, function: Callable[..., Any], call: Call, sent: Mapping[str, bytes], bound: Sequence[str] | None) -> Any:
        if self._client.status != "running":
            raise GoneError
        name, key = f"{function.__module__}:{function.__qualname__}", f"harness-{function.__name__}-{uuid.uuid4().hex}"
        if bound is not None:
            self._bound[key] = frozenset(bound)
        options = {"resources": {self._badge: 1}, **({} if bound is None else {"workers": list(bound)})}
        return self._client.submit(perform, name, pickle.dumps((call, sent)), self._word, key=key, pure=False, **options)

    def _ended(self, running: Mapping[Any, int]) -> list[Any]:
        if self._client.status != "running":
            raise GoneError
        here = set(self.workers)
        left = [future for future in running if (bound := self._bound.get(future.key)) and not bound & here and not future.done()]
        if left:  # none of the workers that they were for is there any more
            self._client.cancel(left)
        return [future for future in running if future.done()]

    def _reply(self, future: Any, number: int, deaths: Counter[int]) -> Reply | None:
        """What a task gave; None where it must be handed out again."""
        from concurrent.futures import CancelledError

        if future.status == "cancelled":
            return None
        try:
            reply = future.result(timeout=60)
        except KilledWorker as error:
            deaths[number] += 1
            if deaths[number] < DEATHS:
                return None
            raise HarnessError(
                f"every worker that had this task ended: {error}"[:500], "Look at the workers' output; memory may be short there."
            ) from None
        except (CancelledError, TimeoutError, OSError):
            return None
        finally:
            with contextlib.suppress(Exception):
                future.release()
        assert isinstance(reply, Reply)
        if reply.error:
            raise HarnessError(*reply.error)
        self.seen[reply.address] = reply.machine
        return reply

    def _connect(self, timeout_s: float) -> Client:
        """A connection, waiting for the scheduler as long as that."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                if self._own is not None:
                    return Client(self._own, set_as_default=False)
                security = certificates(self.address, "client")
                return Client(self.address.text, security=security, set_as_default=False, timeout=TRY_S)
            except (OSError, TimeoutError, RuntimeError) as error:
                if time.monotonic() >= until:
                    raise HarnessError(f"no scheduler answers at {self.address.text}: {error}"[:300], _ADVICE) from None
                time.sleep(1.0)

    def _reconnect(self) -> None:
        if self._client.status == "running":
            return
        note(f"the scheduler at {self.address.text} is gone; waiting for it")
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)
        self._client = self._connect(RECONNECT_S)
        self._looked = 0.0
        self._wait_for_workers(RECONNECT_S)

    def _start_again(self) -> None:
        """Start the workers of this machine anew: where a process was killed, starting the next one may have failed too."""
        assert self._own is not None
        note("no worker is left; starting them again")
        self._own.scale(0)
        self._own.scale(self.address.workers)

    def _wait_for_workers(self, timeout_s: float, *, strict: bool = False) -> None:
        """Until one is there; ``strict`` gives up at once where all that are there are refused."""
        until, timer = time.monotonic() + timeout_s, -math.inf
        while True:
            self._look()
            if self._workers or (strict and self._refused) or time.monotonic() >= until:
                break
            if time.monotonic() - timer > 20:
                note(f"waiting for workers at {self.address.text}")
                timer = time.monotonic()
            time.sleep(0.2)
        if self._workers:
            return
        if self._refused:
            raise HarnessError(next(iter(self._refused.values())), "Install the same versions on all machines.")
        raise HarnessError(f"no worker has joined {self.address.text}", "Start some with `harness worker`.")

    def _look(self) -> None:
        """See who is there; note once who may not work, and why."""
        try:
            info = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):
            return
        able = {address for address, facts in info.items() if self._badge in facts.get("resources", {})}
        self._workers = sorted(able)
        for address in sorted(info.keys() - able - self._refused.keys()):
            self._refused[address] = f"worker {info[address].get('name', address)} at {address} {self._difference(address)}"
            note(f"refused: {self._refused[address]}")

    def _difference(self, address: str) -> str:
        """How a worker that shows another badge differs from this machine."""
        try:
            theirs = self._client.run(hello, workers=[address], on_error="return")[address]
        except (OSError, TimeoutError, KeyError):
            theirs = None
        if not isinstance(theirs, dict):
            return "is none of the harness's"
        here = versions()
        other = next((name for name in here if theirs.get(name) != here[name]), None)
        if other is None:
            return "was not started with `harness worker`"
        return f"has {other} {theirs.get(other)}, here it is {here[other]}"


def _start_local(workers: int, processes: bool) -> LocalCluster:
    """Workers on this machine, each with its share of the cores; nobody else on it can reach them."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, (os.cpu_count() or 1) // workers)
    options: dict[str, Any] = {**as_worker(threads), "protocol": "tcp"}
    if processes:
        options |= {"protocol": "tls", "security": Security.temporary()}
    else:
        del options["env"]
    return LocalCluster(n_workers=workers, threads_per_worker=1, processes=processes, dashboard_address="127.0.0.1:0", **options)


def _read(lacking: Sequence[str], sources: Sources) -> dict[str, bytes]:
    unknown = [digest for digest in lacking if digest not in sources]
    if unknown:
        raise HarnessError(f"a worker asks for a file that this run does not have: {unknown[0]}", "Run again.")
    return {digest: sources[digest].read_bytes() for digest in lacking}
