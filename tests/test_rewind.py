"""Whatever a cache is made of, what was taken back is forgotten exactly, and nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest
from all_families import WINDOW
from families import tiny_model
from mlx_lm.models.cache import RotatingKVCache
from toy import ToyPair, noisy, toy_draft, toy_model

from harness.core.errors import HarnessError
from harness.decode.cached import CachedModel
from harness.decode.fast import fast_steps
from harness.decode.generation import generate
from harness.decode.kept import KeptCaches
from harness.decode.length import Costs, carried
from harness.decode.rewind import Window, parts
from harness.decode.sampling import Sampling
from harness.models.blas import mx
from harness.models.opened import close

KINDS = ["llama", "llama sliding", "qwen3_5", "falcon_h1", "llama4", "recurrent_gemma", "deepseek_v41", "iquestloopcoder"]
"""Plain, rotating, recurrent, lists of both, chunked, recurrent with windows, a cache of a family's own, more caches than layers."""


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("marks", ["before each", "none"])
def test_what_is_taken_back_is_forgotten(family: str, marks: str) -> None:
    """Tokens are fed and taken back at random; then the logits are those of a model that has only seen what stands.

    Without a mark a cache that cannot go back starts again, which is slow and as exact.
    """
    model, rng = tiny_model(family), random.Random(marks)
    cached, standing = CachedModel(model), [rng.randrange(64) for _ in range(30)]
    cached.prefill(standing)
    for _ in range(14):
        new = [rng.randrange(64) for _ in range(rng.choice([1, 1, 2, 5, 9]))]
        for token in new if rng.random() < 0.3 else [new]:
            if marks == "before each":
                cached.mark()
            mx.eval(cached.forward(mx.array(token).reshape(-1)))
        standing = (standing + new)[: len(standing) + rng.randint(0, len(new))]
        cached.trim_to(len(standing))
        assert cached.offset <= len(standing)
        cached.prefill(standing[cached.offset :])
    assert len(standing) > WINDOW + 9
    fresh = CachedModel(model)
    fresh.prefill(standing)
    tail = mx.array([5, 9, 33])
    assert close(cached.forward(tail), fresh.forward(tail))


@pytest.mark.parametrize("given", [None, 5, 8])
def test_a_window_shows_what_a_rotating_cache_shows(given: int | None) -> None:
    """The same keys, whatever their order, and a mask that lets each token see the same ones of them."""
    rng, ours, theirs = random.Random(0), Window(8), RotatingKVCache(8)
    for step in range(400):
        n = rng.choice([1, 1, 2, 7, 11])
        new = mx.arange(step * 100.0, step * 100.0 + n).reshape(1, 1, n, 1)
        masks = [cache.make_mask(n, window_size=given) for cache in (ours, theirs)]
        seen = [cache.update_and_fetch(new, -new)[0].reshape(-1) for cache in (ours, theirs)]
        assert _attended(seen[0], masks[0], n) == _attended(seen[1], masks[1], n)
        assert ours.offset == theirs.offset
        assert ours.size() == theirs.size()
        again = ours.keys_and_values()
        assert mx.array_equal(again[0].reshape(-1), seen[0])
        assert mx.array_equal(again[0], -again[1])
    assert ours.nbytes == 2 * 4 * 256


def _attended(keys: mx.array, mask: Any, n: int) -> list[set[float]]:
    """The keys that each of the last ``n`` tokens attends to."""
    rows = mx.arange(len(keys))
    if mask is None or isinstance(mask, str):
        mask = rows[None] <= (len(keys) - n + mx.arange(n))[:, None]
    return [{k for k, seen in zip(keys.tolist(), row, strict=True) if seen} for row in mx.broadcast_to(mask, (n, len(keys))).tolist()]


def test_marks_cost_nothing_where_the_cache_forgets_by_itself() -> None:
    """No state is kept, and nothing is fed again: the way of a llama, and of one with sliding windows."""
    for family in ("llama", "llama sliding", "gpt_oss"):
        cached = CachedModel(tiny_model(family))
        cached.prefill(list(range(60)))
        cached.mark()
        cached.forward(mx.arange(5))
        cached.trim_to(62)
        assert (cached.offset, cached._marks) == (62, [])
        cached.trim_to(2)  # further than any window keeps
        assert cached.offset == (2 if family == "llama" or cached.offset else 0)
    with pytest.raises(ValueError, match="cannot keep"):
        cached.trim_to(cached.offset + 1)


def test_a_window_with_a_fixed_beginning_is_put_back() -> None:
    """mlx-lm's bounded caches keep their first tokens; they rotate under marks."""
    model = toy_model(seed=1)
    cached = CachedModel(model, lambda: [RotatingKVCache(max_size=8, keep=4) for _ in model.layers])
    assert not any(isinstance(part, Window) for part in parts(cached.cache))
    cached.prefill(list(range(2, 14)))
    cached.mark()
    before = mx.array(cached.forward(mx.array([5, 6, 7])))
    cached.trim_to(13)
    assert cached.offset == 12
    assert close(cached.forward(mx.array([5, 6, 7])), before)


def test_mlx_lms_loop_is_refused_where_it_cannot_rewind() -> None:
    """It would stop in its own words, or go on with a wrong context once a window is full."""
    draft, common = toy_model(), {"k": 4, "eos": frozenset[int](), "sampling": Sampling()}
    for family, tokens, message in (("qwen3_5", 4, "target's cache"), ("gpt_oss", 30, f"window of {WINDOW} tokens")):
        with pytest.raises(HarnessError, match=message):
            next(fast_steps(tiny_model(family), draft, [1, 2, 3], max_tokens=tokens, **common))
    steps = fast_steps(tiny_model("gpt_oss"), draft, [1, 2, 3], max_tokens=WINDOW - 5, **common | {"k": 2})
    assert sum(len(s.tokens) for s in steps) == WINDOW - 5


def test_tokens_are_fed_again_where_that_is_cheap() -> None:
    """In front of the proposals where verification is flat, in a pass of their own where it costs by the token."""
    flat, steep = Costs(c=0.1, v=(1.0,) * 9), Costs(c=0.1, v=tuple(1.0 + m for m in range(9)))
    assert carried(0, 4, steep, flat=False)
    assert carried(3, 4, flat, flat=False)
    assert not carried(3, 4, steep, flat=True)
    assert not carried(6, 4, flat, flat=True)  # longer than what was measured
    assert carried(3, 4, None, flat=True)
    assert not carried(3, 4, None, flat=False)
    assert not carried(9, 4, None, flat=True)


@pytest.mark.parametrize("k", [4, "dynamic"])
@pytest.mark.parametrize("drafter", ["generic", "hybrid", "cascade"])
def test_no_drafter_makes_a_recurrent_model_start_again(drafter: str, k: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are plain decoding's, and every rejection finds its mark: the prompt is read once by target and draft."""
    pair, prompt, starts = ToyPair(tiny_model("qwen3_5"), toy_draft(noisy(tiny_model("qwen3_5")))), list(range(30)), []
    plain = generate(pair, prompt, drafter=None, max_tokens=40)
    restart = CachedModel._restart
    monkeypatch.setattr(CachedModel, "_restart", lambda self: (starts.append(self), restart(self))[1])
    g = generate(pair, prompt, drafter=drafter, k=k, max_tokens=40)
    assert g.tokens == plain.tokens
    assert 0 < g.accepted < g.drafted
    assert len(starts) == len(set(map(id, starts))) <= 2


@pytest.mark.parametrize("family", ["qwen3_5", "gpt_oss"])
@pytest.mark.parametrize("drafter", [None, "generic"])
def test_turns_of_a_conversation_are_read_on(family: str, drafter: str | None) -> None:
    """Every turn equals a fresh start's, with what cannot be cut back kept as far as it goes."""
    target = tiny_model(family)
    pair, caches, prompt = ToyPair(target, toy_draft(noisy(tiny_model(family))), frozenset({1})), KeptCaches(), list(range(30))
    for turn in range(3):
        fresh = generate(pair, prompt, drafter=drafter, k=3, max_tokens=20)
        assert generate(pair, prompt, drafter=drafter, k=3, max_tokens=20, caches=caches).tokens == fresh.tokens
        assert caches.reused >= (len(prompt) - 60 if turn else 0)
        assert bool(caches.reused) == bool(turn)
        prompt = [*prompt, *fresh.tokens, *range(30, 39)]
