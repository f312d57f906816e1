"""Sampled replay against what the rejection rule gives on average, worked out from every answer that a small target can give."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.core.records import Trajectory
from harness.decode.replay import replay
from harness.decode.sampling import Sampling
from harness.models.blas import mx

Tokens = tuple[int, ...]
Draft = Callable[[Tokens, Tokens], np.ndarray]
"""Probabilities (vocab,) of the next token of a draft that began behind the first tokens and has said the second ones."""
TOKENS = 3
"""Length of every answer."""


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (..., vocab) of logits."""
    shares = np.exp((logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)) / temperature)
    return shares / shares.sum(axis=-1, keepdims=True)


def chances(model: Any, prompt: Tokens, vocab: int, temperature: float = 1.0) -> dict[Tokens, np.ndarray]:
    """Probabilities (vocab,) of a model after every context that is shorter than an answer."""
    found = {}
    for length in range(TOKENS):
        contexts = list(itertools.product(range(vocab), repeat=length))
        logits = model(mx.array([[*prompt, *context] for context in contexts]))[:, -1]
        found |= dict(zip(contexts, softmax(np.array(logits.astype(mx.float32)), temperature), strict=True))
    return found


def mean_of_rounds(p: Mapping[Tokens, np.ndarray], q: Draft, k: int, start: Tokens = ()) -> np.ndarray:
    """Mean (rounds, drafted, accepted) of an answer by the rejection rule, from the start of a round on."""
    if len(start) >= TOKENS:
        return np.zeros(3)
    wanted = min(k, TOKENS - len(start) - 1)
    mean, standing = np.array([1.0, wanted, 0.0]), {start: 1.0}
    for _ in range(wanted):
        onwards: dict[Tokens, float] = {}
        for context, weight in standing.items():
            both = np.minimum(p[context], q(start, context[len(start) :]))
            for token, rejected in enumerate(p[context] - both):  # and the target's own token is this one
                onwards[(*context, token)] = weight * both[token]
                mean = mean + weight * rejected * mean_of_rounds(p, q, k, (*context, token))
            mean[2] += weight * both.sum()
        standing = onwards
    return mean + sum(w * share * mean_of_rounds(p, q, k, (*c, t)) for c, w in standing.items() for t, share in enumerate(p[c]))


def check_sampled_replay(pair: Any, drafter: str, q: Draft, *, prompt: Tokens, vocab: int, k: int = 2, temperature: float = 1.0) -> None:
    """What replay expects of every answer, weighed by its probability, is what the rule gives on average."""
    p = chances(pair.target, prompt, vocab, temperature)
    logp = {a: tuple(float(np.log(p[a[:i]][a[i]])) for i in range(TOKENS)) for a in itertools.product(range(vocab), repeat=TOKENS)}
    facts: dict[str, Any] = {"domain": "d", "prompt_tokens": prompt, "finish": "length", "max_tokens": TOKENS, "temperature": temperature}
    kept = [Trajectory(sample_id=str(a), tokens=a, logprobs=own, **facts) for a, own in logp.items()]
    rows = replay(pair, kept, [drafter], [k], sampling=Sampling(temperature=temperature))
    weights = [np.exp(sum(own)) for own in logp.values()]
    replayed = sum(w * np.array([r.rounds, r.drafted, r.accepted]) for w, r in zip(weights, rows, strict=True))
    np.testing.assert_allclose(replayed, mean_of_rounds(p, q, k), rtol=1e-4)
