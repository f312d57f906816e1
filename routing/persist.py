"""Routers to files and back: the feature recipe, the arms, the adapters' hashes, the run they learned from, the fitted arrays, the prompts.

Every name and every array's shape is checked before anything is used; :mod:`routing.router_file` checks the file itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from routing.base import Router
from routing.features import PROBE, PromptFeatures
from routing.fetch import ENCODERS
from routing.outcomes import AUTO, Arm
from routing.policy import PromptRouter
from routing.router_file import DISTRUST, RETRAIN, check_name, field, named_hashes, read_file, write_file
from routing.routers import BoostingRouter, KNNRouter, LogisticRouter, MLPRouter, RidgeRouter
from routing.routing_error import RoutingError

_MAX_ARMS = 1000
_KINDS: dict[str, type[Router]] = {c.__name__: c for c in (LogisticRouter, RidgeRouter, MLPRouter, BoostingRouter, KNNRouter)}
_PROBE_TOLERANCE = 0.02


@dataclass(frozen=True)
class RouterFile:
    """What a file says about its router, beside the router itself."""

    router: PromptRouter
    """Ready to choose."""
    run_id: str
    """Run whose outcomes it was trained on."""
    adapter_hashes: Mapping[str, str]
    """Adapter name -> content hash at training time."""


def save_router(router: PromptRouter, path: str | Path, *, run_id: str, adapter_hashes: Mapping[str, str] | None = None) -> Path:
    """Write a fitted router in one atomic move.

    Args:
        router: fitted.
        path: file to write, by convention ``*.safetensors``.
        run_id: run whose outcomes it was trained on.
        adapter_hashes: content hash of each adapter among the arms.
    """
    hashes = dict(adapter_hashes or {})
    for name in [a.drafter for a in router.arms_] + list(hashes) + [run_id]:
        check_name(name, "name")
    if type(router.router_).__name__ not in _KINDS:
        raise RoutingError(f"a {type(router.router_).__name__} cannot be saved", f"Use one of {', '.join(_KINDS)}.")
    header = {
        "run_id": run_id,
        "arms": [{"drafter": a.drafter, "k": a.k} for a in router.arms_],
        "adapter_hashes": hashes,
        "features": _recipe(router.features_),
        "router": {
            "kind": type(router.router_).__name__,
            "params": router.router_.get_params(deep=False),
            "flat": bool(router.router_.flat_),
        },
        "fallback": router.fallback,
        "threshold": float(router.threshold_),
        "reach": router.reach_ if math.isfinite(router.reach_) else None,
        "shares": router.shares_,
        "train_prompts": router.train_prompts_,
    }
    arrays = _arrays("features", router.features_) | _arrays("router", router.router_)
    arrays["policy.calibration"] = router.calibration_
    arrays["policy.train_features"] = router.train_features_
    arrays["policy.train_best"] = router.train_best_.astype(np.int64)
    arrays["policy.probe"] = router.features_.transform([PROBE])[0]
    write_file(Path(path), header, arrays)
    return Path(path)


def load_router(
    path: str | Path,
    *,
    arms: Sequence[str] | None = None,
    adapter_hashes: Mapping[str, str] | None = None,
    encoder: str | None = None,
    offline: bool = False,
    check_features: bool = True,
) -> RouterFile:
    """Read and check a router file.

    Args:
        path: the file.
        arms: drafters that exist here; an arm outside them is a mismatch.
        adapter_hashes: content hashes of the adapters that exist here; a different or missing one is a mismatch.
        encoder: folder of the sentence encoder, for routers trained with a local one.
        offline: fetch no encoder.
        check_features: load the encoder now and compare the features of a fixed text with the stored ones.

    Raises:
        RoutingError: not a router file, damaged, newer than this package, or made for other adapters or another encoder.
    """
    header, arrays = read_file(Path(path))
    loaded_arms = _read_arms(header, path)
    hashes = named_hashes(header, path)
    _check_adapters(path, loaded_arms, hashes, arms, adapter_hashes)
    run_id = check_name(field(header, "run_id", str, path), f"run id of {path}")
    features = _read_features(header, arrays, path, encoder=encoder, offline=offline)
    router = PromptRouter(features, arms=loaded_arms, fallback=header.get("fallback"))
    router.arms_, router.features_ = loaded_arms, features
    router.router_ = _read_router(header, arrays, path, features.n_features_out_, len(loaded_arms))
    router.router = router.router_
    _read_policy(router, header, arrays, path)
    if check_features:
        _check_probe(router, arrays, path)
    return RouterFile(router=router, run_id=run_id, adapter_hashes=hashes)


def adapters_of(path: str | Path) -> Mapping[str, str]:
    """Adapter name -> content hash of the adapters a router chooses among; needs neither them nor the encoder.

    Raises:
        RoutingError: not a router file, damaged, or newer than this package.
    """
    return named_hashes(read_file(Path(path))[0], path)


def _recipe(features: PromptFeatures) -> dict[str, Any]:
    params = features.get_params()
    text = params["text"] if params["text"] in ("tfidf", "none", *ENCODERS) else "local"
    kept = {n: params[n] for n in ("max_tokens", "dtype", "length", "cues", "n_components", "max_terms")}
    return {"text": text, **kept, "vocabulary": list(features.vocabulary_), "n_features": int(features.n_features_out_)}


def _arrays(prefix: str, estimator: Any) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": np.asarray(getattr(estimator, name)) for name in type(estimator)._state}


def _read_arms(header: Mapping[str, Any], path: str | Path) -> tuple[Arm, ...]:
    items = field(header, "arms", list, path)
    valid = all(
        isinstance(a, dict) and set(a) == {"drafter", "k"} and (a["k"] in (None, AUTO) or (type(a["k"]) is int and 1 <= a["k"] <= 1000))
        for a in items
    )
    if not valid or not 1 <= len(items) <= _MAX_ARMS:
        raise RoutingError(f"{path} holds malformed arms", DISTRUST)
    arms = tuple(Arm(check_name(a["drafter"], f"arm of {path}"), a["k"]) for a in items)
    if len(set(arms)) != len(arms):
        raise RoutingError(f"{path} names an arm twice", DISTRUST)
    return arms


def _check_adapters(
    path: str | Path,
    arms: Sequence[Arm],
    trained: Mapping[str, str],
    known: Sequence[str] | None,
    current: Mapping[str, str] | None,
) -> None:
    drafters = {a.drafter for a in arms}
    unknown = sorted(drafters - set(known)) if known is not None else []
    if unknown:
        raise RoutingError(f"{path} chooses {unknown[0]!r}, which does not exist here", f"Train or install what it chooses, or: {RETRAIN}")
    if current is None:
        return
    for name, digest in trained.items():
        if current.get(name) != digest:
            state = "is missing here" if name not in current else "has changed since"
            raise RoutingError(f"{path} was trained with adapter {name!r}, which {state}", RETRAIN)
    own = {d if d in current else d.rpartition("+")[2] for d in drafters}  # of `memory_hybrid+code` the adapter is `code`
    fresh = sorted((own & set(current)) - set(trained))
    if fresh:
        raise RoutingError(f"{path} does not say which version of adapter {fresh[0]!r} it was trained with", RETRAIN)


def _read_features(
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    encoder: str | None,
    offline: bool,
) -> PromptFeatures:
    recipe = dict(field(header, "features", dict, path))
    vocabulary, n_features, text = recipe.pop("vocabulary", None), recipe.pop("n_features", None), recipe.pop("text", None)
    if text not in ("tfidf", "none", "local", *ENCODERS) or not _recipe_is_valid(recipe) or type(n_features) is not int or n_features < 1:
        raise RoutingError(f"{path} has an unknown feature recipe", DISTRUST)
    if text == "local" and encoder is None:
        raise RoutingError(f"{path} was trained with a local sentence encoder", "Pass encoder= with that encoder's folder.")
    if not isinstance(vocabulary, list) or not all(isinstance(t, str) for t in vocabulary) or len(set(vocabulary)) != len(vocabulary):
        raise RoutingError(f"{path} has a malformed vocabulary", DISTRUST)
    features = PromptFeatures(encoder if text == "local" and encoder else text, offline=offline, **recipe)
    features.vocabulary_ = vocabulary
    features.n_features_out_ = n_features
    _restore(features, "features", arrays, {"terms": len(vocabulary)}, path)
    extra = features.length + 3 * features.cues
    if len(features.components_) not in (0, n_features - extra) or (
        text == "tfidf" and not len(features.components_) and len(vocabulary) != n_features - extra
    ):
        raise RoutingError(f"{path} has features of the wrong size", DISTRUST)
    return features


def _recipe_is_valid(recipe: Mapping[str, Any]) -> bool:
    kinds = {
        "max_tokens": (int,),
        "dtype": (str,),
        "length": (bool,),
        "cues": (bool,),
        "n_components": (int, type(None)),
        "max_terms": (int,),
    }
    return set(recipe) == set(kinds) and all(type(recipe[n]) in kinds[n] for n in kinds) and 1 <= recipe["max_tokens"] <= 8192


def _read_router(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: str | Path, n_features: int, n_arms: int) -> Router:
    spec = field(header, "router", dict, path)
    kind, params, flat = _KINDS.get(str(spec.get("kind"))), spec.get("params"), spec.get("flat")
    if kind is None or not isinstance(params, dict) or not isinstance(flat, bool):
        raise RoutingError(f"{path} holds an unknown kind of router: {spec.get('kind')!r}", f"Known: {', '.join(_KINDS)}. " + RETRAIN)
    defaults = kind().get_params()
    if set(params) != set(defaults) or not all(_alike(params[n], defaults[n]) for n in defaults):
        raise RoutingError(f"{path} has other settings than a {kind.__name__} takes", DISTRUST)
    router = kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in params.items()})
    router.n_features_in_, router.n_arms_, router.flat_ = n_features, n_arms, flat
    _restore(router, "router", arrays, {"features": n_features, "arms": n_arms, "1": 1, "2": 2, "3": 3}, path)
    try:
        router._check_state()
    except ValueError as e:
        raise RoutingError(f"{path} holds an impossible router: {e}", DISTRUST) from e
    return router


def _alike(value: Any, default: Any) -> bool:
    """True when a setting read from JSON has the type its default has."""
    if isinstance(default, tuple):
        return isinstance(value, list) and bool(value) and all(type(v) in (int, float) for v in value)
    if isinstance(default, str):  # 'sqrt', or a share of the features
        return value is None or type(value) in (str, int, float)
    return value is None or (type(value) is int and value >= 0) or (type(value) is float and isinstance(default, float))


def _restore(estimator: Any, prefix: str, arrays: Mapping[str, np.ndarray], sizes: dict[str, int], path: str | Path) -> None:
    """Set the fitted arrays after checking that they are all there, nothing else is, and their dimensions agree."""
    state = type(estimator)._state
    if {n for n in arrays if n.startswith(prefix + ".")} != {f"{prefix}.{n}" for n in state}:
        raise RoutingError(f"{path} does not hold the arrays of a {type(estimator).__name__}", DISTRUST)
    for name, dims in state.items():
        array = arrays[f"{prefix}.{name}"]
        if array.ndim != len(dims) or not all(_fits(d, n, sizes) for d, n in zip(dims, array.shape, strict=True)):
            raise RoutingError(f"{path}: {name} has shape {array.shape}, expected ({', '.join(dims)})", DISTRUST)
        setattr(estimator, name, array)


def _fits(dim: str, n: int, sizes: dict[str, int]) -> bool:
    """True when size ``n`` agrees with what is known of ``dim`` (``arms``, ``arms+1``, ...); the first sight of a name defines it."""
    name, _, extra = dim.partition("+")
    return sizes.setdefault(name, n - int(extra or 0)) == n - int(extra or 0)


def _read_policy(router: PromptRouter, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    prompts = field(header, "train_prompts", list, path)
    threshold = field(header, "threshold", (int, float), path)
    reach = _read_reach(header, path)
    n, d = len(prompts), router.features_.n_features_out_
    shapes = {"calibration": (2,), "train_features": (n, d), "train_best": (n,), "probe": (d,)}
    stray = [a for a in arrays if not a.startswith(("features.", "router.")) and a.removeprefix("policy.") not in shapes]
    if stray:
        raise RoutingError(f"{path} holds an array that belongs to no router: {stray[0]!r}", DISTRUST)
    for name, shape in shapes.items():
        if f"policy.{name}" not in arrays or arrays[f"policy.{name}"].shape != shape:
            raise RoutingError(f"{path} has no valid array {name!r}", DISTRUST)
    best = arrays["policy.train_best"]
    valid = (
        all(isinstance(p, str) for p in prompts) and best.dtype.kind == "i" and n > 0 and best.min() >= 0 and best.max() < len(router.arms_)
    )
    if not valid or not math.isfinite(threshold) or router.fallback not in (None, *router.arm_names):
        raise RoutingError(f"{path} has an impossible fallback, threshold or training prompt", DISTRUST)
    router.threshold_, router.train_prompts_, router.train_best_ = float(threshold), prompts, best
    router.reach_, router.shares_ = reach, _read_shares(header, path)
    router.calibration_, router.train_features_ = arrays["policy.calibration"], arrays["policy.train_features"]


def _read_reach(header: Mapping[str, Any], path: str | Path) -> float:
    """Distance up to which prompts are familiar; infinite where the file has no guard."""
    if header["schema_version"] > 1 and "reach" not in header:
        raise RoutingError(f"{path} has no valid field 'reach'", DISTRUST)
    reach = header.get("reach")
    if reach is None:
        return math.inf
    if type(reach) not in (int, float) or not math.isfinite(reach) or reach < 0:
        raise RoutingError(f"{path} has an impossible reach of familiar prompts", DISTRUST)
    return float(reach)


def _read_shares(header: Mapping[str, Any], path: str | Path) -> dict[str, dict[str, float]]:
    """Arm name to shares by source; empty in files that do not tell them."""
    shares = header.get("shares", {})
    valid = isinstance(shares, dict) and all(
        isinstance(own, dict) and all(type(value) in (int, float) and 0 <= value <= 1 for value in own.values()) for own in shares.values()
    )
    if not valid:
        raise RoutingError(f"{path} has impossible shares of sources", DISTRUST)
    return {arm: {check_name(source, f"source of {path}"): value for source, value in own.items()} for arm, own in shares.items()}


def _check_probe(router: PromptRouter, arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    then = arrays["policy.probe"]
    try:
        now = router.features_.transform([PROBE])[0]
    except ValueError as e:
        raise RoutingError(f"{path} does not fit its sentence encoder: {e}", DISTRUST) from e
    if now.shape != then.shape or np.linalg.norm(now - then) > _PROBE_TOLERANCE * max(1.0, float(np.linalg.norm(then))):
        raise RoutingError(f"{path} was trained with another sentence encoder than the one here", "Use the same encoder, or train again.")
