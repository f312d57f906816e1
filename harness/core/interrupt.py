"""Ctrl-C during a run: the first asks to stop after the current sample, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from harness.core.terminal import show


class StopRequest:
    """Context manager that turns SIGINT into a polite request.

    Attributes:
        requested: True after the first Ctrl-C. Records are on disk as they finish, so the second may leave without cleaning up.
    """

    def __init__(self, console: Any) -> None:
        self.requested = False
        self._console = console
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            os._exit(130)
        self.requested = True
        show(self._console, "stopping after the current sample; press Ctrl-C again to leave at once")
