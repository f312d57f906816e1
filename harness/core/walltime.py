"""Where the wall time of a run goes, stage by stage, over all its resumptions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

MODEL_STAGES = ("train", "calibrate", "answer", "decode", "replay", "check")
"""Stages that are model calls or training; the rest of a run is the harness's own."""
OWN_STAGES = ("load", "score")
"""Stages of the harness's own that are timed by name; what no stage covers is planning, records and pauses between samples."""


class Stages:
    """Adds up seconds by stage. A stage inside another counts for the inner one only.

    Args:
        before: seconds of an interrupted run that goes on, from its manifest.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._seconds = dict(before or {})
        self._total = self._seconds.pop("total", 0.0)
        self._started = time.perf_counter()
        self._inner = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of the block for stage ``name``."""
        started, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - self._inner
            self._inner = outer + elapsed

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, and ``total`` since the run began."""
        return {**self._seconds, "total": self._total + time.perf_counter() - self._started}


def own_share(seconds: Mapping[str, float]) -> float:
    """Share of the total that is neither model calls nor training."""
    return 1 - sum(seconds.get(name, 0.0) for name in MODEL_STAGES) / seconds["total"]
