"""The score of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["passed", "failed", "unscored"]
Metric = Literal["pass@1", "exact_match", "agreement"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good one answer is. Average ``value`` over the answers whose status is not ``unscored``, and report how many those are."""

    metric: Metric
    """``pass@1`` (code that passes its tests), ``exact_match`` (final number), or ``agreement`` (with the target's own answer)."""
    status: Status
    """``unscored`` when the machine, the tests or a missing reference is at fault; never counted as wrong."""
    value: float | None
    """1 or 0 for ``pass@1`` and ``exact_match``, 0 to 1 for ``agreement``; None when unscored."""
    reason: str = ""
    """Why it failed or is unscored. May quote the answer, so escape it in HTML."""
    details: Mapping[str, float | int | str] = field(default_factory=dict)
    """Raw values: ``sandbox``; ``expected`` and ``found``; ``words``, ``target_words``, ``common_prefix_words``."""


def verdict(metric: Metric, passed: bool, reason: str = "", **details: float | int | str) -> Score:
    """A score of 1 or 0."""
    return Score(metric=metric, status="passed" if passed else "failed", value=float(passed), reason=reason, details=details)


def unscored(metric: Metric, reason: str, **details: float | int | str) -> Score:
    """A score that says nothing about the answer."""
    return Score(metric=metric, status="unscored", value=None, reason=reason, details=details)
