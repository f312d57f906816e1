"""What a router learns from: outcomes of every arm by replay, or from the records of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.adapt.routers.arms import GENERIC, Replaying, arm_names, arm_parts
from harness.adapt.routers.routed import (
    RouterConfig,
    hash_adapters,
    outcome,
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
from harness.results.router_rows import arm_of

if TYPE_CHECKING:
    import numpy as np

    from harness.answers.collect import Pool
    from harness.core.records import Trajectory
    from harness.decode.length import Costs
    from harness.results.manifest import Manifest
    from routing.outcomes import OutcomeTable


class Crew(Protocol):
    """Who does the work elsewhere: :class:`harness.run.crew.ClusterCrew`."""

    @property
    def pool(self) -> Pool:
        """Answers in batches."""

    def replay(self, folders: Mapping[str, Path], answers: Sequence[Trajectory], how: Replaying) -> Sequence[Any]:
        """Every arm over these adapters along the answers."""

    def costs(self, k: int) -> Costs:
        """Of the plain draft, up to that many tokens."""


@dataclass(frozen=True, kw_only=True)
class RouterData:
    """Outcomes to learn a router from, and to judge it by."""

    table: OutcomeTable
    """Every drafter on every prompt."""
    groups: np.ndarray
    """(n,) labels: near-duplicates and template siblings share one, and stay in one fold."""
    adapter_hashes: Mapping[str, str]
    """The adapters to choose from."""
    folders: Mapping[str, Path]
    """Where they are."""
    k: int | str
    """Draft length of the arms, a number or ``auto``."""
    run_id: str
    """The run, or a hash of the replayed data."""
    step_s: float | None = None
    """Seconds of a target step, where measured: what a choice takes is charged in them."""

    def take(self, rows: np.ndarray) -> RouterData:
        """The same for a subset of prompts (integer row indices)."""
        return dataclasses.replace(self, table=self.table.take(rows), groups=self.groups[rows])

    def rewards(self, config: RouterConfig) -> tuple[np.ndarray, tuple[Any, ...]]:
        """(n, n_arms) rewards and the arms of the columns.

        Raises:
            HarnessError: missing outcomes, or no costs for the reward ``speedup``.
        """
        arms = router_arms(self.table, config, self.k, sorted(self.adapter_hashes))
        with routing_errors():
            return self.table.rewards(arms, config.reward), arms


def replay_material(
    pair: LoadedPair,
    samples: Sequence[Sample],
    folders: Mapping[str, Path],
    *,
    k: int | str,
    max_tokens: int = MAX_TOKENS,
    batch: int = BATCH,
    calibrated: bool = False,
    memory: bool = True,
    crew: Crew | None = None,
) -> RouterData:
    """Collect the target's greedy answers (kept in the cache) and replay the plain draft, every adapter and the memory on them.

    Args:
        pair: loaded pair with a draft.
        samples: prompts.
        folders: adapter name -> folder.
        k: draft length, a number or ``auto``.
        max_tokens: longest answer.
        batch: prompts answered together.
        calibrated: measure the pair's costs too, as ``auto`` does anyway.
        memory: also the arms with the pair's memory, where it has one; what it knows of these prompts is left out of it.
        crew: who answers, replays and measures elsewhere; this process where None.

    Raises:
        HarnessError: no draft, nothing to choose, an adapter of another draft, or a prompt that does not fit.
    """
    from harness.adapt.adapters.adapter_folder import read_info
    from harness.adapt.adapters.names import adaptable
    from harness.adapt.memory_sources import HeldOut
    from harness.adapt.training.bank import AdapterBank
    from harness.answers.collect import collect
    from harness.models.cache_key import answers_folder

    draft = adaptable(pair)
    held_out = HeldOut.of(pair, samples) if memory else None
    if not folders and held_out is None:
        raise HarnessError(f"pair {pair.name!r} has no adapters to choose from", "Train some with `harness train`.")
    if crew is None:
        bank = AdapterBank(draft, folders)
    else:  # an adapter of another draft is refused before anything is answered
        for folder in folders.values():
            read_info(Path(folder), draft.hash)
    note(f"collecting the target's answers to {len(samples)} prompts")
    pool = None if crew is None else crew.pool
    answers = list(collect(pair, samples, max_tokens=max_tokens, batch=batch, out=answers_folder(pair), pool=pool))
    costs, step_s = _costs(pair, k, crew) if calibrated or isinstance(k, str) else (None, None)
    how = Replaying(k=k, costs=costs, memory=held_out)
    rows = how(pair, bank, answers) if crew is None else crew.replay(folders, answers, how)
    facts = [pair.target_hash, k, max_tokens, sorted((s.id, s.prompt) for s in samples)]
    return RouterData(
        table=(table := outcome_table(rows, samples, costs)),
        groups=prompt_groups(table, samples),
        adapter_hashes=hash_adapters(folders),
        folders=folders,
        k=k,
        run_id=f"replay-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}",
        step_s=step_s,
    )


def _costs(pair: LoadedPair, k: int | str, crew: Crew | None) -> tuple[Costs, float | None]:
    """What the plain draft and verification cost, and the seconds of a target step; without those where workers measure."""
    from harness.decode.calibrate import calibrate
    from harness.decode.length import AUTO_MAX_K
    from harness.decode.making import resolve_drafter

    longest = k if isinstance(k, int) else AUTO_MAX_K
    if crew is not None:
        return crew.costs(longest), None
    measured = calibrate(pair, resolve_drafter(pair, GENERIC), max_k=longest)
    return measured.costs, measured.target_step_s


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
    from harness.adapt.adapters.adapter_folder import WEIGHTS, weights_hash

    trained = {name: facts["hash"] for name, facts in manifest.measured.adapters.items() if facts.get("hash")}
    lacking = {n: h for n, h in trained.items() if n not in known or weights_hash(known[n]) != h}
    paths = sorted((cache_dir() / "trained" / manifest.pair).glob(f"*/*/{WEIGHTS}")) if lacking else []
    by_hash = {weights_hash(path.parent): path.parent for path in paths}
    return {**known, **{name: by_hash[h] for name, h in lacking.items() if h in by_hash}}


def install_adapters(pair_name: str, folders: Mapping[str, Path]) -> None:
    """Put adapters where users' commands find them; those that are found already stay as they are.

    Raises:
        HarnessError: another adapter has the name; nothing is installed then.
    """
    from harness.adapt.adapters.adapter_folder import METADATA, adapter_folder, weights_hash
    from harness.adapt.adapters.names import installed
    from harness.adapt.training.rounds import install

    here = {name: folder.resolve() for name, folder in installed(pair_name).items()}
    new = {name: adapter_folder(pair_name, name) for name, folder in folders.items() if folder.resolve() != here.get(name)}
    for name, place in new.items():
        if (place / METADATA).is_file() and weights_hash(place) != weights_hash(folders[name]):
            raise HarnessError(f"another adapter is installed as {name!r}", f"Move {place} away, or use --table-only.")
    for name, place in new.items():
        install(folders[name], place, name)
        note(f"installed adapter {name}")


def recorded_material(
    manifest: Manifest, records: Sequence[Record], samples: Sequence[Sample], folders: Mapping[str, Path], *, k: int | str
) -> RouterData:
    """Outcomes from a finished run's records: greedy, exact acceptance, draft length ``k``, every arm that was measured on all domains.

    Args:
        manifest: the run's.
        records: the run's.
        samples: its prompts, from :func:`run_samples`.
        folders: adapter name -> folder of the adapters that are here, from :func:`run_adapters`.
        k: draft length.

    Raises:
        HarnessError: nothing to choose, an adapter of the run that is not here, or one whose weights are others now.
    """
    from harness.adapt.adapters.adapter_folder import read_info, weights_hash
    from harness.decode.length import Costs
    from routing.outcomes import from_rows

    known: Any = manifest.measured.calibration.get(GENERIC)
    costs = Costs(c=known["c"], v=tuple(known["v"]), once=known.get("once", 0.0)) if known else None
    rows = _rows(records, {s.id: s for s in samples}, k, costs)
    measured = _measured_everywhere(rows)
    adapters = [name for name in measured if arm_parts(name) == (None, name)]
    names = [name for name in arm_names(adapters, memory=True)[1:] if name in measured]
    if not names:
        raise HarnessError(
            f"run {manifest.run} holds no adapter measured on every domain at K = {k}",
            "Give a run with domain_adapters and cross: true at this K, or a suite to replay.",
        )
    missing = [name for name in adapters if name not in folders]
    if missing:
        raise HarnessError(
            f"run {manifest.run} used adapter {missing[0]!r}, which is not here", "Install it, or name its folder's parent with --adapters."
        )
    used = {name: folders[name] for name in adapters}
    trained = manifest.measured.adapters
    for name, folder in used.items():
        info, digest = read_info(folder), trained[name]["hash"] if name in trained else None
        if info.draft_hash != manifest.models["draft"] or digest not in (None, weights_hash(folder)):
            raise HarnessError(
                f"adapter {name!r} is not the one of run {manifest.run}", "Use the run's own adapters with --adapters, or replay a suite."
            )
    with routing_errors():
        table = from_rows(rows, drafters=[GENERIC, *names], source=f"run {manifest.run}")
        table, _ = table.complete(table.arms(k))
    if not len(table):
        raise HarnessError(f"no prompt of run {manifest.run} was decoded with every adapter", "Run domain_adapters with cross: true.")
    return RouterData(
        table=table,
        groups=prompt_groups(table, samples),
        adapter_hashes=hash_adapters(used),
        folders=used,
        k=k,
        run_id=manifest.run,
        step_s=known.get("target_step_s") if known else None,
    )


def _rows(records: Sequence[Record], samples: Mapping[str, Sample], k: int | str, costs: Costs | None) -> list[dict[str, Any]]:
    """Greedy lossless cells of the arms, one row per (sample, arm)."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for r in records:
        arm = arm_of(r)
        untrained = r.drafter == "adapter" and r.adapter is None
        if arm is None or untrained or r.temperature != 0 or r.lossy or r.k != k or "round" in r.settings:
            continue
        if r.sample_id not in samples:
            raise HarnessError(f"the run's prompt {r.sample_id!r} is not in its datasets any more", "Restore the datasets of the run.")
        rows.setdefault((r.sample_id, arm), outcome(r, samples[r.sample_id], arm, costs))
    return list(rows.values())


def _measured_everywhere(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arms with outcomes in every domain of the plain draft's; others, such as the adapters of a rank ablation, are no choice."""
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
