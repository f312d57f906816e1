"""Intervals cover what they claim, agree with brute force, and say nothing when there is too little data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness import stats

positive = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=30)


@given(positive)
@settings(max_examples=100, deadline=None)
def test_ratio_is_the_ratio_of_sums(pairs: list[tuple[int, int]]) -> None:
    """Pooled counts, never a mean of ratios; the interval contains the estimate."""
    top, bottom = [p[0] for p in pairs], [p[1] for p in pairs]
    estimate = stats.ratio(top, bottom)
    assert estimate is not None
    assert estimate.value == pytest.approx(sum(top) / sum(bottom))
    assert estimate.n == len(pairs)
    assert (estimate.low is None) == (len(pairs) < stats.MIN_PROMPTS)
    if estimate.low is not None and estimate.high is not None:
        assert estimate.low <= estimate.value + 1e-12
        assert estimate.high >= estimate.value - 1e-12


@given(positive, st.integers(2, 9))
@example([(0, 44), (5, 1), (2, 59), (0, 1), (1, 1)], 3)
@settings(max_examples=50, deadline=None)
def test_scaling_scales_everything(pairs: list[tuple[int, int]], factor: int) -> None:
    """Seconds or milliseconds: the unit must not change the conclusion."""
    top, bottom = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)
    a, b = stats.ratio(top, bottom, null=1.0), stats.ratio(top * factor, bottom * factor, null=1.0)
    assert a is not None
    assert b is not None
    assert b.value == pytest.approx(a.value)
    if a.low is not None:
        assert (b.low, b.high) == pytest.approx((a.low, a.high), abs=1e-9)


@given(positive)
@settings(max_examples=50, deadline=None)
def test_difference_from_itself_is_nothing(pairs: list[tuple[int, int]]) -> None:
    """Pairing by prompt: the same data on both sides has no uncertainty at all."""
    data = ([p[0] for p in pairs], [p[1] for p in pairs])
    estimate = stats.difference(data, data)
    assert estimate is not None
    assert estimate.value == 0
    if len(pairs) >= stats.MIN_PROMPTS:
        assert (estimate.low, estimate.high, estimate.p) == (0, 0, 1.0)


def test_relative_is_one_ratio_over_the_other() -> None:
    """Time per token over time per token."""
    estimate = stats.relative(([2, 4], [1, 2]), ([1, 1], [4, 4]))
    assert estimate is not None
    assert estimate.value == pytest.approx((6 / 3) / (2 / 8))


def test_nothing_from_nothing() -> None:
    """No drafted token means no rate: None, never 0."""
    assert stats.ratio([0, 0], [0, 0]) is None
    assert stats.ratio([], []) is None


def test_same_seed_same_interval() -> None:
    """A report must recompute to the last digit; another seed is another draw."""
    rng = np.random.default_rng(1)
    top, bottom = rng.random(20), rng.random(20) + 1
    assert stats.ratio(top, bottom, seed=3) == stats.ratio(top, bottom, seed=3)
    assert stats.ratio(top, bottom, seed=3) != stats.ratio(top, bottom, seed=4)


def test_error_formula_matches_the_explicit_sum() -> None:
    """The standard error from outer products equals the textbook linearised formula."""
    rng = np.random.default_rng(0)
    top, bottom = rng.random(15) * 9, rng.random(15) * 9 + 1
    data = np.stack([top, bottom], axis=1)
    value, error = stats._value_and_error(stats._ratio, data.sum(0), np.einsum("ni,nj->ij", data, data), 15)
    residual = (top - value * bottom) / bottom.mean()
    assert float(error) == pytest.approx(np.sqrt(np.sum(residual**2) / (15 * 14)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_matches_the_definition(p_values: list[float]) -> None:
    """Step-down: reject the i-th smallest while p_i <= alpha / (m - i), stop at the first failure."""
    adjusted = stats.holm(p_values)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        rejected = set()
        for i, index in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
            if p_values[index] * (len(p_values) - i) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p is not None and p <= alpha} == rejected


def test_holm_ignores_what_was_not_tested() -> None:
    """Cells without an interval neither get a p-value nor cost power."""
    assert stats.holm([0.01, None, 0.04]) == [0.02, None, 0.04]


def two_arms(rng: np.random.Generator, n: int, drop: float) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Counts of two runs over the same prompts; the second accepts ``drop`` less."""
    own = rng.beta(4, 3, n)
    arms = []
    for shift in (0.0, drop):
        drafted = 4 * rng.integers(15, 60, n)
        chance = np.clip(own + rng.normal(0, 0.03, n) - shift, 0.01, 0.99)
        arms.append((rng.binomial(drafted, chance).astype(float), drafted.astype(float)))
    return arms[0], arms[1]


def coverage(n: int, runs: int) -> tuple[float, float]:
    """Part of A/A comparisons whose intervals contain the truth: difference of rates, ratio of times."""
    hits = np.zeros(2)
    for seed in range(runs):
        rng = np.random.default_rng((n, seed))
        a, b = two_arms(rng, n, 0.0)
        rates = stats.difference(a, b, seed=seed)
        length = rng.lognormal(1, 0.6, n)
        times = stats.ratio(length * rng.lognormal(0, 0.06, n), length * rng.lognormal(0, 0.06, n), null=1.0, seed=seed)
        assert rates is not None
        assert times is not None
        hits += [not rates.excludes(0), not times.excludes(1)]
    return float(hits[0] / runs), float(hits[1] / runs)


def test_coverage_is_near_nominal() -> None:
    """A quick look at 95% intervals on A/A data; 150 runs cannot tell more than 89 to 99%."""
    for part in coverage(12, 150):
        assert 0.89 <= part <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 12, 16, 30, 100])
def test_coverage_of_a_thousand_comparisons(n: int) -> None:
    """1,000 simulated A/A comparisons: intervals cover 93 to 97%."""
    for part in coverage(n, 1000):
        assert 0.93 <= part <= 0.97


@pytest.mark.slow
def test_power_at_the_detectable_effect() -> None:
    """A true difference of the printed detectable size is found about 80% of the time."""
    found, n = [], 40
    for seed in range(400):
        rng = np.random.default_rng(seed)
        a, b = two_arms(rng, n, 0.0)
        size = stats.difference(b, a)
        assert size is not None
        assert size.detectable is not None
        a, b = two_arms(rng, n, size.detectable)
        estimate = stats.difference(b, a, seed=seed)
        assert estimate is not None
        assert estimate.p is not None
        found.append(estimate.p < 0.05)
    assert 0.70 <= np.mean(found) <= 0.90


def test_intervals_keep_to_what_a_ratio_can_be() -> None:
    """Few uneven prompts give wide studentised intervals; neither a negative speedup nor a rate above 1 is possible."""
    wild = stats.ratio([1, 1, 1, 1, 90], [1, 1, 1, 1, 1], null=1.0)
    high = stats.ratio([4, 4, 4, 4, 1], [4, 4, 4, 4, 4], most=1.0)
    free = stats.ratio([4, 4, 4, 4, 1], [4, 4, 4, 4, 4])
    assert wild is not None
    assert wild.low == 0.0
    assert high is not None
    assert free is not None
    assert high.high == 1.0
    assert free.high is not None
    assert free.high > 1.0


def test_p_value_and_interval_agree() -> None:
    """A 95% interval excludes the null exactly when p < 0.05, up to one resample."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        estimate = stats.ratio(rng.lognormal(0.1, 0.3, 15), rng.lognormal(0, 0.3, 15), null=1.0)
        assert estimate is not None
        assert estimate.p is not None
        if abs(estimate.p - 0.05) > 0.005:
            assert estimate.excludes(1.0) == (estimate.p < 0.05)


@pytest.mark.parametrize(
    ("v", "said"),
    [([], None), ([1.2], None), ([1.2, 1.1, 1.3, 1.45], None), ([1.2, 2.16, 1.2], "1.8x slower"), ([1.2, 1.3, 1.2, 1.6], "1.3x slower")],
)
def test_slower_verification_is_told_with_both_costs(v: list[float], said: str | None) -> None:
    """The worst reading against the first one, and what came before each; noise of a quarter is no news."""
    found = stats.slower_verification([{"after": f"step {n}", "v": value} for n, value in enumerate(v)])
    assert len(found) == (said is not None)
    if said:
        assert said in found[0]
        assert f"1.20 after step 0 and {max(v):.2f} after step {v.index(max(v))}" in found[0]


def test_instability_names_its_reason() -> None:
    """Noise and drift are told apart, and a steady machine gets no warning."""
    assert stats.instability([1.0, 1.01, 0.99, 1.0]) == []
    assert stats.instability([1.0, 2.0]) == []
    (noise,) = stats.instability([1.0, 1.6, 0.7, 1.5, 1.0])
    assert "unstable" in noise
    (drift,) = stats.instability([1.0, 1.0, 1.04, 1.05, 1.09, 1.1])
    assert "ended" in drift
    assert "slower" in drift


def test_percentiles_match_brute_force() -> None:
    """The 50th percentile of an odd list is its middle."""
    for values in itertools.permutations([1.0, 2.0, 7.0]):
        assert stats.percentiles(values, (0, 50, 100)) == (1, 2, 7)
