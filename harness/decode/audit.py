"""Losslessness audit: is a greedy output the target's, and if not, was it a near-tie or a bug?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.protocols import LoadedPair
from harness.core.records import Divergence
from harness.decode.accept import common_prefix
from harness.decode.cached import CachedModel
from harness.models.blas import mx

NOISE_FACTOR = 8.0
"""A gap counts as a tie below this multiple of the largest difference seen between block and step kernels."""
PROBE_TOKENS = 8
"""Positions before the divergence over which that difference is measured."""


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first differing token, the shorter length where one is a prefix of the other, None when equal."""
    shared = common_prefix(a, b)
    return None if shared == len(a) == len(b) else shared


def classify(pair: LoadedPair, prompt_tokens: Sequence[int], baseline: Sequence[int], other: Sequence[int]) -> Divergence | None:
    """Compare a lossless greedy output with the baseline's and explain the first difference.

    Returns:
        None when the outputs are equal.
    """
    position = first_difference(baseline, other)
    if position is None:
        return None
    gap, bound = leading_gap(pair.target, [*prompt_tokens, *baseline[:position]])
    return Divergence(position=position, gap=gap, kind="tie" if gap <= bound else "bug")


def leading_gap(model: Any, prefix: Sequence[int]) -> tuple[float, float]:
    """Return how far the favourite token after ``prefix`` leads, and below which lead kernels may disagree about it, in nats.

    The bound is measured at the spot: the same positions are run as one block and step by step, and the largest change of
    a leading logit is scaled by ``NOISE_FACTOR``.
    """
    block = min(PROBE_TOKENS, len(prefix))
    together, stepwise = CachedModel(model), CachedModel(model)
    together.prefill(prefix[:-block])
    stepwise.prefill(prefix[:-block])
    tail = mx.array(prefix[-block:], dtype=mx.int32)
    one = together.forward(tail).astype(mx.float32)  # (block, vocab)
    many = mx.concatenate([stepwise.forward(tail[i : i + 1]) for i in range(block)]).astype(mx.float32)
    top = mx.argpartition(-one, kth=1, axis=-1)[:, :2]
    noise = mx.max(mx.abs(mx.take_along_axis(one, top, axis=-1) - mx.take_along_axis(many, top, axis=-1))).item()
    leaders = mx.take_along_axis(many[-1], top[-1], axis=-1)
    return mx.abs(leaders[0] - leaders[1]).item(), NOISE_FACTOR * noise
