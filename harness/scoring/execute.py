"""Run one program against its tests: two sandboxed processes, three clocks, one verdict.

The answer's process only serves function calls. The tests run in a second process that the answer cannot reach, and only plain data
crosses between them, so the verdict is never in the answer's hands. What the machine did wrong is ``unscored``, what the answer did
wrong, or did not do before its clocks ran out, is ``failed``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.core.records import Status
from harness.core.text import printable
from harness.scoring.box import Box, Limits

_POLL_S = 0.1
_VERDICT_BYTES = 65536
_READER = {f"harness.scoring.{name}": Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in ("markup", "reader")}
"""The modules that find the program in an answer, in the order they need each other."""
_ENDLESS: list[subprocess.Popen[bytes]] = []
"""Processes that even a kill did not end, because the kernel was busy for them; nothing waits for these."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """An answer and the tests that judge it."""

    source: str
    """A module that defines ``entry_point`` or, with ``prompt``, the text of an answer. Untrusted."""
    entry_point: str
    """The function under test."""
    test: str
    """Source that defines ``check(candidate)``."""
    prompt: str = ""
    """The unfinished program that the answer completes; its imports and helpers also serve the tests, which never see the answer."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to one program."""

    status: Status
    """``passed``, ``failed`` (the answer is wrong), or ``unscored`` (the machine or the tests are at fault)."""
    reason: str
    """Empty when passed."""
    sandbox: str
    """``bwrap``, ``sandbox-exec``, or ``none``."""


def run_in(box: Box, program: Program, limits: Limits) -> Outcome:
    """Judge ``program`` in ``box``. Never raises for anything the program does."""
    oom_before = _oom_kills()
    try:
        with _processes(box, program, limits) as (candidate, tester):
            status, reason = _Supervisor(candidate, tester, limits).judge()
            if status == "failed" and _killed(candidate, tester) and _oom_kills() != oom_before:
                status, reason = "unscored", "the kernel ran out of memory and killed a process"
    except OSError as error:
        status, reason = "unscored", f"the sandbox could not start: {error}"
    return Outcome(status=status, reason=reason, sandbox=box.kind)


@contextlib.contextmanager
def _processes(box: Box, program: Program, limits: Limits) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """Start the answer's and the tests' process, joined by two pipes, the job in a file; kill both trees at the end."""
    numbers = [str(limits.cpu_s), str(limits.memory_bytes), str(limits.reply_bytes)]
    started: list[subprocess.Popen[bytes]] = []
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    try:
        try:
            started.append(box.start(["candidate", *numbers], stdin=request_read, stdout=reply_write))
            channels = (request_write, reply_read)
            tester_arguments = ["tester", *numbers, *map(str, channels)]
            with tempfile.TemporaryFile() as job:
                job.write(json.dumps({**dataclasses.asdict(program), "reader": _READER}).encode())
                job.seek(0)
                started.append(box.start(tester_arguments, stdin=job.fileno(), stdout=subprocess.PIPE, keep=channels))
        finally:
            for descriptor in (request_read, request_write, reply_read, reply_write):
                os.close(descriptor)
        yield started[0], started[1]
    finally:
        for process in started:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, its group and, inside bwrap, its whole PID namespace; one that the kernel holds back is left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        _ENDLESS.append(process)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _oom_kills() -> int:
    """Processes the Linux kernel has killed for lack of memory since boot."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/vmstat").read_text().split("oom_kill ")[1].split()[0])
    return 0


def _killed(*processes: subprocess.Popen[bytes]) -> bool:
    return any(process.poll() in (-signal.SIGKILL, 128 + signal.SIGKILL) for process in processes)


class _Supervisor:
    """Feeds the tests, waits for their verdict and watches the clocks."""

    def __init__(self, candidate: subprocess.Popen[bytes], tester: subprocess.Popen[bytes], limits: Limits) -> None:
        self._candidate, self._tester, self._limits = candidate, tester, limits
        self._ready = False
        self._idle_s = 0.0
        self._cpu_s = 0.0

    def judge(self) -> tuple[Status, str]:
        """Return the status and the reason."""
        try:
            for message in self._messages():
                if "verdict" in message:
                    return self._status(message["verdict"], message["reason"])
                self._ready = True
        except _Expired as expired:
            return expired.status, str(expired)
        return self._no_verdict()

    def _messages(self) -> Iterator[dict[str, Any]]:
        """JSON lines of the tests' process until it ends."""
        assert self._tester.stdout is not None
        descriptor, buffer = self._tester.stdout.fileno(), b""
        started = looked = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(buffer) < _VERDICT_BYTES:
                readable = selector.select(_POLL_S)
                data = os.read(descriptor, _VERDICT_BYTES) if readable else None
                if data == b"":
                    return
                *lines, buffer = (buffer + (data or b"")).split(b"\n")
                yield from (json.loads(line) for line in lines)
                now = time.monotonic()
                if now - looked >= _POLL_S:
                    self._watch(now - started, min(now - looked, 2 * _POLL_S))
                    looked = now

    def _watch(self, elapsed_s: float, step_s: float) -> None:
        """Raise _Expired when a clock has run out. Waiting for a processor or a disk is not idle, but the wall clock counts it."""
        if elapsed_s > self._limits.wall_s:
            status: Status = "failed" if self._ready else "unscored"
            raise _Expired(status, f"no verdict in {self._limits.wall_s:g} s" if self._ready else "the sandbox did not start in time")
        waiting, resident_bytes = self._look()
        if resident_bytes > 2 * self._limits.memory_bytes:
            raise _Expired("failed", "used more memory than allowed")
        self._idle_s += step_s if waiting and self._ready else 0.0
        if self._idle_s > self._limits.idle_s:
            raise _Expired("failed", f"waited for more than {self._limits.idle_s:g} s")

    def _look(self) -> tuple[bool, int]:
        """(nothing is running or waiting for a processor or a disk, resident bytes of both trees)."""
        cpu_s, resident_bytes, runnable = 0.0, 0, False
        for process in _tree(self._candidate.pid) + _tree(self._tester.pid):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                resident_bytes += process.memory_info().rss
                runnable = runnable or process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
        if sys.platform == "darwin":  # every live process counts as running there, so ask whether the machine had room
            runnable = os.getloadavg()[0] > (os.cpu_count() or 1)
        progressed, self._cpu_s = cpu_s > self._cpu_s, cpu_s
        return not runnable and not progressed, resident_bytes

    def _status(self, verdict: str, reason: str) -> tuple[Status, str]:
        if verdict in ("passed", "failed"):
            return ("passed", "") if verdict == "passed" else ("failed", reason)
        if verdict == "broken":
            return "unscored", f"the tests are unusable: {reason}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._candidate.wait(5)
        how = "was killed (CPU limit, or by itself)" if _killed(self._candidate) else f"ended early with status {self._candidate.poll()}"
        return "failed", f"the program {how}"

    def _no_verdict(self) -> tuple[Status, str]:
        """The tests' process ended without a word."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._tester.wait(5)
        if self._ready:
            why = "ran out of CPU time" if _killed(self._tester) else f"ended with status {self._tester.poll()}"
            return "failed", f"the tests {why} on the values the program returned"
        notes = " ".join(dict.fromkeys(filter(None, map(_said, (self._candidate, self._tester)))))
        return "unscored", f"the sandbox failed (status {self._tester.returncode}): {printable(notes)}"


class _Expired(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _said(process: subprocess.Popen[bytes]) -> str:
    """What a process has written to its standard error so far."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return (process.stderr.read(2000) or b"").decode(errors="replace").strip()


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []
