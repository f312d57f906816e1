"""Opening up a causal model of the llama family: embeddings, layers, final norm, output head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.decode.sampling import ints
from harness.errors import HarnessError
from harness.models.blas import by_columns, mx, nn
from harness.records import Trajectory


def inner(model: Any) -> Any:
    """Return the module that holds ``embed_tokens``, ``layers`` and ``norm``.

    Raises:
        HarnessError: the architecture is laid out differently.
    """
    body = getattr(model, "model", model)
    missing = [name for name in ("embed_tokens", "layers", "norm") if not hasattr(body, name)]
    if missing:
        raise HarnessError(
            f"{type(model).__module__} has no {', '.join(missing)}",
            "Early exit, pruned heads and replay need a llama-like model (Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3, Mistral).",
        )
    return body


def head_logits(model: Any, hidden: mx.array) -> mx.array:
    """Apply the output head to normed hidden states (..., dim) -> (..., vocab)."""
    if hasattr(model, "head_logits"):
        return model.head_logits(hidden)
    if hasattr(model, "lm_head"):
        return model.lm_head(hidden)
    return inner(model).embed_tokens.as_linear(hidden)


def hidden_states(model: Any, tokens: mx.array, cache: Any = None) -> mx.array:
    """Return normed hidden states (batch, length, dim) for ``tokens`` (batch, length), without the output head."""
    if hasattr(model, "hidden_states"):
        return model.hidden_states(tokens, cache)
    return model.model(tokens, cache=cache)


class EarlyExit(nn.Module):
    """The first ``n_layers`` of a model with its own norm and head: a draft that shares every weight.

    Args:
        model: the target.
        n_layers: layers to keep, 1 up to all but one.
    """

    def __init__(self, model: Any, n_layers: int) -> None:
        super().__init__()
        body = inner(model)
        total = len(body.layers)
        if not 1 <= n_layers < total:
            raise HarnessError(f"early exit after {n_layers} layers", f"The target has {total} layers: use 1 to {total - 1}.")
        # A plain holder keeps the target's parameters out of this module's own parameter tree.
        self._parts = (model, body, list(body.layers[:n_layers]))

    @property
    def layers(self) -> list:
        """The kept layers (mlx-lm sizes the cache by them)."""
        return self._parts[2]

    def hidden_states(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Return normed hidden states after the last kept layer: (batch, length, dim)."""
        from mlx_lm.models.base import create_attention_mask

        _, body, layers = self._parts
        h = body.embed_tokens(tokens)
        cache = cache or [None] * len(layers)
        mask = create_attention_mask(h, cache[0])
        for layer, layer_cache in zip(layers, cache, strict=True):
            h = layer(h, mask, cache=layer_cache)
        return body.norm(h)

    def head_logits(self, hidden: mx.array) -> mx.array:
        """The target's output head."""
        return head_logits(self._parts[0], hidden)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.head_logits(self.hidden_states(tokens, cache))


def useful_vocab(trajectories: Iterable[Trajectory], size: int, vocab_size: int) -> tuple[int, ...]:
    """Return the ``size`` ids a draft can most usefully propose, ascending.

    Ids rank by the probability that the target gave them in the trajectories (its emitted tokens where no top-k was kept); where the
    trajectories name fewer, the lowest ids fill up, which byte-pair encodings give to the most frequent merges.

    Raises:
        HarnessError: ``size`` is not between 1 and ``vocab_size``.
    """
    if not 1 <= size <= vocab_size:
        raise HarnessError(f"cannot keep {size} of {vocab_size} ids", f"Give a size from 1 to {vocab_size}.")
    mass = np.zeros(vocab_size)
    for t in trajectories:
        if t.top_tokens is not None and t.top_logprobs is not None:
            np.add.at(mass, np.array(t.top_tokens).ravel(), np.exp(np.array(t.top_logprobs, dtype=np.float64).ravel()))
        else:
            np.add.at(mass, np.array(t.tokens), 1.0)
    return tuple(sorted(np.argsort(-mass, kind="stable")[:size].tolist()))


class PrunedHead(nn.Module):
    """A model whose output head is restricted to ``ids`` and the tokens that stand in the context.

    Names and phrases of the prompt come back in its answer, rare words of the answer come back in the answer, and many of them are too
    rare for any fixed list. The target stays whole, so output stays exact. What the draft can propose after a prefix follows from the
    prefix alone: it never proposes a token that it does not know yet.

    Args:
        model: the draft.
        ids: distinct target ids the draft may propose for any prompt.
        own_head: the model's own head has the ids alone, in their order, as that of a cut; rows of other tokens come from its embeddings.
    """

    def __init__(self, model: Any, ids: Sequence[int], *, own_head: bool = False) -> None:
        super().__init__()
        rows = inner(model).embed_tokens if own_head or not hasattr(model, "lm_head") else model.lm_head
        self._parts = (model, rows)  # a tuple keeps the draft's parameters out of this module's own
        self._known = frozenset(ids)
        self._fixed = None if own_head else by_columns(_rows_of(rows, ids))
        self._extra: mx.array | None = None
        if self._fixed is not None:
            mx.eval(self._fixed)
        self._map = mx.array(ids, dtype=mx.int32)

    @property
    def inner_model(self) -> Any:
        """The draft itself."""
        return self._parts[0]

    @property
    def own_head(self) -> bool:
        """True where the draft has no rows for other tokens itself."""
        return self._fixed is None

    @property
    def token_map(self) -> mx.array:
        """(kept,) int32: target id of each output id."""
        return self._map

    def widened(self, tokens: Iterable[int]) -> PrunedHead:
        """The same model, its head widened by ``tokens``; new ones come last, in the order in which they come."""
        extra = [token for token in dict.fromkeys(tokens) if token not in self._known]
        if not extra:
            return self
        wider = copy.copy(self)
        wider._known = self._known | set(extra)
        rows = _rows_of(self._parts[1], extra)
        wider._extra = rows if self._extra is None else mx.concatenate([self._extra, rows])
        wider._map = mx.concatenate([self._map, mx.array(extra, dtype=mx.int32)])
        mx.eval(wider._extra, wider._map)
        return wider

    @property
    def layers(self) -> list:
        """The draft's layers."""
        return self.inner_model.layers

    def hidden_states(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """The draft's normed hidden states (batch, length, dim)."""
        return hidden_states(self.inner_model, tokens, cache)

    def head_logits(self, hidden: mx.array) -> mx.array:
        """Logits over the kept ids: (..., kept)."""
        fixed = head_logits(self.inner_model, hidden) if self._fixed is None else hidden @ self._fixed.T
        return fixed if self._extra is None else mx.concatenate([fixed, hidden @ self._extra.T], axis=-1)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.head_logits(self.hidden_states(tokens, cache))


def _rows_of(head: nn.Module, ids: Sequence[int]) -> mx.array:
    """Rows ``ids`` of an output head or embedding, in floating point: (len(ids), dim)."""
    rows = mx.array(ids, dtype=mx.int32)
    if isinstance(head, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        return mx.dequantize(head.weight[rows], head.scales[rows], head.biases[rows], head.group_size, head.bits)
    return head.weight[rows]


def widened(model: Any, token_map: mx.array | None, tokens: Iterable[int]) -> tuple[Any, mx.array | None]:
    """A draft and its token map once ``tokens`` stand in the context: only a pruned head depends on them."""
    if not isinstance(model, PrunedHead):
        return model, token_map
    wider = model.widened(tokens)
    return wider, wider.token_map


@dataclass(frozen=True)
class ForcedHead:
    """A draft's head for one whole known answer: at each position it proposes what it could when decoding."""

    model: Any
    """The draft with the tokens of prompt and answer in its head."""
    token_map: mx.array | None
    """(V,) int32: target id of each output id; None is the identity."""
    since: mx.array | None
    """(V,) int32: answer positions from which on an output id can be proposed; None where all always can."""

    def logits(self, hidden: mx.array, start: int) -> mx.array:
        """Logits (n, V) of ``hidden`` (n, dim) at answer positions ``start`` and up; -inf for what is not known there yet."""
        logits = head_logits(self.model, hidden)
        if self.since is None:
            return logits
        positions = mx.arange(start, start + len(hidden), dtype=mx.int32)
        return mx.where(self.since[None] <= positions[:, None], logits, -mx.inf)


def forced_head(model: Any, token_map: mx.array | None, prompt: Sequence[int], answer: Sequence[int]) -> ForcedHead:
    """The head that a teacher-forced pass over ``answer`` needs."""
    own, own_map = widened(model, token_map, prompt)
    wide, wide_map = widened(own, own_map, answer)
    if wide is own:
        return ForcedHead(own, own_map, None)
    assert own_map is not None
    assert wide_map is not None
    first = {token: i for i, token in reversed(list(enumerate(answer)))}
    new = [first[token] + 1 for token in ints(wide_map[len(own_map) :])]
    return ForcedHead(wide, wide_map, mx.array([0] * len(own_map) + new, dtype=mx.int32))


def draft_ids(token_map: mx.array | None) -> dict[int, int] | None:
    """Target id -> draft id of a pruned draft; None for the identity."""
    return None if token_map is None else {target: draft for draft, target in enumerate(ints(token_map))}
