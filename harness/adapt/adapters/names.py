"""Names a drafter may have: the built-in ones and the adapters installed for a pair. Loads no model."""

from __future__ import annotations

from pathlib import Path

from harness.adapt.adapters.folder import adapters_root, list_adapters
from harness.core.errors import HarnessError, did_you_mean

BUILT_IN = ("generic", "lookup", "early_exit", "hybrid", "router")
"""What every pair understands; all but ``lookup`` and ``early_exit`` need a draft."""


def installed(pair_name: str) -> dict[str, Path]:
    """Return name -> folder of the adapters that ``harness train`` and sessions installed for a pair."""
    return list_adapters(adapters_root(pair_name))


def check_drafter(pair_name: str, drafter: str | None, *, also: tuple[str, ...] = ()) -> None:
    """Check a drafter's name before anything is loaded; ``also`` are further names to suggest.

    Raises:
        HarnessError: neither built in nor installed; names the nearest.
    """
    if drafter is None or drafter in BUILT_IN:
        return
    adapters = installed(pair_name)
    if drafter not in adapters:
        known = [*also, *BUILT_IN, *adapters]
        raise HarnessError(
            f"no drafter {drafter!r} for pair {pair_name!r}: {did_you_mean(drafter, known)}",
            "Adapters come from `harness train` and from sessions.",
        )
