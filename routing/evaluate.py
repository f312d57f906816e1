"""How good is a router: reward, regret and oracle gap recovery in grouped cross-validation, beside every baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from routing.intervals import Interval, clustered, gap_recovery
from routing.outcomes import Arm, prompt_groups
from routing.policy import PromptRouter
from routing.routers import grouped_folds
from routing.routing_error import RoutingError

RANDOM, ORACLE, BEST_FIXED, DOMAIN_LABEL, DOMAIN_BEST = "random", "oracle", "best fixed", "domain label", "domain best"


@dataclass(frozen=True, eq=False)
class PolicyResult:
    """One policy on every prompt, each decided without having seen the prompt's fold."""

    name: str
    """``oracle``, ``best fixed``, ``random``, ``domain label``, ``domain best``, ``fixed:<arm>`` or the router's name."""
    rewards: np.ndarray
    """(n,) reward of the choice; the expectation for ``random``."""
    choices: np.ndarray | None
    """(n,) arm indices; None for ``random``."""
    mean: Interval
    """Mean reward."""
    gain: Interval
    """Mean reward minus that of ``best fixed``, paired."""
    regret: Interval
    """Mean over prompts of best reward minus this one."""
    recovery: Interval
    """Oracle gap recovery: (mean - best fixed) / (oracle - best fixed). NaN when there is no gap."""
    pooled: float | None
    """Weighted harmonic mean of the rewards (total tokens / total rounds, or total seconds / total seconds); None without weights."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Every policy on the same prompts and folds."""

    arms: tuple[str, ...]
    """Arm names, the meaning of ``choices``."""
    results: tuple[PolicyResult, ...]
    """Baselines first, then the routers."""
    oracle_gap: Interval
    """Oracle minus best fixed, in reward units."""
    gap_is_noise: bool
    """True when the gap may be under ``noise`` of the best fixed reward: recovery is then not worth reading."""
    n_prompts: int
    """Prompts evaluated."""
    n_groups: int
    """Clusters of the intervals."""
    folds: tuple[np.ndarray, ...]
    """Test rows of each fold."""

    def __getitem__(self, name: str) -> PolicyResult:
        for result in self.results:
            if result.name == name:
                return result
        raise RoutingError(f"no policy {name!r} was evaluated", f"Evaluated: {', '.join(r.name for r in self.results)}.")


def evaluate_routers(
    prompts: Sequence[str],
    rewards: np.ndarray,
    arms: Sequence[Arm | str],
    routers: Mapping[str, PromptRouter],
    *,
    domains: Sequence[str] | None = None,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    route_cost: float = 0.0,
    test_prompts: Sequence[str] | None = None,
    folds: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    n_splits: int = 5,
    noise: float = 0.01,
    seed: int = 0,
) -> Evaluation:
    """Grouped k-fold evaluation of routers and baselines.

    Args:
        prompts: (n_samples,) texts.
        rewards: (n_samples, n_arms) reward of every arm, higher is better.
        arms: the columns; each router is cloned with these arms.
        routers: name -> unfitted router.
        domains: (n_samples,) true labels, for the domain baselines.
        groups: (n_samples,) labels that folds never split; equal prompts share one by default.
        weights: (n_samples,) emitted tokens, for pooled tau or pooled speedup.
        route_cost: what a choice takes, in the unit of ``weights / rewards`` (target steps for a speedup): charged to every router.
        test_prompts: (n_samples,) other wordings of the same tasks, given to the routers instead of ``prompts`` when they are tested.
        folds: (train, test) rows, e.g. held-out domains; rows in no test fold are left out. ``n_splits`` is then unused.
        n_splits: folds.
        noise: relative size under which the oracle gap counts as noise.
        seed: of the folds.
    """
    prompts, rewards = list(prompts), np.asarray(rewards, dtype=np.float64)
    names = tuple(a.name if isinstance(a, Arm) else a for a in arms)
    if rewards.shape != (len(prompts), len(names)):
        raise RoutingError(
            f"rewards have shape {rewards.shape}, expected {(len(prompts), len(names))}", "One row per prompt, one column per arm."
        )
    groups = prompt_groups(prompts) if groups is None else np.asarray(groups)
    splits = list(folds) if folds is not None else grouped_folds(groups, n_splits, seed)
    if not splits:
        raise RoutingError("one group of prompts cannot be split into folds", "Evaluate on at least two different prompts.")
    adapter_of = {a.drafter if isinstance(a, Arm) else a: j for j, a in reversed(list(enumerate(arms)))}
    chosen = _baseline_choices(rewards, names, splits, domains, adapter_of)
    asked = list(test_prompts) if test_prompts is not None else prompts
    for name, router in routers.items():
        chosen[name] = _router_choices(clone(router).set_params(arms=tuple(arms)), prompts, asked, rewards, groups, splits)
    rows = np.sort(np.concatenate([test for _, test in splits]))
    picked = {name: _picked(rewards[rows], None if c is None else c[rows]) for name, c in chosen.items()}
    tokens = None if weights is None else np.asarray(weights)[rows]
    if tokens is not None and route_cost:
        picked |= {name: tokens / (tokens / picked[name] + route_cost) for name in routers}
    return _summarise(names, chosen, picked, rows, groups[rows], tokens, splits, noise)


def pooled_value(rewards: np.ndarray, weights: np.ndarray) -> float:
    """sum(w) / sum(w / reward), with w the emitted tokens: tokens over rounds for tau, plain time over cell time for speedup."""
    return float(weights.sum() / (weights / rewards).sum())


def _baseline_choices(
    rewards: np.ndarray,
    names: tuple[str, ...],
    splits: list[tuple[np.ndarray, np.ndarray]],
    domains: Sequence[str] | None,
    adapter_of: Mapping[str, int],
) -> dict[str, np.ndarray | None]:
    """Arm index per prompt (None: uniformly random) for every baseline."""
    n = len(rewards)
    best_fixed = np.zeros(n, dtype=np.int64)
    for train, test in splits:
        best_fixed[test] = rewards[train].mean(axis=0).argmax()
    chosen: dict[str, np.ndarray | None] = {ORACLE: rewards.argmax(axis=1), BEST_FIXED: best_fixed, RANDOM: None}
    chosen |= {f"fixed:{name}": np.full(n, j) for j, name in enumerate(names)}
    if domains is not None:
        labels = np.asarray(domains)
        chosen[DOMAIN_LABEL] = np.array([adapter_of.get(d, best_fixed[i]) for i, d in enumerate(domains)], dtype=np.int64)
        chosen[DOMAIN_BEST] = _domain_best(rewards, labels, splits, best_fixed)
    return chosen


def _domain_best(rewards: np.ndarray, labels: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]], default: np.ndarray) -> np.ndarray:
    """Best arm of each domain on the training folds; ``default`` for domains not seen there."""
    out: np.ndarray = default.copy()
    for train, test in splits:
        for label in np.unique(labels[test]):
            seen = train[labels[train] == label]
            if len(seen):
                out[test[labels[test] == label]] = rewards[seen].mean(axis=0).argmax()
    return out


def _router_choices(
    router: PromptRouter,
    prompts: list[str],
    asked: list[str],
    rewards: np.ndarray,
    groups: np.ndarray,
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    out = np.zeros(len(prompts), dtype=np.int64)
    for train, test in splits:
        fitted = clone(router).fit([prompts[i] for i in train], rewards[train], groups[train])
        out[test] = fitted.choose_indices([asked[i] for i in test])
    return out


def _picked(rewards: np.ndarray, choices: np.ndarray | None) -> np.ndarray:
    found: np.ndarray = rewards.mean(axis=1) if choices is None else rewards[np.arange(len(rewards)), choices]
    return found


def _summarise(
    names: tuple[str, ...],
    chosen: Mapping[str, np.ndarray | None],
    picked: Mapping[str, np.ndarray],
    rows: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None,
    splits: list[tuple[np.ndarray, np.ndarray]],
    noise: float,
) -> Evaluation:
    oracle, fixed = picked[ORACLE], picked[BEST_FIXED]

    def interval(values: np.ndarray, statistic, **bounds: float) -> Interval:  # type: ignore[no-untyped-def]
        return clustered(np.column_stack([values, fixed, oracle]), groups, statistic, **bounds)

    results = tuple(
        PolicyResult(
            name=name,
            rewards=values,
            choices=None if (c := chosen[name]) is None else c[rows],
            mean=interval(values, lambda m: m[..., 0]),
            gain=interval(values, lambda m: m[..., 0] - m[..., 1]),
            regret=interval(values, lambda m: m[..., 2] - m[..., 0], least=0.0),
            recovery=interval(values, lambda m: gap_recovery(m[..., 0], m[..., 1], m[..., 2]), most=1.0),
            pooled=None if weights is None or (values <= 0).any() else pooled_value(values, weights),
        )
        for name, values in picked.items()
    )
    gap = interval(oracle, lambda m: m[..., 0] - m[..., 1])
    return Evaluation(
        arms=names,
        results=results,
        oracle_gap=gap,
        gap_is_noise=not gap.low > noise * abs(float(fixed.mean())),
        n_prompts=len(rows),
        n_groups=len(np.unique(groups)),
        folds=tuple(test for _, test in splits),
    )
