"""The cascade: replay equals decoding, outputs and distributions stay the target's, guesses leave nothing behind, plain speed is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_memory import pairs, remember, walker
from test_sampling import DRAFT as DRAFT_TABLE
from test_sampling import FILTERS, PAIR, VOCAB, Markov, block_outcomes, chain, chi_square, exact
from toy import toy_pair

from harness.core.records import Trajectory
from harness.core.round_sources import expanded, joined, tokens_of
from harness.decode.cascade import CascadeDrafter
from harness.decode.drafters import LookupDrafter, Request
from harness.decode.generation import generate
from harness.decode.length import DRAFT, AutoK, Costs, FixedK
from harness.decode.making import DrafterOptions
from harness.decode.model_drafter import ModelDrafter
from harness.decode.replay import replay
from harness.models.blas import ints, mx
from harness.models.forward import PrunedHead

COSTS = {
    "cheap draft": Costs(c=0.05, v=(1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35)),
    "cliff": Costs(c=0.2, v=(1.0, 1.15, 1.3, 1.9, 2.0, 2.1, 2.2, 2.3)),
    "dear draft": Costs(c=0.9, v=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@given(st.lists(st.sampled_from(["lookup", "memory", "draft"]), max_size=9), st.integers(0, 9))
def test_the_sources_of_a_round_are_one_text(sources: list[str], first: int) -> None:
    """What is written says who proposed each token, and how many there were."""
    text = joined(sources)
    assert expanded(text, len(sources)) == sources
    assert expanded(text, min(first, len(sources))) == sources[:first]
    assert tokens_of(text) == (len(sources) if len(set(sources)) > 1 else None)


def test_replay_equals_decoding() -> None:
    """Over 100 cases: who proposes each token, and how many, is the same along a stored answer as in the loop; so is the answer."""
    rng, cases, mixed = random.Random(0), 0, 0
    for pair in pairs():
        for remembered in (True, False):
            prompts = [[rng.randrange(2, 62) for _ in range(rng.randrange(2, 12))] for _ in range(6)]
            if remembered:
                remember(pair, prompts[::2])
            for i, prompt in enumerate(prompts):
                plain = generate(pair, prompt, drafter=None, max_tokens=20)
                known = {"prompt_tokens": tuple(prompt), "tokens": plain.tokens, "finish": plain.finish, "max_tokens": 20}
                for k, costs in [*(("auto", costs) for costs in COSTS.values()), ("dynamic", None), (3, None)]:
                    (row,) = replay(pair, [Trajectory(sample_id=str(i), domain="x", **known)], ["cascade"], [k], costs=costs)
                    real = generate(pair, prompt, drafter="cascade", k=k, costs=costs, max_tokens=20)
                    assert real.tokens == plain.tokens
                    assert (row.accept_lengths, row.draft_lengths, row.sources) == (real.accept_lengths, real.draft_lengths, real.sources)
                    cases += 1
                    mixed += sum(":" in source for source in real.sources or ())
    assert cases >= 100
    assert mixed > 50


def test_a_pruned_draft_is_widened_by_what_stands_alone() -> None:
    """Tokens of a memory that the pruned draft lacks are guesses: its vocabulary must not grow by them, or replay would differ."""
    pair = toy_pair(seed=4, noise=0.2)
    prompts = [[2 + (p * 5 + i * 3) % 60 for i in range(6)] for p in range(8)]
    remember(pair, prompts)
    options = DrafterOptions(vocab=tuple(range(0, 64, 3)))
    for i, prompt in enumerate(prompts):
        plain = generate(pair, prompt, drafter=None, max_tokens=16)
        known = {"prompt_tokens": tuple(prompt), "tokens": plain.tokens, "finish": plain.finish, "max_tokens": 16}
        (row,) = replay(pair, [Trajectory(sample_id=str(i), domain="x", **known)], ["cascade"], [4], options=options)
        real = generate(pair, prompt, drafter="cascade", k=4, options=options, max_tokens=16)
        assert real.tokens == plain.tokens
        assert (row.draft_lengths, row.sources) == (real.draft_lengths, real.sources)


class DraftFirst(FixedK):
    """The draft begins, the memory goes on."""

    def pick(self, chain: Sequence[Any], found: Sequence[Any], draft: bool) -> int | None:
        return 0 if chain and found else DRAFT


@pytest.mark.parametrize("rule", ["match", "rejection"])
@pytest.mark.parametrize(("policy", "settings"), [(FixedK, FILTERS["plain"]), (DraftFirst, FILTERS["top_p"])], ids=["found", "drawn"])
def test_mixed_drafts_preserve_the_target(policy: type[FixedK], settings: dict[str, Any], rule: str) -> None:
    """Drawn and found tokens stand side by side in one round: sequences follow the target under both rules."""
    memory = walker([[5, 0, 2], [0, 3, 1]], said=2)  # after 5 0 comes 2; after 0 3 comes 1
    drafter = CascadeDrafter(LookupDrafter(8, 2), memory, ModelDrafter(Markov(DRAFT_TABLE)), VOCAB)
    counts, first, seen = np.zeros(VOCAB**3), 0, set[str]()
    for i in range(900):
        g = generate(PAIR, (5, 0), drafter=drafter, k=policy(2), rule=rule, max_tokens=3, seed=i, **settings)
        counts[(g.tokens[0] * VOCAB + g.tokens[1]) * VOCAB + g.tokens[2]] += 1
        first += g.accept_lengths[0] >= 1
        seen.add(g.sources[0])
    assert chi_square(counts, exact(settings)) > 1e-4
    assert "memory:1,draft:1" in seen if policy is FixedK else {"draft:1,memory:1", "draft"} <= seen
    p, q = chain(PAIR.target.table, settings)[0], chain(DRAFT_TABLE, settings)[0]
    rate = p[2] if policy is FixedK else (p * q).sum() if rule == "match" else np.minimum(p, q).sum()
    assert abs(first / 900 - rate) < 4 * np.sqrt(rate * (1 - rate) / 900)


def test_chi_square_catches_a_wrong_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """An injected fault: a found token's certainty taken for a probability of the draft. The rejection rule then gives it too much."""
    monkeypatch.setattr(CascadeDrafter, "_logq", lambda self, chain: mx.full((len(chain.tokens), VOCAB), -np.log(VOCAB)))
    drafter = CascadeDrafter(LookupDrafter(8, 2), walker([[5, 0, 2]], said=2), ModelDrafter(Markov(DRAFT_TABLE)), VOCAB)
    outcomes, _, _ = block_outcomes(FILTERS["plain"], "rejection", 900, seed=0, drafter=drafter, prompt=(5, 0))
    assert chi_square(outcomes, exact(FILTERS["plain"])) < 1e-4


def check_nothing_is_left(propose: Callable[[Any, list[int], Request], list[int]], fresh: Callable[[], Any]) -> None:
    """After any rounds with guesses that did not stand, a drafter proposes what one proposes that never saw them."""
    rng = random.Random(1)
    for _ in range(12):
        text = [rng.randrange(2, 12) for _ in range(8)]
        drafter = fresh()
        drafter.begin(text)
        for _ in range(4):
            guesses = [rng.randrange(2, 12) for _ in range(rng.randrange(4))]
            propose(drafter, [*text, *guesses], Request(k=2, guesses=len(guesses)))
            text += [rng.randrange(2, 12) for _ in range(rng.randrange(1, 4))]
            other = fresh()
            other.begin(text)
            assert propose(drafter, text, Request(k=3)) == propose(other, text, Request(k=3))


def searched(drafter: LookupDrafter, text: list[int], request: Request) -> list[int]:
    """What a lookup finds."""
    return list(drafter.search(text, request).tokens)


def drafted(drafter: ModelDrafter, text: list[int], request: Request) -> list[int]:
    """What a model drafts."""
    proposal = drafter.propose(text, request)
    assert proposal is not None
    return ints(proposal.tokens)


def lookup_drafter() -> LookupDrafter:
    """Short suffixes are found often."""
    return LookupDrafter(3, 1)


def model_drafter() -> ModelDrafter:
    """A small model with a cache."""
    return ModelDrafter(MODEL.draft.model)


MODEL = toy_pair(seed=3)


def test_guesses_leave_nothing_behind() -> None:
    """Neither a lookup nor a draft model may remember tokens of a round that did not stand."""
    check_nothing_is_left(searched, lookup_drafter)
    check_nothing_is_left(drafted, model_drafter)


def test_stale_guesses_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected faults: guesses are indexed like text, and a draft model takes them for part of the answer."""
    real = LookupDrafter._index
    monkeypatch.setattr(LookupDrafter, "_index", lambda self, context, length: real(self, context, len(context)))
    with pytest.raises(AssertionError):
        check_nothing_is_left(searched, lookup_drafter)
    whole = ModelDrafter.propose
    monkeypatch.setattr(ModelDrafter, "propose", lambda self, text, request: whole(self, text, Request(k=request.k)))
    with pytest.raises((AssertionError, ValueError)):
        check_nothing_is_left(drafted, model_drafter)


def test_the_policy_weighs_gain_against_cost() -> None:
    """Sure tokens of a memory are taken, doubtful ones give way to a cheap draft, and where nothing pays the round is verified."""
    cheap, dear = AutoK(COSTS["cheap draft"]), AutoK(COSTS["dear draft"])
    sure, doubtful = [("memory", 0.95)] * 3, [("memory", 0.1)]
    assert cheap.pick([], [sure], True) == 0
    assert cheap.pick([], [doubtful, sure], True) == 1
    assert cheap.pick([], [doubtful], True) == DRAFT
    assert dear.pick([], [doubtful], True) is None
    assert cheap.pick([("draft", 0.1)] * 3, [], True) is None
    cliff = AutoK(COSTS["cliff"])
    assert cliff.pick([], [], True) == DRAFT
    for _ in range(20):
        cliff.update(drafted=2, accepted=1, confidences=(0.95, 0.9), source="memory:1,draft:1")
    assert cliff.alpha("draft") < 0.2 < cliff.alpha("memory")
    assert cliff.pick([], [], True) is None


def played(policy: AutoK, costs: Costs, stands: Callable[[str], float], rounds: int, seed: int) -> float:
    """Speed over plain decoding of a policy whose sources always have something to say, right with chance ``stands``."""
    rng, spent, emitted = np.random.default_rng(seed), 0.0, 0
    for _ in range(rounds):
        most, drawn = max(policy.max_k(), policy.free_k()["memory"]), list[tuple[str, float]]()
        asked = policy.max_k()
        while len(drawn) < most:
            runs = [[("memory", float(rng.uniform(0, 1)))], [("lookup", 0.7)] * 3]
            choice = policy.pick(drawn, runs, draft=[s for s, _ in drawn].count("draft") < asked)
            if choice is None:
                break
            drawn.append(("draft", float(rng.uniform(0, 1))) if choice == DRAFT else runs[choice][0])
        right = [rng.random() < stands(source) for source, _ in drawn]
        accepted = right.index(False) if False in right else len(right)
        sources = [source for source, _ in drawn]
        policy.update(drafted=len(drawn), accepted=accepted, confidences=tuple(c for _, c in drawn), source=joined(sources))
        spent += costs.v[len(drawn)] + costs.c * sources.count("draft")
        emitted += accepted + 1
    return emitted / spent


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("useless", [("draft",), ("memory", "lookup"), ("draft", "memory", "lookup")], ids="-".join)
def test_auto_never_loses_more_than_two_percent(costs: Costs, useless: tuple[str, ...]) -> None:
    """Whatever source is worthless, or all of them, an answer takes at most 2% longer than the target alone."""
    speeds = [played(AutoK(costs), costs, lambda source: 0.02 if source in useless else 0.5, 1000, seed) for seed in range(4)]
    assert np.mean(speeds) > 0.98


def test_a_vocabulary_is_pruned_as_for_the_draft_alone() -> None:
    """The options of the draft hold inside a cascade."""
    pair = toy_pair()
    found = cascade_of(pair, vocab=20)
    assert isinstance(found.draft.model, PrunedHead)
    assert found.memory is None


def cascade_of(pair: Any, **options: Any) -> Any:
    """The drafter by name."""
    from harness.decode.making import resolve_drafter

    return resolve_drafter(pair, "cascade", DrafterOptions(**options))
