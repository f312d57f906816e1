"""Acceptance of the draft under training, by replay: one teacher-forced pass over trajectories, then counting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.adapt.adapters.surface import run_blocks
from harness.adapt.training.acceptance import Acceptance, DomainCounts
from harness.adapt.training.examples import Batch, Example, make_batch
from harness.adapt.training.hidden import PrefixCache
from harness.core.counts import COUNTS
from harness.core.progress import counted
from harness.core.protocols import LoadedDraft
from harness.decode.forced import length_batches
from harness.decode.simulate import simulate_match
from harness.models.forward import ForcedHead, forced_head, inner
from harness.models.mlx_names import mx

HEAD_ROWS = 512
"""Rows per call of the output head."""


def output_hidden(cache: PrefixCache, batch: Batch, *, checkpointing: bool = False, prefix: mx.array | None = None) -> mx.array:
    """Return the last block's states at the batch's answer positions, (N, dim), before norm and head."""
    states = cache.batch(batch) if prefix is None else prefix
    hidden = run_blocks(list(cache.model.layers[cache.depth :]), states, checkpointing=checkpointing)
    return hidden.reshape(-1, hidden.shape[-1])[mx.array(batch.rows)]


def favourites(
    draft: LoadedDraft,
    cache: PrefixCache,
    examples: Sequence[Example],
    *,
    confidence: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return per example the target ids (m,) that the draft would propose, and their probabilities (m,).

    The head is the one that decodes the example. The model is put in evaluation mode.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        cache: of the draft's model, with whatever update it carries.
        examples: prompts with answers.
        confidence: compute the probabilities where the proposal is wrong; they are NaN elsewhere.
    """
    cache.model.eval()
    model, token_map = draft.proposer
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    groups = list(length_batches([len(e.tokens) for e in examples]))
    for group in counted(groups, len(groups), "batches of answers replayed"):
        hidden = inner(cache.model).norm(output_hidden(cache, make_batch([examples[i] for i in group], keep_unreachable=True)))
        for i in group:
            answer = examples[i].answer
            prompt = examples[i].tokens[: examples[i].start].tolist()
            head = forced_head(model, token_map, prompt, answer.tolist())
            found[i], hidden = _best(head, hidden[: len(answer)], answer, confidence), hidden[len(answer) :]
    return [found[i] for i in range(len(examples))]


def _best(head: ForcedHead, hidden: mx.array, answer: np.ndarray, confidence: bool) -> tuple[np.ndarray, np.ndarray]:
    token_map = None if head.token_map is None else np.array(head.token_map)
    best, p = [], []
    for start in range(0, len(hidden), HEAD_ROWS):
        logits = head.logits(hidden[start : start + HEAD_ROWS], start).astype(mx.float32)
        top = np.array(mx.argmax(logits, axis=-1))
        best.append(top if token_map is None else token_map[top])
        p.append(np.full(len(top), np.nan))
        wrong = np.flatnonzero(best[-1] != answer[start : start + HEAD_ROWS])
        if confidence and len(wrong):
            rows = logits[mx.array(wrong)]
            p[-1][wrong] = np.array(mx.exp(rows.max(axis=-1) - mx.logsumexp(rows, axis=-1)))
    return np.concatenate(best), np.concatenate(p)


def acceptance(draft: LoadedDraft, cache: PrefixCache, examples: Sequence[Example], k: int) -> DomainCounts:
    """Return the replayed acceptance of every example at draft length ``k``; arguments as for :func:`favourites`."""
    by_domain: dict[str, list[Acceptance]] = {}
    for example, (proposed, _) in zip(examples, favourites(draft, cache, examples), strict=True):
        by_domain.setdefault(example.domain, []).append(count(proposed == example.answer, k, example.max_tokens))
    return {domain: tuple(parts) for domain, parts in sorted(by_domain.items())}


def count(match: np.ndarray, k: int, max_tokens: int) -> Acceptance:
    """Return the counts of one trajectory."""
    counts = simulate_match(match, k, max_tokens)
    return Acceptance(prompts=1, **{name: getattr(counts, name) for name in COUNTS})
