"""Chat templates: rendered in a process with bounds on time, memory and text, and on a fixed date: a prompt is the same tomorrow."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.text import printable

CLOCK_S = 10.0
"""Longest that one prompt may take to render."""
MEMORY_BYTES = 2**30
"""Most memory of the process that renders."""
MOST_CHARS = 4 * 2**20
"""Longest text a template may give."""
_START_S = 120.0


def render(tokenizer: Any, messages: Sequence[dict[str, Any]], *, today: str, add_generation_prompt: bool, name: str) -> str:
    """Apply the chat template of an mlx-lm tokenizer to messages.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        messages: dicts with role and content.
        today: date that the template sees, such as 2025-01-01.
        add_generation_prompt: end with the header of the assistant's turn.
        name: whose template it is, for errors.

    Raises:
        HarnessError: the template refuses the messages, or exceeds time, memory or length.
    """
    thinking = {getattr(tokenizer, "_thinking_kwarg", "enable_thinking"): getattr(tokenizer, "has_thinking", False)}
    where, advice = f"the messages with the chat template of {name!r}", "Check the roles and their order, or use another model."
    with files.reading(where, advice=advice):
        if getattr(tokenizer, "_chat_template", None) is not None:  # one that mlx-lm brings, in Python
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt))
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {**tokenizer.special_tokens_map, **thinking, "messages": plain, "add_generation_prompt": add_generation_prompt}
        variables |= {"tools": None, "documents": None}
        request = {"template": tokenizer.get_chat_template(), "date": today, "variables": variables}
        line = json.dumps(request | {"clock_s": CLOCK_S, "most_chars": MOST_CHARS}, default=str)
    reply = _worker.ask(line, name)
    if "text" not in reply:
        raise HarnessError(f"the chat template of {name!r} refused the messages: {printable(str(reply.get('error')), 500)}", advice)
    return str(reply["text"])


class _Worker:
    """The process that renders, started when first needed and again after it had to be stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: Any = None

    def ask(self, line: str, name: str) -> dict[str, Any]:
        """Send one request and wait for its answer, within the bounds.

        Raises:
            HarnessError: out of time or memory, or the process ended.
        """
        with self._lock:
            process = self._process if self._process is not None and self._process.poll() is None else self._start()
            with contextlib.suppress(BrokenPipeError):  # seen as its end below
                assert process.stdin is not None
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
            try:
                return files.parse_json(self._line(process, CLOCK_S), "the answer of the process that renders chat templates")
            except (TimeoutError, MemoryError, EOFError) as error:
                self._stop()
                raise HarnessError(
                    f"the chat template of {name!r} was stopped: {error}", "Use another model or another template."
                ) from None
            except BaseException:  # an interrupt leaves an answer behind that belongs to no one
                self._stop()
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        if self._stop is not None:
            self._stop()
        script = Path(__file__).with_name("template_worker.py")
        process = subprocess.Popen([sys.executable, str(script), str(MEMORY_BYTES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process, self._stop = process, weakref.finalize(self, _end, process)
        try:
            self._line(process, _START_S)
        except (TimeoutError, MemoryError, EOFError) as error:
            self._stop()
            raise HarnessError(f"the process that renders chat templates does not start: {error}", "See `harness doctor`.") from None
        return process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """One line of the process's output."""
        import psutil

        assert process.stdout is not None
        data, end = b"", time.monotonic() + seconds
        while not data.endswith(b"\n"):
            if select.select([process.stdout], [], [], 0.05)[0]:
                if not (more := os.read(process.stdout.fileno(), 2**20)):
                    late = time.monotonic() > end - 0.5
                    raise (
                        TimeoutError(f"it ran for more than {seconds:g} s")
                        if late
                        else EOFError("its process ended, out of time or memory")
                    )
                data += more
                continue
            if time.monotonic() > end:
                raise TimeoutError(f"it ran for more than {seconds:g} s")
            with contextlib.suppress(psutil.Error):
                if psutil.Process(process.pid).memory_info().rss > MEMORY_BYTES:
                    raise MemoryError(f"it needs more than {MEMORY_BYTES / 2**30:g} GiB of memory")
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


_worker = _Worker()
