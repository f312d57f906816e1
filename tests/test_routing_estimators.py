"""Every router is a scikit-learn estimator."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from routing.routers import AutoRouter, BoostingRouter, KNNRouter, LogisticRouter, MLPRouter, RidgeRouter

ESTIMATORS = [
    LogisticRouter(),
    MLPRouter(hidden=8, alpha=0.1, max_iter=100),
    BoostingRouter(n_trees=20),
    KNNRouter(),
    AutoRouter([("logistic", LogisticRouter()), ("knn", KNNRouter())], n_splits=3),
    RidgeRouter(),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_rules(estimator, check) -> None:
    """Pipelines, clone, grid search and cross-validation rely on these rules."""
    check(estimator)
