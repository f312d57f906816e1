"""What drafts with parts of a model: its first layers, its head over some tokens, its head along a known answer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.models.blas import by_columns, ints, mx, nn
from harness.models.opened import PROBE_ERRORS, Rows, close, head_logits, hidden_states, open_model, refusal, rows_of, vocabulary_rows


def inner(model: Any) -> Any:
    """Return the module that holds ``embed_tokens``, ``layers`` and ``norm``, for training.

    Raises:
        HarnessError: the architecture is laid out differently.
    """
    body = getattr(model, "model", model)
    missing = [name for name in ("embed_tokens", "layers", "norm") if not hasattr(body, name)]
    if missing:
        raise HarnessError(
            f"{type(model).__module__} has no {', '.join(missing)}",
            "Training needs a llama-like model (Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3, Mistral).",
        )
    return body


class EarlyExit(nn.Module):
    """The first ``n_layers`` of a model with its own norm and head: a draft that shares every weight.

    Args:
        model: the target.
        n_layers: layers to keep, 1 up to all but one.

    Raises:
        HarnessError: another number of layers, or a model that does not run over its first layers alone.
    """

    def __init__(self, model: Any, n_layers: int) -> None:
        super().__init__()
        total = len(model.layers)
        if not 1 <= n_layers < total:
            raise HarnessError(f"early exit after {n_layers} layers", f"The target has {total} layers: use 1 to {total - 1}.")
        opened = open_model(model)
        if opened is None:
            raise refusal(model, "early exit")
        # A plain holder keeps the target's parameters out of this module's own parameter tree.
        self._parts = (model, opened.first_layers(n_layers), list(model.layers[:n_layers]))
        self._probe()

    def _probe(self) -> None:
        """Run a few tokens in two pieces with a cache: every kept layer has to see them, and all in one piece has to give the same."""
        cache, tokens = self.make_cache(), mx.arange(4)[None] % vocabulary_rows(self._parts[0])
        try:
            pieces = mx.concatenate([self(tokens[:, :3], cache), self(tokens[:, 3:], cache)], axis=1)
            same = close(pieces, self(tokens)) and not any(layer.empty() for layer in cache)
        except PROBE_ERRORS:
            same = False
        if not same:
            raise refusal(self._parts[0], f"early exit after {len(self.layers)} layers")

    @property
    def layers(self) -> list:
        """The kept layers."""
        return self._parts[2]

    def make_cache(self) -> list:
        """A cache of the kept layers."""
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self._parts[0])[: len(self.layers)]

    def hidden_states(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Return normed hidden states after the last kept layer: (batch, length, dim)."""
        return self._parts[1](tokens, cache=cache)

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
        ids, weights = np.array(t.tokens), np.ones(len(t.tokens))
        if t.top_tokens is not None and t.top_logprobs is not None:
            ids, weights = t.top_tokens.ravel(), np.exp(t.top_logprobs.astype(np.float64).ravel())
        known = ids < vocab_size
        np.add.at(mass, ids[known], weights[known])
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

    Raises:
        HarnessError: an id that the draft lacks, or a draft whose head cannot be restricted.
    """

    def __init__(self, model: Any, ids: Sequence[int], *, own_head: bool = False) -> None:
        super().__init__()
        opened = open_model(model)
        if opened is None or opened.head is None:
            raise refusal(model, "an output head restricted to some tokens")
        rows = opened.embedding if own_head else opened.head_module
        if min(ids, default=0) < 0 or max(ids, default=0) >= len(rows.weight):
            raise HarnessError(f"the draft has no token {max(ids)}", f"Restrict it to ids from 0 to {len(rows.weight) - 1}.")
        self._known = frozenset(ids)
        self._own = own_head
        first: Any = opened.head_module
        if not own_head:
            weight, bias = rows_of(rows, ids)
            first = (by_columns(weight), bias)
            mx.eval(first[0])
        # Tuples keep the draft's parameters out of this module's own.
        self._parts = (model, opened, rows)
        self._blocks: tuple[Any, ...] = (first,)
        self._head = (opened.with_head(Rows(first)),)
        self._map = mx.array(ids, dtype=mx.int32)

    @property
    def inner_model(self) -> Any:
        """The draft itself."""
        return self._parts[0]

    @property
    def own_head(self) -> bool:
        """True where the draft has no rows for other tokens itself."""
        return self._own

    @property
    def token_map(self) -> mx.array:
        """(kept,) int32: target id of each output id."""
        return self._map

    def widened(self, tokens: Iterable[int]) -> PrunedHead:
        """The same model, its head widened by ``tokens``; new ones come last, in the order in which they come."""
        _, opened, rows = self._parts
        extra = [token for token in dict.fromkeys(tokens) if token not in self._known and token < len(rows.weight)]
        if not extra:
            return self
        wider = copy.copy(self)
        wider._known = self._known | set(extra)
        wider._blocks = (*self._blocks[:1], _joined(self._blocks[1:], rows_of(rows, extra)))
        wider._head = (opened.with_head(Rows(*wider._blocks)),)
        wider._map = mx.concatenate([self._map, mx.array(extra, dtype=mx.int32)])
        mx.eval(wider._blocks[1][0], wider._map)
        return wider

    @property
    def layers(self) -> list:
        """The draft's layers."""
        return self.inner_model.layers

    def make_cache(self) -> list:
        """The draft's cache."""
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self.inner_model)

    def hidden_states(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """The draft's normed hidden states (batch, length, dim)."""
        return hidden_states(self.inner_model, tokens, cache)

    def head_logits(self, hidden: mx.array) -> mx.array:
        """Logits over the kept ids: (..., kept)."""
        return self._head[0](hidden)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.head_logits(self.hidden_states(tokens, cache))


def _joined(known: tuple, new: tuple) -> tuple:
    """A block of rows with ``new`` ones at its end; ``known`` is empty or holds the block so far."""
    if not known:
        return new
    (weight, bias), (more, shift) = known[0], new
    return mx.concatenate([weight, more]), None if bias is None else mx.concatenate([bias, shift])


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

    def logits(self, hidden: mx.array, start: int | mx.array) -> mx.array:
        """Logits (n, V) of ``hidden`` (n, dim) at answer positions ``start`` and up, or at each of them; -inf for what is unknown there."""
        logits = head_logits(self.model, hidden)
        if self.since is None:
            return logits
        positions = start if isinstance(start, mx.array) else mx.arange(start, start + len(hidden), dtype=mx.int32)
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
