"""The prompt router: choices, calibrated abstention, reasons and determinism."""

from __future__ import annotations

import numpy as np
import pytest
from routing_tables import ARMS, DOMAINS, make_prompts, make_rewards

from routing.features import PromptFeatures
from routing.outcomes import PLAIN, Arm
from routing.policy import PromptRouter
from routing.routers import AutoRouter, BoostingRouter, KNNRouter, LogisticRouter, MLPRouter
from routing.routing_error import RoutingError

TFIDF = PromptFeatures("tfidf", max_terms=64)
ROUTERS = [
    LogisticRouter(),
    KNNRouter(),
    MLPRouter(),
    BoostingRouter(n_trees=30),
    AutoRouter([("knn", KNNRouter()), ("log", LogisticRouter())]),
]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: type(r).__name__)
def test_learns_which_adapter_suits_which_domain(router) -> None:
    """On separable domains every router must beat the best fixed arm on prompts it has not seen."""
    prompts, domains = make_prompts(120)
    rewards = make_rewards(domains)
    fitted = PromptRouter(TFIDF, router, arms=ARMS, fallback="generic@4").fit(prompts[:90], rewards[:90])
    chosen = fitted.choose_indices(prompts[90:])
    reward = rewards[90:][np.arange(30), chosen].mean()
    best_fixed = rewards[90:].mean(axis=0).max()
    assert reward > best_fixed + 0.5 * (rewards[90:].max(axis=1).mean() - best_fixed)


def test_same_seed_same_router() -> None:
    """A run must be repeatable: scores are bit-equal for equal seeds."""
    prompts, domains = make_prompts(60)
    rewards = make_rewards(domains)
    for router in ROUTERS:
        a, b = (PromptRouter(TFIDF, router, arms=ARMS, fallback="generic@4").fit(prompts, rewards) for _ in range(2))
        np.testing.assert_array_equal(a.scores(prompts), b.scores(prompts))
        assert a.choose(prompts) == b.choose(prompts)
        assert a.threshold_ == b.threshold_


def test_cost_of_a_mistake_counts() -> None:
    """Arm b is best a little more often, but is a disaster otherwise: a label learner picks b, a cost-sensitive one picks a."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    rewards = np.column_stack([np.full(200, 2.0), np.where(np.arange(200) % 10 < 6, 2.1, 0.5)])
    for router in (LogisticRouter(), MLPRouter(), BoostingRouter(n_trees=20), KNNRouter(n_neighbors=100)):
        assert (router.fit(X, rewards).choose(rng.standard_normal((50, 3))) == 0).mean() > 0.9, type(router).__name__


def test_abstains_where_nothing_can_be_learned() -> None:
    """With rewards that do not depend on the prompt, moving off the fallback must not look confident."""
    prompts, _ = make_prompts(90)
    rewards = np.random.default_rng(0).normal(2, 0.3, (90, 4))
    rewards[:, 0] += 0.4
    fitted = PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback="generic@4").fit(prompts, rewards)
    fresh, _ = make_prompts(60, seed=5)
    fixed, chosen = fitted.choose(fresh).count("generic@4"), fitted.scores(fresh).argmax(axis=1)
    assert fixed >= (chosen == 0).sum()
    assert fixed > 50


def test_falls_back_to_plain_decoding_where_speculation_loses() -> None:
    """Chat prompts lose with every drafter here, so plain decoding must be chosen for them and for them alone."""
    prompts, domains = make_prompts(120)
    speedup = make_rewards(domains, noise=0.05) / 2.2
    speedup[np.array(domains) == "chat"] *= 0.5
    arms = (*ARMS, Arm(PLAIN))
    rewards = np.column_stack([speedup, np.ones(120)])
    fitted = PromptRouter(TFIDF, LogisticRouter(), arms=arms, fallback=PLAIN).fit(prompts[:90], rewards[:90])
    chosen = np.array(fitted.choose(prompts[90:]))
    assert (chosen[np.array(domains[90:]) == "chat"] == PLAIN).all()
    assert (chosen[np.array(domains[90:]) != "chat"] != PLAIN).mean() > 0.8


def test_confidence_is_calibrated() -> None:
    """Among held-out choices that leave the fallback, the stated probability of winning must match how often they win."""
    prompts, domains = make_prompts(600)
    rewards = make_rewards(domains, noise=0.6)
    fitted = PromptRouter(TFIDF, LogisticRouter(), arms=ARMS, fallback="generic@4", min_confidence=0.0).fit(prompts[:300], rewards[:300])
    best = fitted.scores(prompts[300:]).argmax(axis=1)
    moved = best != 0
    won = rewards[300:][np.arange(300), best] > rewards[300:, 0]
    assert abs(fitted.confidence(prompts[300:])[moved].mean() - won[moved].mean()) < 0.08


def test_high_threshold_always_takes_the_fallback() -> None:
    """min_confidence is a hard promise."""
    prompts, domains = make_prompts(60)
    fitted = PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback="generic@4", min_confidence=1.0).fit(prompts, make_rewards(domains))
    assert set(fitted.choose(prompts)) == {"generic@4"}
    free = PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback=None).fit(prompts, make_rewards(domains))
    assert set(free.choose(prompts)) > {"code@4"}


def test_unfamiliar_prompts_take_the_fallback() -> None:
    """Far from everything it was trained on, a router guesses; the untrained draft is the safe choice there, and the decision says so."""
    prompts, domains = make_prompts(90)
    rewards = make_rewards(domains)
    rewards[:, 1] += 2  # the code adapter is best everywhere, so only the guard can bring up the fallback
    fitted = PromptRouter(TFIDF, LogisticRouter(), arms=ARMS, fallback="generic@4", min_confidence=0.0).fit(prompts, rewards)
    odd = ["Zwei Jahre lang schwieg er.", "zxqv " * 40]
    for text in odd:
        decision = fitted.decide(text)
        assert (decision.arm.name, decision.abstained, decision.unfamiliar) == ("generic@4", True, True)
        assert decision.nearest[0].distance > fitted.reach_
    fresh, _ = make_prompts(60, seed=5)
    known = [fitted.decide(text) for text in fresh]
    assert sum(d.unfamiliar for d in known) <= 3
    assert all(d.arm.name == ("generic@4" if d.unfamiliar else "code@4") for d in known)
    assert fitted.choose([*fresh, *odd]) == [d.arm.name for d in known] + ["generic@4"] * 2
    free = PromptRouter(TFIDF, LogisticRouter(), arms=ARMS, fallback="generic@4", min_confidence=0.0, familiar=None).fit(prompts, rewards)
    assert free.choose(odd) == ["code@4"] * 2
    assert not free.decide(odd[0]).unfamiliar


def test_reach_is_the_distance_between_groups() -> None:
    """Copies of a prompt must not make everything else look far: the nearest prompt of another group counts."""
    prompts, domains = make_prompts(30)
    doubled, rewards = prompts * 2, np.tile(make_rewards(domains), (2, 1))
    fitted = PromptRouter(PromptFeatures("tfidf"), KNNRouter(), arms=ARMS, fallback="generic@4", familiar=0.8).fit(doubled, rewards)
    X = fitted.features_.transform(prompts).astype(np.float64)
    distance = np.linalg.norm(X[:, None] - X[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert fitted.reach_ == pytest.approx(np.quantile(np.tile(distance.min(axis=1), 2), 0.8), abs=1e-6)
    assert fitted.reach_ > 0
    one = PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback="generic@4").fit(prompts[:1] * 3, rewards[:3])
    assert np.isinf(one.reach_)
    with pytest.raises(RoutingError, match="familiar is 2"):
        PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback="generic@4", familiar=2).fit(prompts, rewards[:30])


def test_decision_says_why() -> None:
    """``nearest`` are real training prompts in order of distance, and the times are recorded."""
    prompts, domains = make_prompts(60)
    fitted = PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback="generic@4").fit(prompts, make_rewards(domains))
    decision = fitted.decide(prompts[7], n_nearest=4)
    assert decision.nearest[0].prompt == prompts[7][:160]
    assert decision.nearest[0].distance == pytest.approx(0, abs=1e-6)
    assert [n.distance for n in decision.nearest] == sorted(n.distance for n in decision.nearest)
    assert decision.arm in ARMS
    assert set(decision.scores) == {a.name for a in ARMS}
    assert 0 <= decision.confidence <= 1
    assert decision.embed_s > 0
    assert decision.choose_s > 0


def test_selection_takes_the_better_router() -> None:
    """Grouped cross-validation must prefer a router that can learn over one that cannot."""
    prompts, domains = make_prompts(90)
    rewards = make_rewards(domains)
    X = TFIDF.fit(prompts).transform(prompts)
    blind = LogisticRouter(C=1e-9)
    auto = AutoRouter([("blind", blind), ("logistic", LogisticRouter())]).fit(X, rewards, groups=np.arange(90))
    assert auto.best_name_ == "logistic"
    assert auto.cv_rewards_["logistic"] > auto.cv_rewards_["blind"]


def test_selection_runs_once_and_the_winner_is_calibrated(monkeypatch) -> None:
    """Selecting again in every calibration fold would cost five times as much and calibrate a router that is not the one used."""
    prompts, domains = make_prompts(60)
    fits, fit = [], AutoRouter.fit
    monkeypatch.setattr(AutoRouter, "fit", lambda self, *a, **k: fits.append(1) or fit(self, *a, **k))
    auto = AutoRouter([("blind", LogisticRouter(C=1e-9)), ("knn", KNNRouter())])
    chosen = PromptRouter(TFIDF, auto, arms=ARMS, fallback="generic@4").fit(prompts, make_rewards(domains))
    alone = PromptRouter(TFIDF, KNNRouter(), arms=ARMS, fallback="generic@4").fit(prompts, make_rewards(domains))
    assert len(fits) == 1
    assert type(chosen.router_) is KNNRouter
    np.testing.assert_array_equal(chosen.calibration_, alone.calibration_)
    assert chosen.threshold_ == alone.threshold_


def test_wrong_input_is_refused() -> None:
    """Shapes and names are checked before anything is learned."""
    prompts, domains = make_prompts(12)
    rewards = make_rewards(domains)
    with pytest.raises(RoutingError, match="shape"):
        PromptRouter(TFIDF, arms=ARMS[:3], fallback=None).fit(prompts, rewards)
    with pytest.raises(RoutingError, match="fallback"):
        PromptRouter(TFIDF, arms=ARMS).fit(prompts, rewards)
    with pytest.raises(RoutingError, match="arm"):
        PromptRouter(TFIDF, arms=("a", "a", "b", "c"), fallback=None).fit(prompts, rewards)


def test_domains_of_the_table_are_those_of_the_arms() -> None:
    """The other tests rely on one adapter per domain."""
    assert {a.drafter for a in ARMS} == {"generic", *DOMAINS}
