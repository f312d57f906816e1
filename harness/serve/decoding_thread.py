"""The thread that decodes: one job after the other, and training when it is quiet."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.adapt.training.outcome import Enough, TrainProgress
from harness.serve.answers import run
from harness.serve.api_errors import ApiError
from harness.serve.metrics import Metrics
from harness.serve.queue import FairQueue, Waiting

if TYPE_CHECKING:
    from harness.session.session import Session

WAKE_S = 0.25
"""Seconds after which the waiting thread looks whether it was told to end."""
HOUR_S = 3600.0


@dataclass
class Learning:
    """When the server trains.

    Args:
        minutes: most minutes of training in any hour.
        quiet_s: seconds without a request after which it is quiet.
    """

    minutes: float = 10.0
    quiet_s: float = 5.0
    spent: deque[tuple[float, float]] = field(default_factory=deque)
    """When a round ended, and the seconds it took."""

    def left_s(self, now: float) -> float:
        """Seconds of training that are left at this time."""
        while self.spent and self.spent[0][0] < now - HOUR_S:
            self.spent.popleft()
        return 60 * self.minutes - sum(seconds for _, seconds in self.spent)


class _Ending(Exception):
    """The server ends in the middle of a training round."""


class Worker:
    """A session, the requests that wait for it, and what became of them.

    Args:
        session: what answers and learns.
        most_waiting: requests that may wait.
        most_prompt_tokens: longer prompts are refused; None is the context.
        learning: keep what the draft gets wrong and train on it; None does neither.
    """

    def __init__(
        self, session: Session, *, most_waiting: int = 64, most_prompt_tokens: int | None = None, learning: Learning | None = None
    ) -> None:
        self.session, self.learning, self.most_prompt_tokens = session, learning, most_prompt_tokens
        self.queue = FairQueue(most_waiting)
        self.metrics = Metrics(self.queue)
        self.job: Waiting | None = None
        """The answer under way."""
        self.progress: TrainProgress | None = None
        """How far the training under way is."""
        self.rounds: list[dict[str, Any]] = []
        """What became of the rounds since the start."""
        self.draining = False
        self._busy_until = time.monotonic()

    def turn(self, wait_s: float = WAKE_S) -> None:
        """Answer the next request, or train where none has come for a while."""
        if self.draining:
            self.queue.close()
        job = self.queue.take(wait_s)
        if job is not None:
            self._answer(job)
        elif self.learning is not None and not self.draining:
            self._learn(self.learning)

    def drain(self, *_: Any) -> None:
        """Take no more requests and end after those that wait; again: end now."""
        if self.draining:
            while (job := self.queue.take(0)) is not None:
                job.put(ApiError(503, "The server was ended before your turn came.", code="shutting_down"))
            if self.job is not None:
                self.job.stop.set()
        self.draining = True

    def status(self) -> str:
        """One word."""
        return "draining" if self.draining else "training" if self.progress is not None else "ok"

    def state(self) -> dict[str, Any]:
        """The session and its training, for pages and people."""
        session, progress = self.session, self.progress
        return {
            "pair": session.pair.name,
            "drafter": session.drafter,
            "drafters": session.drafters(),
            "k": session.k,
            "max_tokens": session.config.max_tokens,
            "stats": dataclasses.asdict(session.stats()),
            "status": self.status(),
            "waiting": len(self.queue),
            "training": None if progress is None else {"step": progress.step, "total": progress.total, "loss": progress.loss},
            "rounds": self.rounds[-10:],
        }

    # --- parts ---

    def _answer(self, job: Waiting, training: bool = False) -> None:
        if job.stop.is_set():
            job.put(ApiError(499, "The client has gone."))
            return
        self.job = job
        try:
            learn = self.learning is not None
            run(self.session, job, self.metrics.answered, learn=learn, training=training, most_prompt_tokens=self.most_prompt_tokens)
        finally:
            self.job = None
            self._busy_until = time.monotonic()

    def _learn(self, learning: Learning) -> None:
        """Run a round when one is due, it is quiet and the hour's time is not used up. Requests are answered between its updates."""
        now = time.monotonic()
        left_s = learning.left_s(now)
        if not self.session.due or now - self._busy_until < learning.quiet_s or left_s <= 0:
            return
        answering_s = 0.0

        def after_update(progress: TrainProgress) -> None:
            """Let requests in between, and end the round when its time is up."""
            nonlocal answering_s
            self.progress = progress
            began = time.monotonic()
            while (job := self.queue.take(0)) is not None:
                self._answer(job, training=True)
            answering_s += time.monotonic() - began
            if self.draining:
                raise _Ending
            if time.monotonic() - now - answering_s > left_s:
                raise Enough

        try:
            record = self.session.train_if_due(progress=after_update)
        except _Ending:
            return
        finally:
            self.progress = None
        seconds = time.monotonic() - now - answering_s
        learning.spent.append((time.monotonic(), seconds))
        self.metrics.trained(record, seconds)
        if record is not None:
            change = {domain: [record.before[domain], record.after[domain]] for domain in record.before}
            self.rounds.append({"round": record.round, "accepted": record.accepted, "change": change, "train_s": record.train_s})
