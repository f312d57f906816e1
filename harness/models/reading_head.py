"""A head that reads its target: one or two blocks fed by the target's hidden states and by the tokens that it emitted.

At each token the target's states of a low, a middle and a high place, one token earlier, are normed, joined and projected to one; with
the token's embedding they are projected again and go through the blocks. What the last block gives stands in for the target's states at
the tokens that the head itself proposes. Its output head names a short list of ids; what stands in prompt and answer comes from the
target's embedding rows.

On disk a head is a folder: ``config.json`` and ``head.safetensors``, as :mod:`harness.models.packed` writes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.blas import lay_out, mx, nn

# isort: split
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.base import create_attention_mask

from harness.models.draft import Draft
from harness.models.head_config import AGAIN, SCHEMA_VERSION, WEIGHTS, HeadInfo, read_head_config
from harness.models.opened import Opened, open_model, refusal
from harness.models.packed import TOKEN_MAP, check_shapes, read_packed, write_packed
from harness.models.taps import WHAT, Tapped

ELSEWHERE = "Use it with the target it was made for."


class ReadingHead(nn.Module):
    """The blocks, their input and their output.

    Args:
        info: its sizes.
        target: the model whose embeddings are shared, not copied.

    Raises:
        HarnessError: a target that cannot be opened.
    """

    def __init__(self, info: HeadInfo, target: nn.Module) -> None:
        super().__init__()
        opened = open_model(target)
        if opened is None:
            raise refusal(target, WHAT)
        args = llama.ModelArgs(
            model_type="llama", hidden_size=info.hidden, num_hidden_layers=info.layers, intermediate_size=info.intermediate,
            num_attention_heads=info.heads, num_key_value_heads=info.kv_heads, head_dim=info.head_dim, rms_norm_eps=info.eps,
            rope_theta=info.rope_theta, vocab_size=info.vocab, tie_word_embeddings=False,
        )  # fmt: skip
        self.state_norms = [nn.RMSNorm(info.hidden, eps=info.eps) for _ in info.taps]
        self.fuse = nn.Linear(len(info.taps) * info.hidden, info.hidden, bias=False)
        self.token_norm = nn.RMSNorm(info.hidden, eps=info.eps)
        self.own_norm = nn.RMSNorm(info.hidden, eps=info.eps)
        self.join = nn.Linear(2 * info.hidden, info.hidden, bias=False)
        self.layers = [llama.TransformerBlock(args) for _ in range(info.layers)]
        self.norm = nn.RMSNorm(info.hidden, eps=info.eps)
        self.lm_head = nn.Linear(info.hidden, info.vocab, bias=False)
        self._shared = (opened.embedding,)  # a tuple is no parameter

    def fused(self, states: mx.array) -> mx.array:
        """What stands before a token (..., hidden), from the target's states there (..., places x hidden)."""
        parts = mx.split(states, len(self.state_norms), axis=-1)
        found: mx.array = self.fuse(mx.concatenate([norm(part) for norm, part in zip(self.state_norms, parts, strict=True)], axis=-1))
        return found

    def __call__(self, tokens: mx.array, before: mx.array, cache: Any = None, mask: mx.array | None = None) -> mx.array:
        """States (B, n, hidden) after ``tokens`` (B, n).

        Args:
            tokens: the target's ids.
            before: (B, n, hidden), of the token before each: :meth:`fused`, or what this call gave there.
            cache: one per block; None for whole texts.
            mask: (n, known + n) bool, who sees whom; causal where it is None.
        """
        token = self.token_norm(self._shared[0](tokens).astype(before.dtype))
        h: mx.array = self.join(mx.concatenate([token, self.own_norm(before)], axis=-1))
        cache = cache or [None] * len(self.layers)
        mask = create_attention_mask(h, cache[0]) if mask is None else mask
        for layer, own in zip(self.layers, cache, strict=True):
            h = layer(h, mask, cache=own)
        return h

    def as_opened(self) -> Opened:
        """Its output head as that of any model: over ``norm``ed states, other rows from the target's embeddings."""
        shell = {"lm_head": self.lm_head}
        return Opened(None, shell, "", "layers", self._shared[0], ("lm_head",), plain=True)

    def own_weights(self) -> dict[str, mx.array]:
        """Name -> weight."""
        return dict(tree_flatten(self.parameters()))


@dataclass
class Head(Draft):
    """A head beside the target that it reads."""

    tapped: Tapped = field(kw_only=True)
    """The target, handing out the states."""


def save_head(
    folder: Path,
    info: HeadInfo,
    weights: Mapping[str, mx.array],
    token_map: mx.array,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Write a head, replacing what is in ``folder``; return its hash.

    Args:
        folder: made where it is missing.
        info: its sizes, and how it is quantised; the hash in it is not read.
        weights: names as in :meth:`ReadingHead.own_weights`, floating point.
        token_map: (vocab,) output id -> target id.
        about: anything else worth keeping in config.json.
    """
    sha256 = write_packed(folder / WEIGHTS, weights, token_map, info.quantised)
    data = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(dataclasses.replace(info, sha256=sha256)), **(about or {})}
    files.write_atomic(folder / "config.json", json.dumps(data, indent=2) + "\n")
    return sha256


def load_head(folder: Path, target: nn.Module, target_hash: str) -> Head:
    """Load a head for ``target``.

    Raises:
        HarnessError: files missing, damaged, of a newer version, or made for another target.
    """
    info = read_head_config(folder)
    if info.target_hash != target_hash:
        raise HarnessError(
            f"the head in {folder} reads another target (SHA-256 {info.target_hash[:12]}, not {target_hash[:12]})", ELSEWHERE
        )
    tapped = Tapped(target, info.taps)
    model = ReadingHead(info, target)
    embedding = model.as_opened().embedding
    if {tapped.width, embedding(mx.array([0])).shape[-1]} != {info.hidden}:
        raise HarnessError(f"the head in {folder} belongs to a target of width {info.hidden}, not {tapped.width}", ELSEWHERE)
    path = folder / WEIGHTS
    arrays = read_packed(path, sha256=info.sha256, vocab=info.vocab, quantised=info.quantised, advice=AGAIN)
    token_map = arrays.pop(TOKEN_MAP)
    ids = tuple(token_map.tolist())
    if min(ids) < 0 or max(ids) >= len(embedding.weight) or len(set(ids)) < len(ids):
        raise HarnessError(f"the head in {folder} names tokens that the target lacks, or one twice", ELSEWHERE)
    check_shapes(path, arrays, model.own_weights(), AGAIN)
    model.load_weights([(key, w.astype(tapped.dtype)) for key, w in arrays.items()], strict=False)
    model.eval()
    lay_out(model)
    mx.eval(model.own_weights())
    return Head(model=model, token_map=token_map, hash=info.sha256, name=info.name, vocab=ids, tapped=tapped)
