"""Caches that outlive an answer: a prompt that begins as an earlier one, as every turn of a conversation does, is read from there on."""

from __future__ import annotations

import copy
from typing import Any

from harness.decode.cached import CachedModel

MOST = 64
"""Caches kept; a conversation has one of the target and one of its draft."""
MOST_BYTES = 2**30
"""Their memory; the oldest go first."""
TARGET = "target"


class KeptCaches:
    """What models have read, by model and by tokens.

    Kept keys and values are the model's own, so an answer that goes on from them is the same answer, up to the rounding of another way
    of cutting the prompt into passes.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        from mlx_lm.models.cache import LRUPromptCache

        self._store = self._source = LRUPromptCache(most, most_bytes)
        self.reused = 0
        """Prompt tokens that the target did not have to read again for the latest answer."""

    def into(self, other: KeptCaches) -> KeptCaches:
        """Caches that are read from here and kept in ``other``."""
        found = copy.copy(self)
        found._store, found.reused = other._store, 0
        return found

    def open(self, role: str, model: Any, prompt: list[int]) -> CachedModel:
        """``model`` with as much of ``prompt`` in its cache as was read before, its last token never.

        Args:
            role: whose cache; two models must not share a name.
            model: as for :class:`~harness.decode.cached.CachedModel`.
            prompt: token ids.
        """
        known, rest = self._source.fetch_nearest_cache(role, prompt[:-1])
        state = CachedModel(model, known=None if known is None else (known, len(prompt) - 1 - len(rest)))
        if role == TARGET:
            self.reused = state.offset
        return state

    def keep(self, role: str, state: CachedModel, tokens: list[int]) -> None:
        """Keep a model's cache, cut back to ``tokens``, which it has seen, or to as many of them as it can go back to."""
        state.trim_to(len(tokens))
        if state.offset:
            self._store.insert_cache(role, tokens[: state.offset], state.cache)
