"""Intervals, tests and detectable effects for numbers that are ratios of sums over prompts.

Prompts are the clusters: tokens, rounds and seeds of one prompt are not independent, so one prompt is left out at a time (the
jackknife), and paired quantities (baseline and cell, cell A and cell B) of one prompt stay together. A t quantile on Kish's
effective number of prompts turns the standard error into an interval, on a scale that cannot leave what the quantity can be:

- a rate, alpha or tau, bounded on both sides: Wilson's score interval for the effective sample size that the error implies;
- a ratio of times, above 0: on the logarithm;
- a difference of two ratios: as it is, cut to what they can differ by ([-1, 1] for rates).

No error is 0: counts are known to half a token, clocks to :data:`CLOCK`, and prompts are not assumed more alike than
:data:`ALIKE` says. Equal prompts at a bound (everything accepted) tell as much as that many independent draws of whole
prompts. All of it is a formula, so a p-value has no floor and nothing depends on a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MIN_PROMPTS = 5
"""Fewer prompts than this give no interval."""
LEVEL = 0.95
"""Confidence level of every interval."""
POWER = 0.8
"""Power that the detectable effect is stated for."""
CLOCK = 0.01
"""Relative error of a ratio of two times of one prompt below which no clock is believed."""
ALIKE = 0.3
"""Least spread of prompts in a bounded ratio, as a part of what n whole prompts of 0 and 1 would have divided by the root of n."""


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
    """Prompts it rests on: those that contribute anything."""
    p: float | None = None
    """Two-sided p-value of the hypothesis that the true value is ``null``; None without a null or an interval."""
    detectable: float | None = None
    """Smallest true difference from the null that this many prompts would show with 80% power; as a factor less 1 where the null is 1."""
    null: float | None = None
    """What a test compares with: 0 of a difference, 1 of a ratio of times."""
    error: float | None = None
    """Standard error, of the logarithm where the null is 1."""
    freedom: float | None = None
    """Degrees of freedom of the error."""

    def signed(self) -> str:
        """The number and its interval, if there is one, with signs: a change."""
        return f"{self.value:+.3f}" + ("" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]")

    def excludes(self, value: float) -> bool:
        """True when the interval exists and does not contain ``value``."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def ratio(numerator: ArrayLike, denominator: ArrayLike, *, least: float = 0.0, most: float = math.inf) -> Estimate | None:
    """sum(numerator) / sum(denominator), one entry of each per prompt, none negative; None when the denominators sum to 0.

    With ``most`` the ratio is bounded, such as a rate. Without, it is one of positive numbers such as times, and tested against 1.
    """
    jackknife = _jackknife(_ratio, [numerator, denominator], [denominator])
    if jackknife is None:
        return None
    return _logarithmic(jackknife) if most == math.inf else _bounded(jackknife, least, most)


def difference(a: tuple[ArrayLike, ArrayLike], b: tuple[ArrayLike, ArrayLike], *, most: float = 1.0) -> Estimate | None:
    """Ratio a minus ratio b, paired by prompt; ``a`` and ``b`` are (numerators, denominators), ``most`` is how far two such ratios can
    differ. The null is 0."""
    jackknife = _jackknife(lambda s: _ratio(s[..., :2]) - _ratio(s[..., 2:]), [*a, *b], [a[1], b[1]])
    if jackknife is None:
        return None
    if jackknife.n < MIN_PROMPTS:
        return Estimate(value=jackknife.value, n=jackknife.n)
    error = max(jackknife.error(), 0.5 / min(float(np.sum(a[1])), float(np.sum(b[1]))))
    reach = quantile((1 + LEVEL) / 2, jackknife.freedom) * error
    low, high = (min(most, max(-most, jackknife.value + side * reach)) for side in (-1, 1))
    return _tested(jackknife, low, high, 0.0, jackknife.value, error)


def relative(*ratios: tuple[ArrayLike, ArrayLike]) -> Estimate | None:
    """Ratio a divided by ratio b, paired by prompt, such as time per token over time per token; of four, (a / b) / (c / d).

    The null is 1.
    """
    powers = np.array([1, -1, -1, 1][: len(ratios)])

    def statistic(sums: Array) -> Array:
        return np.asarray(np.prod((sums[..., 0::2] / sums[..., 1::2]) ** powers, axis=-1))

    jackknife = _jackknife(statistic, [column for pair in ratios for column in pair], [below for _, below in ratios])
    return None if jackknife is None else _logarithmic(jackknife)


def widened(estimate: Estimate, error: float, freedom: float) -> Estimate:
    """A ratio's estimate with a further, independent error of its logarithm, such as that of the clocks it rests on."""
    assert estimate.error is not None
    assert estimate.freedom is not None
    total = math.hypot(estimate.error, error)
    parts = (estimate.error**4 / estimate.freedom, error**4 / freedom)  # Welch and Satterthwaite
    jackknife = _Jackknife(estimate.value, np.array([]), estimate.n, max(1.0, total**4 / sum(parts)))
    reach = quantile((1 + LEVEL) / 2, jackknife.freedom) * total
    low, high = (estimate.value * math.exp(side * min(reach, 500.0)) for side in (-1, 1))
    return _tested(jackknife, low, high, 1.0, math.log(estimate.value), total)


def corrected(estimates: Sequence[Estimate | None]) -> list[Estimate | None]:
    """One table of comparisons: p-values adjusted by Holm's method, detectable effects at the level of its first step."""
    adjusted = holm([None if estimate is None else estimate.p for estimate in estimates])
    tests = sum(p is not None for p in adjusted)
    return [
        e if e is None or p is None else replace(e, p=p, detectable=_detectable(e.null, e.error, e.freedom, tests))
        for e, p in zip(estimates, adjusted, strict=True)
    ]


def prompts_needed(estimate: Estimate, tolerance: float, tests: int) -> int:
    """About how many prompts like these would make the detectable effect as small as ``tolerance``, among ``tests`` comparisons."""
    assert estimate.error is not None
    assert estimate.freedom is not None
    wanted = math.log1p(tolerance) if estimate.null else tolerance
    n = estimate.n
    while _power_quantiles(n / estimate.n * (estimate.freedom + 1) - 1, tests) * estimate.error * math.sqrt(estimate.n / n) > wanted:
        n = math.ceil(n * 1.05)
    return n


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p-values over one table; None stays None and does not count as a test."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = running
    return adjusted


def quantile(level: float, freedom: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # a fraction of a second to import where scipy.stats takes seconds

    return float(stdtrit(freedom, level))


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


@dataclass(frozen=True)
class _Jackknife:
    """A statistic of sums over prompts, and what it is without each prompt in turn."""

    value: float
    without: Array  # (n,)
    n: int
    freedom: float

    def error(self, scale: Callable[[Array], Array] = lambda x: x) -> float:
        """Standard error of the statistic on a scale."""
        values = scale(self.without)
        return math.sqrt((len(values) - 1) * np.var(values))


def _ratio(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _jackknife(statistic: Callable[[Array], Array], columns: Sequence[ArrayLike], denominators: Sequence[ArrayLike]) -> _Jackknife | None:
    """None where the statistic is undefined; ``n`` counts the prompts that have a denominator in every ratio."""
    data = np.stack([np.asarray(column, dtype=float) for column in columns], axis=-1)  # (n, m)
    weights = np.stack([np.asarray(column, dtype=float) for column in denominators])  # (ratios, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, without = float(statistic(data.sum(axis=0))), statistic(data.sum(axis=0) - data)
        effective = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    if not math.isfinite(value):
        return None
    n = int((weights > 0).all(axis=0).sum())
    return _Jackknife(value, without, n, max(1.0, float(effective.min()) - 1))


def _bounded(jackknife: _Jackknife, least: float, most: float) -> Estimate | None:
    """Wilson's score interval on [least, most]."""
    value, n, freedom = jackknife.value, jackknife.n, jackknife.freedom
    if n < MIN_PROMPTS or not least <= value <= most:
        return Estimate(value=value, n=n)
    if least == most:  # a constant, such as tau without a draft
        return Estimate(value=value, low=value, high=value, n=n)
    prompts, part = freedom + 1, (value - least) / (most - least)
    inner = (prompts * part + 1) / (prompts + 2)  # with one more whole prompt at either end, so that no spread is 0
    error = max(jackknife.error() / (most - least), ALIKE * math.sqrt(inner * (1 - inner)) / prompts)
    variance = part * (1 - part)
    share = quantile((1 + LEVEL) / 2, freedom) ** 2 / (variance / error**2 if variance > 1e-12 else prompts)
    middle, reach = (part + share / 2) / (1 + share), math.sqrt(variance * share + share**2 / 4) / (1 + share)
    low, high = (least + (most - least) * min(1.0, max(0.0, middle + side * reach)) for side in (-1, 1))
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, error=error * (most - least), freedom=freedom)


def _logarithmic(jackknife: _Jackknife) -> Estimate:
    """A t interval of the logarithm."""
    if jackknife.n < MIN_PROMPTS or jackknife.value <= 0 or (jackknife.without <= 0).any():
        return Estimate(value=jackknife.value, n=jackknife.n)
    error = max(jackknife.error(np.log), CLOCK / math.sqrt(jackknife.freedom + 1))
    reach = quantile((1 + LEVEL) / 2, jackknife.freedom) * error
    low, high = (jackknife.value * math.exp(side * min(reach, 500.0)) for side in (-1, 1))
    return _tested(jackknife, low, high, 1.0, math.log(jackknife.value), error)


def _tested(jackknife: _Jackknife, low: float, high: float, null: float, distance: float, error: float) -> Estimate:
    from scipy.special import stdtr

    return Estimate(
        value=jackknife.value, low=low, high=high, n=jackknife.n, p=float(2 * stdtr(jackknife.freedom, -abs(distance) / error)),
        detectable=_detectable(null, error, jackknife.freedom, 1), null=null, error=error, freedom=jackknife.freedom,
    )  # fmt: skip


def _detectable(null: float | None, error: float | None, freedom: float | None, tests: int) -> float | None:
    if error is None or freedom is None:
        return None
    reach = _power_quantiles(freedom, tests) * error
    return math.expm1(min(reach, 500.0)) if null else reach


def _power_quantiles(freedom: float, tests: int) -> float:
    return quantile(1 - (1 - LEVEL) / (2 * tests), freedom) + quantile(POWER, freedom)
