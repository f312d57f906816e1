"""How untrusted programs are started: bubblewrap on Linux, sandbox-exec on macOS.

Inside there is no network, no home, no repository, no ``/proc`` and no ``/etc``, no environment, and nothing can be written. On Linux the
root holds Python's standard library and the shared libraries it needs, all on read-only mounts, and no device, since a device bound from
the host is the host's own. See docs/sandbox.md for what this does and does not protect from.
"""

from __future__ import annotations

import functools
import glob
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.scoring.seccomp import filter_program

Kind = Literal["bwrap", "sandbox-exec", "none"]

_WORKER = Path(__file__).with_name("inside_box.py").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    cpu_s: float = 10.0
    """CPU seconds of the program, and again of its tests. Counted in whole seconds."""
    idle_s: float = 5.0
    """Seconds both processes may wait without anything to run: a sleeping program fails after this."""
    wall_s: float = 60.0
    """Wall seconds from the start to the verdict: a program that has not ended by then has failed, whatever it is doing."""
    memory_bytes: int = 512 * 2**20
    """Address space of each process (resident memory on macOS)."""
    reply_bytes: int = 2**20
    """Size of one returned value, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One way to start the worker."""

    kind: Kind
    program: str = ""
    """Path of bwrap or sandbox-exec."""

    def start(self, arguments: Sequence[str], *, stdin: int, stdout: int, keep: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Start the worker with ``arguments``; ``keep`` are descriptors it inherits. Stderr is a pipe, the environment is empty."""
        tail = ["-I", "-S", "-B", "-c", _WORKER, *arguments]
        if self.kind == "bwrap":
            return self._start_bwrap(tail, stdin, stdout, keep)
        command = [interpreter(), *tail]
        if self.kind == "sandbox-exec":
            command = [self.program, "-p", _macos_profile(), *command]
        return _popen(command, stdin, stdout, keep)

    def _start_bwrap(self, tail: list[str], stdin: int, stdout: int, keep: tuple[int, ...]) -> subprocess.Popen[bytes]:
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, filter_program(platform.machine()))  # far below a pipe's capacity
            os.close(write_end)
            command = [self.program, *_bwrap_options(), "--seccomp", str(read_end), "/python/bin/python3", *tail]
            return _popen(command, stdin, stdout, (*keep, read_end))
        finally:
            os.close(read_end)


def _popen(command: list[str], stdin: int, stdout: int, keep: tuple[int, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, pass_fds=keep, env={}, cwd="/", start_new_session=True
    )


def interpreter() -> str:
    """The real executable behind a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _shared_libraries() -> dict[str, str]:
    """Shared objects the interpreter and its extension modules load: name -> path on this machine; the loader's name is its path."""
    modules = glob.glob(os.path.join(sysconfig.get_config_var("DESTSHARED") or "", "*.so"))
    extensions = [path for path in modules if not os.path.basename(path).startswith("_tkinter")]
    listing = subprocess.run(["ldd", interpreter(), *extensions], capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"^\s+(\S+) => (/\S+) \(0x", listing, re.MULTILINE))
    return found | {path: path for path in re.findall(r"^\s+(/\S+) \(0x", listing, re.MULTILINE)}


@functools.cache
def _bwrap_options() -> tuple[str, ...]:
    """Options that build the root file system and drop everything else."""
    home = f"/python/{sys.platlibdir}"
    stdlib = sysconfig.get_path("stdlib")
    inside = f"{home}/{Path(stdlib).name}"
    options = ["--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--cap-drop", "ALL"]
    options += ["--die-with-parent", "--new-session", "--clearenv", "--setenv", "LD_LIBRARY_PATH", "/python/shared"]
    options += ["--ro-bind", interpreter(), "/python/bin/python3", "--ro-bind", stdlib, inside]
    for name, path in sorted(_shared_libraries().items()):
        options += ["--ro-bind", os.path.realpath(path), name if name.startswith("/") else f"/python/shared/{name}"]
    for folder in ("site-packages", "dist-packages"):
        if (Path(stdlib) / folder).is_dir():
            options += ["--tmpfs", f"{inside}/{folder}", "--remount-ro", f"{inside}/{folder}"]
    return (*options, "--remount-ro", "/", "--chdir", "/")


def _macos_profile() -> str:
    """A sandbox-exec profile: read the system and Python, nothing else."""
    readable = [sysconfig.get_path("stdlib"), sys.base_prefix, os.path.realpath(sys.base_prefix)]
    paths = " ".join(f'(subpath "{path}")' for path in dict.fromkeys(readable))
    return "\n".join(
        [
            "(version 1)",
            "(deny default)",
            '(import "system.sb")',
            f'(allow process-exec (literal "{interpreter()}"))',
            f'(allow file-read* {paths} (literal "{interpreter()}"))',
            "(deny process-fork)",
            "(deny network*)",
            "(deny file-write*)",
        ]
    )
