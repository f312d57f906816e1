"""Where a round's time goes. A profiled loop marks the end of each part; an unprofiled one makes empty calls that wait for nothing.

A profiled round waits for the draft before the verification starts and for the verification before anything is read, so that each
part's time is its own. Where the two overlap otherwise (GPU), a profiled run is slower than an unprofiled one.
"""

from __future__ import annotations

import time
from typing import Literal

from harness.core.records import Profile
from harness.models.blas import mx

Part = Literal["draft_s", "verify_s", "sync_s", "host_s"]


class NoLaps:
    """Does nothing."""

    def start(self) -> None:
        """A round begins."""

    def end(self, part: Part, *wait_for: mx.array) -> None:
        """A part of the round ends."""

    def take(self) -> Profile | None:
        """The round ends."""
        return None


class Laps(NoLaps):
    """A stopwatch for the parts of a round: every moment belongs to exactly one part."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        """Begin a round."""
        self._times = dict.fromkeys(("draft_s", "verify_s", "sync_s", "host_s"), 0.0)
        self._last = time.perf_counter()

    def end(self, part: Part, *wait_for: mx.array) -> None:
        """Wait for arrays and add the time since the last mark to ``part``."""
        mx.eval(*wait_for)
        now = time.perf_counter()
        self._times[part] += now - self._last
        self._last = now

    def take(self) -> Profile:
        """Add the rest to the host's part and return the round's times."""
        self.end("host_s")
        return Profile(**self._times)
