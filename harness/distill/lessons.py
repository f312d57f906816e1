"""What a cut learns from: answers as arrays of the target's ids, the vocabulary of its head, and the order of updates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.adapt.training.examples import invert
from harness.answers.collect import Stored
from harness.answers.rollout import Rollout
from harness.core.errors import HarnessError
from harness.distill.distill_config import FitConfig


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One trajectory prepared for training; ids are the target's."""

    domain: str
    tokens: np.ndarray
    """(prompt + n,) int32."""
    prompt: int
    """Prompt length; the position before each of the n outputs predicts it."""
    labels: np.ndarray
    """(n,) int32: the target's most likely token."""
    top: np.ndarray
    """(n, k) int32: the target's top-k."""
    top_p: np.ndarray
    """(n, k) float32: their probabilities."""

    @property
    def key(self) -> str:
        """Hash of the token ids: name of the cached states of the target."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()[:32]

    def later(self, n: int) -> Lesson:
        """The same without its first ``n`` outputs' labels."""
        return replace(self, labels=self.labels[n:], top=self.top[n:], top_p=self.top_p[n:])


@dataclass(frozen=True, kw_only=True)
class Head:
    """Which target ids the draft can propose in one batch."""

    index: np.ndarray
    """(target vocab,) int32: output id of each target id, -1 where there is none. The trained head comes first."""
    extra: np.ndarray
    """(e,) int64 target ids beyond the trained head, whose rows are the target's embeddings."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The trained head's target ids, and whether those of the context are proposed beside them."""

    index: np.ndarray
    """(target vocab,) int32: output id of each target id of the trained head, else -1."""
    context_tokens: bool

    def head(self, batch: Sequence[Lesson]) -> Head:
        """The head for a batch: all its prompts' tokens together, for each of its examples; decoding adds those of the answer."""
        if not self.context_tokens:
            return Head(index=self.index, extra=np.empty(0, dtype=np.int64))
        seen = np.unique(np.concatenate([e.tokens[: e.prompt] for e in batch])).astype(np.int64)
        extra = seen[self.index[seen] < 0]
        index = self.index.copy()
        index[extra] = self.index.max() + 1 + np.arange(len(extra))
        return Head(index=index, extra=extra)


def vocabulary(ids: np.ndarray, target_vocab: int, *, context_tokens: bool) -> Vocabulary:
    """The vocabulary whose trained head names ``ids`` (V_draft,) in this order."""
    index = invert(ids, target_vocab)
    assert index is not None
    return Vocabulary(index=index, context_tokens=context_tokens)


def choose_vocab(rollouts: Iterable[Rollout], size: int, target_vocab: int, always: Iterable[int], *, key: str = "cut.vocab") -> np.ndarray:
    """Sorted target ids (size,) int32 that a pruned head keeps: ``always``, then the ids with most probability in the rollouts' top-k.

    Raises:
        HarnessError: the rollouts name fewer distinct ids than ``size``.
    """
    mass = np.zeros(target_vocab)
    for rollout in rollouts:
        np.add.at(mass, rollout.top_tokens.ravel(), np.exp(rollout.top_logprobs.ravel().astype(np.float64)))
    mass[list(always)] = np.inf
    named = int((mass > 0).sum())
    if named < size:
        raise HarnessError(f"the rollouts name only {named} distinct tokens, the head needs {size}", f"Collect more, or lower {key}.")
    return np.sort(np.argsort(-mass, kind="stable")[:size]).astype(np.int32)


def prepare(stored: Iterable[Stored]) -> list[Lesson]:
    """Turn trajectories into training examples."""
    return [
        Lesson(
            domain=s.domain,
            tokens=np.array([*s.prompt_tokens, *s.rollout.tokens], dtype=np.int32),
            prompt=len(s.prompt_tokens),
            labels=s.rollout.top_tokens[:, 0],
            top=s.rollout.top_tokens,
            top_p=np.exp(s.rollout.top_logprobs.astype(np.float32)),
        )
        for s in stored
    ]


def plan_updates(examples: Sequence[Lesson], config: FitConfig) -> list[list[int]]:
    """Lesson indices of every update: batches of similar length, at most ``batch_tokens`` with padding, reshuffled each epoch."""
    rng = np.random.default_rng(config.seed)
    updates: list[list[int]] = []
    for _ in range(math.ceil(config.epochs)):
        order = rng.permutation(len(examples))
        batches: list[list[int]] = []
        for start in range(0, len(order), 512):
            part = sorted(order[start : start + 512].tolist(), key=lambda i: len(examples[i].tokens))
            current: list[int] = []
            for i in part:
                if current and (len(current) + 1) * len(examples[i].tokens) > config.batch_tokens:
                    batches.append(current)
                    current = []
                current.append(i)
            batches.append(current)
        rng.shuffle(batches)
        updates += batches
    return updates[: math.ceil(len(updates) * config.epochs / math.ceil(config.epochs))]
