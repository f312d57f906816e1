"""Choose a draft adapter per prompt, and prove that it pays. Works on plain outcome tables; knows nothing of how they were made."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Arm": "outcomes",
    "OutcomeTable": "outcomes",
    "RoutingError": "routing_error",
    "PromptFeatures": "features",
    "PromptRouter": "policy",
    "Decision": "policy",
    "AutoRouter": "routers",
    "BoostingRouter": "routers",
    "KNNRouter": "routers",
    "LogisticRouter": "routers",
    "MLPRouter": "routers",
    "RidgeRouter": "routers",
    "evaluate_routers": "evaluate",
    "load_router": "persist",
    "save_router": "persist",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import on first use: ``import routing`` alone loads neither scikit-learn nor torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'routing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"routing.{_EXPORTS[name]}"), name)
