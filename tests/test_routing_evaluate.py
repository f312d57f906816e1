"""Evaluation against brute force, and honesty of the folds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from routing_tables import ARMS, make_prompts, make_rewards

from routing.base import from_regret, to_regret
from routing.evaluate import evaluate_routers, pooled_value
from routing.features import PromptFeatures
from routing.intervals import clustered, gap_recovery
from routing.outcomes import Arm
from routing.policy import PromptRouter
from routing.routers import KNNRouter, LogisticRouter
from routing.routing_error import RoutingError

TABLES = hnp.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.floats(0.1, 8))
ROUTER = PromptRouter(PromptFeatures("tfidf", max_terms=64), LogisticRouter(), fallback="generic@4")


@given(TABLES)
def test_no_policy_beats_the_oracle(rewards) -> None:
    """Brute force over every assignment of arms to prompts: the best recovers exactly 1, the best fixed arm exactly 0, none more than 1."""
    n, n_arms = rewards.shape
    oracle, fixed = rewards.max(axis=1).mean(), rewards.mean(axis=0).max()
    if oracle - fixed < 1e-9:
        assert np.isnan(gap_recovery(oracle, oracle, oracle))
        return
    values = [rewards[np.arange(n), list(c)].mean() for c in itertools.product(range(n_arms), repeat=n)]
    recoveries = [gap_recovery(v, fixed, oracle) for v in values]
    assert max(recoveries) == pytest.approx(1)
    assert max(gap_recovery(v, fixed, oracle) for v in rewards.mean(axis=0)) == pytest.approx(0)
    assert min(recoveries) <= 0


@given(TABLES)
def test_regret_targets_lose_nothing(rewards) -> None:
    """Learning regret and best reward is learning the rewards."""
    np.testing.assert_allclose(from_regret(to_regret(rewards)), rewards)
    assert (to_regret(rewards)[:, :-1].min(axis=1) == 0).all()


def test_pooled_tau_is_tokens_over_rounds() -> None:
    """The pooled number must be the ratio of totals, never a mean of ratios."""
    emitted, rounds = np.array([60.0, 10.0, 200.0]), np.array([20.0, 9.0, 50.0])
    assert pooled_value(emitted / rounds, emitted) == pytest.approx(270 / 79)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_evaluation_matches_brute_force(seed, n_splits) -> None:
    """Baselines of the evaluation recomputed by loops: oracle, random, fixed arms, best fixed of each training part, label baselines."""
    prompts, domains = make_prompts(18, seed)
    rewards = make_rewards(domains, seed)
    out = evaluate_routers(prompts, rewards, ARMS, {}, domains=domains, n_splits=n_splits, seed=seed)
    assert sorted(np.concatenate(out.folds)) == list(range(18))
    assert out["oracle"].mean.value == pytest.approx(np.mean([max(r) for r in rewards]))
    assert out["random"].mean.value == pytest.approx(rewards.mean())
    assert out["fixed:math@4"].mean.value == pytest.approx(rewards[:, 2].mean())
    assert out["domain label"].mean.value == pytest.approx(np.mean([r[1 + i % 3] for i, r in enumerate(rewards)]))
    best_fixed, domain_best = np.zeros(18), np.zeros(18)
    for test in out.folds:
        train = [i for i in range(18) if i not in test]
        arm = int(np.argmax(rewards[train].mean(axis=0)))
        for i in test:
            best_fixed[i] = rewards[i, arm]
            same = [j for j in train if domains[j] == domains[i]]
            domain_best[i] = rewards[i, int(np.argmax(rewards[same].mean(axis=0))) if same else arm]
    np.testing.assert_allclose(out["best fixed"].rewards, best_fixed)
    np.testing.assert_allclose(out["domain best"].rewards, domain_best)
    gap = rewards.max(axis=1).mean() - best_fixed.mean()
    for name in ("oracle", "best fixed", "random", "domain label"):
        assert out[name].regret.value == pytest.approx(out["oracle"].mean.value - out[name].mean.value)
        assert out[name].recovery.value == pytest.approx((out[name].mean.value - best_fixed.mean()) / gap)


def test_router_recovers_the_gap_where_domains_differ() -> None:
    """On separable domains with little noise most of the oracle gap is there to be had, and intervals must say so."""
    prompts, domains = make_prompts(120)
    out = evaluate_routers(prompts, make_rewards(domains, noise=0.05), ARMS, {"tfidf": ROUTER}, domains=domains)
    assert out["tfidf"].recovery.value > 0.9
    assert 0.8 < out["tfidf"].recovery.low <= out["tfidf"].recovery.value <= out["tfidf"].recovery.high <= 1
    assert out["tfidf"].gain.low > 0
    assert not out.gap_is_noise


def test_router_gets_nothing_from_noise() -> None:
    """Rewards that no prompt explains: a router that 'recovers' a gap here has seen its test fold."""
    prompts, _ = make_prompts(120)
    rewards = np.random.default_rng(1).normal(2, 0.3, (120, 4))
    memoriser = PromptRouter(PromptFeatures("tfidf"), KNNRouter(n_neighbors=1), fallback=None)
    out = evaluate_routers(prompts, rewards, ARMS, {"1nn": memoriser})
    assert abs(out["1nn"].recovery.value) < 0.25


def test_copies_of_a_prompt_never_straddle_folds() -> None:
    """Each prompt twice with independent noise in the features' reach: a memoriser must gain nothing from its copies."""
    prompts, _ = make_prompts(60)
    rewards = np.random.default_rng(2).normal(2, 0.3, (60, 4))
    doubled = [p.upper() if i >= 60 else p for i, p in enumerate(prompts * 2)]
    memoriser = PromptRouter(PromptFeatures("tfidf"), KNNRouter(n_neighbors=1), fallback=None)
    twice = np.vstack([rewards, rewards])
    honest = evaluate_routers(doubled, twice, ARMS, {"1nn": memoriser})
    leaky = evaluate_routers(doubled, twice, ARMS, {"1nn": memoriser}, groups=np.arange(120))
    assert honest.n_groups == 60
    assert honest["1nn"].recovery.value < 0.3 < 0.6 < leaky["1nn"].recovery.value


def test_small_gaps_are_called_noise() -> None:
    """When all arms are equal there is nothing to recover, and the report must say so instead of printing a ratio."""
    prompts, _ = make_prompts(30)
    out = evaluate_routers(prompts, np.full((30, 4), 2.0), ARMS, {})
    assert out.gap_is_noise
    assert np.isnan(out["random"].recovery.value)
    assert out["random"].pooled is None
    assert evaluate_routers(prompts, np.full((30, 4), 2.0), ARMS, {}, weights=np.ones(30))["random"].pooled == pytest.approx(2)


def test_intervals_resample_groups_and_cover() -> None:
    """Copies of a prompt must not narrow the interval, and about 95% of the intervals must hold the truth."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 1))
    alone = clustered(values, np.arange(40), lambda m: m[..., 0])
    copies = clustered(np.repeat(values, 5, axis=0), np.repeat(np.arange(40), 5), lambda m: m[..., 0])
    assert (alone.low, alone.high) == pytest.approx((copies.low, copies.high))
    intervals = [clustered(rng.standard_normal((60, 1)), np.arange(60), lambda m: m[..., 0]) for s in range(500)]
    assert 0.91 < np.mean([i.low <= 0 <= i.high for i in intervals]) < 0.98


def test_wrong_shapes_and_names_are_refused() -> None:
    """One message, before any fold is fitted."""
    prompts, domains = make_prompts(6)
    with pytest.raises(RoutingError, match="shape"):
        evaluate_routers(prompts, make_rewards(domains)[:, :2], ARMS, {})
    with pytest.raises(RoutingError, match="one group"):
        evaluate_routers(["a", "a"], np.ones((2, 1)), ["x"], {})
    with pytest.raises(RoutingError, match="no policy 'x'"):
        evaluate_routers(prompts, make_rewards(domains), ARMS, {})["x"]


def test_arms_may_be_names() -> None:
    """A table without draft lengths needs no Arm objects."""
    prompts, domains = make_prompts(12)
    names = [a.drafter for a in ARMS]
    out = evaluate_routers(prompts, make_rewards(domains), names, {}, domains=domains)
    assert out.arms == tuple(names)
    assert (
        out["domain label"].mean.value
        == evaluate_routers(prompts, make_rewards(domains), [Arm(n) for n in names], {}, domains=domains)["domain label"].mean.value
    )
