"""A model with its cache: feed, and rewind exactly, whatever the cache is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.progress import NowAndThen, note
from harness.decode.rewind import Mark, forgets, parts, rewindable
from harness.models.blas import mx
from harness.models.opened import head_logits, hidden_states

PREFILL_CHUNK_TOKENS = 512
PREFILL_NOTE_S = 5.0
"""Seconds between the notes of a prompt that takes long to read."""


class CachedModel:
    """A causal model and the cache of the tokens it has seen.

    Args:
        model: callable ``model(tokens (1, n), cache=...) -> logits (1, n, vocab)`` from mlx-lm or of the same shape.
        make_cache: builds the list of cache objects, empty ones; mlx-lm's default when None.
        known: the cache of another object, and how many tokens it holds, to go on from.
    """

    def __init__(self, model: Any, make_cache: Any = None, known: tuple[list[Any], int] | None = None) -> None:
        self.model = model
        self._make_cache = make_cache
        self._marks: list[Mark] = []
        if known is None:
            self._restart()
        else:
            self._hold(*known)

    def _restart(self) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        fresh = self._make_cache() if self._make_cache else make_prompt_cache(self.model)
        self._hold([rewindable(cache) for cache in fresh], 0)

    def _hold(self, cache: list[Any], offset: int) -> None:
        self.cache = cache
        self.offset = offset
        """Tokens in the cache."""
        self._free = [cache for cache in parts(self.cache) if forgets(cache)]
        self._stuck = [cache for cache in parts(self.cache) if not forgets(cache)]

    def forward(self, tokens: mx.array, last: int | None = None) -> mx.array:
        """Feed ``tokens`` (n,) and return their logits (n, vocab), or those of the ``last`` of them, lazily."""
        self.offset += tokens.shape[0]
        if last is None:
            return self.model(tokens[None], cache=self.cache)[0]
        return head_logits(self.model, hidden_states(self.model, tokens[None], self.cache)[0, -last:])

    def prefill(self, tokens: Sequence[int]) -> None:
        """Feed ``tokens`` in chunks, evaluating only the cache (the output head never runs). Long ones tell how far they are."""
        timer = NowAndThen(every_s=PREFILL_NOTE_S)
        for start in range(0, len(tokens), PREFILL_CHUNK_TOKENS):
            self.forward(mx.array(tokens[start : start + PREFILL_CHUNK_TOKENS], dtype=mx.int32))
            mx.eval(self.held())
            done = start + PREFILL_CHUNK_TOKENS
            if done < len(tokens) and timer.due():
                note(f"  {done} of {len(tokens)} prompt tokens read")

    def held(self) -> list[Any]:
        """What a prefill evaluates."""
        return [c.state for c in self.cache]

    def mark(self) -> None:
        """Say that what is fed from here on may be taken back. Costs nothing where the cache forgets by itself."""
        if self._stuck:
            self._marks.append(Mark(self.offset, self._stuck))

    def trim_to(self, length: int, *, settled: bool = True) -> None:
        """Forget everything after the first ``length`` tokens. Where that is not ``settled``, earlier marks are kept.

        A cache that cannot do just that goes back to its last mark before, or to the start, so ``offset`` says what is to be fed again.
        """
        surplus = self.offset - length
        if surplus < 0:
            raise ValueError(f"cache holds {self.offset} tokens, cannot keep {length}")
        behind = self._back_to_mark(length) if surplus and self._stuck else surplus
        if settled:
            self._marks.clear()
        if behind is None or any(cache.trim(behind) != behind for cache in self._free if behind):
            self._restart()
        else:
            self.offset -= behind

    def _back_to_mark(self, length: int) -> int | None:
        """Restore the last mark at or before ``length``; return by how many tokens it is behind, None where there is none."""
        while self._marks and self._marks[-1].offset > length:
            self._marks.pop()
        if not self._marks:
            return None
        mark = self._marks.pop()
        mark.restore(self._stuck)
        return self.offset - mark.offset
