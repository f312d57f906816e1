"""A drafter under a length policy along one answer: the part of a round that decoding and replay share."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from harness.decode.drafters import EMPTY, Drafter, Proposal, Request
from harness.decode.length import LengthPolicy

NOTHING = Proposal(EMPTY, source="")
"""A round in which nothing is drafted."""


class Proposing:
    """Asks the policy how far to draft, and the drafter for that much; a draft that cannot pay does not read the prompt.

    Args:
        drafter: what proposes.
        policy: what decides how far.
        prompt: token ids.
    """

    def __init__(self, drafter: Drafter, policy: LengthPolicy, prompt: list[int]) -> None:
        self._drafter, self._policy, self._prompt = drafter, policy, prompt
        self._free = getattr(drafter, "free", False)
        self._begun = policy.max_k() > 0 or (self._free and any(policy.free_k().values()))
        if self._begun:
            drafter.begin(prompt)

    def propose(self, context: list[int], room: int, **how: Any) -> Proposal:
        """What is drafted after ``context``, at most ``room`` tokens; ``how`` are further fields of :class:`Request`."""
        policy = self._policy
        request = Request(
            k=min(policy.max_k(), room),
            free_k={source: min(most, room) for source, most in policy.free_k().items()},
            worth=policy.worth,
            keep_going=policy.keep_going if policy.needs_confidence else None,
            pick=getattr(policy, "pick", None),
            **how,
        )
        wanted, begin_s = request.k > 0 or (self._free and any((request.free_k or {}).values())), 0.0
        if wanted and not self._begun:  # decoded plainly so far, now tries
            start = time.perf_counter()
            self._drafter.begin(self._prompt)
            self._begun, begin_s = True, time.perf_counter() - start
        proposal = (self._drafter.propose(context, request) if self._begun else None) or NOTHING
        return dataclasses.replace(proposal, begin_s=proposal.begin_s + begin_s) if begin_s else proposal
