"""The small parts of a round and of replay: each is checked against a plain computation of the same thing, and timed with

    pytest tests/benchmarks --benchmark-only

Without that flag every benchmark runs once, as a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toy import near_copy, toy_model

from harness.core.counts import COUNTS
from harness.core.records import Trajectory
from harness.decode.accept import accept_rejection, common_prefix
from harness.decode.cached import CachedModel
from harness.decode.drafters import LookupDrafter, Request
from harness.decode.forced import forced_passes
from harness.decode.memory import Answer, Memory, write_memory
from harness.decode.sampling import log_softmax
from harness.decode.simulate import expected_counts, simulate_free, simulate_match
from harness.models.blas import mx

VOCAB = 2048
KS = range(1, 9)
ANSWER = 256
"""Tokens of the replayed answer."""

Benchmark = Callable[..., Any]


def answer(vocab: int = 50, seed: int = 0) -> Trajectory:
    """A random answer with repetitions, as lookup needs them."""
    rng = np.random.default_rng(seed)
    phrase = rng.integers(2, vocab, 24)
    tokens = np.concatenate([np.where(rng.random(24) < 0.9, phrase, rng.integers(2, vocab, 24)) for _ in range(ANSWER // 24 + 1)])
    return Trajectory(
        sample_id="s",
        domain="code",
        prompt_tokens=tuple(phrase.tolist()),
        tokens=tuple(tokens[:ANSWER].tolist()),
        finish="length",
        max_tokens=ANSWER,
    )


@pytest.mark.benchmark(group="accept")
def test_common_prefix(benchmark: Benchmark) -> None:
    """The match rule reads one block per round on the host; it must find the first difference, not the last."""
    draft, own = list(range(8)), [*range(6), 99, 7, 8]
    assert benchmark(common_prefix, draft, own) == 6


@pytest.mark.benchmark(group="accept")
def test_accept_rejection(benchmark: Benchmark) -> None:
    """The rejection rule on a block: the accepted count and the added token are those of the rule worked out token by token."""
    k, rng = 4, np.random.default_rng(3)
    logp = log_softmax(mx.array(rng.normal(0, 2, (k + 1, VOCAB)).astype(np.float32)))
    logq = log_softmax(logp[:k] + mx.array(rng.normal(0, 0.5, (k, VOCAB)).astype(np.float32)))
    draft = mx.argmax(logq, axis=-1).astype(mx.int32)
    key = mx.random.key(11)
    mx.eval(logp, logq, draft)

    def run() -> list[int]:
        verdict: list[int] = accept_rejection(logp, logq, draft, key).tolist()
        return verdict

    n, token = benchmark(run)
    uniform = np.array(mx.random.uniform(shape=(k,), key=mx.random.split(key)[0]))
    p, q, chosen = np.exp(np.array(logp)), np.exp(np.array(logq)), np.array(draft)
    stands = [uniform[i] * q[i, chosen[i]] < p[i, chosen[i]] for i in range(k)]
    assert n == common_prefix(stands, [True] * k)
    residual = p[n] if n == k else np.maximum(p[n] - q[n], 0)
    assert residual[token] > 0


@pytest.mark.benchmark(group="cache")
def test_feed_and_rewind(benchmark: Benchmark) -> None:
    """Every round feeds K + 1 tokens and rewinds; afterwards the cache must answer as one that never saw them."""
    model, k = toy_model(), 4
    used, clean = CachedModel(model), CachedModel(model)
    prompt = list(range(2, 50))
    for state in (used, clean):
        state.prefill(prompt)
    block = mx.arange(5, 6 + k, dtype=mx.int32)

    def round_() -> None:
        mx.eval(used.forward(block))
        used.trim_to(len(prompt))

    benchmark(round_)
    probe = mx.array([7, 8], dtype=mx.int32)
    np.testing.assert_array_equal(np.array(used.forward(probe)), np.array(clean.forward(probe)))


@pytest.mark.benchmark(group="lookup")
def test_lookup(benchmark: Benchmark) -> None:
    """Lookup over a growing context indexes each token once and finds the latest earlier occurrence."""
    tokens = [*answer().prompt_tokens, *answer().tokens]

    def run() -> list[int]:
        lookup = LookupDrafter(3, 2)
        lookup.begin(tokens[:24])
        found: list[int] = []
        for end in range(24, len(tokens)):
            found = lookup.search(tokens[:end], Request(k=4)).tokens
        return found

    found = benchmark(run)
    context = tokens[:-1]
    assert found == latest_occurrence(context, 4)


def latest_occurrence(context: list[int], k: int) -> list[int]:
    """What followed the latest earlier occurrence of the last 3, else 2, tokens; by trying every place."""
    for n in (3, 2):
        for end in range(len(context) - 1, n - 1, -1):
            if context[end - n : end] == context[-n:]:
                return context[end : end + k]
    return []


@pytest.mark.benchmark(group="replay")
def test_simulate_every_k(benchmark: Benchmark) -> None:
    """Counting the rounds of one answer for K = 1..8: every answer token is emitted once, and longer drafts need no more rounds."""
    match = np.random.default_rng(0).random(ANSWER) < 0.7
    counts = benchmark(lambda: [simulate_match(match, k, ANSWER) for k in KS])
    for k, count in zip(KS, counts, strict=True):
        assert count.accepted + count.rounds == ANSWER
        assert count.drafted == sum(count.draft_lengths) <= k * count.rounds
    assert counts[0].rounds >= counts[3].rounds >= counts[7].rounds
    assert counts[0].accepted == sum(counts[0].accept_lengths)


@pytest.mark.benchmark(group="replay")
def test_simulate_free_every_k(benchmark: Benchmark) -> None:
    """Replaying lookup for K = 1..8 needs no model; a repetitive answer must give accepted tokens."""
    trajectory = answer()
    counts = benchmark(lambda: [simulate_free(LookupDrafter(3, 2), trajectory, k) for k in KS])
    assert all(c.emitted == ANSWER and 0 < c.accepted <= c.drafted for c in counts)


@pytest.mark.benchmark(group="replay")
def test_expected_counts_every_k(benchmark: Benchmark) -> None:
    """The dynamic programme for K = 1..8 agrees with simulation: certain tokens give whole counts, others the mean of many draws."""
    rng = np.random.default_rng(1)
    stand = rng.random(ANSWER)
    rows = benchmark(lambda: [expected_counts(stand, k, ANSWER) for k in KS])
    draws = [simulate_match(rng.random(ANSWER) < stand, 4, ANSWER).rounds for _ in range(400)]
    assert abs(np.mean(draws) - rows[3].rounds) < 4 * np.std(draws) / 20
    sure = (stand > 0.5).astype(float)
    exact = simulate_match(sure > 0, 4, ANSWER)
    assert dataclasses.asdict(expected_counts(sure, 4, ANSWER)) == {name: getattr(exact, name) for name in COUNTS}


@pytest.mark.benchmark(group="replay")
def test_forced_pass(benchmark: Benchmark) -> None:
    """One teacher-forced pass of a draft over an answer finds the positions where its favourite is the target's token."""
    target = toy_model(scale=4.0)
    draft = near_copy(target, 0.3)
    trajectory = answer()
    (found,) = benchmark(lambda: forced_passes(draft, None, [trajectory]))
    sequence = [*trajectory.prompt_tokens, *trajectory.tokens]
    best = np.array(mx.argmax(draft(mx.array([sequence[:-1]]))[0], axis=-1))[len(trajectory.prompt_tokens) - 1 :]
    clear = found.gap > 1e-3
    assert clear.mean() > 0.9
    assert ((best == np.array(trajectory.tokens)) == found.match)[clear].all()


def remembered(tokens: int) -> list[Answer]:
    """Answers of 128 tokens each, words drawn by Zipf's law and every third one fixed by the one before it."""
    rng = np.random.default_rng(0)
    text = np.minimum(rng.zipf(1.3, (tokens // 128, 128)), 40_000)
    text[:, 1::3] = (text[:, 0:-1:3] * 7 + 3) % 40_000
    return [Answer(sample_id=str(i), domain="x", prompt="p", before=(1, 2), tokens=tuple(row)) for i, row in enumerate(text.tolist())]


@pytest.fixture(scope="module", params=[20_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def memory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """A memory on disk, opened by memory map."""
    return write_memory(tmp_path_factory.mktemp("memory") / "m", "p", "h", remembered(request.param))


@pytest.mark.benchmark(group="memory")
def test_memory_draft(benchmark: Benchmark, memory: Memory) -> None:
    """The next draft, 8 tokens at most: it begins as one of the continuations of the context in the remembered answers does."""
    answers = memory.answers()
    contexts = [a.tokens[i - 30 : i] for a in answers[:: max(len(answers) // 50, 1)] for i in (40, 80, 110)]
    turn = iter(range(10**12))

    def run() -> tuple[tuple[int, ...], list[int]]:
        context = contexts[next(turn) % len(contexts)]
        return context, memory.walker.walk(memory.walker.find(context)[0], 8, 0.15)[0]

    context, tokens = benchmark(run)
    assert any((*context[-2:], tokens[0]) == a.tokens[i : i + 3] for a in answers for i in range(126))


@pytest.mark.benchmark(group="memory")
def test_memory_miss(benchmark: Benchmark, memory: Memory) -> None:
    """A context that was never seen costs seven searches and proposes nothing."""
    assert benchmark(memory.walker.find, [45_000, 45_001] * 4) == (-1, 0)
