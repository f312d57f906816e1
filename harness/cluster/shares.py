"""How much one task takes on: enough that sending it is nothing beside it, little enough that workers end together."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.records import Trajectory

FEWEST, MOST = 16, 512
"""Answers that one task replays."""
TASKS = 16
"""Tasks per worker, where answers are enough for so many."""


def shares(answers: Sequence[Trajectory], workers: int, times: int = 1) -> list[list[int]]:
    """Numbers of the answers that each task replays: of one length as far as possible, so that little of a batch is padding.

    Args:
        answers: of the target.
        workers: that share them.
        times: how often they are replayed, a task each.
    """
    size = min(max(len(answers) * times // (TASKS * workers), FEWEST), MOST)
    lengths = [len(t.prompt_tokens) + len(t.tokens) for t in answers]
    order = sorted(range(len(answers)), key=lambda i: lengths[i])
    return [order[at : at + size] for at in range(0, len(order), size)]
