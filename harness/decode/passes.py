"""What one draft says along answers, kept for further replays: other lengths, and other drafters around the same draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from harness.core.records import Trajectory

P = TypeVar("P")

KEPT_TOKENS = 500_000
"""Tokens of answers whose passes one draft keeps."""


class Passes(Generic[P]):
    """Passes of one draft, by what was read: the first answers, up to :data:`KEPT_TOKENS` of theirs."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], P] = {}
        self._room = KEPT_TOKENS

    def along(self, trajectories: Sequence[Trajectory], run: Callable[[Sequence[Trajectory]], Sequence[P]]) -> list[P]:
        """One pass per trajectory, in order; ``run`` makes those that are not known."""
        lacking = [t for t in trajectories if (t.prompt_tokens, t.tokens) not in self._known]
        made = {(t.prompt_tokens, t.tokens): found for t, found in zip(lacking, run(lacking) if lacking else (), strict=True)}
        for text, found in made.items():
            if len(text[1]) <= self._room:
                self._known[text] = found
                self._room -= len(text[1])
        known = self._known | made
        return [known[t.prompt_tokens, t.tokens] for t in trajectories]
