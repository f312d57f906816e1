"""What a decoder of many prompts returns for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a decoder returns for one prompt; n emitted tokens, the end-of-sequence token included."""

    tokens: list[int]
    """Emitted ids, length n."""
    logprobs: np.ndarray
    """(n,) float32: log p of each emitted token after temperature."""
    top_tokens: np.ndarray
    """(n, k) int32: most likely ids, most likely first."""
    top_logprobs: np.ndarray
    """(n, k) float16: their log p at temperature 1."""

    def first(self, n: int) -> Rollout:
        """The first ``n`` tokens, where there are more."""
        if len(self.tokens) <= n:
            return self
        return Rollout(**{name: values[:n] for name, values in vars(self).items()})


class Decoder(Protocol):
    """Anything that continues a batch of prompts."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, top_k: int, seed: int
    ) -> list[Rollout]: ...
