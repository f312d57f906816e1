"""The drafter ``cascade``: every token from the source that promises most for its cost, or no further token.

A draft grows token by token. The text so far and the memory propose for nothing, a draft model for the time of a step; the length
policy weighs them by how often tokens of such a source and confidence stood (:meth:`harness.decode.length.LengthPolicy.pick`). So the
memory may go on where the draft ends, and the draft where the memory does.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

from harness.core.round_sources import joined
from harness.decode.drafters import NEARER, Drafter, LookupDrafter, Proposal, Request
from harness.decode.length import DRAFT, Drawn
from harness.decode.suffix_counts import LONGEST, Walker
from harness.decode.translated import DraftModel
from harness.models.blas import ints, mx

DOUBTFUL = 0.02
"""A memory's tokens are weighed while the product of their shares is at least this."""
Run = tuple[list[int], list[Drawn]]
"""Tokens that a source goes on with, and what it thinks of each."""


def copied_chance(matched: int) -> float:
    """Chance that a token stands which followed the same ``matched`` tokens before: 0.5 after two, 0.94 after eight."""
    return 0.5 + 0.44 * (min(matched, LONGEST) - 2) / (LONGEST - 2)


@dataclass
class _Chain:
    """What a round has proposed so far."""

    tokens: list[int] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    parts: dict[int, Proposal] = field(default_factory=dict)
    """Place in the chain to what the draft model said there."""
    begin_s: float = 0.0

    def add(self, token: int, drawn: Drawn) -> None:
        self.tokens.append(token)
        self.drawn.append(drawn)


class CascadeDrafter:
    """Proposes each token from whichever source the policy picks.

    Args:
        lookup: finds what followed in the text so far.
        memory: finds what the target said before; None without one.
        draft: the draft model; None without one. It reads the prompt when it is first asked.
        vocab: ids of the target.
    """

    free = True
    name = "cascade"

    def __init__(self, lookup: LookupDrafter, memory: Walker | None, draft: Drafter | None, vocab: int) -> None:
        self.lookup, self.memory, self.draft = lookup, memory, draft
        self._vocab = vocab
        self._prompt: list[int] = []
        self._read = False

    def begin(self, prompt: list[int]) -> None:
        self.lookup.begin(prompt)
        self._prompt, self._read = prompt, False
        if isinstance(self.draft, DraftModel):
            self.draft.forget()

    def with_draft(self, draft: Drafter) -> CascadeDrafter:
        """The same with another draft."""
        return CascadeDrafter(self.lookup, self.memory, draft, self._vocab)

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        most = max(request.k, *(request.free_k or {"": 0}).values())
        keys = mx.random.split(request.key, most) if request.key is not None and most else [None] * most
        chain, asked = _Chain(), 0
        while len(chain.tokens) < most:
            text = [*context, *chain.tokens]
            runs = self._runs(text, most - len(chain.tokens), len(chain.tokens))
            drafts = self.draft is not None and asked < request.k
            choice = self._pick(request, chain, runs, drafts)
            if choice is None:
                break
            if choice == DRAFT:
                room = min(request.k - asked, most - len(chain.tokens), getattr(self.draft, "at_once", 1))
                added = self._ask(text, chain, request, keys[len(chain.tokens)], room)
                if not added:
                    break
                asked += added
            else:
                tokens, drawn = runs[choice]
                chain.add(tokens[0], drawn[0])
        return self._proposal(chain) if chain.tokens else None

    def _runs(self, text: list[int], most: int, guesses: int) -> list[Run]:
        """What the text so far and the memory go on with, the one that is more often right first."""
        copied = self.lookup.search(text, Request(k=most, guesses=guesses)).tokens
        runs = [(copied, [("lookup", copied_chance(self.lookup.matched + i)) for i in range(len(copied))])] if copied else []
        if self.memory is not None:
            state, known = self.memory.find(text)
            tokens, shares = self.memory.walk(state, most, DOUBTFUL)
            first = not copied or known >= self.lookup.matched + NEARER
            if tokens:
                runs.insert(0 if first else 1, (tokens, [("memory", share) for share in shares]))
        return runs

    @staticmethod
    def _pick(request: Request, chain: _Chain, runs: list[Run], drafts: bool) -> int | None:
        if request.pick is None:
            return 0 if runs else DRAFT if drafts else None
        return request.pick(chain.drawn, [drawn for _, drawn in runs], drafts)

    def _ask(self, text: list[int], chain: _Chain, request: Request, key: mx.array | None, room: int) -> int:
        """Add what the draft model says in one pass, up to ``room`` tokens; return how many, 0 where it has none."""
        assert self.draft is not None
        if not self._read:
            start = time.perf_counter()
            self.draft.begin(self._prompt)
            self._read, chain.begin_s = True, time.perf_counter() - start
        once = Request(
            k=room,
            sampling=request.sampling,
            key=key,
            with_logq=request.with_logq,
            with_logits=request.with_logits,
            keep_going=request.keep_going if room > 1 else request.keep_going and (lambda confidences: False),
            guesses=len(chain.tokens),
        )
        proposal = self.draft.propose(text, once)
        if proposal is None:
            return 0
        for i, token in enumerate(ints(proposal.tokens)):
            chain.parts[len(chain.tokens)] = proposal.only(i) if proposal.k > 1 else proposal
            chain.add(token, ("draft", proposal.confidences[i] if proposal.confidences else 1.0))
        return proposal.k

    def _proposal(self, chain: _Chain) -> Proposal:
        parts, drawn = list(chain.parts.values()), chain.drawn
        whole = Proposal(
            tokens=mx.array(chain.tokens, dtype=mx.int32),
            confidences=tuple(chance for _, chance in drawn),
            source=joined([source for source, _ in drawn]),
            begin_s=chain.begin_s,
        )
        if len(parts) < len(drawn):
            return dataclasses.replace(whole, logq=self._logq(chain) if any(part.logq is not None for part in parts) else None)
        return dataclasses.replace(
            whole,
            logq=_rows([part.logq for part in parts]),
            logits=_rows([part.logits for part in parts]),
            token_map=parts[0].token_map,
        )

    def _logq(self, chain: _Chain) -> mx.array:
        """(k, vocab) log-probabilities: the draft's where it proposed, certainty where a token was found."""
        rows = []
        for i, token in enumerate(chain.tokens):
            certain = mx.where(mx.arange(self._vocab) == token, 0.0, -mx.inf)[None]
            rows.append(chain.parts[i].full_logq(self._vocab) if i in chain.parts else certain)
        return mx.concatenate(rows)


def _rows(parts: list[mx.array | None]) -> mx.array | None:
    """One array of all rows; None where the draft model gave none."""
    found = [part for part in parts if part is not None]
    return mx.concatenate(found) if len(found) == len(parts) else None
