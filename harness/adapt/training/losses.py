"""The mix of losses over a batch in mlx; the formulas stand in :mod:`harness.adapt.loss_formulas`."""

from __future__ import annotations

from collections.abc import Mapping

from harness.adapt.loss_formulas import mixed
from harness.models.blas import mx

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
        parts: name of a loss -> factor.
    """
    logits = logits.astype(mx.float32)
    columns = mx.concatenate([labels[:, None], mx.maximum(top_tokens, 0)], axis=1)
    log_q = mx.take_along_axis(logits, columns, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)
    return (mixed(mx, log_q, top_tokens >= 0, top_p, parts) * weights).sum()
