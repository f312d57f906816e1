"""Thinking and answer of one output, counted apart: drafts of the two are accepted differently."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.counts import Counts
from harness.core.records import Record

Markers = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids that begin and that end a model's thinking."""


def thinking_tokens(prompt: Sequence[int], tokens: Sequence[int], markers: Markers) -> int:
    """How many of the emitted ``tokens`` are thinking, its end marker included; 0 where the model did not think.

    A thought may have begun in the prompt, and may not have ended.
    """
    start, end = markers
    begun = _last(prompt, start) > _last(prompt, end)
    ended = next((i + len(end) for i in range(len(tokens)) if tuple(tokens[i : i + len(end)]) == end), None)
    if not begun and _last(tokens[: ended or len(tokens)], start) < 0:
        return 0
    return len(tokens) if ended is None else ended


def _last(tokens: Sequence[int], marker: tuple[int, ...]) -> int:
    """Where ``marker`` stands last; -1 where it does not."""
    return next((i for i in range(len(tokens) - len(marker), -1, -1) if tuple(tokens[i : i + len(marker)]) == marker), -1)


def counted_by_part(record: Record) -> tuple[Counts, Counts] | None:
    """Counts of the rounds that began while the model thought, and of the others; None where nothing tells them apart."""
    if record.thinking is None or len(record.accept_lengths) != record.rounds or len(record.draft_lengths) != record.rounds:
        return None
    sums = ([0, 0, 0, 0], [0, 0, 0, 0])
    emitted = 0
    for drafted, accepted in zip(record.draft_lengths, record.accept_lengths, strict=True):
        new = min(accepted + 1, record.emitted - emitted)
        part = sums[emitted >= record.thinking]
        for i, count in enumerate((1, drafted, accepted, new)):
            part[i] += count
        emitted += new
    first, second = (Counts(rounds=r, drafted=d, accepted=a, emitted=e) for r, d, a, e in sums)
    return first, second
