"""What every router estimator shares: numeric features in, one predicted reward per arm out.

A router is a multi-output regressor: ``fit(X, y)`` takes features (n_samples, n_features) and the reward of every arm
(n_samples, n_arms), ``predict`` returns rewards of the same shape, ``choose`` the best arm's index. A fitted router is nothing but numpy
arrays, listed with their shapes in ``_state``; prediction uses these arrays alone, so a saved router needs no pickle and does not depend
on the scikit-learn version that trained it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data


class Router(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Base class. Subclasses write ``_fit(X, rewards)`` and ``_predict(X)`` and list their arrays in ``_state``.

    Attributes:
        n_features_in_: number of features.
        n_arms_: number of arms.
    """

    _state: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Fitted array -> its dimensions. ``features`` and ``arms`` are known sizes; other names must agree with one another."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Router:
        """Learn from features (n_samples, n_features) and the rewards of all arms (n_samples, n_arms)."""
        X, rewards = self._validate(X, y)
        self._fit(X, rewards)
        for name in self._state:  # one memory layout, so that a router read from a file computes bit for bit the same
            setattr(self, name, np.ascontiguousarray(getattr(self, name)))
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted rewards (n_samples, n_arms); (n_samples,) when fitted on one column given as a vector."""
        out = self._rewards(X)
        return out[:, 0] if self.flat_ else out

    def choose(self, X: np.ndarray) -> np.ndarray:
        """(n_samples,) index of the arm with the highest predicted reward; the first of equals."""
        found: np.ndarray = self._rewards(X).argmax(axis=1)
        return found

    def _rewards(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return self._predict(X)

    def _validate(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        y = np.asarray(y, dtype=np.float64)
        self.flat_ = y.ndim == 1
        rewards = y.reshape(len(y), -1)
        self.n_arms_ = rewards.shape[1]
        return X, rewards

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        raise NotImplementedError

    def _predict(self, X: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _check_state(self) -> None:
        """Raise ValueError when arrays read from a file cannot come from a fit; shapes are checked before."""


def to_regret(rewards: np.ndarray) -> np.ndarray:
    """(n, n_arms + 1): what each arm loses to the best one, then the best reward. Learners then spend their capacity on the differences."""
    best = rewards.max(axis=1, keepdims=True)
    return np.hstack([best - rewards, best])


def from_regret(targets: np.ndarray) -> np.ndarray:
    """(n, n_arms) rewards: the inverse of :func:`to_regret`."""
    found: np.ndarray = targets[:, -1:] - targets[:, :-1]
    return found


def centering(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column means (n_features,) and one common scale (1,).

    The columns keep their relative scale: a domain cue in [0, 1] is meant to weigh more than one of 384 coordinates of a unit vector.
    """
    center = X.mean(axis=0)
    scale = np.sqrt(((X - center) ** 2).mean())
    return center, np.array([scale if scale > 1e-12 else 1.0])
