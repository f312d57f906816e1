"""Sampled replay draws what decoding draws: its counts against the exact law of a round, worked out from every proposal and verdict."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from test_sampling import Markov
from tiny import write_pair
from toy import ToyPair, toy_draft

from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode import drawn
from harness.decode.cascade import CascadeDrafter
from harness.decode.drafters import HybridDrafter, LookupDrafter, MemoryDrafter, Request
from harness.decode.generation import generate
from harness.decode.length import Costs, LengthPolicy, make_policy
from harness.decode.making import resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.passes import Passes
from harness.decode.replay import replay
from harness.decode.sampling import Sampling
from harness.decode.suffix_counts import Walker, count_suffixes
from harness.models.blas import mx
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run import runner
from harness.suite.suite import load_suite

VOCAB, TOKENS, EOS, PROMPT = 4, 4, 3, (1, 2, 0)
rng = np.random.default_rng(3)
TARGET = rng.normal(0, 1.2, (VOCAB, VOCAB)).astype(np.float32)
DRAFT = (TARGET + rng.normal(0, 1.0, (VOCAB, VOCAB))).astype(np.float32)
PAIR = ToyPair(Markov(mx.array(TARGET)), toy_draft(Markov(mx.array(DRAFT))), frozenset({EOS}))
SAMPLING = {"temperature": 0.8, "top_k": 3}
CHEAP = Costs(c=0.2, v=(1.0, 1.05, 1.1, 1.15, 1.2))
RULES = ("match", "rejection")
Rounds = tuple[tuple[int, int], ...]
"""Tokens drafted and accepted, round by round."""


def chances(table: np.ndarray, *, raw: bool = False) -> np.ndarray:
    """(VOCAB, VOCAB) probabilities of the next token, filtered and at the temperature, or as the model says them."""
    p = np.exp(table.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    if raw:
        return p
    p = np.where(p >= np.sort(p, axis=1)[:, -SAMPLING["top_k"], None], p, 0) ** (1 / SAMPLING["temperature"])
    return p / p.sum(1, keepdims=True)


P, Q, SURE = chances(TARGET), chances(DRAFT), chances(DRAFT, raw=True)
Chain = tuple[tuple[int, np.ndarray, float], ...]
"""Proposed tokens, each with what it was drawn from and the draft's confidence in it."""


def found(context: Sequence[int], most: int, guesses: int) -> Chain:
    """What a lookup of single tokens goes on with."""
    drafter = LookupDrafter(1, 1)
    drafter.begin(list(PROMPT))
    return tuple((token, np.eye(VOCAB)[token], 1.0) for token in drafter.search(list(context), Request(k=most, guesses=guesses)).tokens)


def proposals(kind: str, context: tuple[int, ...], policy: LengthPolicy, most: int) -> Iterator[tuple[float, Chain]]:
    """Every chain of proposals with its probability; a hybrid looks up before the first token, a cascade before every one."""
    most = min(most, policy.max_k())

    def grow(chain: Chain) -> Iterator[tuple[float, Chain]]:
        text = [*context, *(token for token, _, _ in chain)]
        if len(chain) == most or (chain and policy.needs_confidence and not policy.keep_going(tuple(c for *_, c in chain))):
            yield 1.0, chain
            return
        copied = found(text, most - len(chain), len(chain)) if kind == "cascade" or (kind == "hybrid" and not chain) else ()
        if copied and kind == "hybrid":
            yield 1.0, copied
            return
        q = Q[text[-1]]
        for link in copied[:1] or [(int(token), q, SURE[text[-1], token]) for token in np.flatnonzero(q)]:
            for weight, whole in grow((*chain, link)):
                yield link[1][link[0]] * weight, whole

    return grow(())


def verdicts(rule: str, context: tuple[int, ...], chain: Chain) -> Iterator[tuple[float, int, int]]:
    """(probability, tokens that stand, the target's own token), straight from the rule's definition."""
    stand, text = 1.0, list(context)
    for n, (token, q, _) in enumerate(chain):
        p = P[text[-1]]
        keep = p[token] if rule == "match" else min(1.0, p[token] / q[token])
        rest = np.where(np.arange(VOCAB) == token, 0, p) if rule == "match" else np.maximum(p - q, 0)
        if keep < 1:
            for other in np.flatnonzero(rest):
                yield stand * (1 - keep) * rest[other] / rest.sum(), n, int(other)
        stand, text = stand * keep, [*text, token]
    for bonus in np.flatnonzero(P[text[-1]]):
        yield stand * P[text[-1], bonus], len(chain), int(bonus)


def law(kind: str, rule: str, policy: LengthPolicy, context: tuple[int, ...] = PROMPT) -> Counter[Rounds]:
    """Probability of every sequence of rounds of an answer."""
    outcomes: Counter[Rounds] = Counter()
    left = TOKENS - (len(context) - len(PROMPT))
    for weight, chain in proposals(kind, context, policy, left - 1):
        drafted = [token for token, *_ in chain]
        for chance, n, own in verdicts(rule, context, chain):
            tokens = [*drafted[:n], own]
            tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
            accepted = min(n, len(tokens))
            first = (len(drafted), accepted)
            if EOS in tokens or len(tokens) == left:
                outcomes[(first,)] += weight * chance
                continue
            after = copy.deepcopy(policy)
            after.update(drafted=len(drafted), accepted=accepted, confidences=tuple(c for *_, c in chain), source="draft")
            for rounds, share in law(kind, rule, after, (*context, *tokens)).items():
                outcomes[(first, *rounds)] += weight * chance * share
    return outcomes


def samples(n: int) -> list[Trajectory]:
    """Answers that the target sampled."""
    draw, answers = np.random.default_rng(11), []
    for i in range(n):
        tokens = [PROMPT[-1]]
        while len(tokens) <= TOKENS and tokens[-1] != EOS:
            tokens.append(int(draw.choice(VOCAB, p=P[tokens[-1]])))
        logp = np.log([P[a, b] for a, b in itertools.pairwise(tokens)])
        facts: dict[str, Any] = {"domain": "d", "prompt_tokens": PROMPT, "max_tokens": TOKENS, "temperature": SAMPLING["temperature"]}
        answers.append(Trajectory(sample_id=str(i), tokens=tuple(tokens[1:]), finish="length", logprobs=logp, **facts))
    return answers


ANSWERS = samples(500)
KNOWN: dict[str, Passes[Any]] = {rule: Passes() for rule in RULES}
"""What the draft said along them by seed 5, for all tests."""
sampled = partial(replay, PAIR, sampling=Sampling(**SAMPLING), costs=CHEAP)  # type: ignore[arg-type]


def rounds_of(row: Any) -> Rounds:
    """What :func:`law` gives probabilities of."""
    return tuple(zip(row.draft_lengths, row.accept_lengths, strict=True))


def p_value(rows: Sequence[Any], expected: Counter[Rounds]) -> float:
    """Chance of rounds that differ as much from what is expected, by chi-square with rare outcomes pooled; 0 for impossible rounds."""
    seen, n = Counter(map(rounds_of, rows)), len(rows)
    if set(seen) - {rounds for rounds, p in expected.items() if p > 0}:
        return 0.0
    common = [rounds for rounds, p in expected.items() if p * n >= 5]
    observed = np.array([seen[r] for r in common] + [n - sum(seen[r] for r in common)])
    wanted = n * np.array([expected[r] for r in common] + [1 - sum(expected[r] for r in common)])
    keep = wanted > 1e-6
    return float(stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue)


def hybrid() -> HybridDrafter:
    """A lookup of single tokens, then the draft."""
    draft = resolve_drafter(PAIR, "generic")
    return HybridDrafter(LookupDrafter(1, 1), draft)


def cascade() -> CascadeDrafter:
    """The same token by token."""
    return CascadeDrafter(LookupDrafter(1, 1), None, resolve_drafter(PAIR, "generic"), VOCAB)


@pytest.mark.parametrize("rule", RULES)
def test_a_drafts_rounds_have_the_law_of_decoding(rule: Any) -> None:
    """One draw of every answer, every length: rounds are as likely as by the rule, and decoding's rounds are too."""
    rows = sampled(ANSWERS, ["generic"], [1, 2, 3, 4], rule=rule, seed=5, known=KNOWN[rule])
    rows += sampled(ANSWERS[:300], ["generic"], ["dynamic", "auto"], rule=rule, seed=5, known=KNOWN[rule])
    for k in (1, 2, 3, 4, "dynamic", "auto"):
        expected = law("generic", rule, make_policy(k, CHEAP))
        assert sum(expected.values()) == pytest.approx(1)
        assert p_value([row for row in rows if row.k == k], expected) > 1e-4, k
    decoded = [generate(PAIR, PROMPT, drafter="generic", k=2, rule=rule, max_tokens=TOKENS, seed=s, **SAMPLING) for s in range(150)]  # type: ignore[arg-type]
    assert p_value(decoded, law("generic", rule, make_policy(2))) > 1e-4


@pytest.mark.parametrize("rule", RULES)
def test_found_text_before_and_inside_drafts(rule: Any) -> None:
    """Certain proposals beside drawn ones; in a cascade what is looked up follows what the draft said, also where that did not stand."""
    for make, kind in ((hybrid, "hybrid"), (cascade, "cascade")):
        rows = sampled(ANSWERS[:300], [make()], [1, 3], rule=rule, seed=5, known=KNOWN[rule])
        for k in (1, 3):
            assert p_value([row for row in rows if row.k == k], law(kind, rule, make_policy(k))) > 1e-4, (kind, k)


@pytest.mark.parametrize("rule", RULES)
def test_found_text_is_counted_as_it_was_decoded(rule: Any) -> None:
    """A lookup's and a memory's proposals follow from the text, so decoding's own answers have decoding's own rounds, one by one."""
    counts = count_suffixes(np.array([1, 2, 0, 2, 1, 0, 1, 2, 2, 0, -1], dtype=np.int32), np.array([0]), np.array([2]))
    for drafter in (LookupDrafter(2, 1), MemoryDrafter(Walker(counts), LookupDrafter(3, 2), 0.1)):
        for k in (1, 2, 3, 4, "auto", "dynamic"):
            how: dict[str, Any] = {"drafter": drafter, "k": k, "rule": rule, "max_tokens": 24, "costs": CHEAP}
            g = generate(dataclasses.replace(PAIR, eos_token_ids=frozenset()), PROMPT, seed=9, **SAMPLING, **how)  # type: ignore[arg-type]
            facts: dict[str, Any] = {"domain": "d", "prompt_tokens": PROMPT, "max_tokens": 24, "finish": g.finish}
            (row,) = sampled([Trajectory(sample_id="a", tokens=g.tokens, **facts)], [drafter], [k], rule=rule, seed=1)
            assert (rounds_of(row), row.drafted, row.accepted, row.rejected) == (rounds_of(g), g.drafted, g.accepted, g.rejected)


def test_draws_do_not_depend_on_what_else_is_replayed() -> None:
    """Alone, in another order, beside other lengths, from what earlier replays knew: the same rows, as a resumed run needs; another
    seed gives others."""
    answers, known = ANSWERS[:40], Passes[Any]()
    whole = sampled(answers, ["generic"], [2, "dynamic"], rule="rejection", seed=5, known=known)
    alone = [row for k in ("dynamic", 2) for t in reversed(answers) for row in sampled([t], ["generic"], [k], rule="rejection", seed=5)]
    again = sampled(answers, ["generic"], ["dynamic", 2], rule="rejection", seed=5, known=known)
    order = {(row.sample_id, row.k): row for row in alone}
    assert [order[row.sample_id, row.k] for row in whole] == whole
    assert [order[row.sample_id, row.k] for row in again] == again
    assert sampled(answers, ["generic"], [2, "dynamic"], rule="rejection", seed=4) != whole


def test_draws_average_to_the_expectation() -> None:
    """Without a seed a fixed length gives the mean of what seeds give, under both rules."""
    for rule in RULES:
        expected = sum(row.accepted for row in sampled(ANSWERS[:200], ["generic"], [3], rule=rule))
        seen = [row.accepted for row in sampled(ANSWERS[:200], ["generic"], [3], rule=rule, seed=5, known=KNOWN[rule])]
        assert abs(np.sum(seen) - expected) < 4 * np.std(seen) * np.sqrt(len(seen))


@pytest.mark.parametrize("fault", ["other rule", "unsubtracted", "same draws"])
def test_a_biased_draw_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected faults: the other rule's chances; tokens that did not stand drawn as if the target had not refused them; places that share
    one number."""
    k: Any = 2
    if fault == "other rule":
        monkeypatch.setattr(drawn, "rule_logprobs", lambda t, rule: np.zeros(len(t.tokens)))
    elif fault == "unsubtracted":
        k = "dynamic"
        whole = drawn._others
        monkeypatch.setattr(drawn, "_others", lambda q, p, wanted: whole(q, None, wanted))
    else:
        monkeypatch.setattr(
            drawn.Draws, "uniform", lambda self, t: np.full(len(t.tokens), np.random.default_rng(int(t.sample_id)).random())
        )
    rows = sampled(ANSWERS, ["generic"], [k], rule="rejection", seed=5)
    assert p_value(rows, law("generic", "rejection", make_policy(k))) < 1e-4


def test_what_cannot_be_drawn_is_refused() -> None:
    """A draft whose proposals follow from more than the text, samples without probabilities."""

    class Foreign(ModelDrafter):
        """Brings its own replay."""

        def replayed(self, *args: Any) -> list[Any]:
            """Never asked."""
            raise AssertionError

    model = PAIR.draft
    assert model is not None
    with pytest.raises(HarnessError, match="replay of mine under sampling"):
        sampled(ANSWERS[:1], [Foreign(model.model, name="mine")], [2], seed=1)
    bare = dataclasses.replace(ANSWERS[0], logprobs=None)
    assert sampled([bare], ["generic"], [2], rule="match", seed=1)
    with pytest.raises(HarnessError, match="no log-probabilities"):
        sampled([bare], ["generic"], [2], rule="rejection", seed=1)


def test_a_run_samples_once_and_replays_everything_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From suite to records with real models: samples follow the run's seed, greedy answers do not; drafts, lookups, cascades and lengths
    chosen on the way are counted on every prompt."""
    monkeypatch.setattr(runner, "_report", lambda *_: None)
    path = write_pair(tmp_path / "pair")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{word} {word} {word}"}}\n' for word in ("one", "two", "three")))
    (tmp_path / "s.yaml").write_text(
        f"name: t\nmodels: {path}\nmax_tokens: 10\nclocked: 1\n"
        f"domains: {{x: {{dataset: local, split: all, path: {tmp_path}/p.jsonl}}}}\n"
        "experiments:\n  - {kind: baseline, temperatures: [0.0, 1.0]}\n"
        "  - {kind: drafters, drafters: [generic, hybrid, cascade, lookup], k: [2, dynamic], rule: rejection, temperatures: [1.0]}\n"
    )
    said: dict[tuple[int, float], Any] = {}
    for seed, entries in ((0, None), (1, ["baseline"])):
        suite = load_suite(tmp_path / "s.yaml", [f"seed={seed}"], experiments=entries)
        folder = runner.run_suite(suite, results_dir=tmp_path / str(seed), clock=False, console=Console(file=io.StringIO()))
        records = read_records(folder)
        answers = {(r.sample_id, r.temperature): r for r in records if r.method == "answer"}
        said |= {(seed, heat): [answers[s, t].tokens for s, t in answers if t == heat] for heat in (0.0, 1.0)}
        replays = [r for r in records if r.method == "replay"]
        assert Counter((r.drafter, r.k) for r in replays) == dict.fromkeys({(r.drafter, r.k) for r in replays}, 3)
        assert len({(r.drafter, r.k) for r in replays}) == (0 if entries else 8)
        for r in replays:
            assert r.emitted == answers[r.sample_id, 1.0].emitted
            assert r.emitted in (r.accepted + r.rounds, r.accepted + r.rounds - 1)  # the last round may end by an accepted token
        assert read_manifest(folder).measured.spot_checks == ()
    assert said[0, 0.0] == said[1, 0.0]
    assert said[0, 1.0] != said[1, 1.0]
