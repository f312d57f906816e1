"""Drafters: what proposes the next tokens. One protocol, and the strategies of this package.

A drafter sees the whole context (prompt and emitted tokens) at each round and finds out itself how much of its own state is
still valid, so the loop needs no bookkeeping per strategy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from harness.core.errors import HarnessError
from harness.decode.accept import common_prefix
from harness.decode.cached import CachedModel
from harness.decode.kept import KeptCaches
from harness.decode.sampling import Sampling, log_softmax, processed_logprobs, sample
from harness.decode.suffix_counts import Walker
from harness.models.blas import ints, mx
from harness.models.forward import PrunedHead, widened
from harness.models.opened import fit_vocabulary, vocabulary_rows


@dataclass(frozen=True)
class Proposal:
    """Up to K proposed tokens."""

    tokens: mx.array
    """(k,) int32 target ids, possibly not evaluated yet."""
    logq: mx.array | None = None
    """(k, draft vocab) processed log-probabilities they were drawn from; None for greedy or deterministic proposals."""
    token_map: mx.array | None = None
    """(draft vocab,) target id of each draft id; None is the identity."""
    logits: mx.array | None = None
    """(k, draft vocab) raw draft logits, kept for the detailed mode; None for drafters without a distribution."""
    confidences: tuple[float, ...] = ()
    """Probability of each proposed token, where the length policy asked a draft for it; always of a memory's tokens."""
    source: str = "draft"
    """Who proposed: ``draft``, or one of :data:`~harness.decode.length.FREE`; for ``auto`` any other is a ``draft``. Several are written
    as :mod:`harness.core.round_sources` does."""
    begin_s: float = 0.0
    """Seconds that a draft took to read the prompt, where it had not read it before the round."""

    @property
    def k(self) -> int:
        """Number of proposed tokens."""
        return self.tokens.shape[0]

    def only(self, i: int) -> Proposal:
        """The proposal of token ``i`` alone, its confidence apart."""
        rows: dict[str, Any] = {
            name: None if (found := getattr(self, name)) is None else found[i : i + 1] for name in ("tokens", "logq", "logits")
        }
        return dataclasses.replace(self, confidences=(), **rows)

    def full_logq(self, vocab: int) -> mx.array | None:
        """Return ``logq`` over the target's vocabulary (k, vocab); ids the draft does not have get probability 0.

        It names no id beyond the target's: see :meth:`ModelDrafter.fit`.
        """
        if self.logq is None or (self.token_map is None and self.logq.shape[1] == vocab):
            return self.logq
        ids = mx.arange(self.logq.shape[1]) if self.token_map is None else self.token_map
        full = mx.full((self.logq.shape[0], vocab), -mx.inf)
        return mx.put_along_axis(full, mx.broadcast_to(ids[None].astype(mx.int32), self.logq.shape), self.logq, axis=-1)


Pick = Callable[[Sequence[tuple[str, float]], Sequence[Sequence[tuple[str, float]]], bool], int | None]


@dataclass(frozen=True)
class Request:
    """How the loop wants tokens proposed."""

    k: int
    """At most this many from a model."""
    free_k: Mapping[str, int] | None = None
    """At most this many per source that runs no model; None is ``k`` for each."""
    worth: Callable[[tuple[float, ...]], int] | None = None
    """Of tokens found for nothing, each with its confidence, how many are worth verifying; None is all."""
    sampling: Sampling = field(default_factory=Sampling)
    key: mx.array | None = None
    """Random key, for temperature above 0."""
    with_logq: bool = False
    """The rejection rule needs the distribution."""
    with_logits: bool = False
    """The detailed mode needs the raw logits."""
    keep_going: Callable[[tuple[float, ...]], bool] | None = None
    """Asked after each token with all confidences so far; needs a host read per token, so None unless the policy needs it."""
    pick: Pick | None = None
    """Who proposes the next token, for a drafter with several sources; as :meth:`harness.decode.length.LengthPolicy.pick`."""
    guesses: int = 0
    """The last so many tokens of the context are guesses of this round and may not stand."""

    def most(self, source: str) -> int:
        """At most this many tokens of a source that runs no model."""
        return self.k if self.free_k is None else self.free_k[source]


class Drafter(Protocol):
    """Proposes tokens after a context.

    One that can propose without running a model says so with ``free = True``; it is then asked although no model's draft would pay.
    """

    name: str

    def begin(self, prompt: list[int]) -> None:
        """Start a new answer: drop old state and process ``prompt`` except its last token."""

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        """Propose the tokens after ``context`` (prompt and everything emitted); None when there is nothing to propose."""


EMPTY = mx.zeros((0,), dtype=mx.int32)
"""No tokens."""


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


class Found(NamedTuple):
    """Tokens that were found without running a model."""

    tokens: list[int]
    source: str
    """As in :class:`Proposal`."""
    confidences: tuple[float, ...] = ()
    """Likewise."""


NOTHING = Found([], "")
"""Nothing was found."""


NEARER = 2
"""A memory goes before the text so far when it knows a suffix longer by this many tokens: what stands near is more often right."""


class FreeDrafter:
    """Proposes what it finds without running a model."""

    name: str
    free = True

    def begin(self, prompt: list[int]) -> None:
        """Start a new answer."""
        raise NotImplementedError

    def search(self, context: list[int], request: Request) -> Found:
        """What may follow ``context``, within the request's lengths."""
        raise NotImplementedError

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        """What :meth:`search` finds, for the loop."""
        found = self.search(context, request)
        if not found.tokens:
            return None
        return Proposal(tokens=mx.array(found.tokens, dtype=mx.int32), source=found.source, confidences=found.confidences)


class LookupDrafter(FreeDrafter):
    """Prompt lookup: propose what followed the latest earlier occurrence of the last n tokens.

    Args:
        ngram: longest suffix looked up.
        min_ngram: shortest suffix that may propose.
    """

    name = "lookup"

    def __init__(self, ngram: int, min_ngram: int) -> None:
        self.ngram = ngram
        self.min_ngram = min_ngram
        self.matched = 0
        """Length of the suffix that the last search found."""
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def begin(self, prompt: list[int]) -> None:
        self._ends = {}
        self._indexed = 0

    def _index(self, context: list[int], length: int) -> None:
        """Remember what stands in the first ``length`` tokens, but for suffixes that end at the last: a lookup finds earlier ones."""
        for end in range(self._indexed + 1, length):
            for n in range(self.min_ngram, min(self.ngram, end) + 1):
                self._ends[tuple(context[end - n : end])] = end
        self._indexed = max(self._indexed, length - 1)

    def _match(self, context: list[int]) -> tuple[int, int]:
        """End of the latest known occurrence of the longest known suffix of ``context``, and the suffix's length; (0, 0) for none."""
        for n in range(min(self.ngram, len(context)), self.min_ngram - 1, -1):
            end = self._ends.get(tuple(context[-n:]))
            if end is not None:
                return end, n
        return 0, 0

    def search(self, context: list[int], request: Request) -> Found:
        """What followed the longest known suffix of ``context``."""
        self._index(context, len(context) - request.guesses)
        end, n = self._match(context)
        self.matched = n
        source = "copy" if n == self.ngram else "lookup"
        return Found(context[end : end + request.most(source)], source) if n else NOTHING


class MemoryDrafter(FreeDrafter):
    """Propose what the target has said before after the same tokens, or copy from the text so far: who knows the longer suffix.

    Args:
        memory: finds what followed a context.
        lookup: finds it in the text so far.
        threshold: a draft of the memory ends where the product of its tokens' shares falls below this.
    """

    name = "memory"

    def __init__(self, memory: Walker, lookup: LookupDrafter, threshold: float) -> None:
        self.memory = memory
        self.lookup = lookup
        self.threshold = threshold

    def begin(self, prompt: list[int]) -> None:
        self.lookup.begin(prompt)

    def search(self, context: list[int], request: Request) -> Found:
        """A copy, unless the memory knows a suffix that is longer by ``NEARER``; whoever has nothing gives way to the other."""
        copied, matched = self.lookup.search(context, request), self.lookup.matched
        state, known = self.memory.find(context)
        if copied.tokens and known < matched + NEARER:
            return copied
        tokens, shares = self.memory.walk(state, request.most("memory"), self.threshold)
        n = len(tokens) if request.worth is None else request.worth(tuple(shares))
        return Found(tokens[:n], "memory", tuple(shares[:n])) if n else copied


class HybridDrafter:
    """What costs nothing first, a draft model where that has nothing.

    Args:
        first: a lookup, usually with ``min_ngram`` 3, so that only solid matches skip the draft, or a memory.
        draft: the drafter behind it, which runs a model.
        name: name in reports.
    """

    free = True

    def __init__(self, first: FreeDrafter, draft: Drafter, name: str = "hybrid") -> None:
        self.name = name
        self.first = first
        self.draft = draft

    def begin(self, prompt: list[int]) -> None:
        self.first.begin(prompt)
        self.draft.begin(prompt)

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        return self.first.propose(context, request) or self.draft.propose(context, request)

    def with_draft(self, draft: Drafter) -> HybridDrafter:
        """The same before another draft."""
        return HybridDrafter(self.first, draft, self.name)
