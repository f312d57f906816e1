"""Training examples from trajectories and cases, and their batches: numpy on the host, no mlx import."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.adapt.training.failures import Case
from harness.answers.collect import Stored
from harness.core.errors import HarnessError
from harness.core.records import Trajectory


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt with the target's answer and what the target thought at each answer position. m = answer tokens."""

    id: str
    """Sample id."""
    domain: str
    """Domain of the sample."""
    tokens: np.ndarray
    """(n,) int32, prompt then answer."""
    start: int
    """Prompt length: index of the first answer token."""
    weights: np.ndarray
    """(m,) float32, weight of each answer position."""
    top_tokens: np.ndarray
    """(m, k) int32, top-k target ids; -1 where there are fewer."""
    top_p: np.ndarray
    """(m, k) float32, their probabilities; 0 where there are fewer."""
    max_tokens: int
    """Limit the answer was generated under; replay shortens the last drafts by it."""

    @property
    def key(self) -> str:
        """Hash of the token ids: name of the cached hidden states."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()[:32]

    @property
    def prompt_key(self) -> str:
        """Hash of the prompt's token ids."""
        return hashlib.sha256(self.tokens[: self.start].tobytes()).hexdigest()[:32]

    @property
    def answer(self) -> np.ndarray:
        """(m,) int32, the answer's token ids."""
        return self.tokens[self.start :]


def from_trajectory(trajectory: Trajectory) -> Example:
    """Build an example with weight 1 everywhere."""
    return _build(
        trajectory.sample_id,
        trajectory.domain,
        trajectory.prompt_tokens,
        trajectory.tokens,
        trajectory.top_tokens,
        trajectory.top_logprobs,
        trajectory.max_tokens,
    )


def from_stored(stored: Stored) -> Example:
    """Build an example with weight 1 everywhere from an answer in a shard."""
    found, known = stored.rollout, (stored.sample_id, stored.domain, stored.prompt_tokens)
    return _build(*known, found.tokens, found.top_tokens, found.top_logprobs, stored.max_tokens)


def from_case(case: Case, failure_weight: float, trajectory: Trajectory | None = None) -> Example:
    """Build an example whose disagreements weigh ``failure_weight``.

    Args:
        case: what the draft got right and wrong.
        failure_weight: weight of a position where it was wrong.
        trajectory: what the case refers to. Without it, positions whose target probabilities the case does not hold count as certain
            of the emitted token.
    """
    about = (case.sample_id, case.domain, case.prompt_tokens, case.output_tokens)
    if trajectory is not None:
        example = _build(*about, trajectory.top_tokens, trajectory.top_logprobs, len(case.output_tokens))
    else:
        known = {d.position: d for d in case.disagreements if d.top_tokens}
        tops = [known[i].top_tokens if i in known else () for i in range(len(case.output_tokens))]
        logps = [known[i].top_logprobs if i in known else () for i in range(len(case.output_tokens))]
        example = _build(*about, tops, logps, len(case.output_tokens))
    for disagreement in case.disagreements:
        example.weights[disagreement.position] = failure_weight
    return example


def _padded(answer: Sequence[int], tops: Sequence[Any] | np.ndarray, logps: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as (m, k) ids, -1 where there is none, and probabilities; an empty row is certain of the answer."""
    shape = len(answer), max((len(row) for row in tops), default=0) or 1
    top_tokens, top_p = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    top_tokens[:, 0], top_p[:, 0] = answer, 1.0
    for i, (row, logp) in enumerate(zip(tops, logps, strict=True)):
        if len(row):
            top_tokens[i, : len(row)], top_p[i, : len(row)] = row, np.exp(np.asarray(logp, dtype=np.float64))
    return top_tokens, top_p


def _build(
    id_: str,
    domain: str,
    prompt: Sequence[int],
    answer: Sequence[int],
    tops: Sequence[Sequence[int]] | np.ndarray | None,
    logps: Sequence[Sequence[float]] | np.ndarray | None,
    max_tokens: int,
) -> Example:
    if not prompt or not answer:
        raise HarnessError(f"{id_} has an empty {'answer' if prompt else 'prompt'} and cannot be trained on", "Leave it out.")
    m = len(answer)
    if isinstance(tops, np.ndarray) and tops.size:
        top_tokens, top_p = tops.astype(np.int32), np.exp(np.asarray(logps, dtype=np.float64)).astype(np.float32)
    else:
        top_tokens, top_p = _padded(answer, () if tops is None else tops, () if logps is None else logps)
    return Example(
        id=id_,
        domain=domain,
        tokens=np.asarray([*prompt, *answer], dtype=np.int32),
        start=len(prompt),
        weights=np.ones(m, dtype=np.float32),
        top_tokens=top_tokens,
        top_p=top_p,
        max_tokens=max_tokens,
    )


def truncate(example: Example, max_tokens: int) -> Example | None:
    """Cut the answer's tail beyond ``max_tokens`` in all; None when no answer token is left."""
    if len(example.tokens) <= max_tokens:
        return example
    m = max_tokens - example.start
    if m < 1:
        return None
    return Example(
        id=example.id,
        domain=example.domain,
        tokens=example.tokens[:max_tokens],
        start=example.start,
        weights=example.weights[:m],
        top_tokens=example.top_tokens[:m],
        top_p=example.top_p[:m],
        max_tokens=m,
    )


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right. N = answer positions in the batch, ids of labels are the draft's."""

    examples: tuple[Example, ...]
    """B examples."""
    tokens: np.ndarray
    """(B, L) int32 model input, 0 after the end."""
    rows: np.ndarray
    """(N,) int32, index ``b * L + position`` of the hidden states that predict the answer tokens."""
    labels: np.ndarray
    """(N,) int32, draft id of the answer token; -1 where the draft cannot produce it."""
    weights: np.ndarray
    """(N,) float32."""
    top_tokens: np.ndarray
    """(N, k) int32 draft ids, -1 is padding."""
    top_p: np.ndarray
    """(N, k) float32, renormalised over what the draft can produce."""

    @property
    def lengths(self) -> list[int]:
        """Input length of each example."""
        return [len(e.tokens) - 1 for e in self.examples]


def make_batch(examples: Sequence[Example], inverse: np.ndarray | None = None, *, keep_unreachable: bool = False) -> Batch:
    """Pad examples into a batch.

    Args:
        examples: B examples.
        inverse: (target vocab,) draft id of each target id, -1 where the draft's pruned vocabulary has none; None is the identity.
        keep_unreachable: keep positions whose token the draft cannot produce (evaluation counts them, the loss leaves them out).
    """
    length = max(len(e.tokens) for e in examples) - 1
    width = max(e.top_tokens.shape[1] for e in examples)
    tokens = np.zeros((len(examples), length), dtype=np.int32)
    rows, labels, weights, tops, probs = [], [], [], [], []
    for b, example in enumerate(examples):
        tokens[b, : len(example.tokens) - 1] = example.tokens[:-1]
        rows.append(b * length + np.arange(example.start - 1, len(example.tokens) - 1))
        labels.append(example.answer if inverse is None else inverse[example.answer])
        weights.append(example.weights)
        top, p = (example.top_tokens, example.top_p) if inverse is None else _restrict(example.top_tokens, example.top_p, inverse)
        pad = ((0, 0), (0, width - top.shape[1]))
        tops.append(np.pad(top, pad, constant_values=-1))
        probs.append(np.pad(p, pad))
    label = np.concatenate(labels)
    keep = np.ones(len(label), dtype=bool) if keep_unreachable else label >= 0
    return Batch(
        examples=tuple(examples),
        tokens=tokens,
        rows=np.concatenate(rows)[keep].astype(np.int32),
        labels=label[keep].astype(np.int32),
        weights=np.concatenate(weights)[keep],
        top_tokens=np.concatenate(tops)[keep],
        top_p=np.concatenate(probs)[keep],
    )


def _restrict(top: np.ndarray, p: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map ids to the draft's vocabulary and condition the probabilities on it; (m, k) each."""
    mapped = np.where(top >= 0, inverse[np.maximum(top, 0)], -1).astype(np.int32)
    lost = np.where((top >= 0) & (mapped < 0), p, 0).sum(axis=1, keepdims=True)
    kept = np.where(mapped >= 0, p, 0)
    return mapped, (kept / np.maximum(1 - lost, 1e-6)).astype(np.float32)


def invert(token_map: np.ndarray | None, vocab: int) -> np.ndarray | None:
    """Return (vocab,) int32 draft id of each target id, -1 where there is none; None for the identity."""
    if token_map is None:
        return None
    inverse = np.full(max(vocab, int(token_map.max()) + 1), -1, dtype=np.int32)
    inverse[token_map] = np.arange(len(token_map), dtype=np.int32)
    return inverse


def epoch_batches(examples: Sequence[Example], batch_size: int, *, seed: int, epoch: int) -> list[list[Example]]:
    """Return the epoch's batches: alike lengths together, batch order and ties shuffled. Depends on the arguments alone."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(examples))
    order = order[np.argsort([len(examples[i].tokens) // 16 for i in order], kind="stable")]
    batches = [[examples[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def data_hash(examples: Sequence[Example]) -> str:
    """Return a SHA-256 over tokens, weights and probabilities, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for array in (example.tokens, example.weights, example.top_tokens, example.top_p):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
