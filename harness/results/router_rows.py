"""How much of the gap between the best single drafter and the best drafter of every prompt the router closes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.records import Record


def compare_router(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Mean per-prompt acceptance of the best fixed drafter, the router and the oracle, per domain.

    Candidates are the generic draft and the adapters at the router's draft length and temperature; the prompts are those that
    the router and every candidate decoded. Empty when no router ran.
    """
    routed = [r for r in records if r.drafter == "router" and r.drafted and "around" not in r.settings]
    result: list[dict[str, Any]] = []
    for domain in dict.fromkeys(r.domain for r in routed):
        own = {r.sample_id: r for r in routed if r.domain == domain}
        any_routed = next(iter(own.values()))
        rates = _candidates(records, own, any_routed)
        common = [s for s in own if all(s in by_sample for by_sample in rates.values())]
        if not rates or not common:
            continue
        fixed = {name: _mean([by_sample[s] for s in common]) for name, by_sample in rates.items()}
        best = max(fixed, key=lambda name: fixed[name])
        oracle = _mean([max(by_sample[s] for by_sample in rates.values()) for s in common])
        router = _mean([own[s].rate or 0.0 for s in common])
        shared = {"domain": domain, "n": len(common)}
        result.append({**shared, "choice": "best fixed", "name": best, "rate": fixed[best]})
        result.append({**shared, "choice": "router", "name": "router", "rate": router})
        result.append({**shared, "choice": "oracle", "name": "best of each prompt", "rate": oracle})
    return result


def oracle_gap_recovery(comparison: Sequence[Mapping[str, Any]], domain: str) -> float | None:
    """(router - best fixed) / (oracle - best fixed); None when the oracle gains nothing."""
    from routing.intervals import gap_recovery

    rate = {entry["choice"]: entry["rate"] for entry in comparison if entry["domain"] == domain}
    recovered = float(gap_recovery(rate["router"], rate["best fixed"], rate["oracle"]))
    return None if math.isnan(recovered) else recovered


def _candidates(records: Sequence[Record], own: Mapping[str, Record], like: Record) -> dict[str, dict[str, float]]:
    """Drafter -> sample id -> rate. Not from mlx-lm's own loop, whose counts differ; an untrained adapter is the plain draft."""
    rates: dict[str, dict[str, float]] = {}
    for r in records:
        same = r.loop == "own" and (r.k, r.temperature, r.rule) == (like.k, like.temperature, like.rule)
        apart = {"round", "around", "installed"} & set(r.settings)
        if same and not apart and r.drafter in ("generic", "adapter") and r.sample_id in own and r.drafted:
            rates.setdefault(r.adapter or "generic", {}).setdefault(r.sample_id, r.rate or 0.0)
    return rates


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
