"""The drafter ``head``: a block or two that read the target's hidden states, trained by ``harness distill`` with ``kind: head``.

A round's first proposal reads the states of the target's own pass over what was accepted; the further ones read what the head itself
gave one token earlier. So after every round the entries of the head's cache behind the accepted tokens are made anew from the target's
states, and those of rejected tokens are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.drafter_kinds import no_head
from harness.core.protocols import LoadedPair
from harness.core.records import Trajectory
from harness.decode.accept import common_prefix
from harness.decode.cached import PREFILL_CHUNK_TOKENS, CachedModel
from harness.decode.drafters import Drafter, Proposal, Request
from harness.decode.drawn import target_logprobs
from harness.decode.head_chains import Chains, chains, stands
from harness.decode.length import Costs, make_policy
from harness.decode.model_drafter import ModelDrafter
from harness.decode.replay import ReplayRow, expected_row, row_of
from harness.decode.sampling import Sampling
from harness.decode.simulate import simulate_policy, simulate_runs
from harness.decode.target_states import KnownStates, ReadTarget, States, read_answers
from harness.models.blas import ints, mx
from harness.models.forward import widened

if TYPE_CHECKING:
    from harness.models.reading_head import Head


def head_drafter(pair: LoadedPair, options: Any) -> HeadDrafter:
    """The drafter ``head``.

    Raises:
        HarnessError: the pair has no head, or one that cannot be used.
    """
    head = getattr(pair, "head", None)
    if head is None:
        raise no_head(pair.name)
    return HeadDrafter(head)


class HeadDrafter(ModelDrafter):
    """A head beside the target that it reads; entry i of its cache is token i with the target's states at token i - 1.

    Args:
        head: the head.
    """

    def __init__(self, head: Head) -> None:
        super().__init__(*head.proposer, name="head")
        self._tapped, self._inner = head.tapped, head.model
        self.source: States | None = None
        """Where the target's states come from."""
        self._opened: CachedModel | None = None  # the cache of an answer that has not begun yet
        self._read = 0  # entries made from the target's states: those of the emitted tokens
        self._own: list[mx.array] = []  # states (1, dim) that the head gave at the last of them and at each guess behind it
        self._guessed: list[mx.array] = []  # tokens (1,) of these guesses

    def beside(self, target: CachedModel, prompt: list[int]) -> CachedModel:
        """The target as the loop has to run it: handing out its states, from where this head has not read any on."""
        self._state = None
        self._opened = self.caches.open(self._role, self.model, prompt) if self.caches else CachedModel(self.model)
        target.trim_to(min(target.offset, max(self._opened.offset - 1, 0)))
        if self.caches:
            self.caches.reused = target.offset
        self.source = found = ReadTarget(self._tapped, (target.cache, target.offset))
        return found

    def begin(self, prompt: list[int]) -> None:
        model, self.token_map = widened(self.model, self.token_map, prompt)
        state, self._opened = self._opened or CachedModel(model), None
        state.model = model
        self._state, self._read, self._seen = state, state.offset, len(prompt)
        self._own, self._guessed = [], []
        self._take(state, prompt, len(prompt) - 1)
        if state.offset:
            mx.eval(state.held())

    def keep(self, context: list[int]) -> None:
        if self.caches is not None and self._state is not None:
            self.caches.keep(self._role, self._state, context[: min(self._read, len(context) - 1)])

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        if request.k == 0:
            return None
        if self._state is None:
            self.begin(context)
        state = self._state
        assert state is not None
        true = len(context) - request.guesses
        state.model, self.token_map = widened(state.model, self.token_map, context[self._seen : true])
        self._seen = true
        self._settle(state, context, true)
        for token in context[true + len(self._guessed) :]:
            self._guess(state, mx.array([token], dtype=mx.int32))

        def following(last: mx.array | None) -> mx.array:
            if last is not None:
                self._guess(state, last)
            logits: mx.array = state.model.head_logits(self._inner.norm(self._own[-1]))
            return logits

        return self._one_by_one(following, request)

    def _settle(self, state: CachedModel, context: list[int], true: int) -> None:
        """Make the entries of all ``true`` emitted tokens from the target's states; keep those of guesses that still stand behind them."""
        if true > self._read:
            state.trim_to(self._read)
            self._guessed = []
            self._take(state, context, true)
            return
        same = common_prefix(ints(mx.concatenate(self._guessed)) if self._guessed else [], context[true:])
        state.trim_to(true + same)
        self._own, self._guessed = self._own[: same + 1], self._guessed[:same]

    def _take(self, state: CachedModel, context: list[int], end: int) -> None:
        """Make the entries of tokens up to ``end`` from the target's states."""
        assert self.source is not None
        while self._read < end:
            start, stop = self._read, min(end, self._read + PREFILL_CHUNK_TOKENS)
            states = self.source.states(max(start - 1, 0), stop - 1)
            if start == 0:  # nothing stands before the first token
                states = mx.concatenate([mx.zeros((1, states.shape[-1]), states.dtype), states])
            hidden = self._feed(state, mx.array(context[start:stop], dtype=mx.int32), self._inner.fused(states))
            self._own, self._read = [hidden[-1:]], stop
            if stop < end:
                mx.eval(state.held())

    def _guess(self, state: CachedModel, token: mx.array) -> None:
        """Make the entry of a guessed token (1,) from what the head gave before it."""
        self._own.append(self._feed(state, token, self._own[-1]))
        self._guessed.append(token)

    def _feed(self, state: CachedModel, tokens: mx.array, before: mx.array) -> mx.array:
        """States (n, dim) after ``tokens`` (n,) with ``before`` (n, dim) in front of each."""
        state.offset += tokens.shape[0]
        hidden: mx.array = self._inner(tokens[None], before[None], cache=state.cache)[0]
        return hidden

    def timed_step(self, context: list[int]) -> Callable[[], None]:
        """One step after ``context``, to be timed; what the states are does not matter."""
        self.source = KnownStates(mx.zeros((len(context), len(self._tapped.after) * self._tapped.width), self._tapped.dtype))
        self.begin([*context, 0])
        state, before, token = self._state, self._own[-1], mx.array([0], dtype=mx.int32)
        assert state is not None

        def run() -> None:
            row = state.model.head_logits(self._inner.norm(self._feed(state, token, before)))
            mx.eval(mx.argmax(row, axis=-1))
            state.trim_to(len(context))

        return run

    def replayed(
        self,
        name: str,
        drafter: Drafter,
        trajectories: Sequence[Trajectory],
        ks: Sequence[int | str],
        sampling: Sampling | None,
        costs: Costs | None,
        progress: Callable[[int], None] | None,
    ) -> list[ReplayRow]:
        """Rows of this head, or of a drafter around it, as :func:`harness.decode.replay.replay` gives them: one pass of the target over
        each answer gives all states. Fixed lengths of the head follow from chains; else it drafts along the answer.
        """
        fixed = [k for k in ks if isinstance(k, int)] if drafter is self else []
        rows: list[list[ReplayRow]] = [[] for _ in trajectories]
        for batch, tokens, states in read_answers(self._tapped, trajectories):
            own = [trajectories[i] for i in batch]
            if fixed:
                for i, t, found in zip(batch, own, chains(self.model, tokens, states, own, max(fixed), sampling), strict=True):
                    rows[i] += [_row(name, t, k, found) for k in fixed]
            for b, i in enumerate(batch):
                self.source = KnownStates(states[b])
                lengths = [k for k in ks if k not in fixed]
                rows[i] += [
                    row_of(name, trajectories[i], k, simulate_policy(drafter, trajectories[i], make_policy(k, costs))) for k in lengths
                ]
            if progress:
                progress(sum(map(bool, rows)))
        return [row for own_rows in rows for row in own_rows]


def _row(name: str, t: Trajectory, k: int, found: Chains) -> ReplayRow:
    """Counts of the head on one answer at draft length ``k``."""
    if found.logq is None:
        return row_of(name, t, k, simulate_runs(found.runs, k, t.max_tokens), found.near_ties)
    return expected_row(name, t, k, stands(found, target_logprobs(t)), found.near_ties)
