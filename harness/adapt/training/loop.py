"""The loop and the schedule of everything that is trained here: adapters, and drafts cut out of their target."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Protocol

from harness.core.errors import HarnessError


class Schedule(Protocol):
    """Settings of the learning rate."""

    @property
    def learning_rate(self) -> float:
        """Peak of the rate."""

    @property
    def warmup_steps(self) -> int:
        """Updates over which it rises."""

    @property
    def final_fraction(self) -> float:
        """Rate at the end over the peak."""


def learning_rate(config: Schedule, step: int, total: int) -> float:
    """Return the rate of update ``step`` (from 0): linear warm-up, then cosine decay to ``final_fraction``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    low = config.learning_rate * config.final_fraction
    return low + (config.learning_rate - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2


class Training(ABC):
    """A fixed sequence of updates that data and settings decide, so that a resumed run repeats nothing and skips nothing.

    Attributes:
        step: updates done.
        total: updates of the whole run.
        save_every: updates between checkpoints.
        judge_every: updates between evaluations; there is one at the end, and a checkpoint behind each.
        train_s: seconds of the updates.
    """

    total: int
    save_every: int
    judge_every: int

    def __init__(self) -> None:
        self.step, self.train_s = 0, 0.0

    @abstractmethod
    def update(self) -> float:
        """Do update ``step`` and return its loss."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint of the first ``step`` updates."""

    def measure(self) -> None:  # noqa: B027
        """See how good the weights are now."""

    def enough(self) -> bool:
        """True ends the run before its last update."""
        return False

    def done(self, loss: float) -> None:  # noqa: B027
        """Told the loss of each update when everything about it is on disk."""

    def loop(self) -> None:
        """Update until the plan ends or it is enough.

        Raises:
            HarnessError: the loss is no finite number.
        """
        while self.step < self.total and not self.enough():
            began = time.perf_counter()
            loss = self.update()
            if not math.isfinite(loss):
                raise HarnessError(f"the loss became {loss} at update {self.step + 1}", "Lower learning_rate, or set clip_norm.")
            self.step, self.train_s = self.step + 1, self.train_s + time.perf_counter() - began
            judged = self.step % self.judge_every == 0 or self.step == self.total
            if judged:
                self.measure()
            if judged or self.step % self.save_every == 0:
                self.save()
            self.done(loss)
