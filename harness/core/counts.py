"""The five counts of speculative decoding and the three numbers made of them, once. What is undefined is None, never 0."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Measure = Literal["rate", "alpha", "tau"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
COUNTS = ("rounds", "drafted", "accepted", "rejected", "emitted")
"""Names of the counts."""


class HasCounts(Protocol):
    """Whatever holds the five counts, whole or (expected ones) not."""

    @property
    def rounds(self) -> float:
        """Target passes that emitted tokens."""

    @property
    def drafted(self) -> float:
        """Draft tokens proposed and verified, those after a rejection included."""

    @property
    def accepted(self) -> float:
        """Draft tokens emitted."""

    @property
    def rejected(self) -> float:
        """Rounds that a rejection ended."""

    @property
    def emitted(self) -> float:
        """Tokens emitted, the target's own included."""


class Rates:
    """What follows from the five counts: a base for every record that holds them."""

    @property
    def rate(self: HasCounts) -> float | None:
        """Draft acceptance rate, accepted / drafted; None where nothing was drafted."""
        return quotient(*parts(self, "rate"))

    @property
    def alpha(self: HasCounts) -> float | None:
        """Acceptance per token that was decided on, accepted / (accepted + rejected)."""
        return quotient(*parts(self, "alpha"))

    @property
    def tau(self: HasCounts) -> float | None:
        """Emitted tokens per target pass."""
        return quotient(*parts(self, "tau"))


@dataclass(frozen=True, kw_only=True)
class Counts(Rates):
    """The five counts, of one answer or summed over many."""

    rounds: float = 0
    drafted: float = 0
    accepted: float = 0
    rejected: float = 0
    emitted: float = 0


def total(items: Iterable[HasCounts]) -> Counts:
    """The sums of the counts."""
    found = list(items)
    return Counts(**{name: sum(getattr(item, name) for item in found) for name in COUNTS})


def parts(counts: HasCounts, metric: Measure) -> tuple[float, float]:
    """Numerator and denominator of a metric, as intervals over prompts take them."""
    if metric == "alpha":
        return counts.accepted, counts.accepted + counts.rejected
    return (counts.accepted, counts.drafted) if metric == "rate" else (counts.emitted, counts.rounds)


def columns(items: Iterable[HasCounts], metric: Measure) -> tuple[list[float], list[float]]:
    """Numerators and denominators of a metric, one of each per item."""
    both = [parts(item, metric) for item in items]
    return [over for over, _ in both], [under for _, under in both]


def span(measure: Measure) -> float:
    """How far two values of a measure can differ."""
    return math.inf if measure == "tau" else 1.0


def quotient(over: float, under: float) -> float | None:
    """One over the other; None where that is undefined."""
    return over / under if under else None
