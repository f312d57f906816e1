"""Batches of the target's answers, decoded by workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.answers.collect import Batch, Fitting, default_decoder
from harness.answers.rollout import Decoder, Rollout
from harness.cluster.client import Cluster
from harness.cluster.pairs import PairSpec
from harness.cluster.seat import Reply, seat
from harness.core.records import Place

if TYPE_CHECKING:
    from harness.models.pair import Pair


class ClusterPool:
    """A :class:`harness.answers.collect.Pool` of workers.

    Args:
        cluster: whose.
        spec: the pair, whose target answers.
        fast: in the number format that is fastest there, as drafts are distilled from; else as answers are measured by.
        until: no more is answered once this is true.
        seen: told every reply before its answers pass on.

    Attributes:
        places: prompt's token ids to where it was answered.
    """

    def __init__(
        self,
        cluster: Cluster,
        spec: PairSpec,
        *,
        fast: bool = False,
        until: Callable[[], bool] = lambda: False,
        seen: Callable[[Reply], object] = lambda reply: None,
    ) -> None:
        self.cluster, self.spec, self.fast, self.until, self.seen = cluster, spec, fast, until, seen
        self.places: dict[tuple[int, ...], Place] = {}

    def __call__(self, batches: Sequence[Batch], /) -> Iterator[tuple[int, list[Rollout]]]:
        """As :class:`harness.answers.collect.Pool`."""
        calls = [(self.spec, batch, self.fast) for batch in batches]
        for number, reply in self.cluster.each(rollouts, calls, until=self.until):
            self.seen(reply)
            self.places |= dict.fromkeys(batches[number].prompts, Place(worker=reply.worker, machine=reply.machine))
            yield number, reply.value


def rollouts(spec: PairSpec, batch: Batch, fast: bool) -> list[Rollout]:
    """On a worker: continue the prompts of a batch."""
    own = seat()
    pair = own.pair(spec)
    decoder = own.keep(f"decoder {fast}", lambda: _decoder(pair, spec, fast))
    return batch.decoded(decoder, own.keep("fitting", lambda: Fitting(pair.target)))


def _decoder(pair: Pair, spec: PairSpec, fast: bool) -> Decoder:
    if not fast:
        return default_decoder(pair)
    from harness.answers.torch_batch import TorchTarget
    from harness.models.weights import pull_pair

    folder = pull_pair(spec.models, offline=spec.offline)["target"]
    assert folder is not None
    return TorchTarget(folder.path, pair.eos_token_ids)
