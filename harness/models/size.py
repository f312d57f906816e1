"""How much memory a model takes once it is loaded, from the headers of its files."""

from __future__ import annotations

import math
from pathlib import Path

from harness.models.blas import mx
from harness.models.tensors import read_header

CPU_BYTES = 4
"""Bytes of a weight on a CPU, where models compute in float32 whatever they are stored in."""


def loaded_bytes(folder: Path, dtype: str = "auto") -> int:
    """Bytes of a model's weights in memory; of quantised ones on a CPU a lower bound.

    Args:
        folder: with the model's safetensors.
        dtype: the pair file's number format.
    """
    files = sorted(folder.glob("*.safetensors"))
    if dtype == "auto" and mx.default_device() != mx.cpu:
        return sum(file.stat().st_size for file in files)
    width = CPU_BYTES if dtype in ("auto", "float32") else 2
    return sum(width * math.prod(shape) for file in files for shape in read_header(file).shapes.values())
