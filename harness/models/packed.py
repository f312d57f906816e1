"""Weights of small drafts on disk: matrices quantised (mlx's affine form: packed weight, scales, biases), the rest in half precision.

They are read back in floating point: the drafts are small, and quantised products have no fast path on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.blas import mx
from harness.models.tensors import load_arrays, save_arrays

TOKEN_MAP = "token_map"
"""Array of the ids that a draft's own output head names."""


def write_packed(path: Path, weights: Mapping[str, mx.array], token_map: mx.array, quantise: Mapping[str, tuple[int, int]]) -> str:
    """Write weights and token map, replacing what is there; return the file's hash.

    Args:
        path: the file; its folder is made where it is missing.
        weights: by name, floating point.
        token_map: (vocab,) target id of each output id.
        quantise: last but one part of a weight's name (``down_proj``, ``lm_head``) -> bits (4 or 8) and weights per scale;
            names not listed stay float16.
    """
    arrays: dict[str, mx.array] = {TOKEN_MAP: token_map.astype(mx.int32)}
    for key, weight in weights.items():
        kind = key.split(".")[-2]
        if kind in quantise:
            bits, group_size = quantise[kind]
            packed, scales, biases = mx.quantize(weight, group_size=group_size, bits=bits)
            arrays |= {key: packed, f"{key}.scales": scales.astype(mx.float16), f"{key}.biases": biases.astype(mx.float16)}
        else:
            arrays[key] = weight.astype(mx.float16)
    save_arrays(path, arrays)
    return files.sha256(path)


def read_packed(path: Path, *, sha256: str, vocab: int, quantised: Mapping[str, tuple[int, int]], advice: str) -> dict[str, mx.array]:
    """Weights by name in floating point, and :data:`TOKEN_MAP`.

    Raises:
        HarnessError: missing, another file than the one with this hash, or not ``vocab`` token ids.
    """
    if not path.is_file() or files.sha256(path, advice=advice) != sha256:
        raise HarnessError(f"{path} is missing or damaged", advice)
    stored = load_arrays(path, finite=True, advice=advice)[0]
    token_map = stored.get(TOKEN_MAP)
    if token_map is None or token_map.shape != (vocab,) or token_map.dtype != mx.int32:
        raise HarnessError(f"{path}: {TOKEN_MAP} is not {vocab} token ids", advice)
    with files.reading(path, advice=advice):
        arrays = _unpacked(stored, quantised)
        mx.eval(arrays)
    return arrays


def _unpacked(arrays: Mapping[str, mx.array], quantised: Mapping[str, tuple[int, int]]) -> dict[str, mx.array]:
    weights = {}
    for key, array in arrays.items():
        if key.endswith((".scales", ".biases")):
            continue
        if f"{key}.scales" in arrays:
            scales, biases = (arrays[f"{key}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            bits, group_size = quantised[key.split(".")[-2]]
            array = mx.dequantize(array, scales, biases, group_size=group_size, bits=bits)
        weights[key] = array
    return weights


def check_shapes(path: Path, arrays: Mapping[str, mx.array], expected: Mapping[str, mx.array], advice: str) -> None:
    """Compare what a file holds with the weights that a model needs.

    Raises:
        HarnessError: one is missing or of another shape.
    """
    for key, weight in expected.items():
        if key not in arrays:
            raise HarnessError(f"{path} lacks {key}", advice)
        if arrays[key].shape != weight.shape:
            raise HarnessError(f"{path}: {key} is {arrays[key].shape}, the target's shape asks for {weight.shape}", advice)
