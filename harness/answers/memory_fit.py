"""How many prompts a machine's free memory lets a target answer together."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from harness.models.blas import mx, nn
from harness.models.opened import vocabulary_rows

SHARE = 0.5
"""Of the free memory, for keys, values and logits; the rest is for what a pass computes in between."""
LOGITS = 4
"""Copies of a row of logits that choosing a token makes."""


class Fitting:
    """The memory that answers of a target take.

    Args:
        model: the target; what is no model of mlx takes nothing.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def rows(self, tokens: int) -> int:
        """How many prompts fit at once, each with ``tokens`` of prompt and answer; at least one."""
        if not isinstance(self.model, nn.Module):
            return sys.maxsize
        return max(1, int(SHARE * free_bytes() / (tokens * self.token_bytes + 4 * LOGITS * vocabulary_rows(self.model))))

    @cached_property
    def token_bytes(self) -> float:
        """Keys and values of one token."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        self.model(mx.zeros((1, 1), dtype=mx.int32), cache=cache)  # never evaluated: its shapes tell
        arrays = [value for layer in cache for value in vars(layer).values() if isinstance(value, mx.array) and value.ndim == 4]
        return sum(array.nbytes / array.shape[2] for array in arrays)


def free_bytes() -> int:
    """Memory that nothing uses, of the GPU where mlx computes on one."""
    import psutil

    if mx.default_device() != mx.cpu:
        facts = mx.device_info()
        total = facts.get("max_recommended_working_set_size") or facts.get("total_memory") or facts.get("memory_size")
        if total is not None:
            return max(0, int(total) - mx.get_active_memory())
    return int(psutil.virtual_memory().available)
