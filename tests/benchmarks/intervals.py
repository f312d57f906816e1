"""Which interval can be believed? Coverage and width of candidate rules on prompts as real runs have them, at 5 to 180 prompts.

    python tests/benchmarks/intervals.py --draws 1000

Every line: a quantity, a shape of prompts, the coverage of 95% intervals and their mean width at each number of prompts, per rule.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.results.reading import read_records

Array = NDArray[np.float64]
Pairs = tuple[Array, Array]
"""Numerators and denominators, one of each per prompt."""
Rule = Callable[[Array, Array, float], tuple[float, float]]
"""(numerators, denominators, greatest value) to the ends of the interval."""
PROMPTS = (5, 6, 8, 12, 30, 60, 180)
RESAMPLES = 400
WHOLE = 400_000
"""Prompts whose pooled ratio stands for the truth."""


def ordinary(rng: np.random.Generator, n: int) -> Pairs:
    """A draft model: every prompt its own acceptance, answers of similar length."""
    drafted = 4 * rng.integers(15, 60, n)
    return rng.binomial(drafted, rng.beta(4, 3, n)).astype(float), drafted.astype(float)


def sparse(rng: np.random.Generator, n: int) -> Pairs:
    """Lookup: half of the prompts draft nothing, others a few tokens, all right or all wrong by prompt."""
    drafted = np.where(rng.random(n) < 0.5, 0, 1 + rng.poisson(rng.lognormal(1.5, 0.8, n)))
    return rng.binomial(drafted, rng.beta(0.8, 0.8, n)).astype(float), drafted.astype(float)


def accepted(rng: np.random.Generator, n: int) -> Pairs:
    """A memory that knows the answer: most prompts have everything accepted."""
    drafted = 4 * rng.integers(15, 60, n)
    chance = np.where(rng.random(n) < 0.8, 1.0, rng.beta(6, 2, n))
    return rng.binomial(drafted, chance).astype(float), drafted.astype(float)


def heavy(rng: np.random.Generator, n: int) -> Pairs:
    """Few long answers, which repeat themselves: length and acceptance go together."""
    level = rng.normal(0, 1, n)
    drafted = 1 + rng.poisson(60 * np.exp(0.9 * level - 0.4))
    return rng.binomial(drafted, 1 / (1 + np.exp(-0.8 * level))).astype(float), drafted.astype(float)


def unequal(rng: np.random.Generator, n: int) -> Pairs:
    """One answer in five is ten times as long."""
    drafted = rng.integers(10, 30, n) * np.where(rng.random(n) < 0.2, 10, 1)
    return rng.binomial(drafted, rng.beta(3, 2, n)).astype(float), drafted.astype(float)


def passes(rng: np.random.Generator, n: int) -> Pairs:
    """Tokens less passes, over passes: what tau has above 1, over K = 4."""
    rounds = rng.integers(8, 40, n)
    return rng.binomial(4 * rounds, rng.beta(2, 4, n)).astype(float), rounds.astype(float)


def times(rng: np.random.Generator, n: int) -> Pairs:
    """Seconds of the target alone and of a cell: unequal answers, each with its own speedup."""
    own = rng.lognormal(0.5, 0.6, n)
    return own * rng.lognormal(0.25, 0.25, n), own


def tailed(rng: np.random.Generator, n: int) -> Pairs:
    """Seconds with heavy tails: some answers were disturbed."""
    own = rng.lognormal(0.5, 0.8, n)
    disturbed = np.where(rng.random(n) < 0.1, rng.lognormal(0.6, 0.5, n), 1.0)
    return own * rng.lognormal(0.25, 0.25, n), own * disturbed


def stored(folder: Path, drafter: str) -> Callable[[np.random.Generator, int], Pairs]:
    """Prompts drawn from those of a run: accepted and drafted tokens of one drafter at K = 4."""
    records = [r for r in read_records(folder) if (r.drafter, r.k, r.method) == (drafter, 4, "replay")]
    data = np.array([(r.accepted, r.drafted) for r in {r.sample_id: r for r in records}.values()], float)

    def draw(rng: np.random.Generator, n: int) -> Pairs:
        chosen = data[rng.integers(0, len(data), n)]
        return chosen[:, 0], chosen[:, 1]

    return draw


def shipped(y: Array, x: Array, most: float) -> tuple[float, float]:
    """The rule of harness.core.stats."""
    estimate = stats.ratio(y, x, most=most)
    if estimate is None or estimate.low is None or estimate.high is None:
        return math.nan, math.nan
    return estimate.low, estimate.high


def _pieces(y: Array, x: Array) -> tuple[float, Array, float]:
    """The ratio, its influence per prompt, and the t quantile."""
    value = y.sum() / x.sum()
    return value, (y - value * x) / x.sum(), stats.quantile(0.975, len(y) - 1)


def _scaled(value: float, error: float, t: float, most: float) -> tuple[float, float]:
    """A t interval on the scale that the bounds ask for: logit, or logarithm where there is no upper bound."""
    if most == math.inf:
        return (
            (value * math.exp(-min(500, t * error / value)), value * math.exp(min(500, t * error / value)))
            if value > 0
            else (0.0, math.inf)
        )
    part = value / most
    if not 0 < part < 1:
        return (0.0, 0.0) if part <= 0 else (most, most)
    reach = min(500.0, t * error / most / (part * (1 - part)))
    odds = part / (1 - part)
    return most * odds * math.exp(-reach) / (1 + odds * math.exp(-reach)), most * odds / (odds + math.exp(-reach))


def logit(y: Array, x: Array, most: float) -> tuple[float, float]:
    """Linearised cluster error (what GEE calls robust) on the logit or log scale."""
    value, influence, t = _pieces(y, x)
    n = len(y)
    return _scaled(value, math.sqrt(n / (n - 1) * (influence**2).sum()), t, most)


def score(y: Array, x: Array, most: float) -> tuple[float, float]:
    """Every value that a cluster score test with its own variance does not refuse (Fieller)."""
    n = len(y)
    t2 = stats.quantile(0.975, n - 1) ** 2 * n / (n - 1) / (1 + stats.quantile(0.975, n - 1) ** 2 / (n - 1))
    a = x.sum() ** 2 - t2 * (x**2).sum()
    b = x.sum() * y.sum() - t2 * (x * y).sum()
    c = y.sum() ** 2 - t2 * (y**2).sum()
    root = b * b - a * c
    if a <= 0 or root < 0:
        return 0.0, most
    return max(0.0, (b - math.sqrt(root)) / a), min(most, (b + math.sqrt(root)) / a)


def _resampled(y: Array, x: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Counts of prompts per resample (resamples, n), ratio and linearised error of each."""
    n = len(y)
    counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    top, bottom = counts @ y, counts @ x
    with np.errstate(divide="ignore", invalid="ignore"):
        value = top / bottom
        squares = counts @ (y * y) - 2 * value * (counts @ (x * y)) + value**2 * (counts @ (x * x))
        return counts, value, np.sqrt(np.maximum(squares, 0) * n / (n - 1)) / bottom


def bca(y: Array, x: Array, most: float) -> tuple[float, float]:
    """scipy's bias-corrected and accelerated bootstrap."""
    from scipy.stats import bootstrap

    if (x > 0).sum() < 2 or np.ptp(y[x > 0] / x[x > 0]) == 0:
        return math.nan, math.nan
    found = bootstrap(
        (y, x), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def studentised(y: Array, x: Array, most: float) -> tuple[float, float]:
    """Bootstrap of prompts, studentised on the logit or log scale."""
    value, influence, _ = _pieces(y, x)
    n = len(y)
    error = math.sqrt(n / (n - 1) * (influence**2).sum())
    _, values, errors = _resampled(y, x, np.random.default_rng(0))
    if error == 0:
        return value, value
    with np.errstate(divide="ignore", invalid="ignore"):
        if most == math.inf:
            slopes, moved = 1 / values, np.log(values) - math.log(value)
        else:
            slopes = most / (values * (most - values))
            moved = np.log(values / (most - values)) - math.log(value / (most - value))
        ts = moved / (errors * slopes)
    ts = ts[np.isfinite(ts)]
    if len(ts) < 50:
        return math.nan, math.nan
    low, high = np.quantile(ts, [0.025, 0.975])
    return _scaled(value, error, float(high), most)[0], _scaled(value, error, float(-low), most)[1]


def wild(y: Array, x: Array, most: float) -> tuple[float, float]:
    """Wild cluster bootstrap with Webb's six weights, studentised, cut to what the ratio can be."""
    value, influence, _ = _pieces(y, x)
    n = len(y)
    error = math.sqrt(n / (n - 1) * (influence**2).sum())
    if error == 0:
        return value, value
    rng = np.random.default_rng(0)
    webb = np.array([-math.sqrt(1.5), -1, -math.sqrt(0.5), math.sqrt(0.5), 1, math.sqrt(1.5)])
    moves = webb[rng.integers(0, 6, (RESAMPLES, n))] * influence  # (resamples, n)
    moved = moves.sum(axis=1)
    share = x / x.sum()
    errors = np.sqrt(((moves - moved[:, None] * share) ** 2).sum(axis=1) * n / (n - 1))
    low, high = np.quantile(moved / errors, [0.025, 0.975])
    return max(0.0, value - float(high) * error), min(most, value - float(low) * error)


RULES: dict[str, Rule] = {
    "shipped": shipped, "logit": logit, "score": score, "BCa": bca, "studentised": studentised, "wild": wild,
}  # fmt: skip
SHAPES: dict[str, tuple[Callable[[np.random.Generator, int], Pairs], float]] = {
    "rate, ordinary": (ordinary, 1.0), "rate, sparse": (sparse, 1.0), "rate, all accepted": (accepted, 1.0),
    "rate, heavy tails": (heavy, 1.0), "rate, unequal lengths": (unequal, 1.0), "tau - 1": (passes, 4.0),
    "speedup": (times, math.inf), "speedup, heavy tails": (tailed, math.inf),
}  # fmt: skip


def measure(
    draw: Callable[[np.random.Generator, int], Pairs], most: float, n: int, draws: int, rules: dict[str, Rule]
) -> dict[str, tuple[float, float]]:
    """Coverage and mean width (of the logarithm where there is no upper bound) per rule; no interval is no cover, and has no width."""
    over, under = draw(np.random.default_rng(1), WHOLE)
    truth = over.sum() / under.sum()
    hits, widths = dict.fromkeys(rules, 0.0), {name: [] for name in rules}  # type: dict[str, float], dict[str, list[float]]
    done = 0
    for seed in range(draws):
        y, x = draw(np.random.default_rng((n, seed)), n)
        if (x > 0).sum() < stats.MIN_PROMPTS:
            continue
        done += 1
        for name, rule in rules.items():
            low, high = rule(y, x, most)
            if math.isfinite(low) and math.isfinite(high):
                hits[name] += low - 1e-12 <= truth <= high + 1e-12
                widths[name].append(math.log(high / low) if most == math.inf and low > 0 else high - low)
    return {name: (hits[name] / max(1, done), float(np.mean(widths[name])) if widths[name] else math.nan) for name in rules}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--run", type=Path, help="also prompts drawn from this run's replayed lookup and draft")
    args = parser.parse_args(argv)
    shapes = dict(SHAPES)
    if args.run:
        shapes |= {f"rate, {name} of {args.run.name}": (stored(args.run, name), 1.0) for name in ("generic", "lookup")}
    rules = {name: RULES[name] for name in args.rules}
    print("| quantity | prompts |", " | ".join(f"{name}: covered, width" for name in rules), "|")
    print("|---|---|" + "---|" * len(rules))
    for title, (draw, most) in shapes.items():
        for n in args.prompts:
            found = measure(draw, most, n, args.draws, rules)
            print(f"| {title} | {n} |", " | ".join(f"{c:.1%}, {w:.3f}" for c, w in found.values()), "|", flush=True)


if __name__ == "__main__":
    main()
