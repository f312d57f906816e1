"""The one place that imports mlx: preloads a fast BLAS first where mlx's own is slow.

The Linux CPU wheel of mlx bundles the reference BLAS. Loading MKL with global symbols before mlx replaces its matrix product,
about 200 times faster. Metal and CUDA do not use it.
"""

from __future__ import annotations

import ctypes
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


def preload() -> Path | None:
    """Load MKL with global symbols and return its path; None where it is not needed, not installed or does not load.

    Works only before mlx is first imported in the process. Calling it again is harmless.
    """
    path = find_mkl() if needs_mkl() else None
    if path is not None:
        # Reproducible mode also splits the short blocks of verification better between threads: 2 to 8 rows take about half the time.
        os.environ.setdefault("MKL_CBWR", "AUTO")
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:  # harness doctor shows that the reference BLAS is active, and what to do
            return None
    return path


_mlx_came_first = "mlx.core" in sys.modules
preload()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

__all__ = ["blas_name", "find_mkl", "mx", "needs_mkl", "nn", "preload"]


class _SymbolInfo(ctypes.Structure):
    """Dl_info of <dlfcn.h>."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def blas_name() -> str:
    """Name what multiplies matrices: ``metal``, ``cuda``, ``accelerate``, ``mkl``, ``reference`` or the BLAS library's file name."""
    if mx.default_device() != mx.cpu:
        return "metal" if mx.metal.is_available() else "cuda"
    if sys.platform == "darwin":
        return "accelerate"
    if _mlx_came_first:
        return "reference"  # mlx had bound its own product before MKL came
    library = _library_of("cblas_sgemm")
    if library is None or "mlx" in library.parts or library.name.startswith(("libblas", "libcblas")):
        return "reference"
    return "mkl" if library.name.startswith("libmkl") else library.name


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
