"""How manifests and records of older versions become today's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LOOPS = {"detailed": "own", "fast": "mlx-lm"}
_FIELDS = ("settings", "score", "profile", "near_ties", "choice")


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 kept settings, scores and the like of a record in a free mapping ``extra`` and called the loop ``mode``."""
    if "sample_id" not in data:  # a manifest, whose fields were the same
        return data
    new = {name: value for name, value in data.items() if name not in ("extra", "mode")}
    extra = data.get("extra") or {}
    if data.get("mode") in _LOOPS:
        new["loop"] = _LOOPS[data["mode"]]
    if isinstance(extra, dict):
        new |= {name: extra[name] for name in _FIELDS if extra.get(name) is not None}
    return new


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""Version n -> function that turns a manifest or a record of version n into version n + 1."""
