"""What masks learn from an answer: where they stand, what the target said there, and what each of them weighs. No torch, no mlx."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.adapt.training.examples import Example, invert, make_batch
from harness.core.protocols import LoadedDraft

RAREST = 1e-3
"""Least chance of a group to be trained."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Masks behind some tokens of one example: M of them."""

    starts: np.ndarray
    """(M,) int32: tokens that the mask's group stands behind, prompt included."""
    steps: np.ndarray
    """(M,) int32: which mask of its group it is, from 0."""


def plan_groups(example: Example, masks: int, keep: float, rng: np.random.Generator, present: np.ndarray | None = None) -> Groups:
    """A group behind every answer token but the last ones, of random length.

    A group has mask j + 1 in ``keep`` of the cases in which it has mask j: what is dropped is always the end, which no other mask sees.

    Args:
        example: the answer, of m tokens.
        masks: most of a group.
        keep: chance of going on.
        rng: draws the lengths.
        present: (m - 1,) chance of each group to be there at all; None is all of them.
    """
    answer = len(example.answer)
    drawn = 1 + (np.cumprod(rng.random((answer - 1, masks - 1)) < keep, axis=1)).sum(axis=1)
    lengths = np.minimum(drawn, np.arange(answer - 1, 0, -1)).astype(np.int64)  # a mask predicts a token of the answer
    if present is not None:
        lengths[rng.random(answer - 1) >= present] = 0
    starts = np.repeat(example.start + np.arange(answer - 1), lengths)
    steps = np.concatenate([np.arange(n) for n in lengths]) if len(starts) else np.zeros(0)
    return Groups(starts=starts.astype(np.int32), steps=steps.astype(np.int32))


NO_GROUPS = Groups(starts=np.zeros(0, np.int32), steps=np.zeros(0, np.int32))


def added_length(first: np.ndarray, stands: np.ndarray) -> np.ndarray:
    """How many accepted tokens a round gains per unit that a mask's token is likelier to stand: the slope of the expected length.

    It counts as much as the proposals before it are likely to stand, and more where those behind it are too.

    Args:
        first: (n,) chance that the draft's own proposal stands, of n rounds.
        stands: (n, m) chance that the proposal of each mask does, where those before it do.

    Returns:
        (n, m).
    """
    before = np.cumprod(np.concatenate([first[:, None], stands[:, :-1]], axis=1), axis=1)
    behind = np.ones_like(stands)
    for j in range(stands.shape[1] - 2, -1, -1):
        behind[:, j] += stands[:, j + 1] * behind[:, j + 1]
    return before * behind


@dataclass(frozen=True)
class Lesson:
    """An example, its masks, and what the target said where they propose: N masks have a token that the draft can say."""

    example: Example
    groups: Groups
    rows: np.ndarray
    """(N,) which masks."""
    known: dict[str, np.ndarray]
    """As :func:`harness.adapt.training.torch_parts.head_loss` takes them, draft ids."""
    extra: np.ndarray
    """(e,) int64 ids of the prompt beyond the head, which are proposed through their embeddings."""
    first: np.ndarray
    """(m,) draft ids of the answer's tokens, which the draft's own proposals should be; -1 where it cannot say one."""

    def first_stands(self, chances: np.ndarray) -> np.ndarray:
        """(m,) the draft's own ``chances`` (m,) of these tokens, 0 where it cannot say one."""
        found: np.ndarray = chances * (self.first >= 0)
        return found

    def weighed(self, first: np.ndarray, chances: np.ndarray, by_length: float) -> np.ndarray:
        """(N,) float32: what the masks of groups that are :func:`present` weigh. A token that the draft cannot say never stands.

        Args:
            first: (m,) chance that the draft's own proposal is the answer's token.
            chances: (N,) chance that the mask's is.
            by_length: as ``parallel.by_length`` of the settings.
        """
        stands = np.zeros((len(first), int(self.groups.steps.max()) + 1))
        at = self.groups.starts[self.rows] - self.example.start, self.groups.steps[self.rows]
        stands[at] = chances
        gained = added_length(first, stands)[at]
        found: np.ndarray = self.known["weights"] * (1 - by_length + by_length * gained) / present(first, by_length)[at[0]]
        return found.astype(np.float32)


def present(first: np.ndarray, by_length: float) -> np.ndarray:
    """(m,) chance of each group to be trained: what seldom counts is left out as often, and counts more where it is not.

    Args:
        first: (m,) chance that the draft's own proposal stands there.
        by_length: as ``parallel.by_length`` of the settings.
    """
    chance: np.ndarray = np.maximum(1 - by_length + by_length * first, RAREST)
    return chance


class Vocabulary:
    """The ids that a draft proposes."""

    def __init__(self, draft: LoadedDraft) -> None:
        self.rows = None if draft.token_map is not None or draft.vocab is None else np.array(draft.vocab)
        """Rows of the model's head that are proposed; None is all of it."""
        self._open = draft.vocab is not None
        ids = self.rows if draft.token_map is None else np.array(draft.token_map)
        embedded = draft.model.args.vocab_size
        size = max(embedded, draft.target_rows or 0)
        if ids is None and size > embedded:
            ids = np.arange(embedded)
        self._inverse = None if ids is None else invert(ids, size)
        self._size = 0 if ids is None else len(ids)

    def lesson(self, example: Example, groups: Groups) -> Lesson:
        """What the target said, in ids of the head with the prompt's tokens behind it."""
        inverse, extra = self._inverse, np.zeros(0, dtype=np.int64)
        if self._open and inverse is not None:
            prompt = np.unique(example.tokens[: example.start]).astype(np.int64)
            extra, inverse = prompt[inverse[prompt] < 0], inverse.copy()
            inverse[extra] = self._size + np.arange(len(extra))
        batch = make_batch([example], inverse)
        place = np.full(len(example.answer) + 1, -1)
        place[batch.rows - (example.start - 1)] = np.arange(len(batch.rows))
        predicted = place[groups.starts + groups.steps + 1 - example.start]
        rows = np.flatnonzero(predicted >= 0)
        names = ("labels", "weights", "top_tokens", "top_p")
        known = {name: getattr(batch, name)[predicted[rows]] for name in names}
        first = example.answer if inverse is None else inverse[example.answer]
        return Lesson(example, groups, rows, known, extra, first)
