"""How much of the gap between the best single drafter and the best drafter of every prompt the router closes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.records import Record

MEMORY = ("memory", "memory_hybrid")
"""Drafters that a router may choose too."""


def compare_router(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Mean over prompts of the tokens per target pass of the best fixed drafter, the router and the oracle, per domain.

    Candidates are the generic draft, the adapters and, where the router ever takes it, the memory, at the router's draft length and
    temperature; the prompts are those that the router and every candidate decoded. Empty when no router ran.
    """
    routed = [r for r in records if r.drafter == "router" and r.drafted and "around" not in r.settings]
    result: list[dict[str, Any]] = []
    for domain in dict.fromkeys(r.domain for r in routed):
        own = {r.sample_id: r for r in routed if r.domain == domain}
        any_routed = next(iter(own.values()))
        values = _candidates(records, own, any_routed)
        common = [s for s in own if all(s in by_sample for by_sample in values.values())]
        if not values or not common:
            continue
        fixed = {name: _mean([by_sample[s] for s in common]) for name, by_sample in values.items()}
        best = max(fixed, key=lambda name: fixed[name])
        oracle = _mean([max(by_sample[s] for by_sample in values.values()) for s in common])
        router = _mean([own[s].tau or 0.0 for s in common])
        shared = {"domain": domain, "n": len(common)}
        result.append({**shared, "choice": "best fixed", "name": best, "tau": fixed[best]})
        result.append({**shared, "choice": "router", "name": "router", "tau": router})
        result.append({**shared, "choice": "oracle", "name": "best of each prompt", "tau": oracle})
    return result


def oracle_gap_recovery(comparison: Sequence[Mapping[str, Any]], domain: str) -> float | None:
    """(router - best fixed) / (oracle - best fixed); None when the oracle gains nothing."""
    from routing.intervals import gap_recovery

    tau = {entry["choice"]: entry["tau"] for entry in comparison if entry["domain"] == domain}
    recovered = float(gap_recovery(tau["router"], tau["best fixed"], tau["oracle"]))
    return None if math.isnan(recovered) else recovered


def _candidates(records: Sequence[Record], own: Mapping[str, Record], like: Record) -> dict[str, dict[str, float]]:
    """Drafter -> sample id -> tau. Not from mlx-lm's own loop, whose counts differ; an untrained adapter is the plain draft."""
    remembers = any((r.choice or "").startswith(MEMORY) for r in own.values())
    found: dict[str, dict[str, float]] = {}
    for r in records:
        same = r.loop == "own" and (r.k, r.temperature, r.rule) == (like.k, like.temperature, like.rule)
        name = _name(r, remembers=remembers)
        if same and name is not None and r.sample_id in own and r.drafted:
            found.setdefault(name, {}).setdefault(r.sample_id, r.tau or 0.0)
    return found


def arm_of(r: Record) -> str | None:
    """What a router calls a record's drafter, an untrained adapter being the plain draft; None for what no router chooses."""
    around = r.settings.get("around")
    if r.drafter == "adapter" and around in (None, *MEMORY):
        return r.adapter or "generic" if around is None else f"{around}+{r.adapter}" if r.adapter else str(around)
    return r.drafter if around is None and r.drafter in ("generic", *MEMORY) else None


def _name(r: Record, *, remembers: bool) -> str | None:
    """The same for this run's router, which may not choose the memory."""
    remembered = r.drafter in MEMORY or r.settings.get("around") in MEMORY
    if {"round", "installed"} & set(r.settings) or (remembered and not remembers):
        return None
    return arm_of(r)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
