"""A causal model taken apart by its own code: body, output head, embedding, and how many ids it has.

Families scale, cap and shift logits and embeddings, each in its own way, so no part is written again here. The head is the model's
own call with a stand-in that hands on the states it is given, in place of the body; fewer layers are the body's own call over a
shorter list. Once per model a probe compares the parts with the whole; a model whose parts do not give the whole is used whole, or
refused.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.core.errors import HarnessError
from harness.models.blas import mx, nn
from harness.models.mlx_names import tree_flatten

PROBE_TOKENS = 8
"""Tokens the parts are compared on."""
LARGE = 1000.0
"""Factor that takes states beyond where a cap does nothing."""
PROBE_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, StopIteration, TypeError, ValueError)
"""What a probe raises that meets a model built in another way."""


@dataclass(frozen=True)
class Opened:
    """A model whose head, applied to its body's states, gives its logits."""

    body: Any
    """``body(tokens (B, L), cache=cache)`` gives normed states (B, L, dim)."""
    shell: Any
    """The model with a stand-in body: ``shell(states)`` gives logits."""
    body_name: str
    """The body's name in the model."""
    layers_name: str
    """Name of the list of layers in the body."""
    embedding: Any
    """Token embedding."""
    head: tuple[str, ...] | None = None
    """Where the matrix of the output head is, from the shell on; None where it cannot be told."""
    plain: bool = False
    """The matrix is all there is to the output head: no scale, no cap."""

    @property
    def head_module(self) -> Any:
        """The output head's matrix."""
        module = self.shell
        for name in self.head or ():
            module = module[name]
        return module

    def with_head(self, head: nn.Module) -> Callable[[mx.array], mx.array]:
        """The function from states to logits with ``head`` in the place of the output head's matrix; scales and caps stay."""
        assert self.head is not None
        if self.plain:
            return head  # type: ignore[return-value]
        shell = copy.copy(self.shell)
        holder = shell
        for name in self.head[:-1]:
            holder[name] = copy.copy(holder[name])
            holder = holder[name]
        holder[self.head[-1]] = head
        found: Callable[[mx.array], mx.array] = shell
        return found

    def first_layers(self, n: int) -> Any:
        """The body over its first ``n`` layers."""
        body = copy.copy(self.body)
        body[self.layers_name] = self.body[self.layers_name][:n]
        return body


class Rows(nn.Module):
    """Some rows of an output head: blocks of (weight (n, dim), bias (n,) or None), and modules, one after the other."""

    def __init__(self, *blocks: Any) -> None:
        super().__init__()
        self._blocks = blocks  # a tuple is no parameter

    def __call__(self, hidden: mx.array) -> mx.array:
        parts = [self._part(block, hidden) for block in self._blocks]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    as_linear = __call__

    @staticmethod
    def _part(block: Any, hidden: mx.array) -> mx.array:
        if not isinstance(block, tuple):
            found: mx.array = block(hidden)
            return found
        weight, bias = block
        product = hidden @ weight.T
        return product if bias is None else product + bias


def rows_of(head: Any, ids: Sequence[int]) -> tuple[mx.array, mx.array | None]:
    """Rows ``ids`` of an output head or embedding in floating point (len(ids), dim), and their bias; every quantisation of mlx."""
    rows = mx.array(ids, dtype=mx.int32)
    weight, bias = head.weight[rows], head.get("bias")
    if "scales" in head:
        biases = head.get("biases")
        offsets = None if biases is None else biases[rows]
        weight = mx.dequantize(weight, head.scales[rows], offsets, head.group_size, head.bits, mode=head.mode)
    return weight, None if bias is None else bias[rows]


def close(ours: mx.array, theirs: mx.array) -> bool:
    """True where two computations of the same logits differ by rounding alone."""
    if ours.shape != theirs.shape:
        return False
    bound = max(1e-3, 4 * mx.finfo(theirs.dtype).eps)
    ours, theirs = ours.astype(mx.float32), theirs.astype(mx.float32)
    return bool((mx.abs(ours - theirs).max() <= bound * mx.abs(theirs).max()).item())


_OPENED: dict[int, Opened | None] = {}
_SIZES: dict[int, int] = {}
"""What is known of the models in memory, by id; forgotten with the model."""


def open_model(model: Any) -> Opened | None:
    """The parts of a model, or None where they do not give the whole; probed at the first call per model."""
    if id(model) not in _OPENED:
        weakref.finalize(model, _OPENED.pop, id(model), None)
        try:
            _OPENED[id(model)] = model.as_opened() if hasattr(model, "as_opened") else _open(model)
        except PROBE_ERRORS:
            _OPENED[id(model)] = None
    return _OPENED[id(model)]


def find_body(model: Any) -> tuple[Any, str, str]:
    """The part of a model that reads text, the name of its body in there, and that of the list of layers in the body.

    Raises:
        AttributeError, IndexError, StopIteration: the model is built in another way.
    """
    text = getattr(model, "language_model", model)
    first = model.layers[0]
    body_name, layers_name = next(
        (name, key)
        for name, child in text.items()
        if isinstance(child, nn.Module)
        for key, value in child.items()
        if isinstance(value, list) and value and value[0] is first
    )
    return text, body_name, layers_name


def _open(model: Any) -> Opened | None:
    text, body_name, layers_name = find_body(model)
    body = text[body_name]
    embedding_name = next(name for name, m in body.items() if isinstance(m, nn.Embedding | nn.QuantizedEmbedding))
    stand_in, shell = copy.copy(body), copy.copy(text)
    stand_in.__class__ = type("StandIn", (type(body),), {"__call__": lambda self, *args, **kwargs: next(iter((*args, *kwargs.values())))})
    shell[body_name] = stand_in
    opened = Opened(body, shell, body_name, layers_name, body[embedding_name])
    tokens = mx.arange(PROBE_TOKENS)[None] % len(opened.embedding.weight)
    states, logits = body(tokens, cache=None), model(tokens, cache=None)
    if not close(shell(states), logits):
        return None
    ids = sorted({0, logits.shape[-1] // 2, logits.shape[-1] - 1})
    own = [(name,) for name, child in text.items() if isinstance(child, nn.Module) and name != body_name]
    places = (_head_at(replace(opened, head=head), states, logits, ids) for head in (*own, (body_name, embedding_name)))
    return next((found for found in places if found), opened)


def _head_at(opened: Opened, states: mx.array, logits: mx.array, ids: list[int]) -> Opened | None:
    """The model with its head known, if a few rows of ``head`` give a few columns of the logits."""
    try:
        rows = Rows(rows_of(opened.head_module, ids))
        head = opened.with_head(rows)
        if not close(head(states), logits[..., mx.array(ids)]):
            return None
        return replace(opened, plain=close(rows(LARGE * states), head(LARGE * states)))  # a cap shows in large logits alone
    except PROBE_ERRORS:
        return None


def hidden_states(model: Any, tokens: mx.array, cache: Any = None) -> mx.array:
    """What :func:`head_logits` takes: normed states (B, L, dim) of ``tokens`` (B, L), or the logits of a model used whole."""
    if hasattr(model, "hidden_states"):
        return model.hidden_states(tokens, cache)
    opened = open_model(model)
    return model(tokens, cache=cache) if opened is None else opened.body(tokens, cache=cache)


def head_logits(model: Any, hidden: mx.array) -> mx.array:
    """The model's own logits (..., vocab) of its normed states (..., dim)."""
    if hasattr(model, "head_logits"):
        return model.head_logits(hidden)
    opened = open_model(model)
    return hidden if opened is None else opened.shell(hidden)


def vocabulary_rows(model: Any) -> int:
    """How many ids a model's logits name."""
    if id(model) not in _SIZES:
        weakref.finalize(model, _SIZES.pop, id(model), None)
        _SIZES[id(model)] = model(mx.zeros((1, 1), dtype=mx.int32), cache=None).shape[-1]  # never evaluated
    return _SIZES[id(model)]


def fit_vocabulary(model: Any, rows: int) -> Any:
    """Give a draft the ids of a target with ``rows`` ids: what it has beyond them is cut off for good, those it lacks it reads as another.

    Families pad their output layers differently by size, so the two often differ in rows that stand for no token.
    """
    opened = open_model(model)
    if vocabulary_rows(model) == rows and (opened is None or len(opened.embedding.weight) >= rows):
        return model
    if opened is None or opened.head is None:
        return model if isinstance(model, Fitted) else Fitted(model, rows)
    for module in (opened.head_module, opened.embedding):
        size = len(module.weight)
        module.update({k: v[:rows] for k, v in module.items() if isinstance(v, mx.array) and v.ndim and len(v) == size > rows})
    if len(opened.embedding.weight) < rows and not isinstance(opened.embedding, _Short):
        opened.embedding.__class__ = type("ShortEmbedding", (_Short, type(opened.embedding)), {})
    for known in (_OPENED, _SIZES):
        known.pop(id(model), None)
    return model


class _Short:
    """An embedding that is asked for ids beyond its rows."""

    def __call__(self, ids: mx.array) -> mx.array:
        found: mx.array = super().__call__(mx.minimum(ids, len(self.weight) - 1))  # type: ignore[misc, attr-defined]
        return found


class Fitted:
    """A draft that cannot be opened, its ids made those of a target with ``rows`` ids."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model, self._rows, self._own = model, rows, vocabulary_rows(model)

    @property
    def layers(self) -> Any:
        """The draft's layers."""
        return self._model.layers

    def make_cache(self) -> Any:
        """The draft's cache."""
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self._model)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self._model(mx.minimum(tokens, self._own - 1), cache=cache)[..., : self._rows]


def refusal(model: Any, what: str) -> HarnessError:
    """The error for a model that would have to be opened, and cannot be exactly."""
    kind = getattr(model, "model_type", None) or type(model).__name__
    return HarnessError(
        f"{what} of {kind!r} would not be that of the model: its parts do not give its logits",
        "Use the draft without it, lookup, or another model.",
    )


def number_format(target: nn.Module) -> str:
    """``float32`` and so on; with quantised weights the format of the scales, marked ``quantised``."""
    parameters = dict(tree_flatten(target.parameters()))
    floats = [str(value.dtype).removeprefix("mlx.core.") for value in parameters.values()]
    kinds = sorted({name for name in floats if "float" in name})
    return "+".join(kinds) + (" quantised" if any("int" in name for name in floats) else "")
