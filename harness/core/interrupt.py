"""Ctrl-C during a run: the first asks to stop after the current sample, the second leaves at once. And a limit on its time."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from harness.core.terminal import show


class StopRequest:
    """Context manager that turns SIGINT, or a time that is up, into a polite request.

    Args:
        console: told about a Ctrl-C.
        until: ``time.monotonic()`` at which the time is up.

    Attributes:
        interrupted: True after the first Ctrl-C. Records are on disk as they finish, so the second may leave without cleaning up.
    """

    def __init__(self, console: Any, until: float = math.inf) -> None:
        self.interrupted = False
        self._until = until
        self._console = console
        self._before: Any = None

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.interrupted or self.left_s <= 0

    @property
    def left_s(self) -> float:
        """Seconds until the time is up; infinite without a limit."""
        return self._until - time.monotonic()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.interrupted:
            os._exit(130)
        self.interrupted = True
        show(self._console, "stopping after the current sample; press Ctrl-C again to leave at once")
