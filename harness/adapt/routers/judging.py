"""The table of ``harness train-router``: a router in cross-validation beside every baseline, and who proposed the tokens of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.adapt.routers.fitting import RouterData
from harness.adapt.routers.routed import RouterConfig, make_router, routing_errors

if TYPE_CHECKING:
    from routing.evaluate import Evaluation
    from routing.intervals import Interval
    from routing.policy import PromptRouter

ROUTER = "router"
"""Name of the trained router in tables."""


def compare(
    material: RouterData,
    config: RouterConfig,
    *,
    kinds: Sequence[str] = (),
    offline: bool = False,
    route_s: float | None = None,
    **options: Any,
) -> Evaluation:
    """Grouped k-fold evaluation of the configured router beside every baseline.

    Args:
        material: outcomes.
        config: settings.
        kinds: kinds of router to compare, named so in the table; only the configured one, named ``router``, when empty.
        offline: fetch no encoder.
        route_s: seconds of a choice, charged to the routers where the reward is ``speedup`` and the target's step was measured.
        **options: ``test_prompts`` or ``folds`` of :func:`routing.evaluate.evaluate_routers`.

    Raises:
        HarnessError: fewer than two groups of prompts, or what :meth:`RouterData.rewards` refuses.
    """
    from routing.evaluate import evaluate_routers

    rewards, arms = material.rewards(config)
    table = material.table
    configs = {kind: config.model_copy(update={"router": kind}) for kind in kinds} or {ROUTER: config}
    with routing_errors():
        return evaluate_routers(
            table.prompts or (),
            rewards,
            arms,
            {name: make_router(one, arms, offline=offline) for name, one in configs.items()},
            domains=table.domains,
            groups=material.groups,
            weights=table.emitted[:, 0, table.ks.index(material.k)],
            route_cost=charged_steps(material, config, route_s) or 0.0,
            n_splits=config.folds,
            seed=config.seed,
            **options,
        )


def charged_steps(material: RouterData, config: RouterConfig, route_s: float | None) -> float | None:
    """What a choice takes in target steps, where it can be charged."""
    return None if config.reward != "speedup" or route_s is None or material.step_s is None else route_s / material.step_s


def policies(evaluation: Evaluation, sources: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One entry per policy in reading order: routers, each drafter fixed, the other baselines, the oracle. NaN becomes None."""
    from routing.evaluate import BEST_FIXED, DOMAIN_BEST, DOMAIN_LABEL, ORACLE, RANDOM

    def place(name: str) -> int:
        if name.startswith("fixed:"):
            return 1
        return {BEST_FIXED: 2, RANDOM: 3, DOMAIN_LABEL: 4, DOMAIN_BEST: 5, ORACLE: 6}.get(name, 0)

    return [
        {
            "policy": r.name.removeprefix("fixed:"),
            **{name: _numbers(getattr(r, name)) for name in ("mean", "gain", "recovery", "regret")},
            "pooled": r.pooled,
            "sources": dict(sources.get(r.name, {})),
        }
        for r in sorted(evaluation.results, key=lambda r: place(r.name))
    ]


def _numbers(interval: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(interval).items()}


def report(
    evaluation: Evaluation, config: RouterConfig, k: int | str, material: RouterData | None = None, route_s: float | None = None
) -> dict[str, Any]:
    """What an evaluation found, as plain JSON types; who proposed how much, and what choosing took, where the material is given."""
    return {
        "k": k,
        "reward": config.reward,
        "prompts": evaluation.n_prompts,
        "groups": evaluation.n_groups,
        "folds": len(evaluation.folds),
        "arms": list(evaluation.arms),
        "oracle_gap": _numbers(evaluation.oracle_gap),
        "oracle_gap_is_noise": bool(evaluation.gap_is_noise),
        "policies": policies(evaluation, {} if material is None else _sources(evaluation, config, material)),
        "route_s": route_s,
        "charged_steps": None if material is None else charged_steps(material, config, route_s),
    }


def _sources(evaluation: Evaluation, config: RouterConfig, material: RouterData) -> dict[str, Mapping[str, float]]:
    """Policy -> share of the tokens by who proposed them."""
    import numpy as np

    _, arms = material.rewards(config)
    table = material.table.take(np.sort(np.concatenate(evaluation.folds)))
    return {r.name: table.shares(arms, r.choices) for r in evaluation.results if r.choices is not None}


def describe(router: PromptRouter) -> dict[str, Any]:
    """What a trained router is, as plain JSON types."""
    return {
        "kind": type(router.router_).__name__,
        "settings": router.router_.get_params(deep=False),
        "threshold": float(router.threshold_),
        "reach": router.reach_ if math.isfinite(router.reach_) else None,
    }


def show(found: Mapping[str, Any], style: str = "simple") -> str:
    """The report as a table; ``style`` is tabulate's, e.g. ``github`` for Markdown."""
    from tabulate import tabulate

    header = ["choice", f"mean {found['reward']}", "against best fixed", "oracle gap recovery", "regret", f"pooled {found['reward']}"]
    rows = [
        [p["policy"], _cell(p["mean"]), _cell(p["gain"], "+"), _cell(p["recovery"]), _cell(p["regret"]), _number(p["pooled"])]
        for p in found["policies"]
    ]
    if any(p["sources"] for p in found["policies"]):
        header.append("tokens from")
        rows = [[*row, shares_text(p["sources"])] for row, p in zip(rows, found["policies"], strict=True)]
    gap = f"oracle gap {_cell(found['oracle_gap'])}"
    if found["oracle_gap_is_noise"]:
        gap += ": within noise, so the recovery says little"
    elif not _foreseen(found):
        gap += ": no choice known before the answer beats every fixed drafter beyond its interval, so the gap may be luck after the fact"
    if found["charged_steps"] is not None:
        gap += f"\na choice takes {1000 * found['route_s']:.1f} ms, {found['charged_steps']:.2f} target steps, which the router's line pays"
    head = f"{found['prompts']} prompts in {found['groups']} groups, {found['folds']} folds, K = {found['k']}; 95% intervals over groups"
    return "\n".join([head, "", tabulate(rows, header, tablefmt=style, disable_numparse=True), "", gap])


def _foreseen(found: Mapping[str, Any]) -> bool:
    """Does any choice by prompt, the true domain's included, beat every fixed drafter? The oracle's does, even over drafters that differ
    by chance alone: a maximum is never below its parts."""
    from routing.evaluate import ORACLE, RANDOM

    gains = {p["policy"]: p["gain"] for p in found["policies"] if p["policy"] not in (ORACLE, RANDOM) and p["gain"]["low"] is not None}
    best = max((gain["value"] for name, gain in gains.items() if name in found["arms"]), default=0.0)
    return any(gain["low"] > max(best, 0.0) for name, gain in gains.items() if name not in found["arms"])


def _cell(interval: Mapping[str, float | None], sign: str = "") -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None or low is None or high is None:
        return "-"
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def shares_text(shares: Mapping[str, float]) -> str:
    """Who proposed which share of the tokens: ``memory 31%, draft 20%, target 49%``."""
    return ", ".join(f"{source} {share:.0%}" for source, share in shares.items()) or "-"
