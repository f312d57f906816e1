"""Turning logits into the processed distributions that both models are compared on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from harness.core.limits import LIMITS
from harness.core.records import Rule, Trajectory
from harness.models.blas import mx


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature and filters, applied alike to target and draft. Filters see the untempered distribution, as in mlx-lm."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this mass; 1 keeps all."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely one."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k", "min_p"):
            object.__setattr__(self, name, LIMITS[name].check(name, getattr(self, name)))

    @property
    def greedy(self) -> bool:
        """True at temperature 0."""
        return self.temperature == 0


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one decoding of each answer: the same wherever and in whatever order they are asked for."""

    sampling: Sampling
    """Temperature above 0, and filters."""
    rule: Rule
    """What lets a drafted token stand."""
    seed: int

    def uniform(self, t: Trajectory) -> np.ndarray:
        """(n,) numbers in [0, 1), one for each token of an answer."""
        return np.random.default_rng(self._seed(t, "uniform")).random(len(t.tokens))

    def key(self, t: Trajectory, place: object) -> mx.array:
        """Random key for what is drawn at a place of an answer."""
        return mx.random.key(self._seed(t, repr(place)))

    def _seed(self, t: Trajectory, what: str) -> int:
        text = f"{self.seed} {t.sample_id} {t.tokens} {what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def log_softmax(logits: mx.array) -> mx.array:
    """Return float32 log-probabilities of ``logits`` (..., vocab)."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def processed_logprobs(logits: mx.array, sampling: Sampling) -> mx.array:
    """Return the normalised float32 log-probabilities that are sampled from.

    Args:
        logits: (n, vocab) raw model output.
        sampling: temperature above 0 and filters.

    Returns:
        (n, vocab); filtered tokens are -inf.
    """
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    logp = log_softmax(logits)
    if sampling.top_p < 1:
        logp = apply_top_p(logp, sampling.top_p)
    if sampling.min_p > 0:
        logp = apply_min_p(logp, sampling.min_p)
    if 0 < sampling.top_k < logp.shape[-1]:
        logp = apply_top_k(logp, sampling.top_k)
    return log_softmax(logp / sampling.temperature)


def sample(logp: mx.array, key: mx.array | None) -> mx.array:
    """Draw one token per row of ``logp`` (n, vocab) -> (n,)."""
    return mx.random.categorical(logp, axis=-1, key=key)
