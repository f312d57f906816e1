"""Caches kept between answers: the next turn of a conversation is read from where it goes on, and answered as if it were read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import install_adapter
from tiny import tiny_pair

from harness import api
from harness.decode.kept import KeptCaches


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny pair."""
    return tiny_pair(tmp_path_factory.mktemp("kept"), noise=0.1, max_position_embeddings=1024, vocab_size=259)


@pytest.mark.parametrize("drafter", [None, "generic", "lookup", "hybrid", "early_exit", "poems"])
def test_turns_go_on_where_the_last_one_ended(pair: Any, drafter: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and counts of every turn are those of a fresh start; only what is new is read, by target and draft."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    if drafter == "poems":
        install_adapter(pair, "poems")
    caches, read = KeptCaches(), []
    opened = KeptCaches.open

    def watching(self: KeptCaches, role: str, model: Any, prompt: list[int]) -> Any:
        state = opened(self, role, model, prompt)
        read.append(len(prompt) - 1 - state.offset)
        return state

    monkeypatch.setattr(KeptCaches, "open", watching)
    prompt = pair.encode("tell me of the sea, the ships and the whales")
    for turn in range(3):
        plain = api.generate(pair, prompt, drafter=None, max_tokens=24)
        fresh = api.generate(pair, prompt, drafter=drafter, k=3, max_tokens=24)
        answer = api.generate(pair, prompt, drafter=drafter, k=3, max_tokens=24, caches=caches)
        assert answer.tokens == fresh.tokens == plain.tokens
        assert (answer.accept_lengths, answer.draft_lengths) == (fresh.accept_lengths, fresh.draft_lengths)
        assert len(read) == (1 if drafter in (None, "lookup") else 2)
        # The last token emitted was read by nobody; a draft may lack more where lookup was at work, or the target put in its own.
        assert turn == 0 or (read[0] == 9 and max(read) < 24)
        assert caches.reused == len(prompt) - 1 - read[0]
        read.clear()
        prompt = [*prompt, *answer.tokens, *range(30, 39)]
    api.adapter_bank(pair).activate(None)


def test_a_shared_beginning_is_used_by_both_and_lost_by_none(pair: Any) -> None:
    """Two conversations under one system prompt do not push each other out; an answer that was stopped is kept as far as it went."""
    caches, system = KeptCaches(), list(range(30, 90))
    first, second = [*system, 100, 101], [*system, 110, 111]
    tokens = api.generate(pair, first, max_tokens=20, caches=caches).tokens
    api.generate(pair, second, max_tokens=20, caches=caches)
    assert caches.reused >= len(system) - 1
    api.generate(pair, [*first, *tokens, 50], max_tokens=4, caches=caches)
    assert caches.reused == len(first) + len(tokens) - 1
    steps = api.stream(pair, [*second, 60], max_tokens=50, caches=caches)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    api.generate(pair, [*second, 60], max_tokens=4, caches=caches)
    assert caches.reused >= len(second) - 1


def test_memory_is_bounded(pair: Any) -> None:
    """The oldest conversation goes first; one that is larger than the bound is not kept."""
    small = KeptCaches(most=2)
    for i in range(3):
        api.generate(pair, [40 + i] * 20, drafter=None, max_tokens=4, caches=small)
    for i, reused in ((2, 18), (0, 0)):
        api.generate(pair, [40 + i] * 20, drafter=None, max_tokens=4, caches=small)
        assert small.reused == reused
    none = KeptCaches(most_bytes=1)
    for _ in range(2):
        api.generate(pair, [40] * 20, drafter=None, max_tokens=4, caches=none)
        assert none.reused == 0
