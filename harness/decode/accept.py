"""Acceptance rules. Pure functions on arrays: how many draft tokens stand, and which token the target adds.

``match``: the target draws its own token at every position, a draft token stands if it is equal.
``rejection`` (Leviathan et al. 2211.17192, Chen et al. 2302.01318): x stands with probability min(1, p(x)/q(x)), the first
rejection is replaced by a draw from norm(max(0, p - q)). Both keep the target's distribution; ``lenience`` > 1 does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.models.blas import mx


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def accept_rejection(logp: mx.array, logq: mx.array | None, draft: mx.array, key: mx.array | None, lenience: float = 1.0) -> mx.array:
    """Run the rejection rule on one block.

    Args:
        logp: (k + 1, vocab) processed target log-probabilities.
        logq: (k, vocab) processed draft log-probabilities the draft tokens were drawn from; None when the proposal was
            deterministic (lookup), which is q = 1 on the proposed token.
        draft: (k,) proposed token ids.
        key: random key; None uses mlx's global state.
        lenience: accept with min(1, lenience * p/q); above 1 the output is no longer the target's.

    Returns:
        (2,) int32: number of accepted tokens, and the token the target adds after them.
    """
    k = draft.shape[0]
    accept_key, draw_key = mx.random.split(key) if key is not None else (None, None)
    p = mx.exp(logp)  # (k + 1, vocab)
    index = draft[:, None].astype(mx.int32)
    p_draft = mx.take_along_axis(p[:k], index, axis=-1)[:, 0]
    if logq is None:
        q = mx.zeros_like(p[:k])
        q = mx.put_along_axis(q, index, mx.ones(index.shape, dtype=q.dtype), axis=-1)
        q_draft = mx.ones((k,), dtype=p.dtype)
    else:
        q = mx.exp(logq)
        q_draft = mx.take_along_axis(q, index, axis=-1)[:, 0]
    stands = mx.random.uniform(shape=(k,), key=accept_key) * q_draft < lenience * p_draft
    n = mx.sum(mx.cumprod(stands.astype(mx.int32)))
    q_all = mx.concatenate([q, mx.zeros((1, p.shape[-1]), dtype=p.dtype)])  # row k: the bonus token comes from p
    p_n, q_n = mx.take(p, n, axis=0), mx.take(q_all, n, axis=0)
    residual = mx.maximum(p_n - q_n / lenience, 0)
    residual = mx.where(residual.sum() > 0, residual, p_n)  # p == q to the last bit: rejection has probability 0
    token = mx.random.categorical(mx.log(residual), key=draw_key)
    return mx.stack([n.astype(mx.int32), token.astype(mx.int32)])
