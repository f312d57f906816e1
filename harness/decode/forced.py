"""What a draft says along a known answer, token by token: the outcome of one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.core.records import Trajectory
from harness.decode.model_drafter import ModelDrafter
from harness.decode.sampling import Draws, Sampling, log_softmax, processed_logprobs
from harness.decode.simulate import MOST_DRAFTED, AlongAnswer, Beyond, run_lengths
from harness.models.blas import mx
from harness.models.forward import ForcedHead, draft_ids, forced_head
from harness.models.opened import hidden_states, open_model

HEAD_ROWS = 256
"""Rows per call of the output head: 256 x 152k logits are 150 MB."""
BATCH_TOKENS = 2048
"""Padded tokens per teacher-forced batch."""
NOISE = 1e-3
"""Gap of two logits that other kernels may close."""


@dataclass(frozen=True, kw_only=True)
class ForcedPass:
    """What one teacher-forced pass of a draft over one trajectory gives."""

    match: np.ndarray
    """(n,) bool: the draft's favourite equals the target's token."""
    gap: np.ndarray
    """(n,) float32: top-1 minus top-2 draft logit."""
    favourite: np.ndarray
    """(n,) int32: the draft's favourite, as the target's id."""
    confidence: np.ndarray
    """(n,) float32: its probability under the draft."""
    logq: np.ndarray | None = None
    """(n,) float32: processed draft log-probability of the target's token, for temperature above 0."""
    beyond: Beyond = field(default_factory=dict, compare=False, repr=False)
    """What the draft said behind tokens that the answer has not, as far as it was asked."""
    draws: Draws | None = None
    """How its tokens are drawn; None for greedy ones. A drawn pass is made by :func:`harness.decode.drawn.drawn_passes`."""

    most = MOST_DRAFTED
    """Most tokens of a round."""

    @property
    def runs(self) -> np.ndarray:
        """(n,) int: how many favourites in a row equal the answer, from each token on."""
        return run_lengths(self.match)

    def stands(self, logprobs: np.ndarray) -> np.ndarray:
        """(n,) chance that each token stands where it is drafted; ``logprobs`` (n,) are the target's."""
        assert self.logq is not None
        chances: np.ndarray = np.minimum(1.0, np.exp(self.logq.astype(np.float64) - logprobs))
        return chances

    def near_ties(self) -> int:
        """Positions where another kernel may flip the favourite: those whose gap is below :data:`NOISE`."""
        return int((self.gap < NOISE).sum())

    def along(self, drafter: ModelDrafter, trajectory: Trajectory) -> AlongAnswer:
        """The draft beside the answer."""
        return AlongAnswer(drafter, trajectory, self.match, self.favourite, self.confidence, self.beyond, self.draws)


Judge = Callable[[int, ForcedHead, mx.array, Sequence[int]], ForcedPass]
"""Number of an answer, the draft's head, its states (n, dim) before each token, the tokens (n,) as the draft's ids -> what it says."""


def score_rows(head: ForcedHead, hidden: mx.array, places: mx.array, ids: Sequence[int], sampling: Sampling | None) -> ForcedPass:
    """Judge what a draft says at some places of an answer, a few rows of the head at a time.

    Args:
        head: the draft's.
        hidden: (n, dim) normed states.
        places: (n,) int32: how much of the answer stands in the context of each.
        ids: the answer's token there, as the draft's id; one that the draft lacks is -1.
        sampling: temperature and filters, to get ``logq``; None or greedy for none.
    """
    found: list[list[Any]] = [[] for _ in range(5)]
    for start in range(0, len(ids), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        logits = head.logits(hidden[rows], places[rows])
        wanted = mx.array(ids[rows], dtype=mx.int32)
        wanted = mx.where(wanted < logits.shape[-1], wanted, -1)
        best = mx.argmax(logits, axis=-1)
        top2 = -mx.partition(-logits, kth=1, axis=-1)[:, :2]
        confidence = mx.exp(mx.max(log_softmax(logits), axis=-1))
        ids_of = best if head.token_map is None else head.token_map[best]
        parts = [best == wanted, (top2[:, 0] - top2[:, 1]).astype(mx.float32), ids_of.astype(mx.int32), confidence]
        if sampling is not None and not sampling.greedy:
            logq = processed_logprobs(logits, sampling)
            picked = mx.take_along_axis(logq, mx.maximum(wanted, 0)[:, None], axis=-1)[:, 0]
            parts.append(mx.where(wanted >= 0, picked, -mx.inf))
        mx.eval(parts)
        for store, part in zip(found, parts, strict=False):
            store.append(np.array(part))
    match, gap, favourite, confidence_, *logqs = [np.concatenate(parts) for parts in found if parts]
    return ForcedPass(match=match, gap=gap, favourite=favourite, confidence=confidence_, logq=logqs[0] if logqs else None)


def forced_passes(
    model: Any,
    token_map: mx.array | None,
    trajectories: Sequence[Trajectory],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    judge: Judge | None = None,
) -> list[ForcedPass]:
    """Run the draft once over each trajectory, batched by length; the output head runs on output positions only.

    Args:
        model: the draft.
        token_map: (draft vocab,) target ids of a pruned draft; None is the identity.
        trajectories: what the target produced.
        sampling: temperature and filters of the target's run, to get ``logq``; None or greedy for match only.
        progress: called with the number of trajectories finished.
        judge: as for :func:`variant_passes`.

    Returns:
        One :class:`ForcedPass` per trajectory, in order.
    """
    found = variant_passes(model, token_map, trajectories, lambda tokens: [hidden_states(model, tokens)], sampling, progress, judge)
    return [forced for (forced,) in found]


def variant_passes(
    model: Any,
    token_map: mx.array | None,
    trajectories: Sequence[Trajectory],
    states: Callable[[mx.array], Iterable[mx.array]],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    judge: Judge | None = None,
) -> list[list[ForcedPass]]:
    """As :func:`forced_passes`, of several variants of one draft that share its output head, batch by batch.

    Args:
        model: the draft whose head it is.
        token_map: as there.
        trajectories: as there.
        states: gives each variant's normed hidden states (batch, width, dim) of tokens (batch, width), one after the other.
        sampling: as there.
        progress: as there.
        judge: what to make of the states; :func:`score_rows` by default.

    Returns:
        Per trajectory, in order, one :class:`ForcedPass` per variant.
    """
    lookup = draft_ids(token_map)
    out: list[list[ForcedPass]] = [[] for _ in trajectories]
    whole = not hasattr(model, "hidden_states") and open_model(model) is None  # its states are logits
    lengths = [len(t.prompt_tokens) + len(t.tokens) for t in trajectories]
    for batch in length_batches(lengths, HEAD_ROWS if whole else BATCH_TOKENS):
        rows = [[*trajectories[i].prompt_tokens, *trajectories[i].tokens[:-1]] for i in batch]
        width = max(map(len, rows))
        padded = mx.array([row + [0] * (width - len(row)) for row in rows], dtype=mx.int32)
        heads = [forced_head(model, token_map, trajectories[i].prompt_tokens, trajectories[i].tokens) for i in batch]
        lookups = [lookup if head.token_map is token_map else draft_ids(head.token_map) for head in heads]
        for hidden in states(padded):  # padding on the right is invisible to causal attention
            for b, i in enumerate(batch):
                t = trajectories[i]
                first = len(t.prompt_tokens) - 1
                ids = list(t.tokens) if (known := lookups[b]) is None else [known.get(x, -1) for x in t.tokens]
                own = hidden[b, first : first + len(ids)]
                out[i].append(judge(i, heads[b], own, ids) if judge else score_rows(heads[b], own, places(ids), ids, sampling))
            del hidden
        if progress:
            progress(sum(map(bool, out)))
        mx.clear_cache()
    return out


def places(ids: Sequence[int]) -> mx.array:
    """(n,) int32: how much of an answer stands before each of its tokens."""
    return mx.arange(len(ids), dtype=mx.int32)


def length_batches(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Group indices of similar length, about ``tokens`` padded ones each, so that padding stays small."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
