"""Names a drafter may have: the built-in ones and the adapters installed for a pair. Loads no model."""

from __future__ import annotations

from pathlib import Path

from harness.adapt.adapters.folder import adapters_root, list_adapters
from harness.core.drafter_kinds import check_memory, drafter_kinds, find_kind
from harness.core.errors import HarnessError, did_you_mean

ROUTER = "router"
"""Stands for the drafter that the pair's router chooses for a prompt."""


def built_in(name: str) -> bool:
    """Whether every pair understands a drafter's name, be it adapted or not."""
    return name == ROUTER or find_kind(name) is not None


def installed(pair_name: str) -> dict[str, Path]:
    """Return name -> folder of the adapters that ``harness train`` and sessions installed for a pair."""
    return list_adapters(adapters_root(pair_name))


def check_drafter(pair_name: str, drafter: str | None, *, also: tuple[str, ...] = ()) -> None:
    """Check a drafter's name before anything is loaded; ``also`` are further names to suggest.

    Raises:
        HarnessError: neither built in nor installed; names the nearest. Or the pair has no memory for it.
    """
    if drafter is None or built_in(drafter):
        check_memory(pair_name, drafter)
        return
    adapters = installed(pair_name)
    if drafter not in adapters:
        known = [*also, *drafter_kinds(), ROUTER, *adapters]
        raise HarnessError(
            f"no drafter {drafter!r} for pair {pair_name!r}: {did_you_mean(drafter, known)}",
            "Adapters come from `harness train` and from sessions.",
        )
