"""Routers trained on every arm's outcome: logistic and ridge regression, MLP, boosting, nearest neighbours, and selection among them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPRegressor
from sklearn.utils import check_random_state

from routing.base import Router, centering, from_regret, to_regret


class LogisticRouter(Router):
    """Logistic regression on which arm is best, decided by expected reward.

    The predicted reward of an arm is its mean reward among the prompts where arm b was best, weighted by P(b best | x). So a likely but
    cheap mistake is preferred to a rare expensive one.

    Args:
        C: inverse regularisation strength.
        max_iter: iterations of the solver.
    """

    _state: ClassVar = {
        "center_": ("features",),
        "scale_": ("1",),
        "coef_": ("classes", "features"),
        "intercept_": ("classes",),
        "class_rewards_": ("classes", "arms"),
    }

    def __init__(self, C: float = 0.03, max_iter: int = 300) -> None:
        self.C = C
        self.max_iter = max_iter

    def __sklearn_tags__(self):  # type: ignore[no-untyped-def]
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # with one arm there is nothing to classify: it predicts the mean
        return tags

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        self.center_, self.scale_ = centering(X)
        best = rewards.argmax(axis=1)
        classes = np.unique(best)
        self.class_rewards_ = np.stack([rewards[best == c].mean(axis=0) for c in classes])
        self.coef_ = np.zeros((len(classes), X.shape[1]))
        self.intercept_ = np.zeros(len(classes))
        self.n_iter_ = 1
        if len(classes) == 1:
            return
        model = LogisticRegression(C=self.C, max_iter=self.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the iteration budget is a parameter
            model.fit((X - self.center_) / self.scale_, best)
        rows = slice(None) if len(classes) > 2 else slice(1, None)  # the binary model has one row, for the second class
        self.coef_[rows], self.intercept_[rows] = model.coef_, model.intercept_
        self.n_iter_ = int(np.max(model.n_iter_))

    def _predict(self, X: np.ndarray) -> np.ndarray:
        z = ((X - self.center_) / self.scale_) @ self.coef_.T + self.intercept_
        found: np.ndarray = softmax(z, axis=1) @ self.class_rewards_
        return found


class RidgeRouter(Router):
    """Ridge regression of each arm's reward; the intercept is penalised too, towards the mean reward of all arms.

    Args:
        penalty: ridge penalty.
    """

    _state: ClassVar = {"coef_": ("arms", "features+1"), "mean_": ("1",)}

    def __init__(self, penalty: float = 1.0) -> None:
        self.penalty = penalty

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        self.mean_ = np.array([rewards.mean()])
        model = Ridge(alpha=self.penalty, fit_intercept=False).fit(_with_intercept(X), rewards - self.mean_)
        self.coef_ = model.coef_.reshape(rewards.shape[1], -1)

    def _predict(self, X: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.mean_ + _with_intercept(X) @ self.coef_.T
        return found


class MLPRouter(Router):
    """One hidden layer that predicts every arm's regret and the best reward.

    Args:
        hidden: hidden units.
        alpha: L2 penalty.
        max_iter: iterations of L-BFGS.
        random_state: seed of the initial weights.
    """

    _state: ClassVar = {
        "center_": ("features",),
        "scale_": ("1",),
        "hidden_weights_": ("features", "hidden"),
        "hidden_bias_": ("hidden",),
        "out_weights_": ("hidden", "arms+1"),
        "out_bias_": ("arms+1",),
    }

    def __init__(self, hidden: int = 16, alpha: float = 100.0, max_iter: int = 100, random_state: int | None = 0) -> None:
        self.hidden = hidden
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        self.center_, self.scale_ = centering(X)
        targets = to_regret(rewards)
        middle = targets.mean(axis=0)
        spread = np.append(np.full(rewards.shape[1], _spread(targets[:, :-1] - middle[:-1])), _spread(targets[:, -1] - middle[-1]))
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        model = MLPRegressor(hidden_layer_sizes=(self.hidden,), solver="lbfgs", alpha=self.alpha, max_iter=self.max_iter, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the iteration budget is a parameter
            model.fit((X - self.center_) / self.scale_, (targets - middle) / spread)
        (self.hidden_weights_, out), (self.hidden_bias_, bias) = model.coefs_, model.intercepts_
        self.out_weights_, self.out_bias_ = out * spread, bias * spread + middle
        self.n_iter_ = max(1, int(model.n_iter_))

    def _predict(self, X: np.ndarray) -> np.ndarray:
        hidden = np.maximum(((X - self.center_) / self.scale_) @ self.hidden_weights_ + self.hidden_bias_, 0)
        return from_regret(hidden @ self.out_weights_ + self.out_bias_)


class BoostingRouter(Router):
    """Gradient boosting that predicts every arm's regret and the best reward, one ensemble of small trees each.

    Args:
        n_trees: trees per ensemble.
        max_depth: depth of each tree.
        learning_rate: shrinkage.
        max_features: features tried per split (scikit-learn's meaning).
        random_state: seed of the feature draw.
    """

    _state: ClassVar = {
        "split_feature_": ("arms+1", "trees", "nodes"),
        "split_value_": ("arms+1", "trees", "nodes"),
        "leaf_value_": ("arms+1", "trees", "nodes"),
        "base_": ("arms+1",),
    }

    def __init__(
        self,
        n_trees: int = 100,
        max_depth: int = 3,
        learning_rate: float = 0.05,
        max_features: float | str | None = "sqrt",
        random_state: int | None = 0,
    ) -> None:
        self.n_trees = n_trees
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.max_features = max_features
        self.random_state = random_state

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        targets = to_regret(rewards)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=targets.shape[1])
        shape = (targets.shape[1], self.n_trees, 2 ** (self.max_depth + 1) - 1)
        self.split_feature_ = np.full(shape, -1, dtype=np.int32)
        self.split_value_, self.leaf_value_ = np.zeros(shape), np.zeros(shape)
        self.base_ = targets.mean(axis=0)
        for j, seed in enumerate(seeds):
            model = GradientBoostingRegressor(
                n_estimators=self.n_trees,
                max_depth=self.max_depth,
                learning_rate=self.learning_rate,
                max_features=self.max_features,
                random_state=int(seed),
            ).fit(X, targets[:, j])
            for t, tree in enumerate(model.estimators_[:, 0]):
                self._copy_tree(tree.tree_, j, t)

    def _copy_tree(self, tree, j: int, t: int) -> None:  # type: ignore[no-untyped-def]
        """Lay a fitted tree out as a heap: the children of node i are 2i + 1 and 2i + 2, a leaf has feature -1."""
        pending = [(0, 0)]
        while pending:
            node, place = pending.pop()
            self.leaf_value_[j, t, place] = tree.value[node, 0, 0] * self.learning_rate
            if tree.children_left[node] >= 0:
                self.split_feature_[j, t, place] = tree.feature[node]
                self.split_value_[j, t, place] = tree.threshold[node]
                pending += [(tree.children_left[node], 2 * place + 1), (tree.children_right[node], 2 * place + 2)]

    def _predict(self, X: np.ndarray) -> np.ndarray:
        X = X.astype(np.float32)  # the trees were grown on float32
        j, t = np.ogrid[: self.split_feature_.shape[0], : self.split_feature_.shape[1]]
        out = np.empty((len(X), len(self.base_)))
        for i, x in enumerate(X):
            place = np.zeros(self.split_feature_.shape[:2], dtype=np.int64)  # (n_targets, n_trees)
            for _ in range(self.split_feature_.shape[2].bit_length() - 1):
                feature = self.split_feature_[j, t, place]
                child = 2 * place + 1 + (x[feature] > self.split_value_[j, t, place])
                place = np.where(feature < 0, place, child)
            out[i] = self.base_ + self.leaf_value_[j, t, place].sum(axis=1)
        return from_regret(out)

    def _check_state(self) -> None:
        nodes = self.split_feature_.shape[2]
        if self.split_feature_.dtype.kind != "i" or not self.split_feature_.size or nodes & (nodes + 1):
            raise ValueError("the trees are not complete binary heaps")
        if self.split_feature_.max() >= self.n_features_in_ or (self.split_feature_[:, :, nodes // 2 :] >= 0).any():
            raise ValueError("a tree splits on a feature that does not exist, or below its last level")


class KNNRouter(Router):
    """Mean reward of the nearest training prompts, weighted by inverse distance.

    Args:
        n_neighbors: neighbours used (all training prompts when fewer).
    """

    _state: ClassVar = {"X_": ("samples", "features"), "y_": ("samples", "arms")}

    def __init__(self, n_neighbors: int = 15) -> None:
        self.n_neighbors = n_neighbors

    def _fit(self, X: np.ndarray, rewards: np.ndarray) -> None:
        self.X_, self.y_ = X.copy(), rewards.copy()

    def _predict(self, X: np.ndarray) -> np.ndarray:
        distance = cdist(X, self.X_)
        near = np.argsort(distance, axis=1, kind="stable")[:, : self.n_neighbors]
        weight = 1 / (np.take_along_axis(distance, near, axis=1) + 1e-6)
        weight /= weight.sum(axis=1, keepdims=True)
        found: np.ndarray = np.einsum("ij,ija->ia", weight, self.y_[near])
        return found

    def _check_state(self) -> None:
        if not len(self.X_) or not self.n_neighbors:
            raise ValueError("there are no neighbours")


class AutoRouter(Router):
    """Picks one of several routers by the reward of its choices in grouped cross-validation, then refits it on everything.

    Args:
        candidates: ``(name, router)`` pairs; None takes :func:`default_candidates`.
        n_splits: folds (fewer when there are fewer groups; with one group the first candidate is taken).
        random_state: seed of the fold assignment.

    Attributes:
        best_: the fitted winner.
        best_name_: its name.
        cv_rewards_: name -> mean reward of the chosen arms over the held-out folds.
    """

    def __init__(self, candidates: Sequence[tuple[str, Router]] | None = None, n_splits: int = 5, random_state: int | None = 0) -> None:
        self.candidates = candidates
        self.n_splits = n_splits
        self.random_state = random_state

    def __sklearn_tags__(self):  # type: ignore[no-untyped-def]
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # it selects by the arms chosen, and with one arm there is no choice
        return tags

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> AutoRouter:
        """Select and refit; samples with equal ``groups`` (n_samples,) stay in one fold."""
        X, rewards = self._validate(X, y)
        groups = np.arange(len(X)) if groups is None else np.asarray(groups)
        candidates = list(self.candidates) if self.candidates is not None else default_candidates()
        folds = grouped_folds(groups, self.n_splits, self.random_state)
        self.cv_rewards_ = {name: self._cross_validate(router, X, rewards, folds) for name, router in candidates}
        self.best_name_ = max(self.cv_rewards_, key=lambda name: self.cv_rewards_[name])
        self.best_ = clone(dict(candidates)[self.best_name_]).fit(X, rewards)
        return self

    def _cross_validate(self, router: Router, X: np.ndarray, rewards: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
        held_out = [rewards[test, clone(router).fit(X[train], rewards[train]).choose(X[test])] for train, test in folds]
        return float(np.concatenate(held_out).mean()) if held_out else 0.0

    def _predict(self, X: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.best_.predict(X).reshape(len(X), -1)
        return found


def _with_intercept(X: np.ndarray) -> np.ndarray:
    """(n, n_features + 1): a last column of ones."""
    return np.hstack([X, np.ones((len(X), 1))])


def _spread(centred: np.ndarray) -> float:
    """Root mean square, 1 when all is zero."""
    return float(np.sqrt((centred**2).mean())) or 1.0


def default_candidates() -> list[tuple[str, Router]]:
    """Every kind, the cheap ones at several strengths of regularisation: how much a prompt can explain differs from pair to pair."""
    linear: list[tuple[str, Router]] = [(f"linear penalty={p}", RidgeRouter(penalty=p)) for p in (0.1, 1.0, 10.0)]
    logistic: list[tuple[str, Router]] = [(f"logistic C={c}", LogisticRouter(C=c)) for c in (0.003, 0.03, 0.3)]
    neighbours: list[tuple[str, Router]] = [(f"knn n={n}", KNNRouter(n)) for n in (5, 15)]
    return [*linear, *logistic, *neighbours, ("mlp", MLPRouter()), ("boosting", BoostingRouter())]


def grouped_folds(groups: np.ndarray, n_splits: int, random_state: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) row indices per fold; groups (n_samples,) never straddle folds. Empty when there is only one group."""
    n_groups = len(np.unique(groups))
    n_splits = min(n_splits, n_groups)
    if n_splits < 2:
        return []
    seed = check_random_state(random_state).randint(2**31 - 1)
    return list(GroupKFold(n_splits, shuffle=True, random_state=seed).split(groups, groups=groups))
