"""Log-probabilities of emitted tokens are those of one pass of the target over the whole answer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_pair

from harness import api
from harness.core.errors import HarnessError
from harness.decode.stop_words import StopWords
from harness.models.blas import mx


@pytest.mark.parametrize("drafter", [None, "generic", "lookup"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_they_are_the_targets(drafter: str | None, temperature: float) -> None:
    """Every emitted token has one, accepted or the target's own, and the most likely tokens beside it."""
    pair: Any = toy_pair()
    prompt = [5, 9, 5, 9, 5, 9]
    found: list[Any] = []
    settings: dict[str, Any] = {"drafter": drafter, "temperature": temperature, "max_tokens": 24, "seed": 3}
    answer = api.generate(pair, prompt, **settings, logprobs=4, on_step=lambda step: found.extend(step.logprobs))
    assert answer.tokens == api.generate(pair, prompt, **settings).tokens, "watching changes nothing"
    logits = pair.target(mx.array([[*prompt, *answer.tokens]]), cache=None)[0].astype(mx.float32)
    rows = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[len(prompt) - 1 : -1]
    assert [one.logprob for one in found] == pytest.approx([row[token] for row, token in zip(rows, answer.tokens, strict=True)], abs=1e-4)
    for one, row in zip(found, rows, strict=True):
        assert [p for _, p in one.top] == pytest.approx(sorted(row, reverse=True)[:4], abs=1e-4)
        assert [p for _, p in one.top] == pytest.approx([row[token] for token, _ in one.top], abs=1e-4)


def test_mlx_lms_loop_has_none() -> None:
    """It gives counts only."""
    with pytest.raises(HarnessError, match="mlx-lm's loop"):
        api.generate(toy_pair(), [5], loop="mlx-lm", logprobs=0)


@given(
    text=st.text("ab", max_size=30),
    words=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_stop_words_do_not_depend_on_the_pieces(text: str, words: list[str], cuts: list[int]) -> None:
    """However a text is cut, what passes is all before the stop word that is complete first, or everything."""
    ends = [(at + len(word), at) for word in words if (at := text.find(word)) >= 0]
    stop, edges = StopWords(words), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    passed = "".join(stop.add(text[a:b]) for a, b in pairwise(edges))
    passed += stop.rest() if stop.found is None else ""
    assert passed == (text[: min(ends)[1]] if ends else text)
    assert (stop.found is None) == (not ends)
    assert stop.found is None or stop.add("more") == ""
