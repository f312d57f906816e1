"""Shifted prompts: wrappers removed or exchanged, domains held out, two tasks in one prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_tables import ARMS, make_prompts, make_rewards
from shift import held_out_domains, mix_domains, scramble_templates, strip_templates, wrapper_sentences

from routing.evaluate import evaluate_routers
from routing.features import PromptFeatures
from routing.policy import PromptRouter
from routing.routers import LogisticRouter
from routing.routing_error import RoutingError

ROUTER = PromptRouter(PromptFeatures("tfidf", max_terms=64), LogisticRouter(), fallback="generic@4")


def test_wrappers_are_found_and_removed() -> None:
    """Scrambling must take away exactly the dataset's wrapper: the task's own words stay."""
    prompts, domains = make_prompts(90)
    bare, _ = make_prompts(90, wrapped=False)
    assert wrapper_sentences([p for p, d in zip(prompts, domains, strict=True) if d == "math"]) >= {"solve the problem step by step."}
    stripped = strip_templates(prompts, domains)
    assert all(s == b for s, b, d in zip(stripped, bare, domains, strict=True) if d == "code")
    scrambled = scramble_templates(prompts, domains, seed=1)
    for text, task, domain in zip(scrambled, bare, domains, strict=True):
        assert "step by step" not in text
        assert "```" not in text
        assert domain == "chat" or task.split(" Note")[1] in text
    assert scrambled == scramble_templates(prompts, domains, seed=1)
    assert scrambled != scramble_templates(prompts, domains, seed=2)


@given(st.lists(st.text(alphabet="ab .!?\n", max_size=80), min_size=1, max_size=8))
def test_stripping_any_text_is_safe(prompts) -> None:
    """No prompt becomes empty unless it was, and nothing is added."""
    for before, after in zip(prompts, strip_templates(prompts, ["x"] * len(prompts)), strict=True):
        assert after or not before
        assert len(after) <= len(before)


def test_scrambled_prompts_are_asked_but_not_trained_on() -> None:
    """The router learns wrapped prompts and is asked bare ones; a router that only knew wrappers would fall to the best fixed arm."""
    prompts, domains = make_prompts(120)
    rewards = make_rewards(domains, noise=0.05)
    scrambled = scramble_templates(prompts, domains)
    out = evaluate_routers(prompts, rewards, ARMS, {"tfidf": ROUTER}, test_prompts=scrambled)
    plain = evaluate_routers(prompts, rewards, ARMS, {"tfidf": ROUTER})
    assert out["tfidf"].recovery.value < plain["tfidf"].recovery.value


def test_held_out_domains_are_never_trained_on() -> None:
    """Every fold tests one whole domain."""
    _, domains = make_prompts(30)
    folds = held_out_domains(domains)
    assert len(folds) == 3
    for train, test in folds:
        assert len({domains[i] for i in test}) == 1
        assert not {domains[i] for i in test} & {domains[i] for i in train}
    prompts, _ = make_prompts(30)
    out = evaluate_routers(prompts, make_rewards(domains), ARMS, {"t": ROUTER}, domains=domains, folds=folds)
    assert out.n_prompts == 30
    with pytest.raises(RoutingError, match="two domains"):
        held_out_domains(["code"] * 4)


def test_mixed_prompts_hold_both_tasks() -> None:
    """Two tasks, two domains, both texts whole."""
    prompts, domains = make_prompts(30)
    for mixed in mix_domains(prompts, domains, 20, seed=3):
        assert all(prompts[r] in mixed.prompt for r in mixed.rows)
        assert mixed.domains[0] != mixed.domains[1]
        assert mixed.domains == tuple(domains[r] for r in mixed.rows)
    with pytest.raises(RoutingError, match="two domains"):
        mix_domains(["a"], ["code"], 1)
