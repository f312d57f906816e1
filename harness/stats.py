"""Intervals, tests and detectable effects for numbers that are ratios of sums over prompts.

Prompts are the clusters: tokens, rounds and seeds of one prompt are not independent, so a resample draws whole prompts,
and paired quantities (baseline and cell, cell A and cell B) of one prompt stay together. The intervals are studentised
bootstrap ("bootstrap-t") intervals, widened by sqrt(n / (n - 1)). Chosen by simulation out of seven kinds: percentile
intervals of an acceptance rate covered 84% at 6 prompts and 90% at 12, BCa no better. In simulated A/A comparisons these
cover 93 to 97% from 8 prompts on (94 to 96% in 500 runs at 5); the widening was fitted to the same simulation. Times
with very heavy tails are covered less well: 91% at 12 and 30 prompts before the widening. Everything is deterministic for
a given seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RESAMPLES = 4999
"""Bootstrap resamples per interval."""
MIN_PROMPTS = 5
"""Fewer prompts than this give no interval."""
LEVEL = 0.95
"""Confidence level of every interval."""
POWER = 0.8
"""Power that the detectable effect is stated for."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its uncertainty."""

    value: float
    """Point estimate from the pooled sums."""
    low: float | None = None
    """Lower end of the 95% interval; None with too few prompts."""
    high: float | None = None
    """Upper end."""
    n: int
    """Prompts it rests on."""
    p: float | None = None
    """Two-sided p-value of the hypothesis that the true value is ``null``; None without a null or an interval."""
    detectable: float | None = None
    """Smallest true difference from the null that this many prompts would show with 80% power."""

    def signed(self) -> str:
        """The number and its interval, if there is one, with signs: a change."""
        return f"{self.value:+.3f}" + ("" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]")

    def excludes(self, value: float) -> bool:
        """True when the interval exists and does not contain ``value``."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, null: float | None = None, most: float = math.inf, seed: int = 0
) -> Estimate | None:
    """sum(numerator) / sum(denominator), one entry of each per prompt, none negative; None when the denominators sum to 0.

    The interval keeps within what the ratio can be: 0 to ``most``.
    """
    return _within(_estimate(_ratio, [numerator, denominator], null, seed), most)


def difference(a: tuple[ArrayLike, ArrayLike], b: tuple[ArrayLike, ArrayLike], *, seed: int = 0) -> Estimate | None:
    """Ratio a minus ratio b, paired by prompt; ``a`` and ``b`` are (numerators, denominators). The null is 0."""
    return _estimate(_difference, [*a, *b], 0.0, seed)


def relative(a: tuple[ArrayLike, ArrayLike], b: tuple[ArrayLike, ArrayLike], *, seed: int = 0) -> Estimate | None:
    """Ratio a divided by ratio b, paired by prompt, such as time per token over time per token. The null is 1."""
    return _within(_estimate(_relative, [*a, *b], 1.0, seed))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p-values over one table; None stays None and does not count as a test."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = running
    return adjusted


def percentiles(values: Sequence[float], at: Sequence[float] = (50, 90, 99)) -> tuple[float, ...]:
    """Percentiles with linear interpolation."""
    return tuple(float(v) for v in np.percentile(np.asarray(values, dtype=float), at))


def instability(reference_s: Sequence[float], *, spread_limit: float = 0.1, drift_limit: float = 0.05) -> list[str]:
    """Warnings about the machine, from timings of one fixed workload before, between and after the cells.

    Args:
        reference_s: seconds of the workload in the order it ran, at least 3 for any warning.
        spread_limit: warn when the standard deviation exceeds this part of the mean.
        drift_limit: warn when the last third is slower than the first third by more than this part.
    """
    times = np.asarray(reference_s, dtype=float)
    if len(times) < 3:
        return []
    warnings = []
    spread = float(times.std(ddof=1) / times.mean())
    if spread > spread_limit:
        warnings.append(f"unstable machine: the reference workload varied by {spread:.0%} (standard deviation over {len(times)} runs)")
    third = max(1, len(times) // 3)
    drift = float(np.median(times[-third:]) / np.median(times[:third]) - 1)
    if abs(drift) > drift_limit:
        word = "slower" if drift > 0 else "faster"
        warnings.append(f"drift: the reference workload ended {abs(drift):.0%} {word} than it began (heat, or another process)")
    return warnings


def slower_verification(readings: Sequence[Mapping[str, Any]], limit: float = 1.25) -> list[str]:
    """A warning when verifying costs more than ``limit`` times what it did when the run began.

    Args:
        readings: ``after`` (what went before) and ``v`` (cost of a pass over several tokens, in passes over one), in order.
        limit: busy machines differ by less, as medians.
    """
    worst = max(readings, key=lambda r: r["v"], default=None)
    if worst is None or worst["v"] <= limit * readings[0]["v"]:
        return []
    rise = worst["v"] / readings[0]["v"]
    return [
        f"verification became {rise:.1f}x slower since the run began: v(5) was {readings[0]['v']:.2f} after {readings[0]['after']} and"
        f" {worst['v']:.2f} after {worst['after']}, so speedups are too low (another process, or a second pool of threads in this one)"
    ]


# A statistic maps sums over prompts (..., m) to its value (...,) and its gradient with respect to the sums (..., m).
_Statistic = Callable[[Array], tuple[Array, Array]]


def _ratio(sums: Array) -> tuple[Array, Array]:
    numerator, denominator = np.moveaxis(sums, -1, 0)
    value = numerator / denominator
    return value, np.stack([1 / denominator, -value / denominator], axis=-1)


def _difference(sums: Array) -> tuple[Array, Array]:
    (a, grad_a), (b, grad_b) = _ratio(sums[..., :2]), _ratio(sums[..., 2:])
    return a - b, np.concatenate([grad_a, -grad_b], axis=-1)


def _relative(sums: Array) -> tuple[Array, Array]:
    (a, grad_a), (b, grad_b) = _ratio(sums[..., :2]), _ratio(sums[..., 2:])
    return a / b, np.concatenate([grad_a / b[..., None], -grad_b * (a / b**2)[..., None]], axis=-1)


@lru_cache(maxsize=16)
def _weights(n: int, seed: int) -> Array:
    """How often each prompt is drawn in each resample: (RESAMPLES, n)."""
    return np.random.default_rng((seed, n)).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def _value_and_error(statistic: _Statistic, sums: Array, squares: Array, n: int) -> tuple[Array, Array]:
    """Value and linearised standard error from sums (..., m) and sums of outer products (..., m, m) over n prompts."""
    value, gradient = statistic(sums)
    variance = np.einsum("...i,...ij,...j->...", gradient, squares, gradient) * n / (n - 1)
    return value, np.sqrt(np.maximum(variance, 0))


def _estimate(statistic: _Statistic, columns: Sequence[ArrayLike], null: float | None, seed: int) -> Estimate | None:
    data = np.stack([np.asarray(column, dtype=float) for column in columns], axis=-1)  # (n, m)
    n = len(data)
    totals = data.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(totals)[0]) if n else math.nan
        if not math.isfinite(value):
            return None
        if n < MIN_PROMPTS:
            return Estimate(value=value, n=n)
        outer = np.einsum("ni,nj->nij", data, data)
        _, error = _value_and_error(statistic, totals, outer.sum(axis=0), n)
        if _is_zero(error, value):
            p = None if null is None else float(math.isclose(value, null))
            return Estimate(value=value, low=value, high=value, n=n, p=p, detectable=None if null is None else 0.0)
        weights = _weights(n, seed)
        squares = np.tensordot(weights, outer, axes=1)  # (RESAMPLES, m, m)
        values, errors = _value_and_error(statistic, weights @ data, squares, n)
        pivots = (values - value) / np.where(_is_zero(errors, values), 0.0, errors)  # a resample of equal prompts says nothing of spread
    return _studentised(value, float(error), pivots[np.isfinite(pivots)], n, null)


def _within(estimate: Estimate | None, most: float = math.inf) -> Estimate | None:
    """The estimate with its interval cut to [0, most], which takes no possible value out of it."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return estimate
    return replace(estimate, low=max(0.0, estimate.low), high=min(most, estimate.high))


def _is_zero(error: Array | float, value: Array | float) -> Array:
    """Whether a standard error is the square root of rounding noise: which side of 0 that falls on depends on the unit of the data."""
    return np.asarray(error <= 1e-6 * np.maximum(np.abs(value), 1e-9))


def _studentised(value: float, error: float, pivots: Array, n: int, null: float | None) -> Estimate:
    error *= math.sqrt(n / (n - 1))  # resamples of few prompts repeat prompts and so understate the spread
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(pivots, [tail, 1 - tail])
    p = detectable = None
    if null is not None:
        from scipy.stats import t

        observed = (value - null) / error
        above, below = np.sum(pivots >= observed), np.sum(pivots <= observed)
        p = float(min(1.0, 2 * (min(above, below) + 1) / (len(pivots) + 1)))
        detectable = float((t.ppf(1 - tail, n - 1) + t.ppf(POWER, n - 1)) * error)
    return Estimate(value=value, low=float(value - high * error), high=float(value - low * error), n=n, p=p, detectable=detectable)
