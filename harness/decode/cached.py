"""A model with its key-value cache: feed, and rewind exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.errors import HarnessError
from harness.models.blas import mx

PREFILL_CHUNK_TOKENS = 512


class CachedModel:
    """A causal model and the cache of the tokens it has seen.

    Args:
        model: callable ``model(tokens (1, n), cache=...) -> logits (1, n, vocab)`` from mlx-lm or of the same shape.
        make_cache: builds the list of cache objects; mlx-lm's default when None.
    """

    def __init__(self, model: Any, make_cache: Any = None) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.model = model
        self.cache = make_cache() if make_cache else make_prompt_cache(model)
        self.offset = 0
        """Tokens in the cache."""
        self._check_trimmable()

    def _check_trimmable(self) -> None:
        stuck = {type(c).__name__ for c in self.cache if not c.is_trimmable()}
        if stuck:
            raise HarnessError(
                f"the cache cannot be rewound after {self.offset} tokens ({', '.join(sorted(stuck))})",
                "Speculative decoding needs a plain key-value cache; with a sliding window keep prompt and output inside the window.",
            )

    def forward(self, tokens: mx.array) -> mx.array:
        """Feed ``tokens`` (n,) and return their logits (n, vocab), lazily."""
        self.offset += tokens.shape[0]
        return self.model(tokens[None], cache=self.cache)[0]

    def prefill(self, tokens: Sequence[int]) -> None:
        """Feed ``tokens`` in chunks, evaluating only the cache (the output head never runs)."""
        for start in range(0, len(tokens), PREFILL_CHUNK_TOKENS):
            self.forward(mx.array(tokens[start : start + PREFILL_CHUNK_TOKENS], dtype=mx.int32))
            mx.eval([c.state for c in self.cache])

    def trim_to(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens. Raises where a cache cannot."""
        surplus = self.offset - length
        self._check_trimmable()
        if surplus < 0:
            raise ValueError(f"cache holds {self.offset} tokens, cannot keep {length}")
        if surplus == 0:
            return
        if any(c.trim(surplus) != surplus for c in self.cache):
            raise HarnessError("the cache did not rewind as far as asked", "Use a model whose cache supports trimming.")
        self.offset = length
