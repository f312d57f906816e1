"""Acceptance counts pooled over trajectories: what early stopping, rounds and reports compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.core import stats
from harness.core.counts import COUNTS, Measure, Rates, columns, span


@dataclass(frozen=True, kw_only=True)
class Acceptance(Rates):
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

    def value(self, metric: Measure) -> float:
        """Return the named measure as training climbs it: 0 where a draft was never asked."""
        return getattr(self, metric) or 0.0


DomainCounts = Mapping[str, tuple[Acceptance, ...]]
"""Domain -> one acceptance per trajectory, in the trajectories' order."""


def pool(parts: Iterable[Acceptance]) -> Acceptance:
    """Add the counts of several acceptances."""
    items = list(parts)
    return Acceptance(**{name: sum(getattr(item, name) for item in items) for name in ("prompts", *COUNTS)})


def of_domain(counts: DomainCounts, domain: str | None) -> list[Acceptance]:
    """Return the acceptances of one domain, or of all of them."""
    return [a for name, own in sorted(counts.items()) if domain in (None, name) for a in own]


def gain(before: Sequence[Acceptance], after: Sequence[Acceptance], metric: Measure) -> stats.Estimate | None:
    """Return the rise of the metric with its 95% interval, paired by trajectory; None where it is undefined."""
    return stats.difference(columns(after, metric), columns(before, metric), most=span(metric))
