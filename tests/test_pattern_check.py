"""Regular expressions of tokenizers: those of real ones pass, those that can take for ever are refused before they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_model, write_tokenizer

from harness.core.errors import HarnessError
from harness.models.folder import check_model
from harness.models.pattern_check import repeats_a_choice

FINE = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\d{1,3}(?=(?:\d{3})*\b)", r"(?=(\d{3})+(?!\d))", r" {2,}", r"(?:ab)+", r"(?>a+|b)+c", r"(?:a++b)*",
    r"(?:a?)", r"(a+){1}", r"(a|b)?", r"(?i)a+", r"[(a+)+]+", r"\(a+\)+", "", "(", ")", "[", "[a", "\\", "a{", "(?", "x{1",
    "(?#(a+)+)",
]  # fmt: skip
"""Of real tokenizers, and such as look dangerous or are broken and are not."""
ENDLESS = [
    "(a+)+", "(a*)*", "(a+)*b", "(?:a|aa)+", "(a|a)*", "((a+)b?)+", "(?:a{1,9}){1,9}", "(a?){25}a{25}", r"(\s*[\p{L}]+)*$", "(?<x>a+){2,}",
    "(?i:a+)+", "(?=a)(b+(c)d)+", "[x](y+)+", "(a{2,})+", "a{1,2}{9}", "(?:(?>b)a+)+", r"(?<x>a\g<x>?)", "((a+))+", "((a+)c)+",
    "a{2}?{3}+",
    "(?:\n+){3}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", FINE)
def test_a_pattern_with_one_way_to_repeat_passes(pattern: str) -> None:
    """Models must load."""
    assert not repeats_a_choice(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_repeats_a_choice_is_found(pattern: str) -> None:
    """Thirty letters are enough to keep such a one busy."""
    assert repeats_a_choice(pattern)


@pytest.mark.parametrize("step", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_tokenizer_with_such_a_pattern_is_refused(tmp_path: Path, step: str) -> None:
    """In one sentence, before the library compiles it, wherever it stands."""
    write_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(\x1b\\[31ma+)+$"}, "behavior": "Isolated", "invert": False}
    replace = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    steps = {"pretokenizers": [split]} if step == "pre_tokenizer" else {f"{step}s": [replace]}
    path.write_text(json.dumps({**data, step: {"type": "Sequence", **steps}}))
    with pytest.raises(HarnessError, match=r"tokenizer\.json: the regular expression .* repeats") as caught:
        check_model(tmp_path)
    assert "\x1b" not in str(caught.value)
    write_tokenizer(tmp_path)
    check_model(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "vocab.json", "chat_template.jinja", "merges.txt"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    """It must not be passed over by the check and met by a library."""
    write_model(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(HarnessError, match=f"{name}: it is not a regular file"):
        check_model(tmp_path)
