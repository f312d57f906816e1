"""A settings file is checked like a session file, before any model loads; options of the command line beat it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import session_file
from test_verify import exit_code
from tiny import tiny_pair

from harness import Session, api
from harness.core.errors import HarnessError
from harness.core.settings_file import DecodeSettings, DraftOptions, load_settings
from harness.session.session_config import load_session_config


def written(folder: Path, text: str) -> Path:
    """A settings file."""
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Every key, a comment that cannot end early, and no key that says nothing."""
    settings = DecodeSettings(
        models="a b", drafter="early_exit", k="auto", rule="rejection", temperature=0.7, options=DraftOptions(layers=4)
    )
    text = settings.text("one\nmodels: two")
    assert load_settings(written(tmp_path, text)) == settings
    assert text.startswith("# one models: two\n")
    assert "ngram" not in text
    assert load_settings(written(tmp_path, "drafter: null\nloop: mlx-lm\n")) == DecodeSettings(drafter=None, loop="mlx-lm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drafer: generic\n", "unknown key, did you mean 'drafter'"),
        ("k: many\n", "settings.yaml:1"),
        ("k: 99\n", "k"),
        ("drafter: generic\nrule: rejection\n", "rule rejection needs a temperature above 0"),
        ("options: {layer: 2}\n", "did you mean 'layers'"),
        ("drafter: genric\n", "no drafter 'genric' for pair 'smollm2': did you mean 'generic'"),
        ("models: nowhere\n", "nowhere"),
        ("options: {ngram: 3, min_ngram: 4}\n", "the shortest suffix needs a longest one"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_mistakes_are_one_sentence_before_a_model_loads(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``generate`` and ``chat`` alike, exit code 2."""
    monkeypatch.setattr(api, "load_pair", lambda *a, **k: pytest.fail("a model was loaded"))
    path = written(tmp_path, text)
    for command in (["generate", "x"], ["chat"]):
        assert exit_code(*command, "--settings", str(path)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped path."""
    assert exit_code("generate", "x", "--settings", str(tmp_path / "none.yaml")) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_generate_decodes_as_the_file_says_and_options_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drafter, K and options of the file; ``-k`` and ``--drafter`` replace them one by one."""
    tiny_pair(tmp_path, noise=0.3)
    given: list[dict[str, Any]] = []
    decode = api.generate

    def generate(pair: Any, prompt: Any, **settings: Any) -> Any:
        given.append(settings)
        return decode(pair, prompt, **settings)

    monkeypatch.setattr(api, "generate", generate)
    path = written(tmp_path, f"models: {tmp_path / 'tiny.yaml'}\ndrafter: early_exit\nk: 2\noptions: {{layers: 1}}\n")
    for more in ([], ["-k", "3"], ["--drafter", "lookup"], ["--drafter", "none"]):
        assert exit_code("generate", "hello", "--settings", str(path), "--max-tokens", "8", *more) == 0
    assert [(g["drafter"], g["k"], g["options"].layers) for g in given] == [
        ("early_exit", 2, 1),
        ("early_exit", 3, 1),
        ("lookup", 2, 1),
        (None, 2, 1),
    ]
    capsys.readouterr()


def test_sessions_take_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys replace the session file's, the rest stays; mlx-lm's loop is not a session's."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = tiny_pair(tmp_path, noise=0.3)
    path = written(tmp_path, f"models: {tmp_path / 'tiny.yaml'}\ndrafter: early_exit\nk: 2\noptions: {{layers: 1}}\n")
    with Session.from_config(session_file(tmp_path, max_tokens=9), settings=path, pair=pair) as session:
        assert (session.drafter, session.k, session.config.options.layers, session.config.max_tokens) == ("early_exit", 2, 1, 9)
        answer = session.generate("hello")
        assert (answer.drafter, answer.k) == ("early_exit", 2)
    with pytest.raises(HarnessError, match="mlx-lm's loop"):
        load_session_config(session_file(tmp_path), settings=written(tmp_path, "loop: mlx-lm\n"))


def test_the_file_is_read_without_mlx(tmp_path: Path) -> None:
    """Mistakes show at once."""
    code = (
        "import sys\nfrom harness.core.settings_file import load_settings\n"
        f"load_settings({str(written(tmp_path, 'k: 2'))!r})\nassert 'mlx.core' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
