"""Detailed mode: what draft and target thought at every decided position."""

from __future__ import annotations

import math

from harness.core.limits import TOP_K
from harness.core.records import Position
from harness.decode.drafters import Proposal
from harness.models.blas import mx
from harness.models.forward import draft_ids

BLOCK = 128
"""Vocabulary ids per block of :func:`top_ids`."""


def top_ids(rows: mx.array, k: int) -> mx.array:
    """Return the ids of the k largest entries per row of ``rows`` (n, vocab), in no order: (n, k).

    They lie in the k blocks with the largest maxima, so that only those are partitioned: over 152k ids a fraction of the time.
    """
    n, vocab = rows.shape
    blocks = -(-vocab // BLOCK)
    if blocks <= k:
        return mx.argpartition(-rows, kth=k - 1, axis=-1)[:, :k]
    padded = mx.pad(rows, ((0, 0), (0, blocks * BLOCK - vocab)), constant_values=-mx.inf).reshape(n, blocks, BLOCK)
    best = mx.argpartition(-padded.max(axis=-1), kth=k - 1, axis=-1)[:, :k]  # (n, k) blocks
    candidates = mx.take_along_axis(padded, best[:, :, None], axis=1).reshape(n, k * BLOCK)
    chosen = mx.argpartition(-candidates, kth=k - 1, axis=-1)[:, :k]
    return mx.take_along_axis(best, chosen // BLOCK, axis=-1) * BLOCK + chosen % BLOCK


class Details:
    """Collects per-position facts inside the round's one evaluation.

    Args:
        top_k: how many target log-probabilities to keep per position.
    """

    def __init__(self, top_k: int = TOP_K) -> None:
        self.top_k = top_k
        self._map: mx.array | None = None  # the draft's token map, the same object for a whole answer
        self._draft_id: dict[int, int] | None = None

    def arrays(self, logits: mx.array, proposal: Proposal, verdict: mx.array) -> tuple[mx.array, ...]:
        """Return what :meth:`positions` reads: lazily computed rows for the k decided positions."""
        k = proposal.k
        if k == 0:
            return ()
        rows = logits[:k]
        normaliser = mx.logsumexp(rows.astype(mx.float32), axis=-1)  # (k,)
        top = top_ids(rows, min(self.top_k, rows.shape[-1]))
        top_logp = mx.take_along_axis(rows, top, axis=-1) - normaliser[:, None]
        arrays = (rows, normaliser, top, top_logp)
        if proposal.logits is None:
            return arrays
        if proposal.token_map is not self._map:
            self._map = proposal.token_map
            self._draft_id = draft_ids(self._map)
        return (*arrays, proposal.logits, mx.logsumexp(proposal.logits.astype(mx.float32), axis=-1))

    def positions(self, arrays: tuple[mx.array, ...], draft: list[int], tokens: list[int], first: int) -> tuple[Position, ...]:
        """Build the records of one round: every draft position whose fate was decided.

        Args:
            arrays: from :meth:`arrays`, evaluated.
            draft: proposed ids.
            tokens: emitted ids of the round.
            first: index of ``tokens[0]`` in the answer.
        """
        n = min(len(draft), len(tokens))
        if n == 0 or not arrays:
            return ()
        emitted = mx.array(tokens[:n], dtype=mx.int32)[:, None]
        target_logp = (mx.take_along_axis(arrays[0][:n], emitted, axis=-1)[:, 0] - arrays[1][:n]).tolist()
        draft_p, ranks = self._draft_facts(arrays, draft[:n], tokens[:n])
        top, top_logp = arrays[2][:n].tolist(), arrays[3][:n].tolist()
        out = []
        for i in range(n):
            order = sorted(range(len(top[i])), key=lambda j: -top_logp[i][j])
            out.append(
                Position(
                    position=first + i,
                    draft_token=draft[i],
                    target_token=tokens[i],
                    draft_p=draft_p[i],
                    target_p=min(math.exp(target_logp[i]), 1.0),
                    target_rank=ranks[i],
                    top_tokens=tuple(top[i][j] for j in order),
                    top_logprobs=tuple(top_logp[i][j] for j in order),
                )
            )
        return tuple(out)

    def _draft_facts(self, arrays: tuple[mx.array, ...], draft: list[int], tokens: list[int]) -> tuple[list, list]:
        n = len(draft)
        if len(arrays) < 6:
            return [None] * n, [None] * n
        rows, normaliser = arrays[4][:n], arrays[5][:n]
        own = [self._id(t) for t in draft]
        theirs = [i if (i := self._id(t)) is not None and i < rows.shape[-1] else None for t in tokens]
        index = mx.array([[d if d is not None else 0, t if t is not None else 0] for d, t in zip(own, theirs, strict=True)])
        picked = mx.take_along_axis(rows, index, axis=-1)  # (n, 2)
        probability = mx.exp(picked[:, 0] - normaliser)
        rank = mx.sum(rows > picked[:, 1:], axis=-1)
        mx.eval(probability, rank)
        ranks = [r if t is not None else None for r, t in zip(rank.tolist(), theirs, strict=True)]
        return [min(p, 1.0) for p in probability.tolist()], ranks

    def _id(self, token: int) -> int | None:
        return token if self._draft_id is None else self._draft_id.get(token)
