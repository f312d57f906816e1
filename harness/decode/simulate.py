"""Counting the rounds of a loop along a known answer: what each draft length would have drafted and had accepted, without the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.core.counts import Counts, Rates
from harness.core.records import Trajectory
from harness.decode.accept import common_prefix
from harness.decode.drafters import Drafter, FreeDrafter, Proposal, Request
from harness.decode.length import LengthPolicy
from harness.decode.model_drafter import ModelDrafter
from harness.decode.proposing import Proposing
from harness.decode.sampling import Draws
from harness.models.blas import ints, mx

MOST_DRAFTED = 2**31
"""No bound of replay's own: the policy decides."""
Beyond = dict[tuple[int, tuple[int, ...]], tuple[int, float]]
"""(tokens of the answer that stand, the guesses behind them) -> the token that a draft favours there, and its probability."""


@dataclass(frozen=True, kw_only=True)
class RoundCounts(Rates):
    """Counts of one answer, and the rounds they are from."""

    rounds: int
    drafted: int
    accepted: int
    rejected: int
    emitted: int
    accept_lengths: tuple[int, ...]
    draft_lengths: tuple[int, ...]
    sources: tuple[str, ...] | None = None
    """Who proposed, per round; None where only one source can."""


def simulate(propose: Callable[[int, int], tuple[int, int]], emitted: int, k: int, max_tokens: int) -> RoundCounts:
    """Count the rounds of a loop that drafts ``k`` tokens along a known answer.

    Args:
        propose: ``propose(position, limit) -> (drafted, agreeing)``: tokens proposed after ``position`` emitted tokens, at most
            ``limit``, and how many of them in a row equal the answer.
        emitted: length of the answer.
        k: draft length.
        max_tokens: limit of the generation; near it the draft shortens to what can still be emitted.
    """
    position, accepts, drafts, rejected = 0, [], [], 0
    while position < emitted:
        drafted, agreeing = propose(position, min(k, max_tokens - position - 1))
        agreeing = min(agreeing, emitted - position)  # an accepted end-of-sequence token ends the answer
        accepts.append(agreeing)
        drafts.append(drafted)
        ended_inside = position + agreeing == emitted
        rejected += not ended_inside and agreeing < drafted
        position += agreeing + (not ended_inside)
    return RoundCounts(
        rounds=len(accepts),
        drafted=sum(drafts),
        accepted=sum(accepts),
        rejected=rejected,
        emitted=emitted,
        accept_lengths=tuple(accepts),
        draft_lengths=tuple(drafts),
    )


def run_lengths(match: np.ndarray) -> np.ndarray:
    """Return, per position, how many True follow in a row from there (n,)."""
    runs = np.zeros(len(match) + 1, dtype=np.int64)
    for i in range(len(match) - 1, -1, -1):
        runs[i] = runs[i + 1] + 1 if match[i] else 0
    return runs[:-1]


def simulate_match(match: np.ndarray, k: int, max_tokens: int) -> RoundCounts:
    """Greedy counts of a draft model from its teacher-forced ``match`` (n,)."""
    return simulate_runs(run_lengths(match), k, max_tokens)


def simulate_runs(runs: np.ndarray, k: int, max_tokens: int) -> RoundCounts:
    """Greedy counts where ``runs`` (n,) says how many proposals in a row equal the answer, from each token on."""
    return simulate(lambda i, limit: (limit, min(int(runs[i]), limit)), len(runs), k, max_tokens)


def simulate_free(
    drafter: FreeDrafter, trajectory: Trajectory, k: int, runs: np.ndarray | None = None, most: int = MOST_DRAFTED
) -> RoundCounts:
    """Greedy counts of a drafter that needs no model at all.

    Args:
        drafter: a lookup or a memory.
        trajectory: the known answer.
        k: draft length.
        runs: as for :func:`simulate_runs`, of the draft model that steps in where it finds nothing (hybrid); None is the drafter alone.
        most: most tokens of that model.
    """
    prompt, answer = list(trajectory.prompt_tokens), list(trajectory.tokens)
    sources: list[str] = []
    drafter.begin(prompt)

    def propose(position: int, limit: int) -> tuple[int, int]:
        found = drafter.search(prompt + answer[:position], Request(k=limit))
        if not found.tokens and runs is not None:
            sources.append("draft" if limit else "")
            limit = min(limit, most)
            return limit, min(int(runs[position]), limit)
        sources.append(found.source if found.tokens else "")
        return len(found.tokens), common_prefix(found.tokens, answer[position:])

    return dataclasses.replace(simulate(propose, len(answer), k, trajectory.max_tokens), sources=tuple(sources))


def simulate_policy(drafter: Drafter, trajectory: Trajectory, policy: LengthPolicy) -> RoundCounts:
    """Greedy counts of any drafter under any policy: it proposes at every start of a round along the known answer, as in the loop."""
    prompt, answer = list(trajectory.prompt_tokens), list(trajectory.tokens)
    proposing, sources = Proposing(drafter, policy, prompt), list[str]()

    def propose(position: int, limit: int) -> tuple[int, int]:
        proposal = proposing.propose(prompt + answer[:position], limit)
        tokens = ints(proposal.tokens)
        agreeing = common_prefix(tokens, answer[position:])
        policy.update(drafted=len(tokens), accepted=agreeing, confidences=proposal.confidences, source=proposal.source)
        sources.append(proposal.source if tokens else "")
        return len(tokens), agreeing

    return dataclasses.replace(simulate(propose, len(answer), MOST_DRAFTED, trajectory.max_tokens), sources=tuple(sources))


class AlongAnswer:
    """A draft model beside a known answer: what it says there is known, so it runs only behind a token that the answer has not.

    Args:
        draft: the model's drafter.
        trajectory: the answer.
        match: (n,) bool, whether the draft's favourite is the answer's token.
        favourite: (n,) int, the favourite's id.
        confidence: (n,) float, its probability under the draft.
        beyond: what the draft said behind tokens that the answer has not; used and filled in.
        draws: how it draws those; None for its favourites.
    """

    def __init__(
        self,
        draft: ModelDrafter,
        trajectory: Trajectory,
        match: np.ndarray,
        favourite: np.ndarray,
        confidence: np.ndarray,
        beyond: Beyond,
        draws: Draws | None = None,
    ) -> None:
        self.name = draft.name
        self._draft, self._prompt, self._answer = draft, list(trajectory.prompt_tokens), list(trajectory.tokens)
        self._match, self._favourite, self._confidence = match.tolist(), favourite.tolist(), confidence.tolist()
        self._beyond, self._draws, self._trajectory = beyond, draws, trajectory
        self._reads = False

    def begin(self, prompt: list[int]) -> None:
        """Start the answer; the model reads the prompt when it is first needed."""
        self._reads = False

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        """As :meth:`harness.decode.model_drafter.ModelDrafter.propose`."""
        if request.k == 0:
            return None
        start, goes_on = len(context) - len(self._prompt), request.keep_going
        tokens: list[int] = []
        confidences: tuple[float, ...] = ()
        true = self._answer[start - request.guesses : start] == context[len(context) - request.guesses :]
        for i in range(start, min(start + request.k, len(self._match)) if true else start):
            tokens.append(self._favourite[i])
            if goes_on is not None:
                confidences = (*confidences, self._confidence[i])
                if not goes_on(confidences):
                    return self._proposal(tokens, confidences)
            if not self._match[i]:
                break
        if len(tokens) < request.k:
            more = self._behind([*context, *tokens], request.guesses + len(tokens), request.k - len(tokens), goes_on, confidences)
            tokens, confidences = [*tokens, *ints(more.tokens)], (*confidences, *more.confidences)
        return self._proposal(tokens, confidences)

    def _behind(
        self, context: list[int], guesses: int, k: int, goes_on: Callable[[tuple[float, ...]], bool] | None, known: tuple[float, ...]
    ) -> Proposal:
        """What the model drafts after a token that the answer has not, or after the answer's end; asked once, it is known."""
        if goes_on is None:
            return self._asked(context, Request(k=k, guesses=guesses))
        stands, said, sure = len(context) - guesses, list[int](), list[float]()
        while len(said) < k:
            text = [*context, *said]
            at = stands - len(self._prompt), tuple(text[stands:])
            if at not in self._beyond:
                more = self._asked(text, Request(k=1, keep_going=lambda _: False, guesses=guesses + len(said)))
                self._beyond[at] = ints(more.tokens)[0], more.confidences[0]
            token, confidence = self._beyond[at]
            said.append(token)
            sure.append(confidence)
            if not goes_on((*known, *sure)):
                break
        return self._proposal(said, tuple(sure))

    def _asked(self, context: list[int], request: Request) -> Proposal:
        if not self._reads:
            self._draft.begin(self._prompt)
            self._reads = True
        if self._draws is not None:
            place = tuple(context[len(self._prompt) :]), request.k
            request = dataclasses.replace(request, sampling=self._draws.sampling, key=self._draws.key(self._trajectory, place))
        proposal = self._draft.propose(context, request)
        assert proposal is not None
        return proposal

    @staticmethod
    def _proposal(tokens: list[int], confidences: tuple[float, ...]) -> Proposal:
        return Proposal(tokens=mx.array(tokens, dtype=mx.int32), confidences=confidences)


def expected_counts(stand: np.ndarray, k: int, max_tokens: int) -> Counts:
    """Expected counts under sampling, by dynamic programming over round starts.

    Args:
        stand: (n,) probability that the trajectory's token stands when drafted, min(1, q/p); (n, K) where that depends on the start of
            the round: of token i + j from start i.
        k: draft length.
        max_tokens: limit of the generation.
    """
    n = len(stand)
    begins = np.zeros(n + k + 2)
    begins[0] = 1.0
    rounds = drafted = accepted = rejected = 0.0
    for i in range(n):
        weight = begins[i]
        if weight == 0:
            continue
        limit = min(k, max_tokens - i - 1)
        rounds += weight
        drafted += weight * limit
        survive = 1.0
        for j in range(min(limit, n - i)):
            p = stand[i + j] if stand.ndim == 1 else stand[i, j]
            rejected += weight * survive * (1 - p)
            begins[i + j + 1] += weight * survive * (1 - p)
            survive *= p
            accepted += weight * survive
        if i + limit < n:  # everything drafted stands: the bonus token follows
            begins[i + limit + 1] += weight * survive
    return Counts(rounds=rounds, drafted=drafted, accepted=accepted, rejected=rejected, emitted=n)
