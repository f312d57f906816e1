"""Work of torch kept apart from the thread that decodes.

OpenMP keeps a pool of threads for every thread that has ever run a parallel loop. On a Linux CPU one pool, that of mlx's stream, verifies
drafts. A second one, such as torch's, makes libgomp count more threads than processors, and from then on none of them spins while it
waits: verifying five tokens costs twice as much for as long as the second pool lives. A thread that ends takes its pool with it.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

WAKE_S = 0.5
"""Seconds after which a waiting caller looks around: a signal that arrives just before a wait does not end it."""
_own = threading.local()


class _Abandoned(SystemExit):
    """Raised in a thread whose caller was interrupted; a thread that ends by it prints nothing."""


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that computes in torch: each call runs on a thread of its own, which has ended when the call returns.

    Results and exceptions come back, and callbacks are called, on that thread. When the waiting caller is interrupted, the work stops
    after its torch operation under way. Calls inside one another share the outermost thread.
    """
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__name__} is a generator: its body would run on the thread that iterates")

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_own, "apart", False):
            return function(*args, **kwargs)
        outcome: Future[R] = Future()

        def work() -> None:
            _own.apart = True
            try:
                outcome.set_result(function(*args, **kwargs))
            except BaseException as error:
                outcome.set_exception(error)

        thread = threading.Thread(target=work, name=f"apart {function.__name__}", daemon=True)
        thread.start()
        try:
            _wait(thread)
        except BaseException:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Abandoned))
            _wait(thread)
            raise
        return outcome.result()

    return run


def _wait(thread: threading.Thread) -> None:
    while thread.is_alive():
        thread.join(WAKE_S)
