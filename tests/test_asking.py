"""Sampling, stop words and conversations as the commands that answer take them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import session_file
from test_cli import run
from tiny import tiny_pair

from harness import api
from harness.cli.asking import Shown, conversation
from harness.core.errors import HarnessError
from harness.core.settings_file import DecodeSettings

FILTERS = ["--temperature", "0.8", "--top-p", "0.7", "--top-k", "9", "--min-p", "0.02"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pair."""
    return tmp_path_factory.mktemp("asking")


@pytest.fixture(scope="module")
def pair(home: Path) -> Any:
    """The pair."""
    return tiny_pair(home, noise=0.1, max_position_embeddings=1024)


@pytest.fixture(autouse=True)
def _loaded(pair: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(api, "load_pair", lambda *_, **__: pair)


def write(path: Path, messages: Any) -> str:
    """A file of messages."""
    path.write_text(json.dumps(messages), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("more", [[], ["--rule", "rejection"], ["--rule", "rejection", "--lenience", "2"]])
def test_generate_samples_as_it_is_told(pair: Any, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    """The options reach decoding: the same answer as the call with the same settings."""
    code, out, _ = run("generate", "a poem", "--max-tokens", "12", "--seed", "5", "-k", "3", *FILTERS, *more, capsys=capsys)
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.7, "top_k": 9, "min_p": 0.02, "k": 3, "max_tokens": 12, "seed": 5}
    settings |= {"rule": "rejection" if more else "match", "lenience": 2.0 if "--lenience" in more else 1.0}
    assert (code, out) == (0, api.generate(pair, "a poem", **settings).text + "\n")


def test_a_stop_word_ends_the_answer_before_it(pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It is cut out, whichever tokens it is made of, and decoding ends with the round that wrote it."""
    whole = api.generate(pair, "a poem", max_tokens=40).text
    word = whole[7:10]
    code, out, err = run("generate", "a poem", "--max-tokens", "40", "--stop", word, "--stop", "never said", capsys=capsys)
    assert (code, out) == (0, whole[: whole.index(word)] + "\n")
    assert int(err.split(" tokens in")[0]) < 40


def test_messages_are_continued(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of messages, a prompt after it, a system message before it: what the model reads is all of them in order."""
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    last, system = {"role": "user", "content": "sing"}, {"role": "system", "content": "Be brief."}
    path = write(tmp_path / "m.json", {"messages": before})
    code, out, _ = run("generate", "sing", "--messages", path, "--system", "Be brief.", "--max-tokens", "8", capsys=capsys)
    assert (code, out) == (0, api.generate(pair, [system, *before, last], max_tokens=8).text + "\n")
    assert conversation(None, None, Path(write(tmp_path / "n.json", [*before, last]))) == [*before, last]
    assert conversation("sing", None, None) == "sing"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], [], "there is nothing to answer"),
        ([{"role": "usr", "content": "x"}], [], "0.role must be 'system', 'user' or 'assistant'"),
        ([{"role": "user", "content": 3}], [], "0.content must be a valid string"),
        ([{"role": "user", "content": "x", "name": "y"}], [], "0.name"),
        ([], [], "holds no messages"),
        ({"turns": []}, [], "the content must be a valid"),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], ["--system", "z"], "has a system message, and so does"),
        (None, ["x", "--top-p", "0.5"], "top_p, top_k and min_p need a temperature above 0"),
        (None, ["x", "--top-p", "1.5", "--temperature", "1"], "top_p: Input should be less than or equal to 1"),
        (None, ["x", "--lenience", "2", "--temperature", "1"], "lenience needs rule rejection"),
        (None, [], "there is nothing to answer"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Any, options: list[str], message: str
) -> None:
    """One sentence with the place."""
    monkeypatch.setattr(api, "load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    given = [] if data is None else ["--messages", write(tmp_path / "m.json", data)]
    code, out, err = run("generate", *given, *options, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err


def test_a_chat_takes_them_too(
    pair: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's message at the end of the file is answered first; the answer that goes on in the conversation ends before the stop word."""
    import io

    from harness.session.session import Session

    asked: list[Any] = []
    answer = Session.generate

    def generate(self: Session, prompt: Any, **settings: Any) -> Any:
        asked.append(prompt)
        return answer(self, prompt, **settings)

    monkeypatch.setattr(Session, "generate", generate)
    monkeypatch.setattr("harness.session.session.load_pair", lambda *_, **__: pair)
    first = [{"role": "user", "content": "a poem"}]
    text = api.generate(pair, first, max_tokens=12, k=3, temperature=0.8, top_p=0.7, top_k=9, min_p=0.02).text
    word = text[3:5]
    monkeypatch.setattr(sys, "stdin", io.StringIO("more\n"))
    options = ["--messages", write(tmp_path / "m.json", first), "--stop", word, *FILTERS, "--drafter", "generic"]
    code, _, _ = run("chat", str(session_file(home)), *options, capsys=capsys)
    assert code == 0
    assert asked[0] == first
    assert asked[1] == [*first, {"role": "assistant", "content": text[: text.index(word)]}, {"role": "user", "content": "more"}]


@given(st.lists(st.text(alphabet="abc", max_size=3), max_size=6), st.lists(st.text(alphabet="abc", min_size=1, max_size=2), max_size=2))
def test_what_is_shown_ends_before_the_first_stop_word(pieces: list[str], words: list[str]) -> None:
    """Token by token, the text is the whole one up to where a stop word is complete first."""
    texts = dict(enumerate(pieces))
    shown = Shown(lambda ids: "".join(texts[i] for i in ids), words)
    found = "".join(map(shown.add, texts)) + shown.rest()
    whole = "".join(pieces)
    ends = [(whole.index(word) + len(word), whole.index(word)) for word in words if word in whole]
    assert found == shown.text == whole[: min(ends)[1] if ends else None]
    assert shown.stop.is_set() == bool(ends)


def test_settings_files_keep_what_narrows_the_choice() -> None:
    """Only what differs from the default is written; sessions read it."""
    settings = DecodeSettings(temperature=1.0, rule="rejection", top_p=0.9, lenience=1.5)
    assert "top_p: 0.9\nlenience: 1.5\n" in settings.text("x")
    assert "top_k" not in settings.text("x")
    assert (settings.for_session()["top_p"], settings.for_session()["lenience"]) == (0.9, 1.5)
    with pytest.raises(HarnessError, match="top_p, top_k and min_p need a temperature"):
        settings.replace(temperature=0.0, rule="match", lenience=1.0)
