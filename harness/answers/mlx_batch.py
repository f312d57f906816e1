"""Batched decoding of the target with mlx-lm's batch generator, where that gives what the model gives alone; else one by one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.answers.rollout import Rollout
from harness.core.limits import joined_seed
from harness.models.blas import mx, nn, one_stream
from harness.models.opened import PROBE_ERRORS, PROBE_TOKENS, vocabulary_rows

# isort: split
from mlx_lm.generate import BatchGenerator, generate_step
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

    @functools.cached_property
    def exact(self) -> bool:
        """Whether two prompts of different length, in one batch, get the logits that each gets alone.

        Batches fill up the shorter prompt, which not every recurrent or shared layer leaves out of account.
        """
        rows = vocabulary_rows(self.model)
        short, long = [i % rows for i in range(3)], [(7 * i + 5) % rows for i in range(PROBE_TOKENS)]
        greedy: dict[str, Any] = {"max_tokens": 2, "temperature": 0.0, "top_k": min(8, rows), "seed": 0}
        try:
            together = self._together([short, long], **greedy)
        except (*PROBE_ERRORS, NotImplementedError):
            return False
        alone = [self._alone(prompt, **greedy) for prompt in (short, long)]
        return all(a.tokens == b.tokens and np.allclose(a.logprobs, b.logprobs, atol=0.02) for a, b in zip(together, alone, strict=True))

    def __call__(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, top_k: int, seed: int) -> list[Rollout]:
        """Continue every prompt; greedy at temperature 0, else sampled from mlx's generator seeded with ``seed``."""
        how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
        if self.exact:
            return self._together(prompts, seed=seed, **how)
        return [self._alone(prompt, seed=joined_seed(seed, i), **how) for i, prompt in enumerate(prompts)]

    def _alone(self, prompt: Sequence[int], *, max_tokens: int, temperature: float, top_k: int, seed: int) -> Rollout:
        """Continue one prompt."""
        mx.random.seed(seed)
        found: list[_Step] = []
        ids, sampler = mx.array(prompt, dtype=mx.int32), make_sampler(temperature)
        for token, logp in generate_step(ids, self.model, max_tokens=max_tokens, sampler=sampler, **one_stream()):
            found += _details(mx.array([token]), logp[None], temperature, top_k)
            if token in self.eos:
                break
        return _rollout(found)

    def _together(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, top_k: int, seed: int) -> list[Rollout]:
        """Continue every prompt in mlx-lm's batches."""
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
    return _details(mx.array([r.token for r in responses]), mx.stack([r.logprobs for r in responses]), temperature, top_k)


def _details(tokens: mx.array, logp: mx.array, temperature: float, top_k: int) -> list[_Step]:
    """Details of tokens (rows,) drawn from log-probabilities (rows, vocab)."""
    logp = logp.astype(mx.float32)
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
