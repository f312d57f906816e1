"""Batched decoding of the target with mlx-lm's batch generator, for every model mlx-lm knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.answers.rollout import Rollout
from harness.models.blas import mx, nn, one_stream

# isort: split
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler


class BatchedTarget:
    """The default decoder of :func:`harness.answers.collect.collect`.

    Args:
        model: target that mlx-lm loaded.
        eos: token ids that end a row.
    """

    def __init__(self, model: nn.Module, eos: frozenset[int]) -> None:
        self.model = model
        self.eos = eos

    def __call__(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, top_k: int, seed: int) -> list[Rollout]:
        """Continue every prompt; greedy at temperature 0, else sampled from mlx's generator seeded with ``seed``."""
        mx.random.seed(seed)
        generator = BatchGenerator(
            self.model,
            stop_tokens=[[token] for token in sorted(self.eos)],
            sampler=make_sampler(temperature),
            completion_batch_size=len(prompts),
            prefill_batch_size=min(len(prompts), 8),
            **one_stream(),
        )
        try:
            rows = generator.insert([list(p) for p in prompts], [max_tokens] * len(prompts))
            found: dict[int, list[_Step]] = {row: [] for row in rows}
            running = len(rows)
            while running:
                responses = generator.next_generated()
                for response, step in zip(responses, _steps(responses, temperature, top_k), strict=True):
                    found[response.uid].append(step)
                    running -= response.finish_reason is not None
        finally:
            generator.close()
        return [_rollout(found[row]) for row in rows]


_Step = tuple[int, float, np.ndarray, np.ndarray]
"""Token, its log p, top-k ids and log p."""


def _steps(responses: Sequence[Any], temperature: float, top_k: int) -> list[_Step]:
    """Details of one generated token per row, computed for all rows at once."""
    if not responses:
        return []
    logp = mx.stack([r.logprobs for r in responses]).astype(mx.float32)  # (rows, vocab)
    tokens = mx.array([r.token for r in responses])
    top_k = min(top_k, logp.shape[-1])
    ids = mx.argpartition(-logp, kth=top_k - 1, axis=-1)[:, :top_k]
    top = mx.take_along_axis(logp, ids, axis=-1)
    order = mx.argsort(-top, axis=-1)
    ids, top = mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(top, order, axis=-1)
    scaled = logp if temperature == 0 else logp / temperature - mx.logsumexp(logp / temperature, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    mx.eval(ids, top, chosen)
    return list(zip(tokens.tolist(), chosen.tolist(), np.array(ids), np.array(top), strict=True))


def _rollout(steps: Sequence[_Step]) -> Rollout:
    return Rollout(
        tokens=[s[0] for s in steps],
        logprobs=np.array([s[1] for s in steps], dtype=np.float32),
        top_tokens=np.stack([s[2] for s in steps]).astype(np.int32),
        top_logprobs=np.stack([s[3] for s in steps]).astype(np.float16),
    )
