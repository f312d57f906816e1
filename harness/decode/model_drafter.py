"""A drafter that runs a model: the pair's draft, an adapted one, the target's first layers."""

from __future__ import annotations

from collections.abc import Callable

from harness.core.errors import HarnessError
from harness.decode.accept import common_prefix
from harness.decode.cached import CachedModel
from harness.decode.drafters import EMPTY, Proposal, Request
from harness.decode.kept import KeptCaches
from harness.decode.sampling import log_softmax, processed_logprobs, sample
from harness.models.blas import ints, mx
from harness.models.forward import PrunedHead, widened
from harness.models.opened import fit_vocabulary, vocabulary_rows


class ModelDrafter:
    """A draft model: a smaller one, an adapted one, or the first layers of the target.

    Args:
        model: the draft; its logits cover its own vocabulary.
        token_map: (draft vocab,) target id of each draft id when the draft's vocabulary is pruned; None is the identity. A
            :class:`~harness.models.forward.PrunedHead` brings its own, which follows the context.
        name: name in reports.
    """

    def __init__(self, model, token_map: mx.array | None = None, name: str = "generic") -> None:
        self.name = name
        self._model = model
        self.token_map = model.token_map if isinstance(model, PrunedHead) else token_map
        self._state: CachedModel | None = None
        self._seen = 0  # context length at the last proposal: everything cached up to there is true
        self._proposed: mx.array = EMPTY
        self._carried = 2  # tokens that the cache may lack before a pass of their own: the last, and a proposal that was not fed
        self.caches: KeptCaches | None = None
        """Where the draft's cache comes from and stays."""
        self.window: int | None = None
        """Of a longer prompt only so many of its last tokens are read; None is all of it."""
        self._skipped = 0  # tokens of the prompt that are not read

    @property
    def model(self):  # type: ignore[no-untyped-def]
        """The draft, ready to run."""
        return self._model

    def fit(self, rows: int) -> None:
        """Keep to the ids of a target that has ``rows`` of them.

        Raises:
            HarnessError: a pruned vocabulary names others, or has not as many ids as the draft has outputs.
        """
        if self.token_map is None:
            self._model = fit_vocabulary(self._model, rows)
            return
        if isinstance(self._model, PrunedHead) and not self._model.own_head:
            fit_vocabulary(self._model.inner_model, rows)
        outputs = len(self.token_map) if isinstance(self._model, PrunedHead) else vocabulary_rows(self._model)
        if outputs != len(self.token_map) or int(self.token_map.max()) >= rows:
            raise HarnessError(
                f"drafter {self.name!r} maps its {outputs} outputs to {len(self.token_map)} ids, up to {int(self.token_map.max())}",
                f"Map each output to one id of the target, 0 to {rows - 1}.",
            )

    def begin(self, prompt: list[int]) -> None:
        self._skipped = max(0, len(prompt) - self.window) if self.window else 0
        prompt = prompt[self._skipped :]
        model, self.token_map = widened(self.model, self.token_map, prompt)
        self._state = self.caches.open(self._role, model, prompt) if self.caches else CachedModel(model)
        self._state.prefill(prompt[self._state.offset : -1])
        self._seen, self._proposed = len(prompt), EMPTY

    def beside(self, target: CachedModel, prompt: list[int]) -> CachedModel:
        """The target as the loop has to run it for this draft."""
        return target

    def forget(self) -> None:
        """Drop the state of an answer: the next one's prompt is not read before it is asked for."""
        self._state = None

    def keep(self, context: list[int]) -> None:
        """Leave the cache of what ``context`` and the draft's own guesses share to the next answer."""
        if self.caches is not None and self._state is not None:
            context = context[self._skipped :]
            self.caches.keep(self._role, self._state, context[: min(self._state.offset, self._valid(context), len(context) - 1)])

    @property
    def _role(self) -> str:
        return f"{self.name} of {len(self._model.layers)} layers"

    def _valid(self, context: list[int]) -> int:
        """Length of the prefix that the cached tokens share with ``context``: own proposals may have been rejected since."""
        ahead = context[self._seen :]
        return self._seen + common_prefix(ints(self._proposed[: len(ahead)]), ahead)

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        if request.k == 0:
            return None
        state = self._state
        if state is None:
            self.begin(context)
            state = self._state
            assert state is not None
        context = context[self._skipped :]
        true = len(context) - request.guesses
        state.model, self.token_map = widened(state.model, self.token_map, context[self._seen : true])
        length = min(state.offset, self._valid(context), len(context) - 1)
        if length < state.offset or not request.guesses:  # inside a round nothing is settled yet
            state.trim_to(length, settled=not request.guesses)
        state.mark()
        state.prefill(context[state.offset : -self._carried])  # another drafter was at work
        proposal = self._draw_all(state, mx.array(context[state.offset :], dtype=mx.int32), request)
        guessed = [mx.array(context[true:], dtype=mx.int32)] if request.guesses else []
        self._seen, self._proposed = true, mx.concatenate([*guessed, proposal.tokens]) if guessed else proposal.tokens
        return proposal

    def _draw_all(self, state: CachedModel, feed: mx.array, request: Request) -> Proposal:
        """The proposals behind ``feed``, what the cache lacks of the context."""

        def following(last: mx.array | None) -> mx.array:
            state.mark()
            return state.forward(feed if last is None else last)[-1:]

        return self._one_by_one(following, request)

    def _one_by_one(self, following: Callable[[mx.array | None], mx.array], request: Request) -> Proposal:
        """Proposals from logits (1, draft vocab) that ``following`` gives behind the last proposal, and behind the context for None."""
        tokens: list[mx.array] = []
        logqs, logits, confidences = [], [], []
        keys = mx.random.split(request.key, request.k) if request.key is not None else [None] * request.k
        for key in keys:
            row = following(tokens[-1] if tokens else None)
            token, logq = self._draw(row, request, key)
            tokens.append(token if self.token_map is None else self.token_map[token])
            logqs.append(logq)
            logits.append(row)
            if request.keep_going is not None:
                confidences.append(mx.exp(log_softmax(row)[0, token[0]]).item())
                if not request.keep_going(tuple(confidences)):
                    break
            else:
                mx.async_eval(tokens[-1])
        return Proposal(
            tokens=mx.concatenate(tokens),
            logq=mx.concatenate(logqs) if request.with_logq else None,
            token_map=self.token_map,
            logits=mx.concatenate(logits) if request.with_logits else None,
            confidences=tuple(confidences),
        )

    def _draw(self, row: mx.array, request: Request, key: mx.array | None) -> tuple[mx.array, mx.array | None]:
        if request.sampling.greedy:
            return mx.argmax(row, axis=-1).astype(mx.int32), None
        logq = processed_logprobs(row, request.sampling)
        return sample(logq, key).astype(mx.int32), logq
