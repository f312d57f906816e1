"""How the score of one answer is made."""

from __future__ import annotations

from harness.core.records import Metric, Score

__all__ = ["Metric", "Score", "unscored", "verdict"]


def verdict(metric: Metric, passed: bool, reason: str = "", **details: float | int | str) -> Score:
    """A score of 1 or 0."""
    return Score(metric=metric, status="passed" if passed else "failed", value=float(passed), reason=reason, details=details)


def unscored(metric: Metric, reason: str, **details: float | int | str) -> Score:
    """A score that says nothing about the answer."""
    return Score(metric=metric, status="unscored", value=None, reason=reason, details=details)
