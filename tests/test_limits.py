"""Settings of decoding: one rule per setting, wherever it is given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run
from toy import toy_pair

from harness import api
from harness.answers.collect import collect
from harness.core.errors import HarnessError
from harness.core.limits import LIMITS, room, written_length
from harness.core.records import Sample
from harness.decode.generation import generate, stream
from harness.decode.length import Costs, DynamicK
from harness.decode.making import DrafterOptions
from harness.decode.sampling import Sampling
from harness.session.session_config import SessionConfig
from harness.suite.experiments import Lenience

PAIR = toy_pair()
NO_NUMBERS = (math.nan, math.inf, -math.inf, True, "1", None, [1], 1j)
WRONG: dict[str, tuple[Any, ...]] = {
    "seed": (-1, 2**32, 2**70, 1.0),
    "temperature": (-1, -0.0001, 1e-40, 1e-4, 101, 1e39),
    "top_p": (0, -0.1, 1.01, 1e-9),
    "top_k": (-1, 2**40, 2.0),
    "min_p": (-0.1, 1.01),
    "lenience": (0, 0.99, 1e9),
    "max_tokens": (0, -1, 2**40, 8.0),
    "k": (-1, 65, 2**70, 2.0, "fast", ""),
}
CASES = [(name, value) for name, values in WRONG.items() for value in (*values, *NO_NUMBERS) if (name, value) != ("k", None)]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}-{value!r:.20}" for name, value in CASES])
def test_the_call_refuses_in_one_sentence_that_names_it(name: str, value: Any) -> None:
    """At the call, not at the first step, and never as another library's error."""
    for call in (generate, stream):
        with pytest.raises(HarnessError, match=rf"^{name} is ") as caught:
            call(PAIR, [3, 4], **{"rule": "rejection", "temperature": 1.0, name: value})
        assert "\n" not in caught.value.problem
        assert caught.value.advice


@pytest.mark.parametrize(
    "good",
    [
        {"seed": 2**32 - 1},
        {"seed": np.int64(7)},
        {"temperature": 0.001},
        {"temperature": 100},
        {"temperature": np.float32(0.5)},
        {"top_p": 1e-6},
        {"min_p": 1, "top_k": 1},
        {"min_p": 5e-324},
        {"top_k": 10**6},
        {"lenience": 1000},
        {"k": np.int32(3)},
        {"k": 64, "max_tokens": np.int64(70)},
    ],
)
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_the_ends_of_each_range_decode(good: dict[str, Any], rule: str) -> None:
    """Every id is one of the target's, in both rules, and greedy where so little is left to chance."""
    if "lenience" in good and rule == "match":
        return
    g = generate(PAIR, [3, 4], **{"temperature": 1.0, "max_tokens": 12, "rule": rule, **good})
    assert all(0 <= token < 64 for token in g.tokens)
    if good in ({"min_p": 1, "top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.001}):
        assert g.tokens == generate(PAIR, [3, 4], drafter=None, max_tokens=12).tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DrafterOptions(ngram=0), "ngram is 0"),
        (lambda: DrafterOptions(layers=0), "layers is 0"),
        (lambda: DrafterOptions(layers=True), "layers is True"),
        (lambda: DrafterOptions(ngram=2, min_ngram=3), "min_ngram is 3, ngram 2"),
        (lambda: DrafterOptions(hybrid_ngram=2), "hybrid_min_ngram is 3"),
        (lambda: DrafterOptions(vocab=True), "vocab is True"),
        (lambda: DrafterOptions(vocab=0), "vocab is 0"),
        (lambda: DynamicK(math.nan), "threshold is nan"),
        (lambda: DynamicK(limit=0), "limit is 0"),
        (lambda: Costs(c=math.nan, v=(1.0,)), "c is nan"),
        (lambda: Costs(c=0.1, v=(1.0, math.inf)), "v is"),
        (lambda: Costs(c=0.1, v=()), "v is"),
        (lambda: Sampling(temperature=math.nan), "temperature is nan"),
        (lambda: list(collect(PAIR, [], temperature=math.nan)), "temperature is nan"),
        (lambda: list(collect(PAIR, [], seed=-1)), "seed is -1"),
        (lambda: list(collect(PAIR, [], batch=True)), "batch is True"),
        (lambda: list(collect(PAIR, [Sample(id="a", domain="d", prompt="x" * 2048)])), "context 2048"),
        (lambda: SessionConfig().replace(temperature=math.nan), "temperature"),
        (lambda: SessionConfig().replace(temperature=1e-40), "temperature"),
        (lambda: SessionConfig().replace(k=65), "k"),
        (lambda: written_length("²"), "k is '²'"),
        (lambda: written_length("9" * 5000), "k is"),
    ],
)
def test_other_places_that_take_settings(make: Any, message: str) -> None:
    """Options, policies, collecting and sessions."""
    with pytest.raises(HarnessError, match=message):
        make()


COMMAND_LINES = [
    (command, option, value)
    for command in (["generate", "x"], ["collect", "suites/quick.yaml", "--out", "{out}"])
    for option, values in {
        "--seed": ("-1", "4294967296", "1.5"),
        "--temperature": ("nan", "inf", "-1", "1e-40", "hot"),
        "--max-tokens": ("0", "-3"),
        "-k": ("-1", "65", "²", "2.5", "fast", ""),
    }.items()
    for value in values
    if option != "-k" or command[0] == "generate"
]


@pytest.mark.parametrize(("command", "option", "value"), COMMAND_LINES)
def test_the_command_line_refuses_before_loading(
    command: list[str], option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and the option's name, with no model loaded and no folder written."""
    monkeypatch.setattr(api, "load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("harness.models.pair.load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, err = run(*(part.format(out=tmp_path / "out") for part in command), option, value, capsys=capsys)
    assert (code, out) == (2, "")
    assert option.strip("-").replace("-", "_") in err.replace("-", "_")
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@given(value=st.floats() | st.integers() | st.booleans() | st.text() | st.none(), name=st.sampled_from(sorted(LIMITS)))
@settings(max_examples=200, deadline=None)
def test_a_limit_returns_a_number_in_range_or_refuses(value: Any, name: str) -> None:
    """Whatever is given."""
    limit = LIMITS[name]
    try:
        found = limit.check(name, value)
    except HarnessError:
        return
    assert math.isfinite(found)
    assert limit.low <= found <= limit.high or (limit.zero and found == 0)
    assert isinstance(found, int) or not limit.whole


@given(context=st.integers(1, 50), prompt=st.integers(0, 60), tokens=st.integers(1, 60))
def test_an_answer_ends_with_the_context(context: int, prompt: int, tokens: int) -> None:
    """Prompt and answer together never exceed it."""
    if prompt >= context:
        with pytest.raises(HarnessError, match=f"context {context}"):
            room(context, prompt, tokens)
    else:
        assert 1 <= room(context, prompt, tokens) == min(tokens, context - prompt)


def test_suites_take_no_temperature_that_freezes() -> None:
    """The same bounds as the call's."""
    for wrong in (math.nan, 1e-40, 1e39):
        with pytest.raises(ValueError, match="temperatures"):
            Lenience(kind="lenience", temperatures=(wrong,))
