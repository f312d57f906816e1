"""Sampling preserves the target's distribution: exact enumeration, chi-square, exact acceptance, injected bugs.

The models are Markov chains over a small vocabulary, so every distribution is known exactly, and many independent answers are
decoded by the real loop. Statistical tests use a fixed seed and a bound far in the tail, so they do not flicker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from toy import ToyPair, toy_draft

from harness.decode import accept, drafters, proposing, speculative
from harness.decode.accept import accept_rejection
from harness.decode.drafters import LookupDrafter, MemoryDrafter
from harness.decode.generation import generate
from harness.decode.sampling import Sampling, processed_logprobs
from harness.decode.simulate import expected_counts
from harness.decode.suffix_counts import Walker, count_suffixes
from harness.models.blas import mx

VOCAB = 6
rng = np.random.default_rng(0)
TARGET = mx.array(rng.normal(0, 1.5, (VOCAB, VOCAB)), dtype=mx.float32)
DRAFT = mx.array(np.array(TARGET) + rng.normal(0, 1.0, (VOCAB, VOCAB)), dtype=mx.float32)


class Markov:
    """Logits of the next token depend on the current token only."""

    layers = ()

    def __init__(self, table: mx.array) -> None:
        self.table = table

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        return self.table[tokens]

    def make_cache(self) -> list:
        return []


PAIR = ToyPair(Markov(TARGET), toy_draft(Markov(DRAFT)))
FILTERS = {
    "plain": {"temperature": 1.0},
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.0, "top_k": 4},
    "top_p": {"temperature": 0.9, "top_p": 0.9},
    "min_p": {"temperature": 1.1, "min_p": 0.1},
}


def chain(table: mx.array, settings: dict) -> np.ndarray:
    """Exact transition probabilities (from, to) after filters, in float64."""
    logp = np.array(processed_logprobs(table, Sampling(**settings)), dtype=np.float64)
    p = np.exp(logp)
    return p / p.sum(axis=1, keepdims=True)


def reference(table: mx.array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    """The filters written out in numpy, one row at a time."""
    out = []
    for row in np.array(table, dtype=np.float64):
        p = np.exp(row) / np.exp(row).sum()
        keep = np.ones(len(p), dtype=bool)
        if top_p < 1:
            order = np.argsort(-p)
            before = np.cumsum(p[order]) - p[order]
            keep[order[before >= top_p]] = False
        if min_p:
            keep &= p >= min_p * p.max()
        if top_k:
            keep &= np.isin(np.arange(len(p)), np.argsort(-np.where(keep, p, 0))[:top_k])
        q = np.where(keep, p, 0) ** (1 / temperature)
        out.append(q / q.sum())
    return np.array(out)


@pytest.mark.parametrize("settings", FILTERS.values(), ids=FILTERS.keys())
def test_filters_equal_a_plain_reference(settings: dict) -> None:
    """The processed distribution is what everything else is compared with, so it is checked against a second implementation."""
    np.testing.assert_allclose(chain(TARGET, settings), reference(TARGET, **settings), atol=1e-6)


def block_outcomes(
    settings: dict, rule: str, rounds: int, seed: int, pair: ToyPair = PAIR, drafter: object = "generic", prompt: tuple[int, ...] = (0,)
) -> tuple[np.ndarray, int, int]:
    """Run ``rounds`` independent 3-token answers with K = 2 by the loop's own pieces.

    All rounds of a stage share one vectorised draw: the verdict functions are mapped over rounds with vmap-free batching by keys.
    Returns counts per sequence (VOCAB ** 3,), accepted and decided first draft tokens.
    """
    counts = np.zeros(VOCAB**3)
    accepted = decided = 0
    for i in range(rounds):
        g = generate(pair, prompt, drafter=drafter, k=2, rule=rule, max_tokens=3, seed=seed + i, **settings)
        a, b, c = g.tokens
        counts[(a * VOCAB + b) * VOCAB + c] += 1
        decided += 1
        accepted += g.accept_lengths[0] >= 1
    return counts, accepted, decided


def exact(settings: dict) -> np.ndarray:
    """Probability of every 3-token sequence after token 0 under the target."""
    p = chain(TARGET, settings)
    return np.array([p[0, a] * p[a, b] * p[b, c] for a, b, c in itertools.product(range(VOCAB), repeat=3)])


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    """p-value of the counts, with rare cells pooled; an impossible sequence gives 0."""
    expected = probability * counts.sum()
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    keep = wanted > 0
    return float(stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue)


@pytest.mark.parametrize(("name", "rule"), [*((name, "rejection") for name in FILTERS), ("plain", "match"), ("top_p", "match")])
def test_loop_preserves_the_target(name: str, rule: str) -> None:
    """End to end through the loop, both rules, every filter: sequences follow the target, acceptance its formula."""
    settings = FILTERS[name]
    counts, accepted, decided = block_outcomes(settings, rule, 1500, seed=1000)
    assert chi_square(counts, exact(settings)) > 1e-4
    p, q = chain(TARGET, settings)[0], chain(DRAFT, settings)[0]
    rate = (p * q).sum() if rule == "match" else np.minimum(p, q).sum()
    assert stats.binomtest(accepted, decided, rate).pvalue > 1e-4


@pytest.mark.parametrize("rule", ["match", "rejection"])
@pytest.mark.parametrize("settings", [FILTERS["plain"], FILTERS["top_p"]], ids=["plain", "top_p"])
def test_a_memory_preserves_the_target(settings: dict, rule: str) -> None:
    """A memory's tokens are certain proposals: under both rules they stand with the target's probability, and sequences follow it."""
    text = [5, 0, 2, 1, 0, 4, 3]
    counts = count_suffixes(np.array([*text, -1], dtype=np.int32), np.array([0]), np.array([2]))
    drafter = MemoryDrafter(Walker(counts), LookupDrafter(3, 2), threshold=0.1)
    outcomes, accepted, decided = block_outcomes(settings, rule, 1500, seed=7000, drafter=drafter, prompt=(5, 0))
    assert chi_square(outcomes, exact(settings)) > 1e-4
    assert stats.binomtest(accepted, decided, chain(TARGET, settings)[0, 2]).pvalue > 1e-4
    assert 0 < accepted < decided


def many_blocks(verdict: Callable, settings: dict, rounds: int, seed: int = 0) -> np.ndarray:
    """Decode ``rounds`` blocks of K = 2 from token 0 with a vectorised ``verdict`` and complete them to 3 tokens from the target."""
    sampling = Sampling(**settings)
    logp_all, logq_all = processed_logprobs(TARGET, sampling), processed_logprobs(DRAFT, sampling)
    draw = mx.random.split(mx.random.key(seed), 4)
    first = mx.random.categorical(mx.broadcast_to(logq_all[0], (rounds, VOCAB)), key=draw[0])
    second = mx.random.categorical(logq_all[first], key=draw[1])
    draft = mx.stack([first, second], axis=1)
    logp = mx.stack([mx.broadcast_to(logp_all[0], (rounds, VOCAB)), logp_all[first], logp_all[second]], axis=1)
    logq = mx.stack([mx.broadcast_to(logq_all[0], (rounds, VOCAB)), logq_all[first]], axis=1)
    result = np.array(mx.vmap(verdict)(logp, logq, draft, mx.random.split(draw[2], rounds)))
    p = chain(TARGET, settings)
    fill = np.random.default_rng(seed)
    counts = np.zeros(VOCAB**3)
    for (n, token), tokens in zip(result, np.array(draft), strict=True):
        sequence = [*tokens[:n], token]
        while len(sequence) < 3:
            sequence.append(fill.choice(VOCAB, p=p[sequence[-1]]))
        counts[(sequence[0] * VOCAB + sequence[1]) * VOCAB + sequence[2]] += 1
    return counts


@pytest.mark.parametrize("settings", FILTERS.values(), ids=FILTERS.keys())
def test_rejection_rule_is_exact_over_200_000_rounds(settings: dict) -> None:
    """40,000 vectorised rounds per filter setting, 200,000 in all: the rule itself, with enough power to see a 1% error."""
    counts = many_blocks(accept_rejection, settings, 40_000)
    assert chi_square(counts, exact(settings)) > 1e-4


def raw_q(logp, logq, draft, key):
    """Bug: the test compares with an unprocessed (flatter) q."""
    flat = 0.5 * logq
    return accept_rejection(logp, flat - mx.logsumexp(flat, axis=-1, keepdims=True), draft, key)


def unclamped(logp, logq, draft, key):
    """Bug: the residual keeps |p - q| instead of max(0, p - q)."""
    result = accept_rejection(logp, logq, draft, key)
    n = result[0]
    q = mx.concatenate([mx.exp(logq), mx.zeros((1, VOCAB))])
    residual = mx.abs(mx.take(mx.exp(logp), n, axis=0) - mx.take(q, n, axis=0))
    return mx.stack([n, mx.random.categorical(mx.log(residual), key=key).astype(mx.int32)])


def first_unverified(logp, logq, draft, key):
    """Bug: the first draft token always stands."""
    sure = mx.put_along_axis(logp[:1], draft[:1, None], mx.zeros((1, 1)), axis=-1)
    result = accept_rejection(mx.concatenate([sure, logp[1:]]), mx.concatenate([mx.full((1, VOCAB), -10.0), logq[1:]]), draft, key)
    return result


def bonus_from_draft(logp, logq, draft, key):
    """Bug: when everything stands the extra token is drawn from q."""
    result = accept_rejection(logp, logq, draft, key)
    other = mx.random.categorical(logq[-1], key=key).astype(mx.int32)
    return mx.where(mx.arange(2) == 1, mx.where(result[0] == 2, other, result[1]), result)


def argmax_soft(logp, logq, draft, key):
    """Bug: tokens drawn one way (here: sharpened), q reported another."""
    sharp = 2 * logq
    tokens = mx.random.categorical(sharp, key=key).astype(draft.dtype)
    return accept_rejection(logp, logq, tokens, key)


def half_precision(logp, logq, draft, key):
    """Bug: q rounded as low-precision storage would (coarse on purpose: 3 bits)."""
    return accept_rejection(logp, mx.log(mx.maximum(mx.round(mx.exp(logq) * 8) / 8, 0.02)), draft, key)


@pytest.mark.parametrize("bug", [raw_q, unclamped, first_unverified, bonus_from_draft, argmax_soft, half_precision])
def test_chi_square_catches_injected_bugs(bug: Callable) -> None:
    """Each classic mistake of the rejection rule shifts the distribution by more than the test's bound."""
    assert chi_square(many_blocks(bug, FILTERS["plain"], 20_000), exact(FILTERS["plain"])) < 1e-4


def test_deterministic_proposals_keep_the_distribution() -> None:
    """Lookup has no distribution: its proposal counts as q = 1 on one token."""
    logp = processed_logprobs(TARGET, Sampling(temperature=1.0))[:3]
    keys = mx.random.split(mx.random.key(5), 20_000)
    draft = mx.array([2, 3], dtype=mx.int32)
    result = np.array(mx.vmap(lambda key: accept_rejection(logp, None, draft, key))(keys))
    first = np.where(result[:, 0] >= 1, 2, result[:, 1])
    p = np.exp(np.array(logp[0], dtype=np.float64))
    assert stats.chisquare(np.bincount(first, minlength=VOCAB), p / p.sum() * len(first)).pvalue > 1e-4


def test_pruned_draft_keeps_the_distribution() -> None:
    """A draft with fewer tokens has q = 0 elsewhere; the residual must make up for it."""
    ids = mx.array([4, 1, 3], dtype=mx.int32)

    class Pruned(Markov):
        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            return self.table[tokens][..., ids]

    pair = ToyPair(Markov(TARGET), toy_draft(Pruned(DRAFT), ids))
    settings = {"temperature": 1.0}
    counts = np.zeros(VOCAB**3)
    for i in range(1500):
        a, b, c = generate(pair, [0], drafter="generic", k=2, rule="rejection", max_tokens=3, seed=i, **settings).tokens
        counts[(a * VOCAB + b) * VOCAB + c] += 1
    assert chi_square(counts, exact(settings)) > 1e-4


@pytest.mark.parametrize("rule", ["match", "rejection"])
@pytest.mark.parametrize("rows", [4, 60])
def test_a_draft_of_other_size_keeps_the_distribution(rows: int, rule: str) -> None:
    """Ids that the target lacks are masked before filters and softmax; those that the draft lacks come from p."""
    table = np.random.default_rng(rows).normal(3, 1, (rows, rows))  # what lies beyond the target's ids would be drawn most
    common = min(rows, VOCAB)
    table[:common, :common] = np.array(DRAFT)[:common, :common]
    pair = ToyPair(Markov(TARGET), toy_draft(Markov(mx.array(table, dtype=mx.float32))))
    settings = FILTERS["top_k"]
    counts, accepted, decided = block_outcomes(settings, rule, 700, seed=5000, pair=pair)
    assert chi_square(counts, exact(settings)) > 1e-4
    p, q = chain(TARGET, settings)[0], np.zeros(VOCAB)
    q[:common] = reference(table[:common, :common], **settings)[0]
    rate = (p * q).sum() if rule == "match" else np.minimum(p, q).sum()
    assert stats.binomtest(accepted, decided, rate).pvalue > 1e-4


def test_lenience_accepts_more_and_is_labelled() -> None:
    """Lenience trades exactness for acceptance; the label must follow it everywhere."""
    kwargs = {"drafter": "generic", "k": 3, "rule": "rejection", "temperature": 1.0, "max_tokens": 400}
    strict, lenient = generate(PAIR, [0], **kwargs), generate(PAIR, [0], lenience=3.0, **kwargs)
    assert lenient.accepted / lenient.drafted > strict.accepted / strict.drafted
    assert (strict.lossy, lenient.lossy) == (False, True)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_replays_expectation_covers_decoding(k: int) -> None:
    """Replay's dynamic programming must predict what 2,000 decoded rounds show."""
    settings = {"temperature": 1.0}
    p, q = chain(TARGET, settings), chain(DRAFT, settings)
    limit, rounds, expected, tokens, seed = 60, [], [], 0, 0
    while sum(rounds) < 2000:
        g = generate(PAIR, [0], drafter="generic", k=k, rule="rejection", max_tokens=limit, seed=seed, **settings)
        plain = generate(PAIR, [0], drafter=None, max_tokens=limit, seed=10_000 + seed, **settings)
        path = [0, *plain.tokens]
        stand = np.array([min(1, q[a, b] / p[a, b]) for a, b in itertools.pairwise(path)])
        rounds.append(g.rounds)
        expected.append(expected_counts(stand, k, limit).rounds)
        tokens, seed = tokens + limit, seed + 1
    difference = np.array(rounds) - np.array(expected)
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / np.sqrt(len(difference))


def test_expected_counts_against_enumeration() -> None:
    """The dynamic programme equals the sum over every accept/reject pattern, weighted by its probability."""
    stand = np.array([0.9, 0.2, 0.5, 0.7, 0.4])
    n = len(stand)
    for k in (1, 2, 3, 6):
        total = np.zeros(4)
        for pattern in itertools.product([0, 1], repeat=n):
            weight = np.prod([s if bit else 1 - s for s, bit in zip(stand, pattern, strict=True)])
            i, counts = 0, np.zeros(4)
            while i < n:
                limit = min(k, n - i - 1)
                run = next((j for j in range(limit) if not pattern[i + j]), limit)
                counts += [1, limit, run, run < limit]
                i += run + 1
            total += weight * counts
        expected = expected_counts(stand, k, n)
        np.testing.assert_allclose([expected.rounds, expected.drafted, expected.accepted, expected.rejected], total, atol=1e-12)


def test_modules_under_test_are_the_loops() -> None:
    """The functions checked above are the ones the loop calls."""
    assert speculative.accept_rejection is accept.accept_rejection
    assert proposing.Request is drafters.Request
