"""Read a GGUF file's metadata and tensor table within bounds; tensors stay on disk until their rows are asked for."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.text import printable

OTHER = "Use another file of the same model, or its safetensors form (a hub: or path: source)."
MOST_ITEMS = 4 * 2**20
"""Most values that all arrays of the metadata hold together: three times those of the largest vocabularies."""
MOST_TEXT = 16 * 2**20
"""Most bytes of one text."""
_MOST_TENSORS = 2**16
_FORMS = ("B", "b", "<H", "<h", "<I", "<i", "<f", "B", "", "", "<Q", "<q", "<d")
"""``struct`` form of each type of value, by its number; text (8) and arrays (9) have forms of their own."""
_BOOL, _TEXT, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    """Rows first."""
    kind: Any
    """gguf's ``GGMLQuantizationType``."""
    data: np.ndarray
    """Raw bytes, uint8, of shape (..., bytes of a row), mapped from the file."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` as float32 (a 1-D tensor: its values)."""
        from gguf.quants import dequantize

        part = self.data[start:stop] if len(self.shape) > 1 else self.data
        values = np.ascontiguousarray(dequantize(np.ascontiguousarray(part), self.kind), dtype=np.float32)
        return values if len(self.shape) > 1 else values[start:stop]


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says."""

    path: Path
    fields: dict[str, Any]
    """Metadata: numbers, texts, true or false, or lists of one of them."""
    tensors: dict[str, GgufTensor]
    """By name."""

    def whole(self, key: str, *, most: int, least: int = 1, default: int | None = None) -> int:
        """A whole number within bounds."""
        return int(self._get(key, lambda v: type(v) is int and least <= v <= most, f"a whole number from {least} to {most}", default))

    def number(self, key: str, *, default: float | None = None) -> float:
        """A positive finite number."""
        fits = lambda v: type(v) in (int, float) and math.isfinite(v) and v > 0  # noqa: E731
        return float(self._get(key, fits, "a positive number", default))

    def text(self, key: str, *, default: str | None = None) -> str:
        """A text."""
        return str(self._get(key, lambda v: isinstance(v, str), "a text", default))

    def items(self, key: str, kind: type) -> list[Any]:
        """A list of texts or of whole numbers."""
        found: list[Any] = self._get(key, lambda v: isinstance(v, list) and all(type(i) is kind for i in v), f"a list of {kind.__name__}")
        return found

    def _get(self, key: str, fits: Callable[[Any], bool], wanted: str, default: Any = None) -> Any:
        value = self.fields.get(key, default)
        if value is None:
            raise HarnessError(f"{self.path}: GGUF field {key!r} is missing", OTHER)
        if not fits(value):
            raise HarnessError(f"{self.path}: GGUF field {key!r} is {printable(repr(value)[:200], 60)}, not {wanted}", OTHER)
        return value


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file, version 2 or 3.

    Raises:
        HarnessError: no regular file, not GGUF, cut short, or larger than any model in one of its counts.
    """
    advice = "Delete it and fetch it again."
    with files.open_regular(path, advice=advice) as file, files.reading(path, advice=advice):
        magic, version, tensors, fields = struct.unpack("<4sIQQ", _take(file, 24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("it is no GGUF file of version 2 or 3")
        if max(tensors, fields) > _MOST_TENSORS:
            raise ValueError(f"it names {tensors} tensors and {fields} fields, more than any model has")
        budget = [MOST_ITEMS]
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key, (kind,) = _text(file), struct.unpack("<I", _take(file, 4))
            if key in metadata:
                raise ValueError(f"field {key!r} is there twice")
            metadata[key] = _value(file, kind, budget)
        infos = [_tensor_info(file) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**16:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-file.tell() // alignment) * alignment
        mapped = np.memmap(file, dtype=np.uint8, mode="r")
        found = {name: _tensor(mapped, start, name, shape, kind, offset) for name, shape, kind, offset in infos}
        if len(found) != len(infos):
            raise ValueError("two tensors share a name")
    return GgufFile(path, metadata, found)


def _take(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("the file ends early")
    return data


def _text(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", _take(file, 8))
    if size > MOST_TEXT:
        raise ValueError(f"a text of {size} bytes")
    return _take(file, size).decode("utf-8")


def _value(file: BinaryIO, kind: int, budget: list[int]) -> Any:
    """One value; ``budget`` holds how many more values arrays may have."""
    if kind == _TEXT:
        return _text(file)
    if kind == _ARRAY:
        item, count = struct.unpack("<IQ", _take(file, 12))
        budget[0] -= count
        if budget[0] < 0 or item == _ARRAY:
            raise ValueError(f"an array of {count} values" if item != _ARRAY else "an array of arrays")
        return [_value(file, item, budget) for _ in range(count)]
    if kind >= len(_FORMS):
        raise ValueError(f"a value of the unknown type {kind}")
    (value,) = struct.unpack(_FORMS[kind], _take(file, struct.calcsize(_FORMS[kind])))
    return bool(value) if kind == _BOOL else value


def _tensor_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name, (dimensions,) = _text(file), struct.unpack("<I", _take(file, 4))
    if not 1 <= dimensions <= 4:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", _take(file, 8 * dimensions))
    kind, offset = struct.unpack("<IQ", _take(file, 12))
    return name, tuple(reversed(shape)), kind, offset


def _tensor(mapped: np.ndarray, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    stored = GGMLQuantizationType(kind)
    form = tuple(int(n) for n in quant_shape_to_byte_shape(shape, stored))
    size = math.prod(form)
    if min(shape) < 1 or start + offset + size > len(mapped):
        raise ValueError(f"tensor {name!r} of shape {shape} does not lie within the file")
    return GgufTensor(name, shape, stored, mapped[start + offset : start + offset + size].reshape(form))
