"""What one draft says along answers, kept for further replays: other lengths, and other drafters around the same draft."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from harness.core.records import Trajectory

P = TypeVar("P")

KEPT_TOKENS = 500_000
"""Tokens of answers whose passes one draft keeps."""


class Passes(Generic[P]):
    """Passes of one draft, by what was read: the first answers, up to :data:`KEPT_TOKENS` of theirs."""

    def __init__(self) -> None:
        self._known: dict[Hashable, P] = {}
        self._room = KEPT_TOKENS

    def along(
        self, trajectories: Sequence[Trajectory], run: Callable[[Sequence[Trajectory]], Sequence[P]], how: Hashable = None
    ) -> list[P]:
        """One pass per trajectory, in order; ``run`` makes those that are not known as the draft reads them ``how``."""
        texts = [(how, t.sample_id, t.prompt_tokens, t.tokens) for t in trajectories]
        lacking = [i for i, text in enumerate(texts) if text not in self._known]
        made = dict(zip((texts[i] for i in lacking), run([trajectories[i] for i in lacking]) if lacking else (), strict=True))
        for i in lacking:
            if len(trajectories[i].tokens) <= self._room:
                self._known[texts[i]] = made[texts[i]]
                self._room -= len(trajectories[i].tokens)
        known = self._known | made
        return [known[text] for text in texts]
