"""Paired intervals over groups of prompts, so that near-copies of one prompt count once.

The same method as the harness's intervals (a test compares them): the jackknife over groups, and a t quantile on Kish's effective
number of groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

MIN_GROUPS = 5
"""Fewer groups than this give no interval."""
LEAST_ERROR = 0.01
"""Standard error, divided by the root of the groups, as a part of the value: nothing measured here is known better."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    value: float
    """The estimate on the data itself; NaN when undefined."""
    low: float
    """Lower end; NaN with too few groups."""
    high: float
    """Upper end."""


def gap_recovery(value: ArrayLike, fixed: ArrayLike, oracle: ArrayLike) -> np.ndarray:
    """Oracle gap recovery, (value - fixed) / (oracle - fixed) element by element; NaN where the oracle gains nothing."""
    value, fixed, oracle = np.asarray(value), np.asarray(fixed), np.asarray(oracle)
    found: np.ndarray = (value - fixed) / np.where(oracle > fixed, oracle - fixed, np.nan)
    return found


def clustered(
    columns: np.ndarray,
    groups: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    least: float = -np.inf,
    most: float = np.inf,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic of column means, leaving out one whole group at a time.

    Args:
        columns: (n_samples, n_columns) values measured on the same prompts; every column loses the same groups (paired).
        groups: (n_samples,) labels.
        statistic: maps means (..., n_columns) to (...,).
        least: the least that the statistic can be; the interval is cut there.
        most: the most that it can be.
        level: coverage.
    """
    labels, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(labels), columns.shape[1] + 1))
    np.add.at(sums, index, np.hstack([columns, np.ones((len(columns), 1))]))
    rest = sums.sum(axis=0) - sums  # (n_groups, n_columns + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = statistic(rest[:, :-1] / rest[:, -1:])
        value = float(statistic(columns.mean(axis=0)))
    if not np.isfinite(value):
        return Interval(float("nan"), float("nan"), float("nan"))
    if len(labels) < MIN_GROUPS or not np.isfinite(without).all():
        return Interval(value, float("nan"), float("nan"))
    effective = len(columns) ** 2 / (sums[:, -1] ** 2).sum()
    error = max(np.sqrt((len(labels) - 1) * np.var(without)), LEAST_ERROR * abs(value) / np.sqrt(effective))
    reach = stdtrit(max(1.0, effective - 1), (1 + level) / 2) * error
    return Interval(value, float(np.clip(value - reach, least, most)), float(np.clip(value + reach, least, most)))
