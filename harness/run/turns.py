"""Conversations of a prompt file: what target and drafts have read for one turn serves all cells at the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.records import Sample
from harness.datasets.conversation import place_of

if TYPE_CHECKING:
    from harness.decode.kept import KeptCaches


@dataclass
class _Conversation:
    """Where a domain is."""

    name: str
    turn: int
    before: KeptCaches
    """What was read up to the turn before."""
    now: KeptCaches
    """What is read in this turn, for the next one."""


class Turns:
    """Hands out the caches of turns. Every cell of a turn goes on from the same ones, so that their clocks can be compared."""

    def __init__(self) -> None:
        self._at: dict[str, _Conversation] = {}

    def caches(self, sample: Sample) -> KeptCaches | None:
        """Caches for one answer to a turn; None for a prompt that is no turn of a conversation."""
        from harness.decode.kept import KeptCaches

        place = place_of(sample)
        if place is None:
            return None
        known = self._at.get(sample.domain)
        if known is None or (known.name, known.turn) != place:
            goes_on = known is not None and known.name == place[0] and known.turn < place[1]
            known = _Conversation(*place, before=known.now if known is not None and goes_on else KeptCaches(), now=KeptCaches())
            self._at[sample.domain] = known
        return known.before.into(known.now)
