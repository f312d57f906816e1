"""The one place that imports mlx: preloads a fast BLAS first where mlx's own is slow.

The Linux CPU wheel of mlx bundles the reference BLAS. Loading MKL with global symbols before mlx replaces its matrix product,
about 200 times faster. On AMD processors BLIS is taken where the system has it: its products of a few rows, which verification consists
of, cost little more than those of one row, MKL's up to twice as much. Metal and CUDA use neither.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import site
import sys
from pathlib import Path


def needs_mkl() -> bool:
    """True on Linux x86-64, the one platform whose mlx wheel is slow by itself and that has MKL."""
    return sys.platform == "linux" and platform.machine().lower() in ("x86_64", "amd64")


def find_mkl() -> Path | None:
    """The runtime library of the installed ``mkl`` package (any version), or None."""
    roots = [Path(sys.prefix), Path(site.getuserbase()), Path(sys.base_prefix)]
    for root in roots:
        for path in sorted((root / "lib").glob("libmkl_rt.so*"), reverse=True):
            return path
    return None


BLIS = ("libblis-mt.so.5", "libblis-mt.so", "/usr/lib/x86_64-linux-gnu/blis-openmp/libblis.so.4", "libblis.so.5", "libblis.so.4")
"""Names that AMD and distributions give the multi-threaded BLIS; the OpenMP build starts its threads faster than the pthread one."""


def is_amd() -> bool:
    """True on an AMD processor, as Linux reports it."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def preload() -> str | None:
    """Load a fast BLAS with global symbols and return its name; None where it is not needed, not installed or does not load.

    ``HARNESS_BLAS`` names a library to load instead (a path, or ``mkl``). Works only before mlx is first imported in the process.
    Calling it again is harmless.
    """
    if not needs_mkl():
        return None
    # MKL's reproducible mode also splits short blocks better between threads: 2 to 8 rows take about half the time.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    _share_libgomp()
    os.environ.setdefault("BLIS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0))))
    chosen, mkl = os.environ.get("HARNESS_BLAS", ""), find_mkl()
    names = [chosen] if chosen not in ("", "mkl") else [*(BLIS if is_amd() and not chosen else ()), *([str(mkl)] if mkl else [])]
    return next((name for name in names if _loads(name)), None)


def _share_libgomp() -> None:
    """Let MKL compute with libgomp, as torch does, whichever of the two comes first.

    Left alone MKL takes Intel's OpenMP unless torch is there already. That one would run torch's loops as well, and keep the workers of
    every thread that has ended: see :mod:`routing.apart`.
    """
    torch = importlib.util.find_spec("torch")
    beside = [str(path) for place in (torch.submodule_search_locations or () if torch else ()) for path in Path(place).glob("lib/libgomp*")]
    if any(_loads(name) for name in ("libgomp.so.1", *beside)):
        os.environ.setdefault("MKL_THREADING_LAYER", "GNU")


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:  # harness doctor shows what is active, and what to do
        return False
    return True


_mlx_came_first = "mlx.core" in sys.modules
preload()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

__all__ = ["blas_name", "by_columns", "find_mkl", "is_amd", "lay_out", "mx", "needs_mkl", "nn", "one_stream", "preload"]


class _SymbolInfo(ctypes.Structure):
    """Dl_info of <dlfcn.h>."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def blas_name() -> str:
    """Name what multiplies matrices: ``metal``, ``cuda``, ``accelerate``, ``mkl``, ``blis``, ``reference`` or a library's file name."""
    if mx.default_device() != mx.cpu:
        return "metal" if mx.metal.is_available() else "cuda"
    if sys.platform == "darwin":
        return "accelerate"
    if _mlx_came_first:
        return "reference"  # mlx had bound its own product before MKL came
    library = _library_of("cblas_sgemm")
    if library is None or "mlx" in library.parts or library.name.startswith(("libblas", "libcblas")):
        return "reference"
    return next((name for name in ("mkl", "blis") if library.name.startswith(f"lib{name}")), library.name)


def one_stream() -> dict[str, mx.Stream]:
    """Keyword for mlx-lm's loops: on a CPU, the stream that everything else runs on. Theirs would be a second thread with a second pool of
    OpenMP threads (see :mod:`routing.apart`), for good; on a GPU they keep their own.
    """
    return {"stream": mx.default_stream(mx.cpu)} if mx.default_device() == mx.cpu else {}


def _library_of(symbol: str) -> Path | None:
    """File of the library that answers for a global symbol, as the dynamic linker resolves it for mlx."""
    try:
        program = ctypes.CDLL(None)
        function = getattr(program, symbol)
    except (OSError, AttributeError):
        return None
    info = _SymbolInfo()
    found = program.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    return Path(info.file.decode()) if found and info.file else None


def by_columns(weight: mx.array) -> mx.array:
    """The same (out, in) matrix, stored column by column where the active BLAS multiplies a few rows faster that way (BLIS).

    The array is a transposed view of contiguous memory: layers, adapters and slices work on it as on any other.
    """
    return mx.contiguous(weight.T).T if blas_name() == "blis" else weight


def lay_out(model: nn.Module) -> None:
    """Store the weights of all plain linear and embedding layers as :func:`by_columns` does; lazy."""
    if blas_name() != "blis":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight = by_columns(module.weight)


def ints(array: mx.array) -> list[int]:
    """Read a one-dimensional integer array to the host."""
    return array.tolist()
