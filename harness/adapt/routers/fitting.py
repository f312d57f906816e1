"""What ``harness train-router`` does: outcomes of every drafter by replay or from a run, the router, and its table beside all baselines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.adapt.routers.routed import (
    GENERIC,
    RouterConfig,
    cost_model,
    hash_adapters,
    make_router,
    outcome_table,
    router_arms,
    routing_errors,
)
from harness.core.errors import HarnessError
from harness.core.limits import BATCH, MAX_TOKENS
from harness.core.paths import cache_dir
from harness.core.progress import note
from harness.core.protocols import LoadedPair
from harness.core.records import Record, Sample
from harness.datasets.splits import cluster_labels

if TYPE_CHECKING:
    import numpy as np

    from harness.answers.collect import Pool
    from harness.core.records import Trajectory
    from harness.decode.length import Costs
    from harness.results.manifest import Manifest
    from routing.evaluate import Evaluation
    from routing.intervals import Interval
    from routing.outcomes import OutcomeTable
    from routing.policy import PromptRouter


class Crew(Protocol):
    """Who does the work elsewhere: :class:`harness.run.crew.ClusterCrew`."""

    @property
    def pool(self) -> Pool:
        """Answers in batches."""

    def replay(self, folders: Mapping[str, Path], answers: Sequence[Trajectory], k: int) -> Sequence[Any]:
        """The plain draft and every adapter along the answers."""

    def costs(self, k: int) -> Costs:
        """Of the plain draft, up to that many tokens."""


ROUTER = "router"
"""Name of the trained router in tables."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Outcomes to learn a router from, and to judge it by."""

    table: OutcomeTable
    """Every drafter on every prompt."""
    groups: np.ndarray
    """(n,) labels: near-duplicates and template siblings share one, and stay in one fold."""
    adapter_hashes: Mapping[str, str]
    """The adapters to choose from."""
    folders: Mapping[str, Path]
    """Where they are."""
    k: int
    """Draft length of the arms."""
    run_id: str
    """The run, or a hash of the replayed data."""
    costs: Costs | None = None
    """Calibrated costs, where known."""

    def take(self, rows: np.ndarray) -> Material:
        """The same for a subset of prompts (integer row indices)."""
        return dataclasses.replace(self, table=self.table.take(rows), groups=self.groups[rows])

    def rewards(self, config: RouterConfig) -> tuple[np.ndarray, tuple[Any, ...]]:
        """(n, n_arms) rewards and the arms of the columns.

        Raises:
            HarnessError: missing outcomes, or no costs for the reward ``speedup``.
        """
        arms = router_arms(self.table, config, self.k, sorted(self.adapter_hashes))
        with routing_errors():
            return self.table.rewards(arms, config.reward, cost_model(self.costs)), arms


def replay_material(
    pair: LoadedPair,
    samples: Sequence[Sample],
    folders: Mapping[str, Path],
    *,
    k: int,
    max_tokens: int = MAX_TOKENS,
    batch: int = BATCH,
    calibrated: bool = False,
    crew: Crew | None = None,
) -> Material:
    """Collect the target's greedy answers (kept in the cache) and replay the plain draft and every adapter on them.

    Args:
        pair: loaded pair with a draft.
        samples: prompts.
        folders: adapter name -> folder.
        k: draft length.
        max_tokens: longest answer.
        batch: prompts answered together.
        calibrated: measure the pair's costs too.
        crew: who answers, replays and measures elsewhere; this process where None.

    Raises:
        HarnessError: no draft, no adapters, one of another draft, or a prompt that does not fit.
    """
    from harness.adapt.adapters.folder import read_info
    from harness.adapt.adapters.names import adaptable
    from harness.adapt.training.bank import AdapterBank, replay_bank
    from harness.answers.collect import collect
    from harness.models.address import answers_folder

    draft = adaptable(pair)
    if not folders:
        raise HarnessError(f"pair {pair.name!r} has no adapters to choose from", "Train some with `harness train`.")
    if crew is None:
        bank = AdapterBank(draft, folders)
    else:  # an adapter of another draft is refused before anything is answered
        for folder in folders.values():
            read_info(Path(folder), draft.hash)
    note(f"collecting the target's answers to {len(samples)} prompts")
    pool = None if crew is None else crew.pool
    answers = list(collect(pair, samples, max_tokens=max_tokens, batch=batch, out=answers_folder(pair), pool=pool))
    rows = replay_bank(bank, answers, [k]) if crew is None else crew.replay(folders, answers, k)
    facts = [pair.target_hash, k, max_tokens, sorted((s.id, s.prompt) for s in samples)]
    return Material(
        table=(table := outcome_table(rows, samples)),
        groups=prompt_groups(table, samples),
        adapter_hashes=hash_adapters(folders),
        folders=folders,
        k=k,
        run_id=f"replay-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}",
        costs=(_calibrated(pair, k) if crew is None else crew.costs(k)) if calibrated else None,
    )


def _calibrated(pair: LoadedPair, k: int) -> Costs:
    from harness.decode.calibrate import calibrate
    from harness.decode.making import resolve_drafter

    return calibrate(pair, resolve_drafter(pair, GENERIC), max_k=k).costs


def run_samples(manifest: Manifest, *, offline: bool = False) -> list[Sample]:
    """Read a run's prompts again, from the datasets its manifest names.

    Raises:
        HarnessError: a dataset is gone, or its file has changed since.
    """
    from harness.datasets import DatasetSpec, load_samples

    samples: list[Sample] = []
    for domain, entry in manifest.suite["domains"].items():
        spec = DatasetSpec(**{key: value for key, value in entry.items() if key != "sha256"})
        if spec.path and hashlib.sha256(_read(Path(spec.path))).hexdigest() != entry["sha256"]:
            raise HarnessError(f"{spec.path} has changed since the run {manifest.run}", "Restore the file, or run the suite again.")
        samples += load_samples(spec, domain=domain, seed=manifest.suite.get("seed", 0), offline=offline)
    return samples


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}", "Restore the file the run was made from.") from error


def run_adapters(manifest: Manifest, known: Mapping[str, Path]) -> dict[str, Path]:
    """Name -> folder: the adapters in ``known``, and those trained inside the run, found in the cache by their weights."""
    from harness.adapt.adapters.folder import WEIGHTS, weights_hash

    trained = {name: facts["hash"] for name, facts in manifest.measured.adapters.items() if facts.get("hash")}
    lacking = {n: h for n, h in trained.items() if n not in known or weights_hash(known[n]) != h}
    paths = sorted((cache_dir() / "trained" / manifest.pair).glob(f"*/*/{WEIGHTS}")) if lacking else []
    by_hash = {weights_hash(path.parent): path.parent for path in paths}
    return {**known, **{name: by_hash[h] for name, h in lacking.items() if h in by_hash}}


def install_adapters(pair_name: str, folders: Mapping[str, Path]) -> None:
    """Put adapters where users' commands find them; the installed ones stay as they are.

    Raises:
        HarnessError: another adapter has the name; nothing is installed then.
    """
    from harness.adapt.adapters.folder import METADATA, adapter_folder, weights_hash
    from harness.adapt.training.rounds import install

    places = {name: adapter_folder(pair_name, name) for name in folders}
    new = {name: place for name, place in places.items() if folders[name].resolve() != place.resolve()}
    for name, place in new.items():
        if (place / METADATA).is_file() and weights_hash(place) != weights_hash(folders[name]):
            raise HarnessError(f"another adapter is installed as {name!r}", f"Move {place} away, or use --table-only.")
    for name, place in new.items():
        install(folders[name], place, name)
        note(f"installed adapter {name}")


def recorded_material(
    manifest: Manifest, records: Sequence[Record], samples: Sequence[Sample], folders: Mapping[str, Path], *, k: int
) -> Material:
    """Outcomes from a finished run's records: greedy, exact acceptance, draft length ``k``, generic and adapters.

    Args:
        manifest: the run's.
        records: the run's.
        samples: its prompts, from :func:`run_samples`.
        folders: adapter name -> folder of the adapters that are here, from :func:`run_adapters`.
        k: draft length.

    Raises:
        HarnessError: no adapter records, an adapter of the run that is not here, or one whose weights are others now.
    """
    from harness.adapt.adapters.folder import read_info, weights_hash
    from harness.decode.length import Costs
    from routing.outcomes import from_rows

    rows = _rows(records, {s.id: s for s in samples}, k)
    names = _measured_everywhere(rows)
    if not names:
        raise HarnessError(
            f"run {manifest.run} holds no adapter measured on every domain at K = {k}",
            "Give a run with domain_adapters and cross: true at this K, or a suite to replay.",
        )
    missing = [name for name in names if name not in folders]
    if missing:
        raise HarnessError(
            f"run {manifest.run} used adapter {missing[0]!r}, which is not here", "Install it, or name its folder's parent with --adapters."
        )
    used = {name: folders[name] for name in names}
    trained = manifest.measured.adapters
    for name, folder in used.items():
        info, known = read_info(folder), trained[name]["hash"] if name in trained else None
        if info.draft_hash != manifest.models["draft"] or known not in (None, weights_hash(folder)):
            raise HarnessError(
                f"adapter {name!r} is not the one of run {manifest.run}", "Use the run's own adapters with --adapters, or replay a suite."
            )
    with routing_errors():
        table = from_rows(rows, drafters=[GENERIC, *names], source=f"run {manifest.run}")
        table, _ = table.complete(table.arms(k))
    if not len(table):
        raise HarnessError(f"no prompt of run {manifest.run} was decoded with every adapter", "Run domain_adapters with cross: true.")
    costs = manifest.measured.calibration.get(GENERIC)
    return Material(
        table=table,
        groups=prompt_groups(table, samples),
        adapter_hashes=hash_adapters(used),
        folders=used,
        k=k,
        run_id=manifest.run,
        costs=Costs(c=costs["c"], v=tuple(costs["v"])) if costs else None,
    )


def _rows(records: Sequence[Record], samples: Mapping[str, Sample], k: int) -> list[dict[str, Any]]:
    """Greedy lossless cells of the plain draft and of adapters, one row per (sample, drafter)."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for r in records:
        settings = r.settings
        name = r.adapter if r.drafter == "adapter" else r.drafter
        greedy = r.temperature == 0 and not r.lossy and r.k == k and r.drafter in (GENERIC, "adapter") and "around" not in settings
        if not greedy or name is None or "round" in settings:
            continue
        if r.sample_id not in samples:
            raise HarnessError(f"the run's prompt {r.sample_id!r} is not in its datasets any more", "Restore the datasets of the run.")
        counts = {"rounds": r.rounds, "drafted": r.drafted, "accepted": r.accepted, "emitted": r.emitted}
        cell = {"sample_id": r.sample_id, "domain": r.domain, "prompt": samples[r.sample_id].prompt, "drafter": name, "k": k, **counts}
        rows.setdefault((r.sample_id, name), cell)
    return list(rows.values())


def _measured_everywhere(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Adapters with outcomes in every domain of the plain draft's; others, such as those of a rank ablation, are no choice."""
    domains: dict[str, set[str]] = {}
    for row in rows:
        domains.setdefault(row["drafter"], set()).add(row["domain"])
    everywhere = domains.pop(GENERIC, set())
    return sorted(name for name, own in domains.items() if everywhere and own >= everywhere)


def prompt_groups(table: OutcomeTable, samples: Sequence[Sample]) -> np.ndarray:
    """(n,) labels of a table's prompts: near-copies share one, so that folds keep them together."""
    import numpy as np

    label = dict(zip((s.id for s in samples), cluster_labels(samples), strict=True))
    return np.array([label[s] for s in table.sample_ids])


def evaluate(material: Material, config: RouterConfig, *, kinds: Sequence[str] = (), offline: bool = False, **options: Any) -> Evaluation:
    """Grouped k-fold evaluation of the configured router beside every baseline.

    Args:
        material: outcomes.
        config: settings.
        kinds: kinds of router to compare, named so in the table; only the configured one, named ``router``, when empty.
        offline: fetch no encoder.
        **options: ``test_prompts`` or ``folds`` of :func:`routing.evaluate.evaluate_routers`.

    Raises:
        HarnessError: fewer than two groups of prompts, or what :meth:`Material.rewards` refuses.
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
            n_splits=config.folds,
            seed=config.seed,
            **options,
        )


def policies(evaluation: Evaluation) -> list[dict[str, Any]]:
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
        }
        for r in sorted(evaluation.results, key=lambda r: place(r.name))
    ]


def _numbers(interval: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(interval).items()}


def report(evaluation: Evaluation, config: RouterConfig, k: int) -> dict[str, Any]:
    """What an evaluation found, as plain JSON types."""
    return {
        "k": k,
        "reward": config.reward,
        "prompts": evaluation.n_prompts,
        "groups": evaluation.n_groups,
        "folds": len(evaluation.folds),
        "arms": list(evaluation.arms),
        "oracle_gap": _numbers(evaluation.oracle_gap),
        "oracle_gap_is_noise": bool(evaluation.gap_is_noise),
        "policies": policies(evaluation),
    }


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
    gap = f"oracle gap {_cell(found['oracle_gap'])}"
    if found["oracle_gap_is_noise"]:
        gap += ": within noise, so the recovery says little"
    elif not _foreseen(found):
        gap += ": no choice known before the answer beats every fixed drafter beyond its interval, so the gap may be luck after the fact"
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
