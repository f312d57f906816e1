"""Routers that keep learning while they serve: LinUCB, Thompson sampling, and Hedge over forecasters.

All are linear in the features. They are routers (``fit`` on every arm's reward, ``predict``, ``choose``) and also learn online: ``play``
chooses with exploration, ``update`` learns from the reward of the arm that was played, ``update_all`` from the rewards of every arm, which
replaying the finished text gives cheaply.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax

from routing.base import Router


class OnlineLinear(Router):
    """Ridge regression of each arm's reward, kept up to date one prompt at a time (Sherman-Morrison).

    Attributes:
        cov_: (n_penalties, n_arms, n_features + 1, n_features + 1) inverse of X'X + penalty I per arm; the last column is the intercept.
        moment_, xsum_: (n_arms, n_features + 1) sums of x * reward and of x.
        totals_: (3,) number, sum and sum of squares of the rewards seen.
        n_updates_: (1,) prompts seen; with the seed it fixes the random draws.
    """

    _state: ClassVar = {
        "cov_": ("penalties", "arms", "features+1", "features+1"),
        "moment_": ("arms", "features+1"),
        "xsum_": ("arms", "features+1"),
        "totals_": ("3",),
        "n_updates_": ("1",),
    }
    random_state: int | None

    def start(self, n_features: int, n_arms: int) -> OnlineLinear:
        """Forget everything: the state before the first prompt."""
        self.n_features_in_, self.n_arms_, self.flat_ = n_features, n_arms, False
        d = n_features + 1
        self.cov_ = np.stack([np.broadcast_to(np.eye(d) / p, (n_arms, d, d)) for p in self._penalties()])
        self.moment_, self.xsum_ = np.zeros((n_arms, d)), np.zeros((n_arms, d))
        self.totals_, self.n_updates_ = np.zeros(3), np.zeros(1, dtype=np.int64)
        return self

    def update(self, x: np.ndarray, arm: int, reward: float) -> OnlineLinear:
        """Learn from one prompt: features (n_features,), the arm played and its reward."""
        self._learn(_with_intercept(x), np.array([arm]), np.array([reward], dtype=np.float64))
        self.n_updates_ += 1
        return self

    def update_all(self, x: np.ndarray, rewards: np.ndarray) -> OnlineLinear:
        """Learn from one prompt whose every arm's reward (n_arms,) is known."""
        self._learn(_with_intercept(x), np.arange(self.n_arms_), np.asarray(rewards, dtype=np.float64))
        self.n_updates_ += 1
        return self

    def play(self, x: np.ndarray) -> int:
        """Arm for one prompt (n_features,), exploring."""
        raise NotImplementedError

    def _penalties(self) -> tuple[float, ...]:
        raise NotImplementedError

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        flat = self.flat_
        self.start(X.shape[1], rewards.shape[1])
        self.flat_ = flat
        Z = np.hstack([X, np.ones((len(X), 1))])
        gram = Z.T @ Z
        shape = (self.n_arms_, *gram.shape)
        self.cov_ = np.stack([np.broadcast_to(np.linalg.inv(gram + p * np.eye(len(gram))), shape) for p in self._penalties()])
        self.moment_ = rewards.T @ Z
        self.xsum_ = np.broadcast_to(Z.sum(axis=0), self.moment_.shape).copy()
        self.totals_ = np.array([rewards.size, rewards.sum(), (rewards**2).sum()])
        self.n_updates_[:] = len(X)

    def _learn(self, z: np.ndarray, arms: np.ndarray, rewards: np.ndarray) -> None:
        cz = self.cov_[:, arms] @ z  # (n_penalties, n, d)
        self.cov_[:, arms] -= cz[..., :, None] * cz[..., None, :] / (1 + cz @ z)[..., None, None]
        self.moment_[arms] += rewards[:, None] * z
        self.xsum_[arms] += z
        self.totals_ += (rewards.size, rewards.sum(), (rewards**2).sum())

    def _level(self) -> tuple[float, float]:
        """Mean and standard deviation of the rewards seen: an arm never played is expected to be average, not zero."""
        count, total, squares = self.totals_
        mean = total / max(count, 1)
        return float(mean), float(np.sqrt(max(squares / max(count, 1) - mean**2, 1e-12)))

    def _forecasts(self, Z: np.ndarray) -> np.ndarray:
        """(n_penalties, n, n_arms) expected rewards of inputs (n, n_features + 1)."""
        mean, _ = self._level()
        theta = self.cov_ @ (self.moment_ - mean * self.xsum_)[:, :, None]  # (n_penalties, n_arms, n_features + 1, 1)
        return mean + Z @ theta[..., 0].swapaxes(1, 2)

    def _spread(self, z: np.ndarray) -> np.ndarray:
        """(n_arms,) standard error of each arm's expected reward, for one input (n_features + 1,)."""
        return self._level()[1] * np.sqrt(np.maximum(self.cov_[0] @ z @ z, 0))

    def _predict(self, X: np.ndarray) -> np.ndarray:
        return self._forecasts(np.hstack([X, np.ones((len(X), 1))]))[0]

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.random_state or 0, int(self.n_updates_[0])])

    def _check_state(self) -> None:
        if len(self.cov_) != len(self._penalties()) or self.n_updates_.dtype.kind != "i" or self.n_updates_[0] < 0:
            raise ValueError("its sums do not belong to its settings")


class ExploringLinear(OnlineLinear):
    """What the bandits of one ridge regression share.

    Args:
        explore: width of the exploration, in standard errors of the expected reward.
        penalty: ridge penalty.
        random_state: seed of the draws.
    """

    def __init__(self, explore: float = 0.3, penalty: float = 1.0, random_state: int | None = 0) -> None:
        self.explore = explore
        self.penalty = penalty
        self.random_state = random_state

    def _penalties(self) -> tuple[float, ...]:
        return (self.penalty,)


class LinUCB(ExploringLinear):
    """Plays the arm with the highest optimistic reward: expectation plus ``explore`` standard errors. Ties are broken at random."""

    def play(self, x: np.ndarray) -> int:
        """Arm for one prompt (n_features,); ties are broken at random."""
        z = _with_intercept(x)
        score = self._forecasts(z[None])[0, 0] + self.explore * self._spread(z)
        return int(self._rng().choice(np.flatnonzero(score >= score.max() - 1e-12)))


class LinThompson(ExploringLinear):
    """Plays the best arm of one draw from the posterior of the rewards, its standard errors multiplied by ``explore``."""

    def play(self, x: np.ndarray) -> int:
        """Arm for one prompt (n_features,)."""
        z = _with_intercept(x)
        draw = self._rng().standard_normal(self.n_arms_)
        return int((self._forecasts(z[None])[0, 0] + self.explore * self._spread(z) * draw).argmax())


class HedgeRouter(OnlineLinear):
    """Weighs forecasters by how well their choices did: the arms' plain means (the best fixed arm), and ridge regressions.

    Each forecaster loses the regret of the arm it would have chosen, in units of the reward range seen; weights fall exponentially with the
    loss, and a share of the weight is spread evenly each time, so that the router follows a drift. When only the played arm's reward is
    known, the loss is estimated by importance weighting.

    Args:
        rate: learning rate of the weights.
        share: part of the weight spread evenly after each prompt.
        uniform: probability of playing a random arm.
        penalties: ridge penalties, one forecaster each.
        random_state: seed of the draws.

    Attributes:
        log_weight_: (n_penalties + 1,) log weights; the plain means come first.
        arm_totals_: (2, n_arms) number and sum of the rewards of each arm.
        range_: (2,) lowest and highest reward seen.
    """

    _state: ClassVar = OnlineLinear._state | {"log_weight_": ("penalties+1",), "arm_totals_": ("2", "arms"), "range_": ("2",)}

    def __init__(
        self,
        rate: float = 0.5,
        share: float = 0.002,
        uniform: float = 0.05,
        penalties: tuple[float, ...] = (0.3, 3.0),
        random_state: int | None = 0,
    ) -> None:
        self.rate = rate
        self.share = share
        self.uniform = uniform
        self.penalties = penalties
        self.random_state = random_state

    def start(self, n_features: int, n_arms: int) -> HedgeRouter:
        """Forget everything: equal weights."""
        super().start(n_features, n_arms)
        self.log_weight_ = np.zeros(len(self.penalties) + 1)
        self.arm_totals_ = np.zeros((2, n_arms))
        self.range_ = np.zeros(2)
        return self

    def update(self, x: np.ndarray, arm: int, reward: float) -> HedgeRouter:
        """Learn from the played arm's reward; the other arms' losses count as zero, this one's is weighed up by its probability."""
        choices = self._choices(x)
        self._see(np.array([reward]))
        loss = np.where(choices == arm, self._loss(reward, self.range_[1]) / self._chances(choices)[arm], 0.0)
        self._reweigh(loss)
        self.arm_totals_[:, arm] += (1, reward)
        super().update(x, arm, reward)
        return self

    def update_all(self, x: np.ndarray, rewards: np.ndarray) -> HedgeRouter:
        """Learn from every arm's reward (n_arms,)."""
        rewards = np.asarray(rewards, dtype=np.float64)
        choices = self._choices(x)
        self._see(rewards)
        self._reweigh(self._loss(rewards[choices], rewards.max()))
        self.arm_totals_ += np.stack([np.ones_like(rewards), rewards])
        super().update_all(x, rewards)
        return self

    def play(self, x: np.ndarray) -> int:
        """Arm for one prompt (n_features,): a forecaster drawn by weight, or a random arm."""
        return int(self._rng().choice(self.n_arms_, p=self._chances(self._choices(x))))

    def _penalties(self) -> tuple[float, ...]:
        return tuple(self.penalties)

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        flat = self.flat_
        self.start(X.shape[1], rewards.shape[1])
        self.flat_ = flat
        for x, row in zip(X, rewards, strict=True):
            self.update_all(x, row)

    def _predict(self, X: np.ndarray) -> np.ndarray:
        return np.einsum("p,pna->na", softmax(self.log_weight_), self._forecasts(np.hstack([X, np.ones((len(X), 1))])))

    def _forecasts(self, Z: np.ndarray) -> np.ndarray:
        """(n_penalties + 1, n, n_arms) expected rewards, the plain means first."""
        count, total = self.arm_totals_
        means = np.where(count > 0, total / np.maximum(count, 1), self._level()[0])
        return np.concatenate([np.broadcast_to(means, (1, len(Z), self.n_arms_)), super()._forecasts(Z)])

    def _choices(self, x: np.ndarray) -> np.ndarray:
        """(n_penalties + 1,) arm each forecaster would choose."""
        return self._forecasts(_with_intercept(x)[None])[:, 0].argmax(axis=1)

    def _chances(self, choices: np.ndarray) -> np.ndarray:
        """(n_arms,) probability of playing each arm."""
        votes = np.bincount(choices, weights=softmax(self.log_weight_), minlength=self.n_arms_)
        return (1 - self.uniform) * votes / votes.sum() + self.uniform / self.n_arms_

    def _see(self, rewards: np.ndarray) -> None:
        seen = np.append(rewards, self.range_ if self.n_updates_[0] else [])
        self.range_ = np.array([seen.min(), seen.max()])

    def _loss(self, reward: Any, best: float) -> Any:
        return (best - reward) / max(self.range_[1] - self.range_[0], 1e-12)

    def _reweigh(self, loss: np.ndarray) -> None:
        weight = softmax(self.log_weight_ - self.rate * loss)
        self.log_weight_ = np.log(np.maximum((1 - self.share) * weight + self.share / len(weight), 1e-300))


def _with_intercept(x: np.ndarray) -> np.ndarray:
    return np.append(np.asarray(x, dtype=np.float64).ravel(), 1.0)
