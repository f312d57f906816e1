"""Distillation losses at answer positions.

The target's distribution p is known on its top k tokens; everything else is one more bin, "the rest", on both sides. Grouping
tokens never raises a divergence, so each value is a lower bound of the full-vocabulary one and equal to it when k is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.models.blas import mx

EPSILON = 1e-6
"""Smallest probability inside a logarithm."""
LOGIT_BYTES = 512 * 2**20
"""Most memory for the logits of one piece of a batch."""


def logit_rows(vocab: int) -> int:
    """Rows of float32 logits over ``vocab`` tokens that fit into :data:`LOGIT_BYTES`, at least one."""
    return max(1, LOGIT_BYTES // (4 * vocab))


def weighted_loss(
    logits: mx.array, labels: mx.array, weights: mx.array, top_tokens: mx.array, top_p: mx.array, parts: Mapping[str, float]
) -> mx.array:
    """Return the weighted sum of the losses over N positions (divide by the sum of weights for the mean).

    Args:
        logits: (N, draft vocab).
        labels: (N,) draft ids, all reachable.
        weights: (N,).
        top_tokens: (N, k) draft ids, -1 is padding.
        top_p: (N, k) probabilities.
        parts: loss name -> factor; see :data:`LOSSES`.
    """
    logits = logits.astype(mx.float32)
    normaliser = mx.logsumexp(logits, axis=-1, keepdims=True)  # (N, 1)
    total = mx.zeros(labels.shape)
    if "ce" in parts:
        chosen = mx.take_along_axis(logits, labels[:, None], axis=-1)
        total = total + parts["ce"] * (normaliser - chosen)[:, 0]
    divergences = {name: factor for name, factor in parts.items() if name != "ce"}
    if divergences:
        binned = Bins.build(logits, normaliser, top_tokens, top_p)
        for name, factor in divergences.items():
            total = total + factor * LOSSES[name](binned)
    return (total * weights).sum()


@dataclass(frozen=True)
class Bins:
    """Target p and draft q over the top-k tokens and the rest, (N, k + 1) each."""

    p: mx.array
    log_p: mx.array
    q: mx.array
    log_q: mx.array

    @staticmethod
    def build(logits: mx.array, normaliser: mx.array, top_tokens: mx.array, top_p: mx.array) -> Bins:
        """Group the distributions.

        Args:
            logits: (N, draft vocab).
            normaliser: (N, 1) logsumexp of the logits.
            top_tokens: (N, k) ids, -1 is padding (probability 0 on both sides).
            top_p: (N, k).
        """
        valid = top_tokens >= 0
        log_q = mx.where(valid, mx.take_along_axis(logits, mx.maximum(top_tokens, 0), axis=-1) - normaliser, 0.0)
        q = mx.where(valid, mx.exp(log_q), 0.0)
        p = mx.where(valid, top_p, 0.0)
        p_rest, q_rest = (mx.maximum(1 - x.sum(axis=-1, keepdims=True), 0.0) for x in (p, q))
        p = mx.concatenate([p, p_rest], axis=-1)
        q = mx.concatenate([q, q_rest], axis=-1)
        return Bins(p, _log(p), q, mx.concatenate([log_q, _log(q_rest)], axis=-1))


def _log(p: mx.array) -> mx.array:
    return mx.log(mx.maximum(p, EPSILON))


def forward_kl(bins: Bins) -> mx.array:
    """KL(target || draft), (N,): the draft covers what the target may say."""
    return (bins.p * (bins.log_p - bins.log_q)).sum(axis=-1)


def reverse_kl(bins: Bins) -> mx.array:
    """KL(draft || target), (N,): the draft avoids what the target would not say."""
    return (bins.q * (bins.log_q - bins.log_p)).sum(axis=-1)


def jensen_shannon(bins: Bins) -> mx.array:
    """Jensen-Shannon divergence, (N,): symmetric, at most log 2."""
    log_middle = _log((bins.p + bins.q) / 2)
    return ((bins.p * (bins.log_p - log_middle)).sum(axis=-1) + (bins.q * (bins.log_q - log_middle)).sum(axis=-1)) / 2


LOSSES: dict[str, Callable[[Bins], mx.array]] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "js": jensen_shannon}
"""Divergences by name; ``ce`` is computed from the labels."""
