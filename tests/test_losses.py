"""Losses: exact values, known identities, gradients against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.adapt.loss_formulas import LOSSES, Positions
from harness.adapt.training.losses import weighted_loss
from harness.models.mlx_names import mx

V = 7


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def loss(logits: np.ndarray, p: np.ndarray, name: str, tokens: np.ndarray | None = None) -> float:
    """One loss over rows with the full vocabulary, or the given top tokens, as the known bins."""
    tokens = np.tile(np.arange(logits.shape[1]), (len(logits), 1)) if tokens is None else tokens
    labels = mx.zeros((len(logits),), dtype=mx.int32)
    arrays = (mx.array(logits), labels, mx.ones((len(logits),)), mx.array(tokens.astype(np.int32)), mx.array(p))
    return float(weighted_loss(*arrays, {name: 1.0}).item())


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 2, (5, V)).astype(np.float32), softmax(rng.normal(0, 2, (5, V))).astype(np.float32)


def test_full_vocabulary_values(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """With k = V the divergences are the textbook sums."""
    logits, p = pair
    q = softmax(logits.astype(np.float64))
    m = (p + q) / 2
    kl = lambda a, b: float((a * np.log(a / b)).sum())  # noqa: E731
    assert loss(logits, p, "forward_kl") == pytest.approx(kl(p, q), rel=1e-4)
    assert loss(logits, p, "reverse_kl") == pytest.approx(kl(q, p), rel=1e-4)
    assert loss(logits, p, "js") == pytest.approx((kl(p, m) + kl(q, m)) / 2, rel=1e-4)


def test_cross_entropy_and_weights(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Cross-entropy is -log q(label); weights multiply position by position; the mix is the weighted sum."""
    logits, p = pair
    labels, weights = np.array([0, 3, 6, 2, 1], np.int32), np.array([1, 2, 0, 0.5, 1], np.float32)
    tokens = np.tile(np.arange(V, dtype=np.int32), (5, 1))
    arrays = [mx.array(a) for a in (logits, labels, weights, tokens, p)]
    expected = -(weights * np.log(softmax(logits)[np.arange(5), labels])).sum()
    ce = weighted_loss(*arrays, {"ce": 1.0}).item()
    assert ce == pytest.approx(expected, rel=1e-5)
    kl = weighted_loss(*arrays, {"forward_kl": 1.0}).item()
    assert weighted_loss(*arrays, {"ce": 0.3, "forward_kl": 0.7}).item() == pytest.approx(0.3 * ce + 0.7 * kl, rel=1e-5)


def test_certain_target_is_cross_entropy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """A target certain of one token makes forward KL equal to cross-entropy on it."""
    logits, _ = pair
    tokens = np.full((5, 3), -1)
    tokens[:, 0] = 4
    p = np.zeros((5, 3), np.float32)
    p[:, 0] = 1
    assert loss(logits, p, "forward_kl", tokens) == pytest.approx(-np.log(softmax(logits)[:, 4]).sum(), rel=1e-4)


def test_forward_kl_gradient(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """d KL(p || q) / d logits = q - p."""
    logits, p = pair
    tokens = mx.array(np.tile(np.arange(V, dtype=np.int32), (5, 1)))
    labels, ones = mx.zeros((5,), dtype=mx.int32), mx.ones((5,))
    grad = mx.grad(lambda x: weighted_loss(x, labels, ones, tokens, mx.array(p), {"forward_kl": 1.0}))(mx.array(logits))
    np.testing.assert_allclose(np.array(grad), softmax(logits) - p, atol=1e-4)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_confidently_wrong_draft_still_gets_a_gradient(name: str) -> None:
    """A probability below the clip of the logarithm must still be pulled up, or the worst positions would never learn."""
    logits = mx.array([[30.0, 0.0, 0.0, 0.0]])
    arrays = (mx.array([1]), mx.ones((1,)), mx.array([[1, 2]]), mx.array([[0.9, 0.05]]))
    grad = np.array(mx.grad(lambda x: weighted_loss(x, *arrays, {name: 1.0}))(logits))
    assert np.isfinite(grad).all()
    if name == "forward_kl":
        assert grad[0, 1] < -0.5


@given(seed=st.integers(0, 2**31), k=st.integers(1, V), scale=st.floats(0.1, 2))
@settings(max_examples=60, deadline=None)
def test_divergences_are_never_negative_and_grow_with_k(seed: int, k: int, scale: float) -> None:
    """Grouping tokens into "the rest" never raises a divergence; JS stays below log 2; equal distributions give 0.

    Probabilities stay above the clip of the logarithm, where this holds exactly.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (1, V)).astype(np.float32)
    p = softmax(rng.normal(0, scale, (1, V))).astype(np.float32)
    top = np.argsort(-p, axis=1)[:, :k]
    for name in sorted(LOSSES.keys() - {"ce"}):
        some, full = loss(logits, np.take_along_axis(p, top, 1), name, top), loss(logits, p, name)
        assert -1e-4 < some < full + 2e-3
        same = softmax(logits)
        assert abs(loss(logits, np.take_along_axis(same, top, 1), name, top)) < 1e-3
    assert loss(logits, p, "js") <= np.log(2) + 1e-5


def test_padding_counts_on_neither_side() -> None:
    """A padded entry has probability 0 under both, whatever stands behind index 0."""
    logits = mx.array([[5.0, 1.0, 0.0]])
    normaliser = mx.logsumexp(logits, axis=-1, keepdims=True)
    log_q = mx.take(logits - normaliser, mx.array([0, 1, 0]), axis=1)
    bins = Positions.of(mx, log_q, mx.array([[True, False]]), mx.array([[0.4, 0.0]]))
    q = softmax(np.array(logits))
    np.testing.assert_allclose(np.array(bins.q), [[q[0, 1], 0, 1 - q[0, 1]]], atol=1e-6)
    np.testing.assert_allclose(np.array(bins.p), [[0.4, 0, 0.6]], atol=1e-6)
