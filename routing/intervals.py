"""Paired bootstrap intervals that resample prompts' groups, so that near-copies of one prompt count once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap percentile interval."""

    value: float
    """The estimate on the data itself; NaN when undefined."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def clustered(
    columns: np.ndarray,
    groups: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of column means, resampling whole groups with replacement.

    Args:
        columns: (n_samples, n_columns) values measured on the same prompts; every column sees the same resampled groups (paired).
        groups: (n_samples,) labels.
        statistic: maps means (..., n_columns) to (...,).
        n_boot: resamples.
        level: coverage.
        seed: of the resampling.
    """
    labels, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(labels), columns.shape[1] + 1))
    np.add.at(sums, index, np.hstack([columns, np.ones((len(columns), 1))]))
    weights = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=n_boot)
    drawn = weights @ sums  # (n_boot, n_columns + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = statistic(drawn[:, :-1] / drawn[:, -1:])
        value = float(statistic(columns.mean(axis=0)))
    replicates = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or not len(replicates):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
