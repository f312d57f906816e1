"""Acceptance of the draft under training, by replay: one teacher-forced pass over trajectories, then counting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.adapt.acceptance import Acceptance, pool
from harness.adapt.examples import Batch, Example, make_batch
from harness.adapt.hidden import PrefixCache
from harness.adapt.surface import head, run_blocks
from harness.adapt.trees import mx
from harness.decode.replay import length_batches, simulate_match

HEAD_ROWS = 512
"""Rows per call of the output head."""


def output_hidden(cache: PrefixCache, batch: Batch, *, checkpointing: bool = False, prefix: mx.array | None = None) -> mx.array:
    """Return the last block's states at the batch's answer positions, (N, dim), before norm and head."""
    states = cache.batch(batch) if prefix is None else prefix
    hidden = run_blocks(list(cache.model.layers[cache.depth :]), states, checkpointing=checkpointing)
    return hidden.reshape(-1, hidden.shape[-1])[mx.array(batch.rows)]


def favourites(cache: PrefixCache, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the draft's favourite (draft ids) and its probability at each answer position, (N,) each."""
    hidden = output_hidden(cache, batch)
    best, confidence = [], []
    for start in range(0, len(batch.rows), HEAD_ROWS):
        logits = head(cache.model, hidden[start : start + HEAD_ROWS]).astype(mx.float32)
        top = mx.argmax(logits, axis=-1)
        p = mx.exp(mx.max(logits, axis=-1) - mx.logsumexp(logits, axis=-1))
        mx.eval(top, p)
        best.append(np.array(top))
        confidence.append(np.array(p))
    return np.concatenate(best), np.concatenate(confidence)


def matches(cache: PrefixCache, examples: Sequence[Example], inverse: np.ndarray | None) -> list[np.ndarray]:
    """Return per example (m,) bool: the draft's favourite equals the target's token. The model is put in evaluation mode."""
    cache.model.eval()
    found: dict[int, np.ndarray] = {}
    for group in length_batches([len(e.tokens) for e in examples]):
        batch = make_batch([examples[i] for i in group], inverse, keep_unreachable=True)
        best, _ = favourites(cache, batch)
        match = best == batch.labels
        for i in group:
            m = len(examples[i].answer)
            found[i], match = match[:m], match[m:]
    return [found[i] for i in range(len(examples))]


def acceptance(cache: PrefixCache, examples: Sequence[Example], inverse: np.ndarray | None, k: int) -> dict[str, Acceptance]:
    """Return the replayed acceptance by domain at draft length ``k``."""
    by_domain: dict[str, list[Acceptance]] = {}
    for example, match in zip(examples, matches(cache, examples, inverse), strict=True):
        by_domain.setdefault(example.domain, []).append(count(match, k, example.max_tokens))
    return {domain: pool(parts) for domain, parts in sorted(by_domain.items())}


def count(match: np.ndarray, k: int, max_tokens: int) -> Acceptance:
    """Return the counts of one trajectory."""
    counts = simulate_match(match, k, max_tokens)
    return Acceptance(
        prompts=1,
        rounds=counts.rounds,
        drafted=counts.drafted,
        accepted=counts.accepted,
        rejected=counts.rejected,
        emitted=counts.emitted,
    )
