"""Who is answered next: clients take turns, and the queue has an end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.serve.api_errors import ApiError
from harness.serve.wire import Ask

if TYPE_CHECKING:
    from harness.core.records import Generation


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One token of an answer."""

    text: str
    """What it adds; empty inside a character."""
    drafted: bool
    """The draft proposed it."""
    instead: str | None = None
    """What the draft had proposed in its place."""
    alone: str = ""
    """Its text without what goes before, where log-probabilities were asked for."""
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    """The most likely tokens as such texts, and their log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one target pass adds to an answer; tokens that may begin a stop word come later."""

    shown: tuple[Shown, ...]
    drafted: int
    accepted: int
    emitted: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """The end of an answer."""

    generation: Generation
    tokens: int
    """Tokens up to the stop word, or all."""
    finish: str
    """``stop`` or ``length``, in the API's words."""
    reused: int
    """Prompt tokens that did not have to be read again."""
    queue_s: float


Event = Round | Done | ApiError


class Waiting:
    """One answer on its way: the thread that decodes puts events, the request's task takes them.

    Args:
        ask: what is asked.
        client: who asks.
        loop: where the request's task runs.
    """

    def __init__(self, ask: Ask, client: str, loop: asyncio.AbstractEventLoop) -> None:
        self.ask, self.client = ask, client
        self.stop = threading.Event()
        self.since = time.monotonic()
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Hand an event over; one for a loop that has ended is lost with its request."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[Round | Done]:
        """Events up to the end.

        Raises:
            ApiError: the answer ended with it.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if isinstance(event, Done):
                return


class FairQueue:
    """Jobs by client: the client that was served last waits until all others had a turn.

    Args:
        most: jobs that may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._clients: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def put(self, job: Waiting) -> None:
        """Let a job wait.

        Raises:
            ApiError: too many wait already, or the server is about to end.
        """
        with self._changed:
            if self._closed:
                raise ApiError(503, "The server is ending. Try again when it is back.", code="shutting_down")
            if len(self) >= self.most:
                raise ApiError(429, f"{self.most} requests wait already. Try again in a while.", code="queue_full")
            self._clients.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    def take(self, timeout_s: float) -> Waiting | None:
        """The next job; None when none came in time."""
        with self._changed:
            if not self._clients:
                self._changed.wait(timeout_s)
            if not self._clients:
                return None
            client, jobs = self._clients.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._clients[client] = jobs
            return job

    def drop(self, job: Waiting) -> None:
        """Forget a job whose client has gone, where it still waits."""
        with self._changed:
            jobs: Any = self._clients.get(job.client, ())
            if job in jobs:
                jobs.remove(job)
                job.put(ApiError(499, "The client has gone."))
                if not jobs:
                    del self._clients[job.client]

    def close(self) -> None:
        """Take no more jobs; those that wait stay."""
        with self._changed:
            self._closed = True
