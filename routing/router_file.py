"""The form of a router file: one safetensors file whose header carries JSON. No pickle, no archive, nothing in it is a path or code.

Reading checks size, form, schema version, every name and that every number is finite before anything is used.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from routing.routing_error import RoutingError

SCHEMA_VERSION = 2
"""1: no guard for unfamiliar prompts (such files route every prompt). 2: ``reach``."""
MAX_FILE_BYTES = 512 * 1024**2
RETRAIN = "Train the router again on this machine's adapters."
DISTRUST = "The file is damaged or was not written by this package; do not use it. Train the router again."
_MAX_HEADER_BYTES = 16 * 1024**2
_FORMAT = "prompt-router"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_HASH = re.compile(r"[0-9a-fA-F]{8,128}")


def write_file(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write header and arrays in one atomic move.

    Raises:
        RoutingError: they are too large.
    """
    from safetensors.numpy import save

    text = json.dumps({"format": _FORMAT, "schema_version": SCHEMA_VERSION, **header}, allow_nan=False)
    data = save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, {"router": text})
    if len(data) > MAX_FILE_BYTES:
        raise RoutingError(f"the router takes {len(data)} bytes, over the limit of {MAX_FILE_BYTES}", "Train on fewer prompts or features.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file that has the right format, size and version."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        raise RoutingError(f"no router file at {path}", "Train one first, or check the path.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise RoutingError(f"{path} has {size} bytes, over the limit of {MAX_FILE_BYTES}", DISTRUST)
    data = path.read_bytes()
    _check_magic(data, path)
    try:
        length = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + length])["__metadata__"]
        header = json.loads(meta["router"])
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as e:
        raise RoutingError(f"{path} is not a router file: {e}", DISTRUST) from e
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise RoutingError(f"{path} is a safetensors file, but holds no router", "Give a file written by save_router.")
    version = header.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RoutingError(f"{path} has no valid schema version", DISTRUST)
    if version > SCHEMA_VERSION:
        raise RoutingError(f"{path} has schema version {version}, newer than {SCHEMA_VERSION}", "Upgrade this package, or train again.")
    bad = [n for n, a in arrays.items() if a.dtype.kind not in "fi" or not np.isfinite(a).all()]
    if bad:
        raise RoutingError(f"{path} holds values that are not finite numbers in {bad[0]!r}", DISTRUST)
    return header, arrays


def _check_magic(data: bytes, path: Path) -> None:
    """A safetensors file starts with its header's length (8 bytes) and the header's opening brace."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        return
    if data.startswith((b"\x80", b"PK", b"\x1f\x8b", b"BZh", b"\xfd7z")):
        raise RoutingError(f"{path} is a pickle or an archive; router files are neither", "Never load pickled models. " + RETRAIN)
    if data.startswith(b"version https://git-lfs.github.com/"):
        raise RoutingError(f"{path} is a git-lfs pointer, not the file it stands for", f"Run `git lfs pull` in {path.parent}.")
    raise RoutingError(f"{path} is not a router file: its header does not fit", DISTRUST)


def field(header: Mapping[str, Any], name: str, kind: type | tuple[type, ...], path: str | Path) -> Any:
    """A value of the header that has the right type."""
    value = header.get(name)
    if not isinstance(value, kind):
        raise RoutingError(f"{path} has no valid field {name!r}", DISTRUST)
    return value


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None and ".." not in value


def check_name(name: Any, what: str) -> str:
    """Names become folder names elsewhere: letters, digits, dots, dashes; no path."""
    if not _matches(_NAME, name):
        raise RoutingError(
            f"{what} {name!r} is not a plain name", "Names have letters, digits, '.', '_', '+' and '-' only, and are no paths."
        )
    return str(name)


def named_hashes(header: Mapping[str, Any], path: str | Path) -> dict[str, str]:
    """Adapter name -> content hash at training time."""
    hashes: dict[str, str] = field(header, "adapter_hashes", dict, path)
    if not all(_matches(_NAME, n) and _matches(_HASH, h) for n, h in hashes.items()):
        raise RoutingError(f"{path} holds malformed adapter hashes", DISTRUST)
    return hashes
