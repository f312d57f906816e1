"""Intervals cover what they claim, agree with brute force, and say nothing when there is too little data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.core import stats
from routing.intervals import clustered

positive = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=30)


@given(positive)
@settings(max_examples=100, deadline=None)
def test_rates_are_ratios_of_sums_within_their_bounds(pairs: list[tuple[int, int]]) -> None:
    """Pooled counts, never a mean of ratios; the interval contains the estimate, has a width and stays in [0, 1]."""
    top, bottom = [min(p) for p in pairs], [p[1] for p in pairs]
    estimate = stats.ratio(top, bottom, most=1.0)
    assert estimate is not None
    assert estimate.value == pytest.approx(sum(top) / sum(bottom))
    assert estimate.n == len(pairs)
    assert (estimate.low is None) == (len(pairs) < stats.MIN_PROMPTS)
    if estimate.low is not None and estimate.high is not None:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > 1e-4


@given(positive, st.integers(2, 9))
@example([(0, 44), (5, 1), (2, 59), (0, 1), (1, 1)], 3)
@settings(max_examples=50, deadline=None)
def test_scaling_scales_everything(pairs: list[tuple[int, int]], factor: int) -> None:
    """Seconds or milliseconds: the unit must not change the conclusion. A ratio of times is above 0, its interval too."""
    top, bottom = np.array([p[0] + 1 for p in pairs], float), np.array([p[1] for p in pairs], float)
    a, b = stats.ratio(top, bottom), stats.ratio(top * factor, bottom * factor)
    assert a is not None
    assert b is not None
    assert b.value == pytest.approx(a.value)
    if a.low is not None and a.high is not None:
        assert (b.low, b.high, b.p) == pytest.approx((a.low, a.high, a.p))
        assert 0 < a.low < a.value < a.high


@given(positive)
@settings(max_examples=50, deadline=None)
def test_difference_from_itself_is_nothing(pairs: list[tuple[int, int]]) -> None:
    """Pairing by prompt: the same counts on both sides differ by nothing, known to half a token and the prompts' number."""
    data = ([min(p) for p in pairs], [p[1] for p in pairs])
    estimate = stats.difference(data, data)
    assert estimate is not None
    assert estimate.value == 0
    if estimate.low is not None and estimate.high is not None and estimate.error is not None:
        assert estimate.p == 1.0
        assert estimate.error == 0.5 / sum(data[1])
        assert -1 <= estimate.low < 0 < estimate.high <= 1


def test_relative_is_one_ratio_over_the_other() -> None:
    """Time per token over time per token."""
    estimate = stats.relative(([2, 4], [1, 2]), ([1, 1], [4, 4]))
    assert estimate is not None
    assert estimate.value == pytest.approx((6 / 3) / (2 / 8))


def test_nothing_from_nothing() -> None:
    """No drafted token means no rate: None, never 0. Prompts without one say nothing, so they do not count."""
    assert stats.ratio([0, 0], [0, 0], most=1.0) is None
    assert stats.ratio([], []) is None
    estimate = stats.ratio([3, 0, 0, 0, 2, 0], [4, 0, 0, 0, 4, 0], most=1.0)
    assert estimate == stats.Estimate(value=5 / 8, n=2)


@pytest.mark.parametrize(
    ("estimate", "low", "high"),
    [
        (stats.ratio([20] * 5, [20] * 5, most=1.0), (0.2, 0.5), (1, 1)),
        (stats.ratio([0] * 8, [40] * 8, most=1.0), (0, 0), (0.3, 0.6)),
        (stats.ratio([20] * 11 + [0], [20] * 12, most=1.0), (0.5, 0.75), (0.95, 0.999)),
        (stats.ratio([15] * 5, [20] * 5, most=1.0), (0.4, 0.74), (0.76, 0.95)),
        (stats.ratio([20, 90, 20, 100, 15], [20, 30, 20, 30, 15], least=1.0, most=5.0), (1, 2.4), (2.6, 5)),
        (stats.ratio([5, 5, 5, 5, 5], [1] * 5, least=1.0, most=5.0), (1, 4.5), (5, 5)),
        (stats.ratio([40] * 6, [40] * 6, least=1.0, most=1.0), (1, 1), (1, 1)),
        (stats.ratio([1, 1, 1, 1, 90], [1] * 5), (1e-3, 1), (1000, 1e9)),
        (stats.ratio([1.003] * 5, [1.0] * 5), (0.98, 1), (1.006, 1.03)),
        (stats.difference(([0] * 6, [40] * 6), ([40] * 6, [40] * 6)), (-1, -1), (-1, -0.9)),
        (stats.difference(([9, 0, 0, 0, 0, 0], [9] * 6), ([0, 9, 9, 9, 9, 9], [9] * 6)), (-1, -1), (0, 0.3)),
    ],
)  # fmt: skip
def test_intervals_at_the_edges(estimate: stats.Estimate | None, low: tuple[float, float], high: tuple[float, float]) -> None:
    """Nothing impossible and nothing certain: both ends lie where the quantity can, and where so few prompts leave room."""
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert low[0] <= estimate.low <= low[1]
    assert high[0] <= estimate.high <= high[1]


def test_p_values_have_a_right_size() -> None:
    """Five speedups of 1.003 show nothing; a fall of every prompt is found among hundreds of comparisons: no floor from resampling."""
    equal = stats.ratio([1.003] * 5, [1.0] * 5)
    assert equal is not None
    assert equal.p is not None
    assert equal.p > 0.3
    rng = np.random.default_rng(0)
    fall = stats.difference((np.zeros(30), np.full(30, 40)), (rng.binomial(40, 0.6, 30), np.full(30, 40)))
    assert fall is not None
    assert all(e is not None and e.p is not None and e.p < 1e-9 for e in stats.corrected([fall] * 1000))


def test_errors_match_leaving_out_one_prompt_at_a_time() -> None:
    """The definition of the jackknife, written as a loop."""
    rng = np.random.default_rng(0)
    top, bottom = rng.random(15) * 9, rng.random(15) * 9 + 1
    without = [np.log(np.delete(top, i).sum() / np.delete(bottom, i).sum()) for i in range(15)]
    estimate = stats.ratio(top, bottom)
    assert estimate is not None
    assert estimate.error == pytest.approx(np.sqrt(14 / 15 * np.sum((without - np.mean(without)) ** 2)))
    assert estimate.freedom == pytest.approx(bottom.sum() ** 2 / np.sum(bottom**2) - 1)


def test_routing_has_the_same_method() -> None:
    """``routing`` imports nothing of ``harness``, so its copy must agree: value and both ends."""
    rng = np.random.default_rng(1)
    drafted = np.full(14, 40.0)
    a, b = rng.binomial(40, 0.7, 14), rng.binomial(40, 0.6, 14)
    own = stats.difference((a, drafted), (b, drafted))
    other = clustered(np.stack([a / 40, b / 40], axis=1), np.arange(14), lambda m: m[..., 0] - m[..., 1])
    assert own is not None
    assert (own.value, own.low, own.high) == pytest.approx((other.value, other.low, other.high))


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
        rates = stats.difference(a, b)
        length = rng.lognormal(1, 0.6, n)
        times = stats.ratio(length * rng.lognormal(0, 0.06, n), length * rng.lognormal(0, 0.06, n))
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
@pytest.mark.parametrize("tests", [1, 30])
def test_power_at_the_detectable_effect(tests: int) -> None:
    """A true difference of the printed detectable size is found about 80% of the time, also as one of 30 comparisons."""
    found, n = [], 40
    for seed in range(400):
        rng = np.random.default_rng(seed)
        size = stats.corrected([stats.difference(*two_arms(rng, n, 0.0))] * tests)[0]
        assert size is not None
        assert size.detectable is not None
        a, b = two_arms(rng, n, size.detectable)
        estimate = stats.difference(b, a)
        assert estimate is not None
        assert estimate.p is not None
        found.append(estimate.p < 0.05 / tests)
    assert 0.70 <= np.mean(found) <= 0.90


def test_prompts_needed_grow_with_the_square() -> None:
    """Half the tolerance takes four times the prompts; more comparisons take more; enough prompts make the tolerance detectable."""
    rng = np.random.default_rng(0)
    estimate = stats.difference(*two_arms(rng, 30, 0.0))
    assert estimate is not None
    few, many, strict = (stats.prompts_needed(estimate, t, m) for t, m in ((0.02, 1), (0.01, 1), (0.01, 100)))
    assert 3.5 < many / few < 4.5
    assert strict > many > 30
    enough = stats.difference(*two_arms(rng, many, 0.0))
    assert enough is not None
    assert enough.detectable == pytest.approx(0.01, rel=0.3)


def test_p_value_and_interval_agree() -> None:
    """A 95% interval excludes the null exactly when p < 0.05."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        estimate = stats.ratio(rng.lognormal(0.1, 0.3, 15), rng.lognormal(0, 0.3, 15))
        assert estimate is not None
        assert estimate.p is not None
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
