"""Training by the workers of a cluster: chains are independent tasks, and their files come back to this machine's cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapt.adapters.adapter_folder import CONFIG, METADATA, WEIGHTS
from harness.adapt.routers.on_workers import costs_on, replay_on, swaps_on
from harness.adapt.training.rounds import Known, RoundRecord, read_rounds
from harness.cluster.answering import ClusterPool
from harness.cluster.client import Cluster
from harness.cluster.pairs import PairSpec
from harness.cluster.seat import seat
from harness.core.files import write_atomic
from harness.core.progress import note
from harness.core.records import Trajectory
from harness.models.cache_key import cache_folder
from harness.run.chain_task import ROUNDS, ChainTask

if TYPE_CHECKING:
    from harness.adapt.routers.arms import Replaying
    from harness.decode.length import Costs
    from harness.decode.replay import ReplayRow

KEPT = (WEIGHTS, CONFIG, METADATA)
"""Files of an adapter; what else its training left stays on the worker."""


class ClusterCrew:
    """A :class:`harness.run.chain_task.Crew` of workers.

    Args:
        cluster: whose.
        spec: the pair.
    """

    def __init__(self, cluster: Cluster, spec: PairSpec) -> None:
        self.cluster, self.spec = cluster, spec

    @cached_property
    def pool(self) -> ClusterPool:
        """Answers in batches."""
        return ClusterPool(self.cluster, self.spec)

    def train(self, tasks: Sequence[ChainTask]) -> list[list[RoundRecord]]:
        """Run the chains that are not finished here."""
        todo = [task for task in tasks if task.finished is None]
        if todo:
            note(f"training {', '.join(task.name for task in todo)}")
        for number, reply in self.cluster.each(trained, [(self.spec, task) for task in todo]):
            _write(todo[number].folder, reply.value)
            note(f"{todo[number].name} is trained, on {reply.worker}")
        return [read_rounds(task.folder / ROUNDS) for task in tasks]

    def replay(self, folders: Mapping[str, Path], answers: Sequence[Trajectory], how: Replaying) -> list[ReplayRow]:
        """Every arm over these adapters along the answers."""
        return replay_on(self.cluster, self.spec, folders, answers, how)

    def swaps(self, folders: Mapping[str, Path]) -> Sequence[Any]:
        """What each policy of the adapter bank costs, on one worker."""
        return swaps_on(self.cluster, self.spec, folders)

    def costs(self, k: int) -> Costs:
        """Of the plain draft, up to that many tokens, on one worker."""
        return costs_on(self.cluster, self.spec, k)


def trained(spec: PairSpec, task: ChainTask) -> dict[str, bytes]:
    """On a worker: run a chain in its own cache, where a broken-off one goes on.

    Returns:
        Files of the chain by their path in its folder.
    """
    pair = seat().pair(spec)
    folder = cache_folder("trained", pair.name, task.folder.name)
    task.run(pair.draft, folder, Known())
    found = [p for p in folder.rglob("*") if p.name in KEPT or (p.parent == folder and p.suffix in (".json", ".jsonl"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what a worker sent; the file that says what is finished comes last."""
    for name in sorted(files, key=lambda name: name == ROUNDS):
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise ValueError(f"{name!r} lies outside the folder")
        write_atomic(path, files[name])
