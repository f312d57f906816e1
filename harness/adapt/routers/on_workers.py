"""Replays of adapters by the workers of a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.adapt.adapters.adapter_folder import CONFIG, METADATA, weights_path
from harness.adapt.routers.arms import Replaying
from harness.adapt.training.bank import AdapterBank, SwapRow, swap_costs
from harness.cluster import sent_files as files
from harness.cluster.client import Cluster
from harness.cluster.pairs import PairSpec
from harness.cluster.seat import seat
from harness.cluster.shares import shares
from harness.core.records import Trajectory
from harness.decode.length import Costs
from harness.decode.replay import ReplayRow

Adapters = tuple[tuple[str, files.Folder], ...]
"""Name and files of every adapter."""


def described(folders: Mapping[str, Path], sources: dict[str, Path]) -> Adapters:
    """Adapters for workers; ``sources`` learns where their files are here."""
    return tuple(
        (name, files.described(folder, sources, (weights_path(folder).name, CONFIG, METADATA))) for name, folder in folders.items()
    )


def bare(t: Trajectory) -> Trajectory:
    """The answer without the probabilities that replay does not need: of a sample it asks for those of its tokens."""
    return dataclasses.replace(t, logprobs=t.logprobs if t.temperature else None, top_tokens=None, top_logprobs=None)


def replay_on(
    cluster: Cluster, spec: PairSpec, folders: Mapping[str, Path], answers: Sequence[Trajectory], how: Replaying
) -> list[ReplayRow]:
    """As :class:`harness.adapt.routers.arms.Replaying` over these adapters, in its order, by all workers."""
    sources: dict[str, Path] = {}
    adapters = described(folders, sources)
    parts = [[bare(answers[i]) for i in share] for share in shares(answers, len(cluster.workers))]
    replies = cluster.all(replayed, [(spec, adapters, part, how) for part in parts], sources=sources)
    place = {t.sample_id: i for i, t in enumerate(answers)}
    rows = sorted((row for reply in replies for row in reply.value), key=lambda row: place[row.sample_id])
    return [row for name in dict.fromkeys(row.drafter for row in rows) for row in rows if row.drafter == name]


def swaps_on(cluster: Cluster, spec: PairSpec, folders: Mapping[str, Path]) -> list[SwapRow]:
    """As :func:`harness.adapt.training.bank.swap_costs`, on one worker."""
    sources: dict[str, Path] = {}
    (reply,) = cluster.all(swapped, [(spec, described(folders, sources))], sources=sources)
    found: list[SwapRow] = reply.value
    return found


def costs_on(cluster: Cluster, spec: PairSpec, k: int) -> Costs:
    """Costs of the plain draft up to ``k`` tokens, on one worker."""
    (reply,) = cluster.all(calibrated, [(spec, k)])
    found: Costs = reply.value
    return found


def replayed(spec: PairSpec, adapters: Adapters, answers: Sequence[Trajectory], how: Replaying) -> list[ReplayRow]:
    """On a worker: replay the arms over these adapters."""
    own = seat()
    pair = own.pair(spec)
    bank = own.keep(f"bank {adapters}", lambda: AdapterBank(pair.draft, _unpacked(adapters)))
    return how(pair, bank, answers)


def swapped(spec: PairSpec, adapters: Adapters) -> list[SwapRow]:
    """On a worker: what each policy of the bank costs."""
    draft = seat().pair(spec).draft
    return swap_costs(draft, _unpacked(adapters))


def calibrated(spec: PairSpec, k: int) -> Costs:
    """On a worker: the plain draft's costs."""
    from harness.decode.calibrate import calibrate
    from harness.decode.making import resolve_drafter

    pair = seat().pair(spec)
    return calibrate(pair, resolve_drafter(pair, "generic"), max_k=k).costs


def _unpacked(adapters: Adapters) -> dict[str, Path]:
    files.require(digest for _, folder in adapters for _, digest in folder)
    return {name: files.unpacked(folder) for name, folder in adapters}
