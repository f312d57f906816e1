"""Acceptance counts pooled over trajectories: what early stopping, rounds and reports compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.core import stats

Metric = Literal["alpha", "rate", "tau"]


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Raw counts of a draft over a set of trajectories at one draft length."""

    prompts: int
    """Trajectories pooled."""
    rounds: int
    """Target passes."""
    drafted: int
    """Draft tokens verified."""
    accepted: int
    """Draft tokens emitted."""
    rejected: int
    """Rounds ended by a rejection."""
    emitted: int
    """Tokens emitted."""

    def parts(self, metric: Metric) -> tuple[int, int]:
        """Numerator and denominator of the named metric."""
        if metric == "alpha":  # per-token acceptance: of the tokens that were decided on
            return self.accepted, self.accepted + self.rejected
        return (self.accepted, self.drafted) if metric == "rate" else (self.emitted, self.rounds)

    def value(self, metric: Metric) -> float:
        """Return the named metric, 0 where it is undefined (nothing to compare)."""
        over, under = self.parts(metric)
        return over / under if under else 0.0


Counts = Mapping[str, tuple[Acceptance, ...]]
"""Domain -> one acceptance per trajectory, in the trajectories' order."""


def pool(parts: Iterable[Acceptance]) -> Acceptance:
    """Add the counts of several acceptances."""
    items = list(parts)
    names = ("prompts", "rounds", "drafted", "accepted", "rejected", "emitted")
    return Acceptance(**{name: sum(getattr(item, name) for item in items) for name in names})


def of_domain(counts: Counts, domain: str | None) -> list[Acceptance]:
    """Return the acceptances of one domain, or of all of them."""
    return [a for name, own in sorted(counts.items()) if domain in (None, name) for a in own]


def gain(before: Sequence[Acceptance], after: Sequence[Acceptance], metric: Metric) -> stats.Estimate | None:
    """Return the rise of the metric with its 95% interval, paired by trajectory; None where it is undefined."""
    (a, b), (c, d) = (np.array([one.parts(metric) for one in side]).T for side in (after, before))
    return stats.difference((a, b), (c, d))
