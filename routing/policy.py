"""The router a decoder asks: prompts in, arms out, with calibrated confidence, abstention and reasons."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from routing.base import Router
from routing.features import PromptFeatures
from routing.outcomes import Arm, prompt_groups
from routing.routers import AutoRouter, grouped_folds
from routing.routing_error import RoutingError

_THRESHOLDS = np.arange(0, 1, 0.05)
_EXCERPT_CHARS = 160
_CHUNK_ROWS = 512
"""Rows per distance matrix."""


@dataclass(frozen=True)
class Neighbour:
    """A training prompt close to the one routed."""

    prompt: str
    """Its first 160 characters."""
    distance: float
    """Euclidean distance of the features."""
    best: str
    """Name of the arm that was best on it."""


@dataclass(frozen=True)
class Decision:
    """One routed prompt."""

    arm: Arm
    """What to decode with."""
    scores: dict[str, float]
    """Predicted reward per arm name."""
    confidence: float
    """Calibrated probability that the predicted best arm beats the fallback (1 when it is the fallback)."""
    abstained: bool
    """True when the fallback was taken because the confidence was too low or the prompt unfamiliar."""
    unfamiliar: bool
    """True when every training prompt is further away than training prompts are from one another: the scores mean little."""
    nearest: tuple[Neighbour, ...]
    """Why: the nearest training prompts and what was best on them."""
    embed_s: float
    """Seconds for the features."""
    choose_s: float
    """Seconds for the choice."""


class PromptRouter(BaseEstimator):
    """A feature step and a router, together choosing arms for prompts.

    Args:
        features: the feature step; None uses ``PromptFeatures()``.
        router: the estimator; None selects one by grouped cross-validation (``AutoRouter()``).
        arms: what can be chosen, in the order of the reward columns: arms, or names.
        fallback: name of the arm taken when confidence is low (``generic``, or ``plain`` for plain decoding); None never abstains.
        min_confidence: least calibrated probability of beating the fallback; ``auto`` takes the threshold with the highest
            cross-validated reward on the training prompts.
        familiar: share of the training prompts that count as familiar to the others; a prompt further from its nearest training prompt
            than they are takes the fallback. None routes every prompt.
        n_splits: folds of the calibration.
        random_state: seed of the folds.

    Attributes:
        arms_: the arms.
        features_, router_: the fitted steps.
        calibration_: (2,) slope and offset of the log odds of beating the fallback, over the predicted gain.
        threshold_: confidence below which the fallback is taken.
        reach_: distance to the nearest training prompt beyond which a prompt is unfamiliar; infinite without the guard.
        train_features_, train_best_, train_prompts_: features, best arm index and excerpt of each training prompt.
        shares_: arm name -> who proposed which share of the tokens on the training prompts; for whoever fits it to tell, else empty.
    """

    def __init__(
        self,
        features: PromptFeatures | None = None,
        router: Router | None = None,
        *,
        arms: Sequence[Arm | str] = (),
        fallback: str | None = "generic",
        min_confidence: float | str = "auto",
        familiar: float | None = 0.99,
        n_splits: int = 5,
        random_state: int | None = 0,
    ) -> None:
        self.features = features
        self.router = router
        self.arms = arms
        self.fallback = fallback
        self.min_confidence = min_confidence
        self.familiar = familiar
        self.n_splits = n_splits
        self.random_state = random_state

    def fit(self, prompts: Sequence[str], rewards: np.ndarray, groups: np.ndarray | None = None) -> PromptRouter:
        """Learn from prompts (n_samples,) and the rewards of every arm (n_samples, n_arms).

        Args:
            prompts: training prompts.
            rewards: higher is better, e.g. from ``OutcomeTable.rewards``.
            groups: (n_samples,) labels that folds must not split; equal prompts share one by default.
        """
        prompts, rewards = list(prompts), np.asarray(rewards, dtype=np.float64)
        self.arms_ = _arms(self.arms)
        self._check_input(prompts, rewards)
        groups = prompt_groups(prompts) if groups is None else np.asarray(groups)
        self.features_ = clone(self.features if self.features is not None else PromptFeatures()).fit(prompts)
        X = self.features_.transform(prompts)
        router = self.router if self.router is not None else AutoRouter(random_state=self.random_state)
        self.router_ = _winner(_fit_grouped(router, X, rewards, groups))
        self._calibrate(X, rewards, groups)
        self.train_features_ = X
        self.reach_ = _reach(X, groups, self.familiar)
        self.train_best_ = rewards.argmax(axis=1)
        self.shares_: dict[str, dict[str, float]] = {}
        self.train_prompts_ = [p[:_EXCERPT_CHARS] for p in prompts]
        return self

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Names in column order."""
        return tuple(a.name for a in self.arms_)

    def scores(self, prompts: Sequence[str]) -> np.ndarray:
        """(n_samples, n_arms) predicted rewards."""
        return self._scores(self._featurise(prompts))

    def confidence(self, prompts: Sequence[str]) -> np.ndarray:
        """(n_samples,) calibrated probability that the predicted best arm beats the fallback."""
        return self._confidence(self.scores(prompts))

    def choose_indices(self, prompts: Sequence[str]) -> np.ndarray:
        """(n_samples,) index of the chosen arm."""
        X = self._featurise(prompts)
        return self._decide(self._scores(X), self._unfamiliar(X))

    def choose(self, prompts: Sequence[str]) -> list[str]:
        """Name of the chosen arm per prompt."""
        return [self.arms_[i].name for i in self.choose_indices(prompts)]

    def decide(self, prompt: str, n_nearest: int = 3) -> Decision:
        """Route one prompt and say why."""
        start = time.perf_counter()
        x = self._featurise([prompt])
        embedded = time.perf_counter()
        scores = self._scores(x)
        unfamiliar = self._unfamiliar(x)
        chosen = int(self._decide(scores, unfamiliar)[0])
        confidence = float(self._confidence(scores)[0])
        done = time.perf_counter()
        return Decision(
            arm=self.arms_[chosen],
            scores=dict(zip(self.arm_names, scores[0].tolist(), strict=True)),
            confidence=confidence,
            abstained=chosen != int(scores[0].argmax()),
            unfamiliar=bool(unfamiliar[0]),
            nearest=self._nearest(x[0], n_nearest),
            embed_s=embedded - start,
            choose_s=done - embedded,
        )

    def _featurise(self, prompts: Sequence[str]) -> np.ndarray:
        check_is_fitted(self, "router_")
        found: np.ndarray = self.features_.transform(prompts)
        return found

    def _scores(self, X: np.ndarray) -> np.ndarray:
        return self.router_.predict(X).reshape(len(X), -1)

    def _decide(self, scores: np.ndarray, unfamiliar: np.ndarray) -> np.ndarray:
        best: np.ndarray = scores.argmax(axis=1)
        if self.fallback is None:
            return best
        sure = (self._confidence(scores) >= self.threshold_) & ~unfamiliar
        return np.where(sure, best, self.arm_names.index(self.fallback))

    def _unfamiliar(self, X: np.ndarray) -> np.ndarray:
        """(n_samples,) bool: no training prompt is within reach."""
        if math.isinf(self.reach_):
            return np.zeros(len(X), dtype=bool)
        return _nearest_distance(X, self.train_features_) > self.reach_

    def _confidence(self, scores: np.ndarray) -> np.ndarray:
        if self.fallback is None:
            return np.ones(len(scores))
        column = self.arm_names.index(self.fallback)
        gain = scores.max(axis=1) - scores[:, column]
        slope, offset = self.calibration_
        return np.where(scores.argmax(axis=1) == column, 1.0, expit(slope * gain + offset))

    def _nearest(self, x: np.ndarray, n: int) -> tuple[Neighbour, ...]:
        distance = np.linalg.norm(self.train_features_ - x, axis=1)
        order = np.argsort(distance, kind="stable")[:n]
        return tuple(Neighbour(self.train_prompts_[i], float(distance[i]), self.arm_names[self.train_best_[i]]) for i in order)

    def _calibrate(self, X: np.ndarray, rewards: np.ndarray, groups: np.ndarray) -> None:
        """Fit confidence and threshold on predictions for held-out folds. A selected router is calibrated as it is, not selected again."""
        self.calibration_, self.threshold_ = np.zeros(2), 0.0
        folds = grouped_folds(groups, self.n_splits, self.random_state)
        if self.fallback is None or not folds:
            return
        predicted = np.empty_like(rewards)
        for train, test in folds:
            fitted = clone(self.router_).fit(X[train], rewards[train])
            predicted[test] = fitted.predict(X[test]).reshape(len(test), -1)
        column, best, rows = self.arm_names.index(self.fallback), predicted.argmax(axis=1), np.arange(len(X))
        gain = predicted[rows, best] - predicted[:, column]
        moved = best != column
        self.calibration_ = _platt(gain[moved], rewards[rows, best][moved] > rewards[moved, column])
        self.threshold_ = self._best_threshold(predicted, rewards) if self.min_confidence == "auto" else float(self.min_confidence)

    def _best_threshold(self, predicted: np.ndarray, rewards: np.ndarray) -> float:
        """Threshold with the highest mean reward; the lowest of equals."""
        column, rows = self.arm_names.index(str(self.fallback)), np.arange(len(rewards))
        confidence, best = self._confidence(predicted), predicted.argmax(axis=1)
        means = [rewards[rows, np.where(confidence >= t, best, column)].mean() for t in _THRESHOLDS]
        return float(_THRESHOLDS[int(np.argmax(means))])

    def _check_input(self, prompts: list[str], rewards: np.ndarray) -> None:
        if rewards.shape != (len(prompts), len(self.arms_)):
            expected = (len(prompts), len(self.arms_))
            raise RoutingError(
                f"rewards have shape {rewards.shape}, expected {expected}", "Give one row per prompt and one column per arm."
            )
        if self.familiar is not None and not 0 < self.familiar <= 1:
            raise RoutingError(f"familiar is {self.familiar}", "Give a share above 0 and up to 1, or None to route every prompt.")
        if self.fallback is not None and self.fallback not in self.arm_names:
            raise RoutingError(f"fallback {self.fallback!r} is not among the arms", f"Use one of {', '.join(self.arm_names)}, or None.")


def _arms(arms: Sequence[Arm | str]) -> tuple[Arm, ...]:
    out = tuple(a if isinstance(a, Arm) else Arm(a) for a in arms)
    if not out or len({a.name for a in out}) != len(out):
        raise RoutingError("a router needs at least one arm, and no arm twice", "Pass arms=table.arms(k) or a list of names.")
    return out


def _nearest_distance(X: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n_samples,) Euclidean distance to the nearest known row."""
    chunks = [cdist(X[i : i + _CHUNK_ROWS], known).min(axis=1) for i in range(0, len(X), _CHUNK_ROWS)]
    return np.concatenate(chunks) if chunks else np.empty(0)


def _reach(X: np.ndarray, groups: np.ndarray, familiar: float | None) -> float:
    """Quantile ``familiar`` of the distance from each training prompt to the nearest one of another group."""
    if familiar is None or len(np.unique(groups)) < 2:
        return math.inf
    nearest = []
    for i in range(0, len(X), _CHUNK_ROWS):
        distance = cdist(X[i : i + _CHUNK_ROWS], X)
        distance[groups[i : i + _CHUNK_ROWS, None] == groups] = math.inf
        nearest.append(distance.min(axis=1))
    return float(np.quantile(np.concatenate(nearest), familiar))


def _fit_grouped(router: Router, X: np.ndarray, rewards: np.ndarray, groups: np.ndarray) -> Router:
    fresh = clone(router)
    return fresh.fit(X, rewards, groups=groups) if isinstance(fresh, AutoRouter) else fresh.fit(X, rewards)


def _winner(router: Any) -> Router:
    best: Router = router.best_ if isinstance(router, AutoRouter) else router
    return best


def _platt(gain: np.ndarray, won: np.ndarray) -> np.ndarray:
    """(2,) slope and offset of P(won) = expit(slope * gain + offset); a constant, smoothed rate when there is nothing to learn."""
    if len(np.unique(won)) < 2:
        return np.array([0.0, logit((won.sum() + 1) / (len(won) + 2))])
    scale = float(gain.std()) or 1.0
    model = LogisticRegression(C=1.0).fit(gain[:, None] / scale, won)
    return np.array([max(model.coef_[0, 0], 0.0) / scale, model.intercept_[0]])
