"""Acceptance counts pooled over trajectories: what early stopping, rounds and reports compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

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

    @property
    def rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def alpha(self) -> float | None:
        """Accepted / (accepted + rejected): per-token acceptance; None when nothing was decided."""
        decided = self.accepted + self.rejected
        return self.accepted / decided if decided else None

    @property
    def tau(self) -> float | None:
        """Emitted tokens per target pass; None without rounds."""
        return self.emitted / self.rounds if self.rounds else None

    def value(self, metric: Metric) -> float:
        """Return the named metric, 0 where it is undefined (nothing to compare)."""
        value: float | None = getattr(self, metric)
        return value or 0.0


def pool(parts: Iterable[Acceptance]) -> Acceptance:
    """Add the counts of several acceptances."""
    items = list(parts)
    names = ("prompts", "rounds", "drafted", "accepted", "rejected", "emitted")
    return Acceptance(**{name: sum(getattr(item, name) for item in items) for name in names})


def pooled_value(by_domain: Mapping[str, Acceptance], metric: Metric, domain: str | None) -> float:
    """Return the metric of one domain, or pooled over all of them."""
    return by_domain[domain].value(metric) if domain is not None else pool(by_domain.values()).value(metric)
