"""Facts about the code and the computer that a run's manifest keeps. Imports nothing heavy."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.core.records import Load
from harness.core.version import __version__

PACKAGES = ("mlx", "mlx-lm", "mkl", "numpy", "scipy", "transformers", "torch", "scikit-learn", "sentence-transformers", "datasets")
"""Packages whose versions can change a number."""

_SHOWN_ONLY = ("harness/report", "harness/cli", "harness/doctor.py", "harness/session", "harness/run/estimate.py", "harness/run/storage.py")
"""What reads records or shows them and decides none; every other source counts, new files too."""
_ROOT = Path(__file__).resolve().parents[2]


def package_versions() -> dict[str, str]:
    """Installed versions of :data:`PACKAGES` and of Python; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code_state() -> dict[str, Any]:
    """Version, git commit, whether the tree had changes, and a hash of the sources that make records.

    ``commit`` and ``dirty`` are None outside a git checkout.
    """
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"version": __version__, "commit": commit, "dirty": None if status is None else bool(status), "hash": source_hash()}


def source_hash(root: Path = _ROOT) -> str:
    """SHA-256 over the Python files that decide what a record contains; reports and the command line do not count."""
    digest = hashlib.sha256()
    for file in sorted(path for package in ("harness", "routing") for path in (root / package).rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if not any(name == shown or name.startswith(f"{shown}/") for shown in _SHOWN_ONLY):
            digest.update(f"{name}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    import psutil

    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "machine": platform.machine(),
    }


def steal_s() -> float | None:
    """Seconds that the host gave to other machines since this one started; None where the system does not say."""
    import psutil

    return getattr(psutil.cpu_times(), "steal", None)


def load(stolen_s: float, wall_s: float) -> Load:
    """What else the machine does, of whose processors' time ``stolen_s`` in ``wall_s`` went elsewhere."""
    import psutil

    share = stolen_s / (wall_s * (os.cpu_count() or 1)) if wall_s > 0 else 0.0
    return Load(average=round(psutil.getloadavg()[0], 2), pressure=_pressure(), steal=round(min(1.0, max(0.0, share)), 4))


def _pressure() -> float | None:
    """``avg10`` of Linux's pressure file."""
    try:
        text = Path("/proc/pressure/cpu").read_text(encoding="ascii")
        return min(100.0, float(text.split("avg10=")[1].split()[0]))
    except (OSError, IndexError, ValueError):
        return None


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    if sys.platform == "darwin":
        return _run(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git(*arguments: str) -> str | None:
    if not (_ROOT / ".git").exists():
        return None
    return _run(["git", "-C", str(_ROOT), *arguments])


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def utc_now() -> str:
    """Return the time in ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
