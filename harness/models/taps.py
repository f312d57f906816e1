"""A target that hands out its hidden states after some of its blocks, for a head that reads them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from harness.core.errors import HarnessError
from harness.models.blas import mx
from harness.models.opened import PROBE_ERRORS, PROBE_TOKENS, close, open_model, refusal, vocabulary_rows

WHAT = "a head on the hidden states"


class Tapped:
    """A target whose call leaves the states of some places in :attr:`states`; every weight is the target's own.

    ``tapped(tokens (B, L), cache=cache)`` gives the target's logits (B, L, vocab).

    Args:
        model: the target.
        after: places to read, each as a number of blocks, 1 up to all of them.

    Raises:
        HarnessError: a place that the target lacks, or a target whose parts do not give its logits.
    """

    def __init__(self, model: Any, after: Sequence[int]) -> None:
        opened = open_model(model)
        if opened is None:
            raise refusal(model, WHAT)
        layers = list(opened.body[opened.layers_name])
        if not all(1 <= place <= len(layers) for place in after):
            raise HarnessError(
                f"the head reads the target after {max(after)} blocks, it has {len(layers)}", "Use it with the target it was made for."
            )
        self.after = tuple(after)
        """Places, as numbers of blocks."""
        self._found: dict[int, mx.array] = {}
        for place in set(after):
            layers[place - 1] = self._tap(layers[place - 1], place)
        self._model, self._shell, self._body = model, opened.shell, copy.copy(opened.body)
        self._body[opened.layers_name] = layers
        self._probe()

    def _tap(self, layer: Any, place: int) -> Any:
        """The block, whose call also leaves its result in ``_found``."""
        kind, found = type(layer), self._found

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = kind.__call__(self, *args, **kwargs)
            found[place] = given[0] if isinstance(given, tuple) else given  # some blocks hand on more than the states
            return given

        tap = copy.copy(layer)
        tap.__class__ = type(f"Tapped{kind.__name__}", (kind,), {"__call__": call})
        return tap

    def _probe(self) -> None:
        """Run a few tokens: the logits are the model's own, and every place gives one state per token, all of one width."""
        tokens = mx.arange(PROBE_TOKENS)[None] % vocabulary_rows(self._model)
        try:
            same = close(self(tokens), self._model(tokens, cache=None))
            fits = {state.shape for state in self.states} == {(1, PROBE_TOKENS, self.states[0].shape[-1])}
        except PROBE_ERRORS:
            same = fits = False
        if not same or not fits:
            raise refusal(self._model, WHAT)
        self.width: int = self.states[0].shape[-1]
        """Width of one state."""
        self.dtype: mx.Dtype = self.states[0].dtype
        """Number format of the states."""

    @property
    def states(self) -> tuple[mx.array, ...]:
        """Per place the states (B, L, width) of the last call's tokens."""
        return tuple(self._found[place] for place in self.after)

    @property
    def layers(self) -> Any:
        """The target's layers."""
        return self._model.layers

    def make_cache(self) -> Any:
        """The target's cache."""
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self._model)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = self._shell(self._body(tokens, cache=cache))
        return logits
