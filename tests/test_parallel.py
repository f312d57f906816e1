"""Parallel drafts: the first proposal is the draft's own, replay equals decoding, both rules keep the target's distribution."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import tiny_draft
from masks import install_parallel, put_parallel, random_masks
from test_sampling import chi_square
from tiny import tiny_pair
from toy import ToyPair, near_copy, toy_draft, toy_model, toy_pair

from harness import api
from harness.adapt.adapters.adapter_folder import read_lora
from harness.adapt.shelf import put_in
from harness.adapt.training.bank import AdapterBank, replay_bank
from harness.core.errors import HarnessError
from harness.core.paths import found_parallel
from harness.core.records import Trajectory
from harness.decode.cached import CachedModel
from harness.decode.calibrate import calibrate
from harness.decode.drafters import Request
from harness.decode.drawn import drawn_parallel, rule_logprobs
from harness.decode.generation import generate
from harness.decode.length import AutoK, Costs
from harness.decode.making import resolve_drafter
from harness.decode.parallel_drafter import ParallelDrafter
from harness.decode.parallel_replay import ParallelPass, Starts, parallel_passes
from harness.decode.replay import replay
from harness.decode.sampling import Draws, Sampling, processed_logprobs
from harness.decode.simulate import expected_counts, simulate_runs
from harness.models import parallel_masks as parallel
from harness.models.blas import ints, mx
from harness.models.opened import hidden_states
from harness.models.parallel_masks import Gate, with_masks

VOCAB = 8
"""Few ids, so that masks without training are right now and then."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def small_pair(seed: int = 0) -> ToyPair:
    """A pair of few ids."""
    return toy_pair(vocab=VOCAB, noise=0.3, seed=seed, eos=(1,))


def pruned(kind: str) -> Any:
    """A tiny draft: whole, quantised, with a head of its own for some ids, or restricted to some."""
    kept = np.arange(0, 48, 2)
    if kind == "own head":
        return dataclasses.replace(tiny_draft(token_map=kept), vocab=tuple(kept.tolist()))
    draft = tiny_draft(quantised="affine 8" if kind == "quantised" else "")
    return dataclasses.replace(draft, vocab=tuple(kept.tolist())) if kind == "restricted" else draft


def first_row_differs(kind: str) -> bool:
    """Whether masks change anything about the tokens before them: states, keys and values, in a pass of the same shape."""
    from mlx_lm.models.cache import make_prompt_cache

    draft = pruned(kind)
    masked = with_masks(draft, random_masks(draft.model), 1.0)
    (plain, _), (model, _) = draft.proposer, masked.draft.proposer
    tokens, caches = [3, 14, 15, 9, 26], (make_prompt_cache(plain), make_prompt_cache(model))
    with masked.gate.of(4):
        ours = hidden_states(model, mx.array([[*tokens, 0, 0, 0, 0]]), caches[1])
    theirs = hidden_states(plain, mx.array([[*tokens, 5, 35, 8, 9]]), caches[0])
    seen = [(ours, theirs), *((getattr(a, n), getattr(b, n)) for n in ("keys", "values") for a, b in zip(*caches, strict=True))]
    rows = [(a[..., :5, :], b[..., :5, :]) for a, b in seen]
    assert any((a[..., 5:9, :] != b[..., 5:9, :]).any().item() for a, b in seen), "masks must be something else than tokens"
    return any((a != b).any().item() for a, b in rows)


@pytest.mark.parametrize("kind", ["whole", "quantised", "own head", "restricted"])
def test_masks_leave_real_tokens_alone(kind: str) -> None:
    """Bit for bit: what stands before the masks, and what the cache keeps of it, is the plain draft's."""
    assert not first_row_differs(kind)


def test_a_leaking_lora_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An injected fault: the LoRA acts at the last real token too."""
    plain = parallel._Gated.__call__

    def leaking(self: Any, x: mx.array) -> mx.array:
        gate, *rest = self._parallel
        wider = Gate()
        wider.masks = min(gate.masks + 1, x.shape[-2]) if gate.masks else 0
        self._parallel = (wider, *rest)
        try:
            return plain(self, x)
        finally:
            self._parallel = (gate, *rest)

    monkeypatch.setattr(parallel._Gated, "__call__", leaking)
    assert first_row_differs("whole")


def test_the_first_proposal_is_the_drafts() -> None:
    """Along whole answers, from a context that grows by several tokens at once, greedy and drawn with the same key."""
    rng, pair = random.Random(0), small_pair()
    masked = with_masks(pair.draft, random_masks(pair.draft.model), 1.0)
    ours, theirs = ParallelDrafter(masked), resolve_drafter(pair, "generic")
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        context = [rng.randrange(2, VOCAB) for _ in range(6)]
        ours.begin(context)
        theirs.begin(context)
        for i in range(10):
            request = Request(k=5, sampling=sampling, key=None if sampling.greedy else mx.random.key(i))
            found, known = ours.propose(context, request), theirs.propose(context, request)
            assert found is not None
            assert known is not None
            assert ints(found.tokens)[0] == ints(known.tokens)[0]
            assert found.k == known.k == 5
            context += [rng.randrange(2, VOCAB) for _ in range(rng.randrange(1, 6))]


COSTS = Costs(c=0.03, v=(1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6), once=0.2)


def counted_alike(cases: int, names: tuple[str, ...] = ("parallel", "hybrid+parallel", "cascade+parallel")) -> tuple[int, int]:
    """Decode and replay the same answers; return how many cases agree in every round, and the accepted tokens beyond a round's first."""
    rng, agreeing, deep = random.Random(0), 0, 0
    for i in itertools.count():
        pair = small_pair(seed=i % 3)
        install_parallel(pair, seed=i % 3)
        prompt = [rng.randrange(2, VOCAB) for _ in range(rng.randrange(1, 12))]
        plain = generate(pair, prompt, drafter=None, max_tokens=18)
        known = {"prompt_tokens": tuple(prompt), "tokens": plain.tokens, "finish": plain.finish, "max_tokens": 18}
        answer = Trajectory(sample_id=str(i), domain="x", **known)  # type: ignore[arg-type]
        for name, k in itertools.product(names, (1, 2, 5, 9, "dynamic", "auto")):
            real = generate(pair, prompt, drafter=name, k=k, costs=COSTS, max_tokens=18)
            assert real.tokens == plain.tokens
            (row,) = replay(pair, [answer], [name], [k], costs=COSTS)
            agreeing += (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)
            deep += sum(max(0, n - 1) for n in real.accept_lengths)
            cases -= 1
        if cases <= 0:
            return agreeing + cases, deep
    raise AssertionError


def test_replay_equals_decoding() -> None:
    """Over 200 cases, alone, behind lookup and as a source of the cascade: the same rounds as in the loop, and the target's output."""
    agreeing, deep = counted_alike(216)
    assert agreeing == 216
    assert deep > 100, "proposals of masks must stand now and then, or nothing was compared"


def one_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: in replay the masks stand one position too far."""
    begin = Starts.__init__
    monkeypatch.setattr(Starts, "__init__", lambda self, keys, values, starts: begin(self, keys, values, starts + 1))


def left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a mask stays in the cache and passes for the first token that stood."""
    trim = CachedModel.trim_to

    def late(self: CachedModel, length: int, *, settled: bool = True) -> None:
        trim(self, length if settled else min(length + 1, self.offset), settled=settled)

    monkeypatch.setattr(CachedModel, "trim_to", late)


@pytest.mark.parametrize("fault", [one_too_far, left_behind])
def test_injected_faults_are_caught(monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    """The check itself: replay and decoding no longer count the same."""
    fault(monkeypatch)
    agreeing, _ = counted_alike(24, ("parallel",))
    assert agreeing < 24


def test_a_pruned_head_follows_the_context() -> None:
    """What stands in prompt and answer can be proposed from there on, by every mask; replay knows from where on."""
    target = toy_model(vocab=24, seed=3, scale=4.0)
    draft = dataclasses.replace(toy_draft(near_copy(target, 0.2, 4, vocab=24)), vocab=tuple(range(0, 24, 3)))
    pair = ToyPair(target, draft, frozenset((1,)))
    install_parallel(pair)
    for first in range(2, 20):
        prompt = [first, first + 1, 7]
        plain = generate(pair, prompt, drafter=None, max_tokens=16)
        known = {"prompt_tokens": tuple(prompt), "tokens": plain.tokens, "finish": plain.finish, "max_tokens": 16}
        (row,) = replay(pair, [Trajectory(sample_id="a", domain="x", **known)], ["parallel"], [4])  # type: ignore[arg-type]
        real = generate(pair, prompt, drafter="parallel", k=4, max_tokens=16)
        assert real.tokens == plain.tokens
        assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)


def exact_answers(model: Any, prompt: list[int], sampling: Sampling, vocab: int) -> np.ndarray:
    """Probability of every answer of three tokens under the target, (vocab ** 3,)."""
    tails = list(itertools.product(range(vocab), repeat=2))
    logits = model(mx.array([[*prompt, *tail] for tail in tails]))[:, len(prompt) - 1 :]
    logp = np.array(processed_logprobs(logits.reshape(-1, vocab), sampling), dtype=np.float64).reshape(vocab, vocab, 3, vocab)
    p = np.exp(logp)
    return (p[0, 0, 0][:, None, None] * p[:, 0, 1][:, :, None] * p[:, :, 2]).ravel()


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_both_rules_keep_the_targets_distribution(rule: str) -> None:
    """Whole answers of three tokens follow the target, although a mask proposes without knowing the proposal before it."""
    vocab, settings = 5, {"temperature": 1.0, "top_k": 4}
    target = toy_model(vocab=vocab, seed=1, scale=2.0)
    pair = ToyPair(target, toy_draft(near_copy(target, 0.3, 2, vocab=vocab)))
    drafter = ParallelDrafter(with_masks(pair.draft, random_masks(pair.draft.model, 2, size=0.2), 1.0))
    counts, second = np.zeros(vocab**3), 0
    for i in range(300):
        g = generate(pair, [2, 3], drafter=drafter, k=2, rule=rule, max_tokens=3, seed=i, **settings)
        a, b, c = g.tokens
        counts[(a * vocab + b) * vocab + c] += 1
        second += g.accept_lengths[0] == 2
    assert chi_square(counts, exact_answers(target, [2, 3], Sampling(**settings), vocab)) > 1e-4
    assert second > 8


def test_sampled_replay_knows_what_each_mask_would_say() -> None:
    """Log-probabilities of the answer's tokens at every start are those of the distributions that decoding draws from."""
    pair, sampling = small_pair(), Sampling(temperature=0.8, top_p=0.95)
    drafter = ParallelDrafter(with_masks(pair.draft, random_masks(pair.draft.model, 3), 1.0))
    prompt, answer = [2, 5, 3], [4, 4, 6, 2, 7, 3]
    trajectory = Trajectory(sample_id="a", domain="x", prompt_tokens=tuple(prompt), tokens=tuple(answer), finish="length", max_tokens=9)
    (found,) = parallel_passes(drafter, [trajectory], sampling)
    assert found.logq is not None
    drafter.begin(prompt)
    for i in range(len(answer)):
        proposal = drafter.propose(prompt + answer[:i], Request(k=4, sampling=sampling, key=mx.random.key(0), with_logq=True))
        assert proposal is not None
        rows = np.array(proposal.full_logq(VOCAB))
        wanted = [rows[j, t] for j, t in enumerate(answer[i : i + 4])]
        np.testing.assert_allclose(np.exp(found.logq[i, : len(wanted)]), np.exp(wanted), atol=1e-4)
        assert (found.logq[i, len(wanted) :] == -np.inf).all()
    logprobs = np.log(np.full(len(answer), 0.5))
    np.testing.assert_allclose(found.stands(logprobs)[:, 0], np.minimum(1, np.exp(found.logq[:, 0]) / 0.5))


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_drawn_rounds_average_to_the_expectation(rule: Any) -> None:
    """Of proposals that depend on where the round began, too: seeds give the counts that the chances promise on average."""
    rng, n = np.random.default_rng(2), 7
    logq = np.log(rng.random((n, 3)))
    logq[[n - 2, n - 1, n - 1], [2, 1, 2]] = -np.inf
    parts = {"gap": np.ones((n, 3)), "favourite": np.zeros((n, 3), dtype=int), "confidence": np.ones((n, 3))}
    passed = ParallelPass(match=np.zeros((n, 3), dtype=bool), logq=logq, **parts)
    t = Trajectory(
        sample_id="a", domain="x", prompt_tokens=(1,), tokens=(2,) * n, finish="length", max_tokens=n, logprobs=np.log(rng.random(n))
    )
    for k in (1, 3):
        how = {"sampling": Sampling(temperature=1.0), "rule": rule}
        drawn = [drawn_parallel(passed, t, Draws(seed=seed, **how)) for seed in range(2000)]
        seen = np.array([[(c := simulate_runs(d.runs, k, n)).rounds, c.drafted, c.accepted, c.rejected] for d in drawn])
        wanted = expected_counts(passed.stands(rule_logprobs(t, rule)), k, n)
        error = 4 * seen.std(axis=0) / np.sqrt(len(seen)) + 1e-9
        assert (abs(seen.mean(axis=0) - [wanted.rounds, wanted.drafted, wanted.accepted, wanted.rejected]) < error).all()


def test_expectations_by_start_are_those_by_token() -> None:
    """Where a chance does not depend on the start, both forms count the same."""
    rng = np.random.default_rng(0)
    stand = rng.random(12)
    by_start = np.array([[stand[i + j] if i + j < 12 else 0.0 for j in range(5)] for i in range(12)])
    assert expected_counts(by_start, 4, 14) == expected_counts(stand, 4, 14)


def test_what_a_pass_costs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that charges 3 seconds a pass and half a second a token must come back as just that, behind lookup too."""
    from harness.decode import calibrate as module

    now = [0.0]

    def charged(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(module, "_block", lambda model, m: charged(1.0))
    monkeypatch.setattr(module, "_proposal", lambda drafter, context, k=1: charged(3 + k / 2))
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    pair = small_pair()
    install_parallel(pair)
    for name in ("parallel", "hybrid+parallel"):
        costs = calibrate(pair, resolve_drafter(pair, name), max_k=4).costs
        assert (costs.once, costs.c) == pytest.approx((3.0, 0.5))
        assert costs.draft_cost(4) == pytest.approx(5.0)


@pytest.mark.parametrize(("once", "longest"), [(0.0, 7), (0.4, 6), (3.0, 0)])
def test_auto_asks_a_pass_for_as_many_tokens_as_pay(once: float, longest: int) -> None:
    """Tokens of one pass share its cost: a dear pass is not made at all, and one that pays is not asked for more than it may be worth."""
    policy = AutoK(dataclasses.replace(COSTS, once=once))
    assert policy.max_k() <= longest
    assert (policy.max_k() > 0) == (longest > 0)
    before = policy.alpha()
    policy.update(drafted=2, accepted=0, confidences=(0.5, 0.5), source="draft")
    assert policy.alpha() < before


@contextmanager
def file_of(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """A JSON file, changed."""
    data = json.loads((folder / name).read_text())
    yield data
    (folder / name).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft_hash": "f" * 64}, "belongs to another draft"),
        ({"masks": 9}, "does not hold 9 masks and a LoRA"),
        ({"fine_tune_type": "lora"}, "fine_tune_type must be 'parallel'"),
        ({"scale": None}, "scale must be a valid number"),
    ],
)
def test_a_wrong_folder_is_one_sentence(change: dict[str, Any], message: str) -> None:
    """What cannot be the draft's masks is refused before anything is decoded."""
    pair = small_pair()
    folder = install_parallel(pair)
    with file_of(folder, "adapter_config.json") as config:
        config.update(change)
    with pytest.raises(HarnessError, match=message):
        resolve_drafter(pair, "parallel")


def test_masks_that_do_not_fit_are_refused() -> None:
    """Another width, a layer that is not there, and a model whose cache is more than keys and values."""
    draft = small_pair().draft
    weights = random_masks(draft.model)
    other = {name.replace("layers.0.", "layers.7."): array for name, array in weights.items()}
    for wrong in (random_masks(toy_model(vocab=VOCAB, dim=16)), other):
        with pytest.raises(HarnessError, match="does not fit the draft"):
            with_masks(draft, wrong, 1.0)


def test_it_runs_by_name_and_beside_adapters(tmp_path: Path) -> None:
    """From the shelf: alone, around it, by another name in a bank, in replays; what is no parallel adapter does not get its name."""
    pair = tiny_pair(tmp_path)
    with pytest.raises(HarnessError, match="has no parallel adapter"):
        api.generate(pair, [5, 6, 7], drafter="parallel", max_tokens=8)
    source = put_parallel(tmp_path / "made", pair.draft, size=0.1)
    put_in(pair, source, "parallel")
    put_in(pair, source, "ahead")
    assert found_parallel(pair.name) is not None
    plain = api.generate(pair, [5, 6, 7], drafter=None, max_tokens=12)
    for name in ("parallel", "hybrid+parallel", "cascade+ahead", "ahead"):
        found = api.generate(pair, [5, 6, 7], drafter=name, k=3, max_tokens=12)
        assert found.tokens == plain.tokens
    with pytest.raises(HarnessError, match="is no drafter"):
        api.generate(pair, [5, 6, 7], drafter="parallel+ahead", max_tokens=8)
    known = {"prompt_tokens": (5, 6, 7), "tokens": plain.tokens, "finish": plain.finish, "max_tokens": 12}
    answer = Trajectory(sample_id="a", domain="x", **known)  # type: ignore[arg-type]
    bank = AdapterBank(pair.draft, {"ahead": source})
    rows = {row.drafter: row for row in replay_bank(bank, [answer], [3])}
    (alone,) = api.replay(pair, [answer], ["parallel"], [3])
    assert rows["ahead"].accept_lengths == alone.accept_lengths
    assert rows.keys() == {"generic", "ahead"}
    with pytest.raises(HarnessError, match="drafts in parallel"):
        read_lora(source)
    (tmp_path / "made/adapter_config.json").write_text("{}")
    with pytest.raises(HarnessError, match="holds no parallel adapter"):
        put_in(pair, source, "parallel", replace=True)
