"""The target's log-probabilities of the tokens it emits, from the passes that decide them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.decode.positions import top_ids
from harness.models.blas import mx


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """What the target thought at one position, before temperature and filters."""

    logprob: float
    """Natural log of the probability of the emitted token."""
    top: tuple[tuple[int, float], ...]
    """The most likely tokens and their log-probabilities, most likely first."""


class Logprobs:
    """Collects log-probabilities inside the evaluation of a round.

    Args:
        top: how many of the most likely tokens to keep per position; 0 keeps none.
    """

    def __init__(self, top: int) -> None:
        self.top = top

    def arrays(self, logits: mx.array) -> tuple[mx.array, ...]:
        """What :meth:`read` takes, lazily, of ``logits`` (n, vocab)."""
        rows = logits.astype(mx.float32)
        rows = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
        ids = top_ids(rows, max(1, min(self.top, rows.shape[-1])))
        return rows, ids, mx.take_along_axis(rows, ids, axis=-1)

    def read(self, arrays: tuple[mx.array, ...], tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """One entry per emitted token; the first rows of ``arrays`` are theirs."""
        rows, ids, logp = arrays
        own = mx.take_along_axis(rows[: len(tokens)], mx.array(tokens, dtype=mx.int32)[:, None], axis=-1)[:, 0].tolist()
        found = []
        for value, names, values in zip(own, ids.tolist(), logp.tolist(), strict=False):
            ordered = sorted(zip(names, values, strict=True), key=lambda pair: -pair[1])
            found.append(TokenLogprob(logprob=value, top=tuple(ordered[: self.top])))
        return tuple(found)
