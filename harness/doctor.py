"""What this machine offers and what is broken on it, as plain records."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.paths import cache_dir
from routing.apart import apart

Status = Literal["ok", "note", "broken"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    """What was looked at."""
    status: Status
    """``ok``; ``note`` is worth knowing but no failure; ``broken`` makes the command fail."""
    value: str
    """What was found."""
    advice: str = ""
    """What to do about it."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured float32 speed of the default device."""

    gflops: float
    """Matrix product of 1024 x 1024 by 1024 x 1024, 10^9 operations per second."""
    gb_per_s: float
    """Matrix-vector product over 64 MB of weights, 10^9 bytes per second: what decoding one token is bound by."""


def examine(hub_timeout_s: float = 3.0) -> list[Check]:
    """Run every check; a few seconds in all, beside reading the converted models. A check that itself fails is reported as broken."""
    checks: list[Callable[[], list[Check]]] = [
        _system,
        _mlx,
        _speed,
        _verification,
        _memory,
        _disk,
        _models,
        lambda: [check_hub(hub_timeout_s)],
        _sandbox,
    ]
    found: list[Check] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # a report of what is broken must survive what is broken
            name = getattr(check, "__name__", "check").strip("_<>")
            found.append(
                Check(name=name, status="broken", value=f"{type(error).__name__}: {error}", advice="Reinstall the package's dependencies.")
            )
    return found


def is_broken(checks: list[Check]) -> bool:
    """True when any check found something broken."""
    return any(check.status == "broken" for check in checks)


def check_blas(name: str, mkl_needed: bool, mkl: Path | None, *, amd: bool = False) -> Check:
    """Judge the active BLAS: the reference one is broken where MKL exists (Linux x86-64), a note elsewhere; so is MKL on AMD."""
    if name == "mkl" and amd:
        advice = "On AMD, BLIS verifies several tokens in less time: install the system package (Debian: libblis4-openmp)."
        return Check(name="BLAS", status="note", value=name, advice=advice)
    if name != "reference":
        return Check(name="BLAS", status="ok", value=name)
    if not mkl_needed:
        return Check(
            name="BLAS",
            status="note",
            value="reference",
            advice="Matrix products are slow on this CPU; a GPU or an x86-64 Linux is faster.",
        )
    why = (
        "Run `pip install mkl`." if mkl is None else f"{mkl} is installed but not active: import harness before mlx, and check it with ldd."
    )
    return Check(name="BLAS", status="broken", value="reference, about 200 times slower than MKL", advice=why)


def check_disk(free_bytes: int, folder: Path) -> Check:
    """Judge the free space of the cache's disk: broken below 1 GB, a note below what qwen-coder needs (12 GB)."""
    value = f"{free_bytes / 1e9:.0f} GB free for {folder}"
    if free_bytes < 1e9:
        return Check(name="disk", status="broken", value=value, advice="Free some space, or set HARNESS_CACHE to a larger disk.")
    if free_bytes < 12e9:
        return Check(name="disk", status="note", value=value, advice="Enough for smollm2; qwen-coder needs 12 GB.")
    return Check(name="disk", status="ok", value=value)


def check_hub(timeout_s: float) -> Check:
    """Ask whether the Hugging Face hub answers. No answer is a note: wheels and local folders work without it."""
    from harness.models.sources import hub_problem, offline_requested

    if offline_requested():
        return Check(name="hub", status="note", value="not asked, HF_HUB_OFFLINE is set")
    problem = hub_problem(timeout_s)
    if problem is None:
        return Check(name="hub", status="ok", value="reachable")
    return Check(name="hub", status="note", value=problem, advice="Pairs with a wheel: or path: source still work (smollm2, qwen-coder).")


def measure_speed(seconds: float = 0.4) -> Speed:
    """Measure matrix-matrix and matrix-vector products, about ``seconds`` each, best of the repetitions."""
    from harness.models.blas import mx

    size = 1024
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    weights, vector = mx.random.normal((4096, 4096)), mx.random.normal((1, 4096))
    mx.eval(a, b, weights, vector)
    product_s = _best(lambda: mx.eval(a @ b), seconds)
    vector_s = _best(lambda: mx.eval(vector @ weights.T), seconds)
    return Speed(gflops=2 * size**3 / product_s / 1e9, gb_per_s=4 * weights.size / vector_s / 1e9)


def measure_verification(repeats: int = 15) -> float:
    """What five rows cost through matrices of a small model's sizes, in passes of one row: a stand-in for v(5)."""
    from harness.decode.calibrate import interleaved
    from harness.models.blas import mx

    weights = [mx.random.normal(shape) / 30 for _ in range(6) for shape in ((1536, 576), (576, 1536))]
    mx.eval(weights)

    def passing(rows: int) -> Callable[[], None]:
        def run() -> None:
            x = mx.ones((rows, 576))
            for weight in weights:
                x = x @ weight.T
            mx.eval(x)

        return run

    times = interleaved({rows: passing(rows) for rows in (1, 5)}, repeats)
    return statistics.median(times[5]) / statistics.median(times[1])


def check_rise(before: float, after: float) -> Check:
    """Judge verification before and after other work in the process; a rise above a quarter makes every drafter look slower."""
    value = f"5 tokens cost {before:.2f} times what one costs, {after:.2f} after work in torch"
    if after <= 1.25 * before:
        return Check(name="verification", status="ok", value=value)
    advice = "Close other programs and repeat. If it stays: a second pool of OpenMP threads is alive; unset MKL_THREADING_LAYER."
    return Check(name="verification", status="note", value=value, advice=advice)


@apart
def _work_in_torch() -> None:
    import torch

    product = torch.ones(512, 512)
    for _ in range(3):
        product = torch.nn.functional.silu(product @ product)


def _best(run: Callable[[], None], seconds: float) -> float:
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _system() -> list[Check]:
    return [Check(name="system", status="ok", value=f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")]


def _mlx() -> list[Check]:
    from harness.models.blas import blas_name, find_mkl, is_amd, mx, needs_mkl

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm"))
    name = blas_name()
    return [
        Check(name="device", status="ok", value=str(mx.default_device())),
        Check(name="versions", status="ok", value=versions),
        check_blas(name, needs_mkl(), find_mkl() if needs_mkl() else None, amd=needs_mkl() and is_amd()),
    ]


def _speed() -> list[Check]:
    speed = measure_speed()
    return [Check(name="speed", status="ok", value=f"{speed.gflops:.0f} GFLOP/s, {speed.gb_per_s:.1f} GB/s (float32)")]


def _verification() -> list[Check]:
    from harness.models.blas import mx

    if mx.default_device() != mx.cpu:
        return []
    before = measure_verification()
    _work_in_torch()
    return [check_rise(before, min(measure_verification() for _ in range(2)))]


def _memory() -> list[Check]:
    import psutil

    memory = psutil.virtual_memory()
    value = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < 2e9:
        return [Check(name="memory", status="note", value=value, advice="smollm2 needs about 2 GB; close other programs.")]
    return [Check(name="memory", status="ok", value=value)]


def _disk() -> list[Check]:
    folder = cache_dir()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return [Check(name="disk", status="broken", value=f"{existing} is not writable", advice="Set HARNESS_CACHE to a writable folder.")]
    return [check_disk(shutil.disk_usage(existing).free, folder)]


def _models() -> list[Check]:
    from harness.models.weights import changed_models

    changed = [Check(name="models", status="broken", value=problem, advice="Delete that folder.") for problem in changed_models()]
    return changed or [Check(name="models", status="ok", value="the converted models in the cache are as they were written")]


def _sandbox() -> list[Check]:
    from harness.scoring.sandbox import sandbox_status

    status = sandbox_status()
    if status.available:
        return [Check(name="sandbox", status="ok", value=f"{status.kind}, {status.reason}")]
    return [Check(name="sandbox", status="note", value="none", advice=status.reason)]
