"""The one way to safetensors files: the header is checked before an array is touched, every failure is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core import files

if TYPE_CHECKING:
    from harness.models.blas import mx

DAMAGED = "Fetch or make it again."


@dataclass(frozen=True)
class Header:
    """What stands before the values of a safetensors file."""

    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""
    metadata: dict[str, str]
    """Free text that its writer left."""


def read_header(path: Path, *, advice: str = DAMAGED) -> Header:
    """Names, shapes and metadata, after checking that header, types, offsets and the file's length agree.

    Raises:
        HarnessError: not a regular file, git-lfs's pointer, cut short, or no well-formed safetensors.
    """
    from safetensors import safe_open

    files.open_regular(path, advice=advice).close()
    with files.reading(path, advice=advice), safe_open(path, framework="numpy") as file:
        return Header({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118


def load_arrays(path: Path, *, finite: bool = False, advice: str = DAMAGED) -> tuple[dict[str, mx.array], dict[str, str]]:
    """All arrays of a file by name, and its metadata.

    Args:
        path: the file.
        finite: refuse infinite and undefined values: for small files, since it reads every value.
        advice: what to do about a bad file.

    Raises:
        HarnessError: as :func:`read_header`, a type of number that mlx lacks, or a value that is not finite.
    """
    from harness.core.errors import HarnessError
    from harness.core.text import printable
    from harness.models.blas import mx

    metadata = read_header(path, advice=advice).metadata
    with files.reading(path, advice=advice):
        arrays: dict[str, mx.array] = mx.load(str(path), format="safetensors")
        bad = [name for name, array in arrays.items() if finite and not mx.all(mx.isfinite(array)).item()]
    if bad:
        raise HarnessError(f"{path}: {printable(bad[0], 100)} holds values that are not finite numbers", advice)
    return arrays, metadata


def save_arrays(path: Path, arrays: Mapping[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors atomically and sync them to disk, in the order of names: the same arrays give the same bytes and hash."""
    from harness.models.blas import mx

    with files.replacing(path) as part, open(part, "wb") as file:
        mx.save_safetensors(file, dict(sorted(arrays.items())), metadata or {})
