"""Online routers: exact algebra, exploration, learning while serving."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.bandits import HedgeRouter, LinThompson, LinUCB
from routing.errors import RoutingError
from routing.evaluate import play_online

KINDS = [LinUCB, LinThompson, HedgeRouter]


def _world(n: int, seed: int = 0, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 6) and rewards (n, 3) that are linear in them, about 2 on average."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 6)) / np.sqrt(6)
    theta = np.random.default_rng(99).standard_normal((6, 3))
    return X, 2 + X @ theta + noise * rng.standard_normal((n, 3))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_online_updates_equal_the_closed_form(seed, penalty) -> None:
    """Rank-one updates must not drift from ridge regression solved at once."""
    X, rewards = _world(25, seed)
    online = LinUCB(penalty=penalty).start(6, 3)
    for x, row in zip(X, rewards, strict=True):
        online.update_all(x, row)
    batch = LinUCB(penalty=penalty).fit(X, rewards)
    np.testing.assert_allclose(online.predict(X), batch.predict(X), rtol=1e-8)
    np.testing.assert_allclose(online.cov_, batch.cov_, atol=1e-10)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_each_arm_learns_from_its_own_plays_only(seed) -> None:
    """Partial feedback: every arm's estimate is the ridge solution over the rows where it was played, around the mean reward."""
    X, rewards = _world(30, seed)
    arms = np.random.default_rng(seed).integers(0, 3, 30)
    online = LinUCB().start(6, 3)
    for x, arm, row in zip(X, arms, rewards, strict=True):
        online.update(x, arm, row[arm])
    mean = rewards[np.arange(30), arms].mean()
    for a in range(3):
        Z = np.hstack([X[arms == a], np.ones(((arms == a).sum(), 1))])
        theta = np.linalg.solve(Z.T @ Z + np.eye(7), Z.T @ (rewards[arms == a, a] - mean))
        np.testing.assert_allclose(online.predict(X)[:, a], mean + np.hstack([X, np.ones((30, 1))]) @ theta, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feedback", ["played", "all"])
def test_learns_while_serving(kind, feedback) -> None:
    """In a linear world the second half of the prompts must be served much better than by the best fixed arm."""
    X, rewards = _world(600)
    served = play_online(kind(), X, rewards, feedback=feedback, seed=1)
    late = served[300:]
    reward = rewards[late[:, 0], late[:, 1]].mean()
    fixed = rewards[late[:, 0]].mean(axis=0).max()
    oracle = rewards[late[:, 0]].max(axis=1).mean()
    assert (reward - fixed) / (oracle - fixed) > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_serving_is_deterministic_under_a_seed(kind) -> None:
    """Same seed, same prompts, same feedback: same plays; another seed differs somewhere."""
    X, rewards = _world(80)
    plays = [play_online(kind(random_state=s), X, rewards, seed=2) for s in (0, 0, 1)]
    np.testing.assert_array_equal(plays[0], plays[1])
    assert kind is LinUCB or (plays[0] != plays[2]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_gets_tried(kind) -> None:
    """An arm never played can never be found to be the best."""
    X, rewards = _world(60)
    assert set(play_online(kind(), X, rewards)[:, 1]) == {0, 1, 2}


def test_optimism_shrinks_with_evidence() -> None:
    """LinUCB's bonus is for what it does not know."""
    X, rewards = _world(50)
    bandit = LinUCB().start(6, 3)
    bandit.update_all(X[0], rewards[0])
    z = np.append(X[1], 1.0)
    before = bandit._spread(z) / bandit._level()[1]
    for x, row in zip(X[2:], rewards[2:], strict=True):
        bandit.update_all(x, row)
    assert (bandit._spread(z) / bandit._level()[1] < before).all()


def test_hedge_weighs_by_exponential_loss() -> None:
    """Two steps recomputed by hand: weights are proportional to exp(-rate * summed loss) when nothing is shared."""
    X, rewards = _world(12)
    hedge = HedgeRouter(share=0.0, rate=0.7).start(6, 3)
    total = np.zeros(3)
    for x, row in zip(X, rewards, strict=True):
        choices = hedge._choices(x)
        hedge.update_all(x, row)
        low, high = hedge.range_
        total += (row.max() - row[choices]) / (high - low)
    weight = np.exp(-0.7 * total)
    np.testing.assert_allclose(np.exp(hedge.log_weight_), weight / weight.sum(), rtol=1e-6)


def test_hedge_keeps_to_the_best_fixed_arm_when_features_mislead() -> None:
    """Rewards without any link to the features: the plain means must win the weight, so the router cannot do worse than fixed for long."""
    rng = np.random.default_rng(0)
    X, rewards = rng.standard_normal((400, 40)), 2 + 0.5 * rng.standard_normal((400, 3)) + [0.0, 0.4, 0.0]
    hedge = HedgeRouter(share=0.0).fit(X, rewards)
    assert hedge.log_weight_.argmax() == 0
    assert (hedge.choose(X) == 1).mean() > 0.95


def test_hedge_follows_a_drift() -> None:
    """After the world turns round, sharing must let the weights move back."""
    rng = np.random.default_rng(0)
    X, rewards = _world(300)
    hedge = HedgeRouter(share=0.01).fit(X, rewards)
    assert hedge.log_weight_.argmax() != 0
    for _ in range(400):
        hedge.update_all(rng.standard_normal(6) / np.sqrt(6), rng.permutation([1.0, 2.0, 3.0]) + np.array([0, 0, 3]))
    assert (hedge.choose(X) == 2).mean() > 0.9


def test_unknown_feedback() -> None:
    """A typo must not silently mean the other kind."""
    with pytest.raises(RoutingError, match="feedback"):
        play_online(LinUCB(), np.ones((2, 1)), np.ones((2, 1)), feedback="al")
