"""Drafters: what proposes the next tokens. One protocol, and those that find tokens without running a model.

A drafter sees the whole context (prompt and emitted tokens) at each round and finds out itself how much of its own state is
still valid, so the loop needs no bookkeeping per strategy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from harness.decode.sampling import Sampling
from harness.decode.suffix_counts import Walker
from harness.models.blas import mx


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
