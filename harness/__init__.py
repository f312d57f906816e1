"""Evaluation harness for speculative decoding with adaptive drafts.

The public names below load lazily, so ``import harness`` imports neither mlx nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.core.version import __version__

if TYPE_CHECKING:
    from harness.api import generate, load_pair, replay, stream
    from harness.session.session import Session

_LAZY = {
    "load_pair": "harness.api",
    "generate": "harness.api",
    "stream": "harness.api",
    "replay": "harness.api",
    "Session": "harness.session.session",
}
__all__ = ["Session", "__version__", "generate", "load_pair", "replay", "stream"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
