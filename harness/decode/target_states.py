"""The target's hidden states at the tokens of an answer, for a head that reads them: as the loop runs the target, or all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from harness.core.records import Trajectory
from harness.decode.cached import CachedModel
from harness.decode.forced import length_batches
from harness.models.blas import mx
from harness.models.taps import Tapped


class States(Protocol):
    """Where a head finds what it reads."""

    def states(self, start: int, end: int) -> mx.array:
        """(end - start, places x width) states after the tokens ``start`` to ``end`` of the context."""


class ReadTarget(CachedModel):
    """A target and its cache that also keeps the states of what it is fed, until they are asked for.

    What a verification fed is forgotten with the tokens that did not stand; a cache that goes further back feeds tokens again, and
    their states are those of the last time.
    """

    def __init__(self, tapped: Tapped, known: tuple[list[Any], int]) -> None:
        self._parts: list[tuple[int, tuple[mx.array, ...]]] = []  # first token, and per place (1, n, width)
        super().__init__(tapped, known=known)

    def forward(self, tokens: mx.array, last: int | None = None) -> mx.array:
        """As any model's; the states are kept."""
        start = self.offset
        self._cut(start)
        logits = super().forward(tokens)
        logits = logits if last is None else logits[-last:]
        self._parts.append((start, self.model.states))
        return logits

    def held(self) -> list[Any]:
        """What a prefill evaluates."""
        return [*super().held(), self._parts[-1][1]]

    def trim_to(self, length: int, *, settled: bool = True) -> None:
        """Forget everything after the first ``length`` tokens; their states stay, wherever the cache has to go back to."""
        super().trim_to(length, settled=settled)
        self._cut(length)

    def _cut(self, length: int) -> None:
        while self._parts and self._parts[-1][0] >= length:
            self._parts.pop()
        if self._parts:
            start, arrays = self._parts[-1]
            self._parts[-1] = (start, tuple(a[:, : length - start] for a in arrays))

    def states(self, start: int, end: int) -> mx.array:
        """As :class:`States` says; those of tokens before ``start`` are dropped.

        Raises:
            ValueError: they were dropped, or the tokens were not fed yet.
        """
        kept = [(at, arrays) for at, arrays in self._parts if at + arrays[0].shape[1] > start]
        if start < end and (not kept or kept[0][0] > start or kept[-1][0] + kept[-1][1][0].shape[1] < end):
            raise ValueError(f"no states of the tokens {start} to {end}")
        self._parts = kept
        tapped: Tapped = self.model
        rows = [mx.concatenate([a[0, max(start - at, 0) : end - at] for a in arrays], axis=-1) for at, arrays in kept if at < end]
        return mx.concatenate(rows) if rows else mx.zeros((0, len(tapped.after) * tapped.width), tapped.dtype)


class KnownStates:
    """States of a text that is known: ``rows`` (n, places x width)."""

    def __init__(self, rows: mx.array) -> None:
        self._rows = rows

    def states(self, start: int, end: int) -> mx.array:
        """As :class:`States` says."""
        return self._rows[start:end]


def read_answers(tapped: Tapped, trajectories: Sequence[Trajectory]) -> Iterator[tuple[list[int], mx.array, mx.array]]:
    """One pass of the target over each answer, batched by length.

    Yields:
        Places in ``trajectories``, tokens (B, W) of prompt and answer but for its last one, and their states (B, W, places x width).
    """
    for batch in length_batches([len(t.prompt_tokens) + len(t.tokens) for t in trajectories]):
        rows = [[*trajectories[i].prompt_tokens, *trajectories[i].tokens[:-1]] for i in batch]
        width = max(map(len, rows))
        tokens = mx.array([row + [0] * (width - len(row)) for row in rows], dtype=mx.int32)
        tapped(tokens)  # padding on the right is invisible to causal attention; nobody asks for the logits, so they cost nothing
        yield batch, tokens, mx.concatenate(tapped.states, axis=-1)
        mx.clear_cache()
