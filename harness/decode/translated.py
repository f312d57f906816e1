"""A draft model with another tokenizer than the target's: it reads the text so far in its own tokens and goes on in them."""

from __future__ import annotations

import itertools
from typing import Any

from harness.decode.accept import common_prefix
from harness.decode.cached import CachedModel
from harness.decode.drafters import Proposal, Request
from harness.decode.kept import KeptCaches
from harness.decode.model_drafter import ModelDrafter
from harness.decode.sampling import log_softmax
from harness.models.blas import ints, mx
from harness.models.translation import INCOMPLETE, Translation

AT_ONCE = 4
"""Unread tokens that go into the first step of a draft instead of a pass of their own."""


class TranslatedDrafter:
    """Proposes the target's tokens for the text that the draft goes on with.

    The proposal is the draft's likeliest text, without a distribution: under sampling it stands as often as the target would say it. A
    context is always cut into the draft's tokens in the same way, whatever the draft said before, and its cache keeps what begins alike.

    Args:
        model: the draft; its logits cover its own vocabulary.
        translation: between its tokens and the target's.
        rows: how many ids the target has.
        context_tokens: most of its own tokens that the draft can hold; it proposes nothing beyond.
        name: name in reports.
    """

    def __init__(self, model: Any, translation: Translation, *, rows: int, context_tokens: int, name: str = "generic") -> None:
        self.name, self.model = name, model
        self._translation, self._rows, self._most = translation, rows, context_tokens
        self.window: int | None = None
        """As :attr:`harness.decode.model_drafter.ModelDrafter.window`."""
        self.caches: KeptCaches | None = None
        """Where the draft's cache comes from and stays."""
        self._state: CachedModel | None = None
        self._cached: list[int] = []  # the draft's tokens in its cache
        self._prompt: list[int] = []
        self._prompt_text = ""

    def begin(self, prompt: list[int]) -> None:
        self._prompt = prompt
        self._prompt_text = self._translation.text(prompt[-self.window :] if self.window else prompt)
        heard = self._translation.heard(self._prompt_text)
        self._state = self.caches.open(self._role, self.model, heard) if self.caches and heard else CachedModel(self.model)
        self._cached = heard[: self._state.offset]
        if len(heard) <= self._most:
            self._read(heard[:-1])

    def forget(self) -> None:
        """Drop the state of an answer: the next one's prompt is not read before it is asked for."""
        self._state = None

    def keep(self, context: list[int]) -> None:
        """Leave the cache of what ``context`` and the draft's own guesses share to the next answer."""
        if self.caches is not None and self._state is not None:
            heard = self._heard(context)
            self.caches.keep(self._role, self._state, heard[: min(common_prefix(self._cached, heard), max(0, len(heard) - 1))])

    @property
    def _role(self) -> str:
        return f"{self.name} of {len(self.model.layers)} layers"

    def _heard(self, context: list[int]) -> list[int]:
        """The context in the draft's tokens; none where it ends inside a character."""
        answer = context[len(self._prompt) :]
        text = self._prompt_text + (self._translation.text_after(self._prompt, answer) if answer else "")
        return [] if text.endswith(INCOMPLETE) else self._translation.heard(text)

    def _read(self, heard: list[int]) -> None:
        """Feed what of ``heard`` is not in the cache yet."""
        assert self._state is not None
        self._state.prefill(heard[self._state.offset :])
        self._cached = heard

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        if request.k == 0:
            return None
        if self._state is None:
            self.begin(context)
        heard = self._heard(context)
        if not heard or len(heard) + request.k > self._most:
            return None
        drawn, given = self._draw(heard, request)
        drawn = self._translation.spoken(drawn)
        said = self._translation.said(context, heard, drawn)[: request.k]
        said = list(itertools.takewhile(lambda token: token < self._rows, said))
        if not said:
            return None
        chances = self._translation.chances(context, said, heard, drawn, given) if given else ()
        return Proposal(tokens=mx.array(said, dtype=mx.int32), confidences=chances)

    def _draw(self, heard: list[int], request: Request) -> tuple[list[int], tuple[float, ...]]:
        """Up to ``request.k`` of the draft's own tokens, and their probabilities where the length policy asks for them."""
        state = self._state
        assert state is not None
        state.trim_to(min(common_prefix(self._cached, heard), len(heard) - 1), settled=not request.guesses)
        state.mark()
        self._read(heard[: max(state.offset, len(heard) - AT_ONCE)])
        feed = mx.array(heard[state.offset :], dtype=mx.int32)
        tokens: list[mx.array] = []
        given: tuple[float, ...] = ()
        for _ in range(request.k):
            state.mark()
            row = state.forward(feed)[-1:]  # (1, draft vocab)
            feed = mx.argmax(row, axis=-1).astype(mx.int32)
            tokens.append(feed)
            if request.keep_going is not None:
                given = (*given, mx.exp(log_softmax(row)[0, feed[0]]).item())
                if not request.keep_going(given):
                    break
            else:
                mx.async_eval(feed)
        drawn = ints(mx.concatenate(tokens))
        self._cached = [*heard, *drawn[:-1]]
        return drawn, given


DraftModel = ModelDrafter | TranslatedDrafter
"""What runs a draft model."""
