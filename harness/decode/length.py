"""Draft length policies: fixed K, stop on low confidence, and the cost-aware ``auto``.

``auto`` maximises tokens per target-step time, E[emitted] / (j c + v(j + 1)), with the measured c and v of this machine. Between
rounds it uses the running acceptance; inside a round it keeps drafting while the expected gain of one more token pays for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from harness.core.errors import HarnessError
from harness.core.limits import COUNT, LENGTH, Limit, draft_length
from harness.core.round_sources import expanded, model_steps

FREE = ("lookup", "copy", "memory")
"""Sources that run no model: a lookup in the text so far, one after a match of its longest suffix, and a pair's memory."""
DRAFT = -1
"""What :meth:`LengthPolicy.pick` answers for the draft model."""
Drawn = tuple[str, float]
"""Source of a token, and the chance it gives it."""
AUTO_MAX_K = 16
"""Longest draft that ``auto`` weighs: text copied from the prompt comes in long stretches, which lookup proposes for nothing."""
SPARE = 1
"""A drafter that proposes all tokens in one pass is asked for this many more than the best length: what it says of them decides."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured costs in units of one target step."""

    c: float
    """One draft step (0 for lookup); of a drafter that proposes all tokens in one pass, what each adds to it."""
    v: tuple[float, ...]
    """v[m - 1] is a target pass over m tokens; v[0] is 1."""
    once: float = 0.0
    """What a round with a draft costs beside ``c`` a token: the one pass of such a drafter."""

    def __post_init__(self) -> None:
        for name, values in (("c", (self.c,)), ("once", (self.once,)), ("v", self.v)):
            if not values or not all(0 <= value < math.inf for value in values):
                raise HarnessError(f"{name} is {getattr(self, name)!r:.100}", "Measured costs are finite and not negative.")

    @property
    def max_k(self) -> int:
        """Longest draft the measurements cover."""
        return len(self.v) - 1

    def draft_cost(self, k: int) -> float:
        """Cost of drafting ``k`` tokens with the model, in target steps."""
        return self.once + k * self.c if k else 0.0

    def round_cost(self, k: int, *, free: bool = False) -> float:
        """Cost of verifying ``k`` tokens and, where they are not ``free``, of drafting them, in target steps."""
        return (0.0 if free else self.draft_cost(k)) + self.v[k]

    def answer_cost(self, draft_lengths: Sequence[int], sources: Sequence[str]) -> float:
        """Cost of an answer's rounds in target steps: every verification, and of the drafting what a model did.

        Args:
            draft_lengths: tokens proposed per round.
            sources: who proposed them, as :mod:`harness.core.round_sources` writes it.
        """
        rounds = zip(draft_lengths, sources, strict=True)
        return sum(self.v[min(drafted, self.max_k)] + self.draft_cost(model_steps(source, drafted)) for drafted, source in rounds)

    def without_draft(self) -> Costs:
        """The same verification for what runs no model."""
        return replace(self, c=0.0, once=0.0)


CARRIED_TOKENS = 8
"""Tokens fed once more in front of proposals where nothing was measured and a pass costs the same for any few tokens, as on a GPU."""


def carried(again: int, k: int, costs: Costs | None, *, flat: bool) -> bool:
    """Whether ``again`` tokens that have to be fed once more go in front of ``k`` proposals, rather than into a pass of their own.

    In front they may come back: the next rejection asks for them again. So they go there where that costs less than half a pass.
    """
    if again == 0:
        return True
    if costs is None:
        return flat and again <= CARRIED_TOKENS
    longer = k + again
    return longer <= costs.max_k and costs.v[longer] - costs.v[k] < costs.v[again - 1] / 2


def expected_tokens(alpha: float, k: int) -> float:
    """Return E[tokens per round] = 1 + alpha + ... + alpha^k for independent acceptance ``alpha``."""
    return sum(alpha**i for i in range(k + 1))


def predicted_speedup(tau: float, k: int, costs: Costs) -> float:
    """Return tau / (k c + v(k + 1)), the speedup over one target step per token."""
    return tau / costs.round_cost(k)


class LengthPolicy(Protocol):
    """Decides how far to draft. Sources are ``draft`` (a model) and :data:`FREE`."""

    needs_confidence: bool

    def max_k(self) -> int:
        """Upper bound for this round; 0 means plain decoding."""

    def free_k(self) -> dict[str, int]:
        """Upper bound for the tokens of each source in :data:`FREE`."""

    def worth(self, confidences: tuple[float, ...]) -> int:
        """How many of a memory's tokens to verify, by the confidence in each."""

    def keep_going(self, confidences: tuple[float, ...]) -> bool:
        """After each drafted token: draft another one?"""

    def pick(self, chain: Sequence[Drawn], found: Sequence[Sequence[Drawn]], draft: bool) -> int | None:
        """Who proposes the next token of a round.

        Args:
            chain: the tokens proposed so far.
            found: what sources that run no model would go on with, the most trusted first.
            draft: whether a draft model may be asked.

        Returns:
            An index of ``found``, :data:`DRAFT`, or None to verify what there is.
        """

    def update(self, *, drafted: int, accepted: int, confidences: tuple[float, ...], source: str) -> None:
        """Learn from one finished round; ``source`` as :mod:`harness.core.round_sources` writes it."""


class FixedK:
    """Always K tokens."""

    needs_confidence = False

    def __init__(self, k: int) -> None:
        self.k = LENGTH.check("k", k)

    def max_k(self) -> int:
        return self.k

    def free_k(self) -> dict[str, int]:
        return dict.fromkeys(FREE, self.k)

    def worth(self, confidences: tuple[float, ...]) -> int:
        return len(confidences)

    def keep_going(self, confidences: tuple[float, ...]) -> bool:
        return True

    def pick(self, chain: Sequence[Drawn], found: Sequence[Sequence[Drawn]], draft: bool) -> int | None:
        return 0 if found else DRAFT if draft else None

    def update(self, *, drafted: int, accepted: int, confidences: tuple[float, ...], source: str) -> None:
        pass


class DynamicK:
    """Draft until the draft's confidence in its own token falls under a threshold.

    Args:
        threshold: stop after a token less likely than this.
        limit: never more than this many tokens.
    """

    needs_confidence = True

    def __init__(self, threshold: float = 0.4, limit: int = 8) -> None:
        Limit(0, 1).check("the dynamic threshold", threshold)
        COUNT.check("the dynamic limit", limit)
        self.threshold = threshold
        self.limit = limit

    def max_k(self) -> int:
        return self.limit

    def free_k(self) -> dict[str, int]:
        return dict.fromkeys(FREE, self.limit)

    def worth(self, confidences: tuple[float, ...]) -> int:
        return next((i for i, confidence in enumerate(confidences) if confidence < self.threshold), len(confidences))

    def keep_going(self, confidences: tuple[float, ...]) -> bool:
        return confidences[-1] >= self.threshold

    def pick(self, chain: Sequence[Drawn], found: Sequence[Sequence[Drawn]], draft: bool) -> int | None:
        if chain and chain[-1][1] < self.threshold:
            return None
        sure = next((i for i, run in enumerate(found) if run[0][1] >= self.threshold), None)
        return sure if sure is not None else DRAFT if draft else None

    def update(self, *, drafted: int, accepted: int, confidences: tuple[float, ...], source: str) -> None:
        pass


_MODESTY = {"draft": 1.2, "memory": 1.5, "lookup": 1.0}
"""A confidence to this power is the chance assumed at first that a token stands: measured on training answers of ``smollm2``."""
_SPEED_WEIGHT = 100.0
"""Target steps that the speed assumed at first, 1.5 times the target's, counts for."""


class AutoK:
    """Cost-aware draft length that falls back to plain decoding where speculation loses.

    Args:
        costs: measured c and v.
        prior_alpha: acceptance assumed before anything was seen (0.9 after a match of the longest suffix).
        prior_rounds: weight of the prior, in decided tokens.
        decay: forgetting factor per decided token of the running acceptance, and per round of the running speed.
        probe_budget: share of the time that may go into retrying after a fall back to plain decoding.
    """

    needs_confidence = True
    _BUCKETS = 8

    def __init__(
        self,
        costs: Costs,
        *,
        prior_alpha: float = 0.7,
        prior_rounds: float = 6.0,
        decay: float = 0.98,
        probe_budget: float = 0.005,
    ) -> None:
        self.costs = costs
        self.decay = decay
        self.probe_budget = probe_budget
        priors = {"draft": prior_alpha, "lookup": prior_alpha, "memory": prior_alpha, "copy": 0.9}
        self._accepted = {source: alpha * prior_rounds for source, alpha in priors.items()}
        self._decided = dict.fromkeys(priors, prior_rounds)
        # Acceptance by confidence bucket, with a prior worth a few tokens.
        middles = [(b + 0.5) / self._BUCKETS for b in range(self._BUCKETS)]
        self._buckets = {source: [[4.0 * middle**power, 4.0] for middle in middles] for source, power in _MODESTY.items()}
        self._stood, self._foreseen = dict.fromkeys(_MODESTY, prior_rounds), dict.fromkeys(_MODESTY, prior_rounds)
        self._emitted, self._spent = 1.5 * _SPEED_WEIGHT, _SPEED_WEIGHT
        self._plain_rounds = 0
        self._wait = 0
        self._probing = False

    def alpha(self, source: str = "draft") -> float:
        """Running per-token acceptance of ``source``."""
        return min(self._accepted[source] / self._decided[source], 0.999)

    def best(self) -> tuple[int, float]:
        """Return the best fixed K for the running acceptance and its tokens per target-step time; K = 0 gives 1."""
        return self._best(self.alpha())

    def _best(self, alpha: float, *, free: bool = False) -> tuple[int, float]:
        rates = [(expected_tokens(alpha, k) / self.costs.round_cost(k, free=free), -k) for k in range(self.costs.max_k + 1)]
        rate, k = max(rates)
        return -k, rate

    def _rival(self) -> float:
        """Tokens per target-step time of a round without a free source: the draft model's, or plain decoding's."""
        return self.best()[1] if self.costs.draft_cost(1) > 0 else 1.0

    def free_k(self) -> dict[str, int]:
        """Best length at the running acceptance of lookups, 0 while the draft model does better; a memory says more of each token."""
        rival = self._rival()
        found = {source: self._best(self.alpha(source), free=True) for source in ("lookup", "copy")}
        return {"memory": self.costs.max_k, **{source: k if rate > rival else 0 for source, (k, rate) in found.items()}}

    def worth(self, confidences: tuple[float, ...]) -> int:
        """The length with the most expected tokens per time, by how often tokens of such confidence stood; 0 if a rival does better."""
        best, length, survive, tokens = self._rival(), 0, 1.0, 1.0
        for j, confidence in enumerate(confidences, 1):
            survive *= self._stands("memory", confidence)
            tokens += survive
            rate = tokens / self.costs.round_cost(j, free=True)
            if rate > best:
                best, length = rate, j
        return length

    def max_k(self) -> int:
        k, _ = self.best()
        self._probing = False
        if k > 0:
            self._plain_rounds = 0
            return min(k + SPARE, self.costs.max_k) if self.costs.once else self.costs.max_k
        # Speculation loses: decode plainly, and probe so rarely that probing costs at most the budget.
        if self._plain_rounds == 0:
            loss = max(self.costs.round_cost(1) - expected_tokens(self.alpha(), 1), 0.01)
            self._wait = max(round(loss / self.probe_budget), 8)
        self._plain_rounds += 1
        if self._plain_rounds > self._wait:
            self._plain_rounds, self._probing = 0, True
            return 1
        return 0

    def _stands(self, source: str, confidence: float) -> float:
        """Chance that a token stands: what such confidences were worth, and less where the source stood less often than foreseen."""
        return self._share(source, confidence) * min(self._stood[source] / self._foreseen[source], 1.0)

    def _share(self, source: str, confidence: float) -> float:
        accepted, seen = self._buckets[source][self._index(confidence)]
        return accepted / seen

    def _index(self, confidence: float) -> int:
        return min(int(confidence * self._BUCKETS), self._BUCKETS - 1)

    def keep_going(self, confidences: tuple[float, ...]) -> bool:
        k = len(confidences)
        survive = 1.0
        for confidence in confidences:
            survive *= self._stands("draft", confidence)
        alpha, (_, rate) = self.alpha(), self.best()
        gain = 0.0
        for more in range(1, self.costs.max_k - k + 1):
            gain += survive * alpha**more
            cost = more * self.costs.c + self.costs.v[k + more] - self.costs.v[k]
            if gain > rate * cost:
                return True
        return False

    def pick(self, chain: Sequence[Drawn], found: Sequence[Sequence[Drawn]], draft: bool) -> int | None:
        """The source whose tokens, as many as pay, gain most over what the same time gives at the running speed; None for no gain."""
        at, survive = len(chain), math.prod(self._stands(*drawn) for drawn in chain)
        gains = {i: self._gain(at, survive, [self._stands(*drawn) for drawn in run], lambda n: 0.0) for i, run in enumerate(found)}
        if draft:
            gains[DRAFT] = self._gain(at, survive, [self.alpha()] * (self.costs.max_k - at), self.costs.draft_cost)
        best = max(gains, key=lambda i: gains[i], default=None)
        if best is not None and gains[best] > 0:
            return best
        return DRAFT if draft and self._probing and not chain else None

    def _gain(self, at: int, survive: float, chances: Sequence[float], cost: Callable[[int], float]) -> float:
        """Expected tokens of the best number of further tokens, less what their time would give otherwise.

        Args:
            at: tokens proposed so far.
            survive: chance that all of them stand.
            chances: of each further token, if those before it stand.
            cost: of proposing so many.
        """
        speed, v = max(self._emitted / self._spent, 1.0), self.costs.v
        best = tokens = 0.0
        for more, chance in enumerate(chances[: self.costs.max_k - at], 1):
            survive *= chance
            tokens += survive
            best = max(best, tokens - speed * (cost(more) + v[at + more] - v[at]))
        return best

    def update(self, *, drafted: int, accepted: int, confidences: tuple[float, ...], source: str) -> None:
        # Another package's source counts as the draft, as whose its cost was measured.
        sources = [name if name in self._decided else "draft" for name in expanded(source, drafted)]
        self._emitted = self._emitted * self.decay + accepted + 1
        spent = self.costs.v[min(drafted, self.costs.max_k)] + self.costs.draft_cost(sources.count("draft"))
        self._spent = self._spent * self.decay + spent
        for i, source in enumerate(sources[: accepted + 1]):
            stands = float(i < accepted)
            self._accepted[source] = self._accepted[source] * self.decay + stands
            self._decided[source] = self._decided[source] * self.decay + 1
            if i < len(confidences) and source in self._buckets:
                self._stood[source] = self._stood[source] * self.decay + stands
                self._foreseen[source] = self._foreseen[source] * self.decay + self._share(source, confidences[i])
                bucket = self._buckets[source][self._index(confidences[i])]
                bucket[0] += stands
                bucket[1] += 1


def make_policy(k: int | str, costs: Costs | None = None) -> LengthPolicy:
    """Build the policy named by ``k``: an int, ``dynamic`` or ``auto``.

    Raises:
        HarnessError: unknown name, or ``auto`` without measured costs.
    """
    k = draft_length(k)
    if isinstance(k, int):
        return FixedK(k)
    if k == "dynamic":
        return DynamicK()
    if costs is None:
        raise HarnessError("k = auto needs measured costs", "Run `harness doctor --pair PAIR` once, or let the harness calibrate.")
    return AutoK(costs)
