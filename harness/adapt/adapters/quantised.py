"""The matrices of an adapter in a few bits a number, for a small package: written and read here, everywhere else they are whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from harness.core.errors import HarnessError
from harness.models.mlx_names import mx
from harness.models.tensors import load_arrays, save_arrays

Bits = Literal[4, 6, 8]
GROUP = 64
"""Numbers that share a scale and an offset."""
_PARTS = ("codes", "scales", "offsets")
_A = ".lora_a"
_Length = Annotated[int, Field(ge=1, le=2**20)]


class _Form(BaseModel):
    """What the file's header says."""

    bits: Bits
    shapes: dict[str, tuple[_Length, _Length]]
    """Shape of every array before."""


def save_quantised(path: Path, arrays: Mapping[str, mx.array], bits: Bits) -> None:
    """Write matrices with ``bits`` bits a number, and a scale and an offset (float32) for every 64 of them."""
    packed = {f"{name}.{part}": array for name, whole in arrays.items() for part, array in _packed(name, whole, bits).items()}
    form = _Form(bits=bits, shapes={name: array.shape for name, array in arrays.items()})
    save_arrays(path, packed, {"form": form.model_dump_json()})


def read_quantised(path: Path, *, advice: str) -> dict[str, mx.array]:
    """The arrays of such a file in float32.

    Raises:
        HarnessError: it is damaged, or not what its header says.
    """
    arrays, metadata = load_arrays(path, finite=True, advice=advice)
    try:
        form = _Form.model_validate_json(metadata.get("form", ""))
    except ValidationError:
        raise HarnessError(f"{path} does not say how its numbers are packed", advice) from None
    wanted = {f"{name}.{part}": kind for name, shape in form.shapes.items() for part, kind in _kinds(shape, form.bits).items()}
    if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
        raise HarnessError(f"{path} holds other arrays than its header names", advice)
    return {name: _whole(arrays, name, shape, form.bits) for name, shape in form.shapes.items()}


def _packed(name: str, array: mx.array, bits: Bits) -> dict[str, mx.array]:
    """Codes (groups, words), scales and offsets (groups, 1) of an array. The numbers of one rank lie together: ranks differ in size."""
    flat = (array.T if name.endswith(_A) else array).reshape(-1).astype(mx.float32)
    flat = mx.pad(flat, (0, -flat.size % GROUP))
    return dict(zip(_PARTS, mx.quantize(flat.reshape(-1, GROUP), group_size=GROUP, bits=bits), strict=True))


def _whole(arrays: Mapping[str, mx.array], name: str, shape: tuple[int, int], bits: Bits) -> mx.array:
    codes, scales, offsets = (arrays[f"{name}.{part}"] for part in _PARTS)
    flat = mx.dequantize(codes, scales, offsets, group_size=GROUP, bits=bits).reshape(-1)[: shape[0] * shape[1]]
    return mx.contiguous(flat.reshape(shape[::-1]).T) if name.endswith(_A) else flat.reshape(shape)


def _kinds(shape: tuple[int, int], bits: Bits) -> dict[str, tuple[Any, Any]]:
    """Part -> shape and type of number."""
    groups = -(-shape[0] * shape[1] // GROUP)
    kinds = ((groups, GROUP * bits // 32), mx.uint32), ((groups, 1), mx.float32), ((groups, 1), mx.float32)
    return dict(zip(_PARTS, kinds, strict=True))
