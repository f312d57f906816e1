"""Batched target rollouts in torch: the tokens, log-probabilities and top-k a draft learns from.

Prompts of one call are left-padded into one batch; equal ones, and what all of them begin with, are read once. Rows that finish leave
the batch, so later steps cost less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.answers import torch_llama
from harness.answers.rollout import Decoder, Rollout
from harness.answers.torch_llama import Shape, Weights
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedPair
from routing.apart import apart

if TYPE_CHECKING:
    import torch

    from harness.models.blas import nn

_KEEP = 0.8
"""Rows are dropped from the batch once fewer than this share of them are still running."""
_GROW = 32
"""Positions the cache grows by. Products over whole, contiguous buffers are more than twice as fast as over a part of them."""
_BLOCK = 64
"""Entries of the vocabulary that are looked through together."""
_PROMPT_TOKENS = 2048
"""Prompt tokens that are read together."""
_CHOICES = 128
"""Rows whose next tokens are chosen together. Larger arrays than these two make come from the system anew at every operation, which
costs more than the arithmetic."""


@dataclass
class _Cache:
    """Keys and values (layers, B, kv_heads, capacity, head_dim), and which positions may be attended to (B, capacity)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    mask: torch.Tensor

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only the batch rows in ``rows`` (int64)."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.mask = self.mask[rows]

    def reserve(self, end: int) -> None:
        """Make room for positions up to ``end``."""
        import torch.nn.functional as fn

        more = end - self.mask.shape[1]
        if more > 0:
            more += _GROW
            self.keys = [fn.pad(k, (0, 0, 0, more)) for k in self.keys]
            self.values = [fn.pad(v, (0, 0, 0, more)) for v in self.values]
            self.mask = fn.pad(self.mask, (0, more))


class TorchTarget:
    """A decoder for :func:`harness.answers.collect.collect`: callable on one batch of prompts.

    Args:
        source: Llama or Qwen2: a model folder with config.json and model.safetensors, or a model that mlx-lm has loaded.
        eos: token ids that end a row.
        dtype: ``bfloat16``, or ``float32``, which is free of rounding differences; the faster one here when None.

    Raises:
        HarnessError: as :func:`harness.answers.torch_llama.read_shape`.
    """

    def __init__(self, source: Path | nn.Module, eos: frozenset[int], dtype: str | None = None) -> None:
        import torch

        self.eos = eos
        self.source, self.dtype = source, getattr(torch, dtype) if dtype else torch_llama.fast_dtype()
        self.shape = torch_llama.shape_of(source)

    @cached_property
    def weights(self) -> Weights:
        """Read with the first batch: answers that are on disk need none."""
        return torch_llama.load(self.source, self.shape, self.dtype)

    def __call__(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, top_k: int, seed: int) -> list[Rollout]:
        """Continue every prompt; greedy at temperature 0, else sampled with a generator seeded by ``seed``."""
        return _decode(self.shape, self.weights, prompts, max_tokens, temperature, top_k, self.eos, seed)


def torch_decoder(pair: LoadedPair, dtype: str | None = None) -> Decoder | None:
    """Decoder of the pair's target in torch where mlx computes on a CPU, on which torch is faster; None where it cannot.

    Args:
        pair: loaded pair.
        dtype: ``float32`` for the answers that mlx gives, but for rare near-ties. The fastest one when None: bfloat16 changes many
            answers somewhere, so they are fit to train on, not to measure by.
    """
    import torch

    if not torch_llama.worthwhile(pair.target, getattr(torch, dtype) if dtype else torch_llama.fast_dtype()):
        return None
    try:
        return TorchTarget(pair.target, pair.eos_token_ids, dtype)
    except HarnessError:  # another architecture, or quantised
        return None


@apart
def _decode(
    shape: Shape,
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float,
    top_k: int,
    eos: frozenset[int],
    seed: int,
) -> list[Rollout]:
    import torch

    where = weights["embed"].device
    with torch.inference_mode(), where:
        rng = torch.Generator(where).manual_seed(seed)
        return _continue(shape, weights, prompts, max_tokens, temperature, top_k, eos, rng)


def _continue(
    shape: Shape,
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float,
    top_k: int,
    eos: frozenset[int],
    rng: torch.Generator,
) -> list[Rollout]:
    import torch

    once = list(dict.fromkeys(map(tuple, prompts)))
    shared = _shared_prefix(once)
    cache, pad, hidden = _read(shape, weights, once, shared)
    if len(once) < len(prompts):
        place = {prompt: i for i, prompt in enumerate(once)}
        rows = torch.tensor([place[tuple(prompt)] for prompt in prompts])
        cache.keep(rows)
        pad, hidden = pad[rows], hidden[rows]
    first = max(map(len, once))
    ends = torch.tensor(sorted(eos))
    live, done = torch.arange(len(prompts)), torch.zeros(len(prompts), dtype=torch.bool)
    lengths = torch.full((len(prompts),), max_tokens)
    out: list[torch.Tensor] = []
    for step in range(max_tokens):
        chosen = [_choose(weights, rows, temperature, top_k, rng) for rows in hidden.split(_CHOICES)]
        found = [torch.cat(part) for part in zip(*chosen, strict=True)]
        out = out or [part.new_zeros(len(prompts), max_tokens, *part.shape[1:]) for part in found]
        for all_rows, part in zip(out, found, strict=True):
            all_rows[live, step] = part
        picked = found[0]
        ended = torch.isin(picked, ends) & ~done
        lengths[live[ended]] = step + 1
        done = done | ended
        alive = (~done).nonzero()[:, 0]
        if not len(alive) or step == max_tokens - 1:
            break
        if len(alive) < _KEEP * len(live):
            cache.keep(alive)
            picked, pad, live, done = picked[alive], pad[alive], live[alive], done[alive]
        hidden = _forward(shape, weights, cache, picked[:, None], (first + step - pad)[:, None], first + step)[:, -1]
    return _rollouts(lengths.tolist(), *(part.cpu().numpy() for part in out))


def _read(shape: Shape, weights: Weights, prompts: Sequence[Sequence[int]], shared: int) -> tuple[_Cache, torch.Tensor, torch.Tensor]:
    """Cache of the prompts, the padding before each (B,) and their last hidden states (B, hidden)."""
    import torch

    rests = [list(p[shared:]) for p in prompts]
    width = max(map(len, rests))
    cache = _new_cache(shape, weights, len(prompts), shared + width)
    cache.mask[:, :shared] = True
    if shared:
        _forward(shape, weights, cache, torch.tensor([list(prompts[0][:shared])]), torch.arange(shared)[None], 0)
    tokens = torch.tensor([[0] * (width - len(rest)) + rest for rest in rests])
    pad = torch.tensor([width - len(rest) for rest in rests])
    cache.mask[:, shared:] = torch.arange(width)[None] >= pad[:, None]
    positions = shared + (torch.arange(width)[None] - pad[:, None]).clamp(min=0)
    together = max(1, _PROMPT_TOKENS // width)
    parts = [slice(at, at + together) for at in range(0, len(prompts), together)]
    return cache, pad, torch.cat([_forward(shape, weights, cache, tokens[at], positions[at], shared, at)[:, -1] for at in parts])


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all prompts have in common, the system turn for example; at least one token stays over."""
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if len({p[i] for p in prompts}) > 1), limit)


def _new_cache(shape: Shape, weights: Weights, rows: int, capacity: int) -> _Cache:
    import torch

    size = (rows, shape.kv_heads, capacity, shape.head_dim)
    dtype = weights["embed"].dtype
    return _Cache(
        keys=[torch.zeros(size, dtype=dtype) for _ in range(shape.layers)],
        values=[torch.zeros(size, dtype=dtype) for _ in range(shape.layers)],
        mask=torch.zeros(rows, capacity, dtype=torch.bool),
    )


def _forward(
    shape: Shape,
    weights: Weights,
    cache: _Cache,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    start: int,
    at: slice = slice(None),
) -> torch.Tensor:
    """Normed hidden states (B, n, hidden) of ``tokens`` (B, n), which stand from ``start`` on in the rows ``at`` of the cache.

    What one row holds may stand for all rows of the cache.
    """
    import torch
    import torch.nn.functional as fn

    rows, n = tokens.shape
    end = start + n
    h = weights["embed"][tokens]
    rope = torch_llama.rope_tables(shape, positions, h.dtype)
    one = n == 1 and rows == len(cache.mask)
    if one:
        cache.reserve(end)
        cache.mask[:, start] = True
        bias = torch.zeros(cache.mask.shape, dtype=h.dtype).masked_fill_(~cache.mask, -torch.inf)
        bias = bias.repeat_interleave(shape.kv_heads, dim=0)[:, None]
    else:
        mask = cache.mask[at][:rows, None, None, :end]
        mask = mask & torch.ones(n, end, dtype=torch.bool).tril(start)
        mask = mask | torch.ones(n, end, dtype=torch.bool).triu(start).tril(start)  # padding sees itself: its softmax stays defined
    for i in range(shape.layers):

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: int = i) -> torch.Tensor:
            cache.keys[i][at, :, start:end] = k
            cache.values[i][at, :, start:end] = v
            if one:  # the query heads of one key head are rows of one product
                keys, values = cache.keys[i].flatten(0, 1), cache.values[i].flatten(0, 1)
                scores = torch.baddbmm(bias, q.reshape(len(keys), -1, shape.head_dim), keys.transpose(1, 2), alpha=shape.head_dim**-0.5)
                return torch.bmm(torch.softmax(scores, dim=-1), values).reshape(rows, 1, -1)
            keys, values = cache.keys[i][at][:rows, :, :end], cache.values[i][at][:rows, :, :end]
            return fn.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True).transpose(1, 2).flatten(2)

        h = torch_llama.block(shape, weights, i, h, rope, attend=attend)
    return torch_llama.norm(shape, h, weights["norm"])


def _choose(
    weights: Weights, hidden: torch.Tensor, temperature: float, top_k: int, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Next tokens (B,), their log p after temperature (B,), and the top-k ids and log p at temperature 1 (B, k).

    A vocabulary has a hundred thousand entries, so they are gone through in blocks: the k largest are in the k blocks with the
    largest maxima, and a token is drawn by its block first.
    """
    import torch
    import torch.nn.functional as fn

    head = weights["embed"]
    logits = hidden @ head.T
    if missing := -logits.shape[1] % _BLOCK:
        logits = fn.pad(logits, (0, missing), value=-torch.inf)
    blocks = logits.unflatten(1, (-1, _BLOCK))
    maxima = blocks.amax(-1)
    best = maxima.topk(min(max(top_k, 1), maxima.shape[1])).indices
    rough, within = _of_block(blocks, best).flatten(1).topk(max(top_k, 1))
    ids = best.gather(1, within // _BLOCK) * _BLOCK + within % _BLOCK
    highest = maxima.amax(1)[:, None].float()
    others = _copy(blocks).sub_(highest[:, None]).exp_().sum((1, 2)) - (rough - highest).exp_().sum(1)
    exact = (head[ids].float() @ hidden.float()[:, :, None])[:, :, 0]  # bfloat16 logits are eighths: many ties among the first
    exact, order = exact.sort(dim=-1, descending=True, stable=True)
    ids, exact = ids.gather(1, order), exact - highest
    top = exact - (others.clamp(min=0) + exact.exp().sum(1)).log()[:, None]
    if temperature == 0:
        return ids[:, 0], top[:, 0], ids, top
    weight = _copy(blocks).sub_(highest[:, None]).div_(temperature).exp_()
    sums = weight.sum(-1).double()
    block, rest = _draw(sums, torch.rand(len(sums), generator=rng, dtype=torch.float64))
    own = _of_block(weight, block[:, None])[:, 0]
    token, _ = _draw(own.double(), rest)
    logp = own.gather(1, token[:, None])[:, 0].log() - sums.sum(1).log().float()
    return block * _BLOCK + token, logp, ids, top


def _copy(blocks: torch.Tensor) -> torch.Tensor:
    """A float32 copy to change in place, faster than arithmetic of bfloat16 with float32."""
    import torch

    return blocks.to(torch.float32, copy=True)


def _of_block(blocks: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Entries (B, n, _BLOCK) of the chosen blocks (B, n)."""
    return blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK))


def _draw(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one index per row (B, n) with ``uniform`` (B,) in [0, 1); also return where in the index's own share it fell, in [0, 1)."""
    import torch

    ends = weights.cumsum(1)
    aim = (uniform * ends[:, -1])[:, None]
    index = torch.searchsorted(ends, aim, right=True).clamp(max=weights.shape[1] - 1)
    share = weights.gather(1, index)
    rest = (aim - ends.gather(1, index) + share) / share
    return index[:, 0], rest[:, 0].clamp(0, 1 - 2**-40)


def _rollouts(lengths: list[int], picked: np.ndarray, logp: np.ndarray, ids: np.ndarray, top: np.ndarray) -> list[Rollout]:
    """Cut the rows (B, max_tokens, ...) to their lengths."""
    return [
        Rollout(
            tokens=picked[i, :n].tolist(),
            logprobs=logp[i, :n].astype(np.float32),
            top_tokens=ids[i, :n].astype(np.int32),
            top_logprobs=top[i, :n].astype(np.float16),
        )
        for i, n in enumerate(lengths)
    ]
