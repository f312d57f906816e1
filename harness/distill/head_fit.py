"""A head that reads its target, in torch: its untrained weights, and several steps of a draft at every place of an answer at once.

The first step reads the target's states, the further ones what the head itself gave one token before, as when it drafts. Each place
then has a chain of its own: it sees the answer up to itself, and the steps of its chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.answers import torch_llama
from harness.answers.torch_llama import LAYERS, Shape, Weights
from harness.core.errors import HarnessError
from harness.distill.cut_weights import mlx_weights
from harness.distill.distill_config import HeadConfig
from harness.distill.fit import named_logits, padded
from harness.distill.lessons import Head, Lesson
from harness.models.blas import mx
from routing.apart import apart

if TYPE_CHECKING:
    import torch

Known = list[tuple["torch.Tensor", "torch.Tensor"]]
"""Keys and values (B, kv_heads, n, head_dim) of the steps so far, of one block."""


def places(shape: Shape, config: HeadConfig) -> tuple[int, ...]:
    """After how many blocks the target is read.

    Raises:
        HarnessError: after more than it has, or the head could not be quantised once it is trained.
    """
    taps = config.taps or (min(2, shape.layers), max(1, shape.layers // 2), max(1, shape.layers - 3))
    if not all(1 <= tap <= shape.layers for tap in taps):
        raise HarnessError(f"head.taps is {list(taps)}, the target has {shape.layers} blocks", f"Use numbers from 1 to {shape.layers}.")
    for width in (shape.hidden, shape.heads * shape.head_dim, shape.intermediate):
        if width % config.group_size:
            fitting = [str(n) for n in (32, 64, 128) if not shape.hidden % n and not shape.intermediate % n]
            advice = f"Set it to {' or '.join(fitting)}." if fitting else "This target's width cannot be stored in 4 or 8 bits."
            raise HarnessError(f"head.group_size is {config.group_size}, which does not divide the target's width of {width}", advice)
    return taps


@apart
def initial_head(shape: Shape, target: Weights, config: HeadConfig, vocab: np.ndarray, seed: int) -> tuple[Shape, Weights]:
    """Weights of an untrained head: random ones, but for the final norm and the output rows of ``vocab``, which are the target's."""
    import dataclasses

    import torch

    random = torch.Generator().manual_seed(seed)

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * columns**-0.5

    dim, taps = shape.hidden, len(places(shape, config))
    inputs = {"o": shape.heads * shape.head_dim, "down": shape.intermediate}
    weights: Weights = {f"state_norm.{i}": torch.ones(dim) for i in range(taps)}
    weights |= {"fuse": drawn(dim, taps * dim), "join": drawn(dim, 2 * dim), "token_norm": torch.ones(dim), "own_norm": torch.ones(dim)}
    for i in range(config.layers):
        for name in LAYERS:
            size = sum(shape.rows(name))
            weights[f"layers.{i}.{name}"] = torch.ones(dim) if name.startswith("norm") else drawn(size, inputs.get(name, dim))
    weights |= {"norm": target["norm"], "head": target["embed"][torch.from_numpy(vocab).long().to(target["embed"].device)]}
    where = target["embed"].device
    return dataclasses.replace(shape, layers=config.layers), {name: w.float().clone().to(where) for name, w in weights.items()}


@apart
def load_target(folder: Path, shape: Shape) -> tuple[Weights, torch.Tensor]:
    """The target's weights in the format of fast products, its norms float32; and its embeddings, float32."""
    target = torch_llama.load(folder, shape, torch_llama.fast_dtype())
    return {name: w.float() if "norm" in name else w for name, w in target.items()}, target["embed"].float()


@apart
def read_states(shape: Shape, target: Weights, taps: Sequence[int], tokens: np.ndarray) -> np.ndarray:
    """The target's states (n, taps x hidden) float32 after each of ``tokens`` (n,)."""
    import torch

    with torch.inference_mode():
        ids = torch.from_numpy(tokens).long()[None].to(target["embed"].device)
        found: np.ndarray = torch_llama.states_after(shape, target, ids, taps)[0].cpu().numpy()
        return found


class HeadForward:
    """Runs a head over lessons.

    Args:
        shape: of its blocks.
        embed: the target's embeddings, float32.
        states: the target's states (n - 1, taps x hidden) of a lesson, but for its last token.
        config: how many steps, and what they weigh.
    """

    def __init__(self, shape: Shape, embed: torch.Tensor, states: Callable[[Lesson], np.ndarray], config: HeadConfig) -> None:
        self._shape, self._embed, self._states, self._config = shape, embed, states, config
        self.about: dict[str, Any] = {"head": config.model_dump()}
        self.decay = config.decay

    def __call__(self, weights: Weights, batch: Sequence[Lesson], head: Head) -> list[tuple[torch.Tensor, Sequence[Lesson]]]:
        import torch
        import torch.nn.functional as fn

        tokens = padded(batch).to(self._embed.device)
        width = tokens.shape[1]
        before = self._fused(weights, self._padded_states(batch, width))
        known: list[Known] = [[] for _ in range(self._shape.layers)]
        found: list[tuple[torch.Tensor, Sequence[Lesson]]] = []
        for step in range(self._config.unrolled):
            left = [(row, e, len(e.labels) - step) for row, e in enumerate(batch) if len(e.labels) > step]
            if not left:
                break
            before = self._step(weights, fn.pad(tokens[:, step:], (0, step)), before, step, known)
            where = torch.cat([torch.arange(e.prompt - 1, e.prompt - 1 + n) + row * width for row, e, n in left])
            h = torch_llama.norm(self._shape, before.flatten(0, 1)[where.to(before.device)], weights["norm"])
            found.append((named_logits(h, weights, self._embed, head), [e.later(step) for _, e, _ in left]))
        return found

    def _padded_states(self, batch: Sequence[Lesson], width: int) -> torch.Tensor:
        """States (B, L, taps x hidden) of the token before each; zeros before the first."""
        import torch

        rows = [self._states(e) for e in batch]
        out = np.zeros((len(batch), width, rows[0].shape[1]), dtype=np.float32)
        for row, states in zip(out, rows, strict=True):
            row[1 : len(states)] = states[:-1]
        return torch.from_numpy(out).to(self._embed.device)

    def _fused(self, weights: Weights, states: torch.Tensor) -> torch.Tensor:
        """One state (B, L, hidden) for those of all places."""
        import torch
        import torch.nn.functional as fn

        parts = states.split(self._shape.hidden, dim=-1)
        normed = [torch_llama.norm(self._shape, part, weights[f"state_norm.{i}"]) for i, part in enumerate(parts)]
        return fn.linear(torch.cat(normed, dim=-1), weights["fuse"])

    def _step(self, weights: Weights, tokens: torch.Tensor, before: torch.Tensor, step: int, known: list[Known]) -> torch.Tensor:
        """States (B, L, hidden) of the ``step``-th token of a draft that starts at each place."""
        import torch
        import torch.nn.functional as fn

        shape = self._shape
        token = torch_llama.norm(shape, self._embed[tokens], weights["token_norm"])
        own = torch_llama.norm(shape, before.to(token.dtype), weights["own_norm"])
        h = fn.linear(torch.cat([token, own], dim=-1), weights["join"]).float()
        rope = torch_llama.rope_tables(shape, torch.arange(step, step + tokens.shape[1], device=tokens.device)[None], h.dtype)
        for i in range(shape.layers):
            h = torch_llama.block(shape, weights, i, h, rope, attend=partial(attend_chain, known=known[i]))
        return h


def attend_chain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, known: Known) -> torch.Tensor:
    """Attention (B, heads, n, d) -> (B, n, heads d) of a step: to the first step's keys up to the same place, and to the place's own since.

    ``known`` has the earlier steps and gets this one.
    """
    import torch

    known.append((k, v))
    if len(known) == 1:
        return torch_llama.attend(q, k, v)
    n, groups = q.shape[2], q.shape[1] // k.shape[1]
    wide = [(a.repeat_interleave(groups, dim=1), b.repeat_interleave(groups, dim=1)) for a, b in known]
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ wide[0][0].transpose(-1, -2)).masked_fill(later, -torch.inf)
    own = torch.stack([(q * keys).sum(dim=-1) for keys, _ in wide[1:]], dim=-1)  # (B, heads, n, steps - 1)
    share = torch.softmax(torch.cat([scores, own.to(scores.dtype)], dim=-1) * q.shape[-1] ** -0.5, dim=-1)
    out = share[..., :n].to(v.dtype) @ wide[0][1]
    for i, (_, values) in enumerate(wide[1:]):
        out = out + share[..., n + i, None].to(v.dtype) * values
    return out.transpose(1, 2).flatten(2)


def head_weights(shape: Shape, weights: Weights) -> dict[str, mx.array]:
    """Torch weights of a head under the names of :class:`harness.models.reading_head.ReadingHead`."""
    blocks = {name.removeprefix("model."): w for name, w in mlx_weights(shape, weights).items()}
    return blocks | {name: mx.array(w) for name, w in _own(weights).items()}


@apart
def _own(weights: Weights) -> dict[str, np.ndarray]:
    names = {name: name for name in ("fuse", "join", "token_norm", "own_norm")}
    names |= {name: name.replace("state_norm", "state_norms") for name in weights if name.startswith("state_norm")}
    return {f"{new}.weight": weights[name].detach().cpu().numpy() for name, new in names.items()}
