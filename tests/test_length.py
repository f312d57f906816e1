"""Draft length policies: cost model, dynamic stop, and auto's promise never to lose to plain decoding by more than 2%."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import HarnessError
from harness.decode.length import FREE, AutoK, Costs, DynamicK, FixedK, expected_tokens, make_policy, predicted_speedup

CHEAP = Costs(c=0.1, v=(1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35))
CLIFF = Costs(c=0.37, v=(1.0, 1.10, 1.16, 2.08, 2.18, 2.3, 2.4, 2.5, 2.6))
HOPELESS = Costs(c=0.9, v=(1.0, 1.8, 2.6, 3.4, 4.2))


@given(st.floats(0, 1), st.integers(0, 12))
def test_expected_tokens_is_leviathans_closed_form(alpha: float, k: int) -> None:
    """1 + a + ... + a^k is (1 - a^(k+1)) / (1 - a), K + 1 at a = 1."""
    closed = k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
    assert expected_tokens(alpha, k) == pytest.approx(closed, rel=1e-6)


def test_predicted_speedup_by_hand() -> None:
    """tau / (K c + v(K + 1)) with the numbers of a real pair: 2.82 / (2 * 0.37 + 1.16)."""
    assert predicted_speedup(2.82, 2, CLIFF) == pytest.approx(2.82 / 1.90)


def simulate(policy: AutoK, costs: Costs, alpha: float, tokens: int, seed: int, informative: bool = True) -> float:
    """Play the policy against a draft with true acceptance ``alpha``; return the speedup over plain decoding."""
    rng = np.random.default_rng(seed)
    spent, emitted = 0.0, 0
    while emitted < tokens:
        limit, stands, confidences = policy.max_k(), [], []
        while len(stands) < limit:
            p = float(rng.beta(8 * alpha, 8 * (1 - alpha))) if informative else alpha
            confidences.append(p)
            stands.append(rng.random() < p)
            if not policy.keep_going(tuple(confidences)):
                break
        k = len(stands)
        accepted = stands.index(False) if False in stands else k
        policy.update(drafted=k, accepted=accepted, confidences=tuple(confidences), source="draft")
        spent += costs.round_cost(k)
        emitted += accepted + 1
    return emitted / spent


@pytest.mark.parametrize("alpha", [0.02, 0.3, 0.5])
def test_auto_never_loses_more_than_two_percent(alpha: float) -> None:
    """Where speculation cannot pay, auto must find out at once and fall back to plain decoding."""
    speeds = [simulate(AutoK(HOPELESS), HOPELESS, alpha, 400, seed) for seed in range(20)]
    assert np.mean(speeds) > 0.98


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_auto_gives_up_on_a_useless_draft(alpha: float) -> None:
    """Fair costs, hopeless draft: the loss while learning stays small over a long answer."""
    assert np.mean([simulate(AutoK(CLIFF), CLIFF, alpha, 1000, seed) for seed in range(20)]) > 0.98


@pytest.mark.parametrize(("costs", "alpha"), [(CHEAP, 0.8), (CLIFF, 0.92), (CHEAP, 0.6), (CLIFF, 0.75)])
def test_auto_reaches_the_best_fixed_k(costs: Costs, alpha: float) -> None:
    """With informative confidences auto must at least match the best K that only an oracle knows in advance."""
    best = max(expected_tokens(alpha, k) / costs.round_cost(k) for k in range(costs.max_k + 1))
    assert np.mean([simulate(AutoK(costs), costs, alpha, 600, seed) for seed in range(12)]) > 0.97 * best


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 2), st.lists(st.floats(0, 0.5), min_size=1, max_size=8), st.lists(st.booleans(), max_size=60))
def test_auto_stays_inside_its_bounds(c: float, steps: list[float], outcomes: list[bool]) -> None:
    """Whatever it is told, it asks for a length the measurements cover and keeps alpha a probability."""
    policy = AutoK(Costs(c=c, v=tuple(np.cumsum([1.0, *steps]))))
    for outcome in outcomes:
        k = policy.max_k()
        assert 0 <= k <= len(steps)
        policy.update(drafted=k, accepted=k if outcome else 0, confidences=(0.5,) * k, source="draft")
        assert 0 <= policy.alpha() < 1


def lookup_speedup(alpha: float, tokens: int, seed: int) -> float:
    """Play auto with lookup alone, every suffix found and right with ``alpha``; return the speedup over plain decoding."""
    costs = Costs(c=0.0, v=CLIFF.v)
    rng, policy = np.random.default_rng(seed), AutoK(costs)
    spent, emitted = 0.0, 0
    while emitted < tokens:
        k = policy.free_k()["lookup"]
        accepted = int(np.cumprod(rng.random(k) < alpha).sum())
        policy.update(drafted=k, accepted=accepted, confidences=(), source="lookup")
        spent += costs.v[k]
        emitted += accepted + 1
    return emitted / spent


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 0.6, 0.9])
def test_auto_with_lookup_alone_never_loses(alpha: float) -> None:
    """Lookup costs no draft step, but verifying wrong guesses does: where they are mostly wrong, auto must stop making them."""
    assert np.mean([lookup_speedup(alpha, 1000, seed) for seed in range(10)]) > 0.98
    best = max(expected_tokens(alpha, k) / CLIFF.v[k] for k in range(CLIFF.max_k + 1))
    assert np.mean([lookup_speedup(alpha, 1000, seed) for seed in range(10)]) > 0.93 * best


def test_auto_prefers_a_good_draft_to_bad_lookups() -> None:
    """Lookups that fail leave the round to the draft model, while copies of long passages go on; the two are judged apart."""
    policy = AutoK(CHEAP)
    for _ in range(20):
        policy.update(drafted=4, accepted=4, confidences=(0.9,) * 4, source="draft")
        policy.update(drafted=4, accepted=0, confidences=(), source="lookup")
        policy.update(drafted=8, accepted=8, confidences=(), source="copy")
    assert (policy.free_k()["lookup"], policy.free_k()["copy"]) == (0, CHEAP.max_k)
    assert FixedK(3).free_k() == dict.fromkeys(FREE, 3)
    assert DynamicK(limit=6).free_k() == dict.fromkeys(FREE, 6)


def test_dynamic_stops_at_the_first_doubt() -> None:
    """The doubtful token itself is still verified: it is already paid for."""
    policy = DynamicK(threshold=0.5, limit=6)
    assert policy.max_k() == 6
    assert policy.keep_going((0.9, 0.5))
    assert not policy.keep_going((0.9, 0.49))


def test_make_policy() -> None:
    """Names map to policies; nonsense and auto without costs are refused."""
    assert isinstance(make_policy(3), FixedK)
    assert isinstance(make_policy("dynamic"), DynamicK)
    assert isinstance(make_policy("auto", CHEAP), AutoK)
    with pytest.raises(HarnessError, match="measured costs"):
        make_policy("auto")
    with pytest.raises(HarnessError, match="k is True"):
        make_policy(True)
