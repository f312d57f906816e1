"""Loading pairs: what a user may pass, what fails, and that it fails before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runner import FakePair
from tiny import EOS, SPECIALS, tiny_pair, write_model, write_pair, write_tokenizer
from tiny_llama import TinyPair
from toy import toy_pair

from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft, LoadedPair
from harness.models import pair as pair_module
from harness.models.blas import mx, nn
from harness.models.naming import read_pair_config, shipped_pairs
from harness.models.pair import load_pair
from harness.models.vocab import write_vocab


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache out of the tests."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One loaded tiny pair."""
    return tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("made", ["files", toy_pair, TinyPair, FakePair])
def test_pairs_of_every_kind_keep_to_the_protocol(pair: Any, made: Any) -> None:
    """What is loaded and what tests put in its place offer all that annotations promise."""
    found = pair if made == "files" else made()
    assert isinstance(found, LoadedPair)
    assert found.draft is None or isinstance(found.draft, LoadedDraft)


def test_a_pair_has_what_the_loops_need(pair: Any) -> None:
    """Names, ends, context and callable models, in one object."""
    assert (pair.name, pair.eos_token_ids, pair.context_tokens) == ("tiny", frozenset({EOS}), 512)
    assert pair.draft.token_map is None
    assert len(pair.target_hash) == len(pair.draft.hash) == 64
    assert pair.target_hash != pair.draft.hash
    tokens = mx.array([[1, 5, 9]])
    assert pair.target(tokens).shape == pair.draft.model(tokens).shape == (1, 3, 264)


def test_text_messages_and_ids_encode(pair: Any) -> None:
    """A string is a user turn; ids pass unchanged, numpy ones too."""
    text = pair.encode("hi")
    assert text == pair.encode([{"role": "user", "content": "hi"}])
    assert pair.tokenizer.decode(text) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert pair.encode([3, 4, 2]) == pair.encode(np.array([3, 4, 2])) == pair.encode((3, 4, 2)) == [3, 4, 2]


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_decode_gives_the_text_back(pair: Any, text: str) -> None:
    """Any text survives the round trip; special tokens are left out."""
    ids = pair.tokenizer.encode(text, add_special_tokens=False)
    if not any(special in text for special in SPECIALS):
        assert pair.decode([*ids, EOS]) == text


@pytest.mark.parametrize(
    "prompt",
    [
        *([], [-1], [300], [260], [True], [1.5], ["5"], [2**70], [np.bool_(True)], None, 5, 1.5, b"ab", {"role": "user", "content": "x"}),
        *([{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": None}], [{"role": 1, "content": "x"}], [{}], "\ud800"),
    ],
)
def test_bad_prompts_are_refused(pair: Any, prompt: Any) -> None:
    """An id outside the vocabulary would read foreign memory or give a puzzling shape error."""
    with pytest.raises(HarnessError):
        pair.encode(prompt)


def test_text_whose_ids_the_target_lacks_is_refused(tmp_path: Path) -> None:
    """A tokenizer may know more tokens than the model has rows; reading beyond them gives anything."""
    small = tiny_pair(tmp_path, draft=False, vocab_size=100)
    assert small.encode([99, 5]) == [99, 5]
    for prompt in ("\u00ff", [100]):
        with pytest.raises(HarnessError, match="0 to 99"):
            small.encode(prompt)


def test_a_prompt_longer_than_the_context_is_refused(pair: Any) -> None:
    """One clear message with both numbers."""
    with pytest.raises(HarnessError, match=r"513 tokens.*512"):
        pair.encode([5] * 513)
    assert len(pair.encode([5] * 512)) == 512


def test_the_context_is_the_smaller_of_the_two(tmp_path: Path) -> None:
    """The draft reads the same tokens as the target."""
    path = write_pair(tmp_path)
    config = json.loads((tmp_path / "draft" / "config.json").read_text())
    (tmp_path / "draft" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    assert load_pair(str(path)).context_tokens == 100
    assert load_pair(str(path), draft=False).context_tokens == 512


def test_a_draft_of_another_tokenizer_fails_before_weights_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check reads small files only, so a wrong pair costs no minutes."""
    path = write_pair(tmp_path)
    write_tokenizer(tmp_path / "draft", ("<s>", "</s>", "<pad>"))
    path.write_text(f"{path.read_text()}translate: false\n")
    monkeypatch.setattr(pair_module, "load_weights", lambda *a: pytest.fail("weights were read"))
    with pytest.raises(HarnessError, match="do not share a tokenizer"):
        load_pair(str(path))


def test_unknown_pairs_name_the_nearest() -> None:
    """A typing error is the likeliest cause."""
    with pytest.raises(HarnessError, match="smollm2"):
        load_pair("smolm2")


def test_bad_pair_files_name_file_line_and_key(tmp_path: Path) -> None:
    """Every problem at once, with the place to fix it."""
    path = tmp_path / "p.yaml"
    path.write_text("target:\n  sources: ['ftp:x']\ndrft: 1\nk: 0\n")
    with pytest.raises(HarnessError) as caught:
        read_pair_config(str(path))
    text = str(caught.value)
    for part in ("p.yaml:2", "no model source", "p.yaml:3", "did you mean 'draft'?", "p.yaml:4"):
        assert part in text


def test_missing_folders_are_named(tmp_path: Path) -> None:
    """Relative paths start at the YAML file; the message shows the resolved one."""
    path = write_pair(tmp_path, draft=False)
    (tmp_path / "target").rename(tmp_path / "elsewhere")
    with pytest.raises(HarnessError, match=f"{tmp_path}/target"):
        load_pair(str(path))


def test_an_absent_shipped_draft_leaves_the_pair_usable(tmp_path: Path) -> None:
    """The target alone still decodes; asking for the draft is what fails."""
    path = write_pair(tmp_path, draft=False)
    path.write_text(path.read_text() + "draft:\n  sources: ['shipped:not-made-yet']\n")
    assert load_pair(str(path)).draft is None


def test_quantised_and_half_models_compute_in_float32_on_a_cpu(tmp_path: Path) -> None:
    """The CPU has no fast products of packed or half types; values must be those of the stored weights."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model, save_model

    folder = write_model(tmp_path / "full", hidden_size=64)
    model, config = load_model(folder)
    model, config = quantize_model(model, config, group_size=32, bits=8)
    stored = write_model(tmp_path / "target", hidden_size=64)
    (stored / "model.safetensors").unlink()
    save_model(stored, model)
    (stored / "config.json").write_text(json.dumps(config))
    path = tmp_path / "p.yaml"
    path.write_text("target:\n  sources: ['path:target']\n")
    loaded = load_pair(str(path))
    assert mx.default_device() != mx.cpu or {w.dtype for _, w in tree_flatten(loaded.target.parameters())} == {mx.float32}
    tokens = mx.array([[1, 5, 9]])
    assert mx.allclose(loaded.target(tokens), model(tokens).astype(mx.float32), atol=1e-3)
    path.write_text("target:\n  sources: ['path:target']\ndtype: bfloat16\n")
    assert load_pair(str(path)).target(tokens).dtype == mx.bfloat16


def test_custom_code_is_refused(tmp_path: Path) -> None:
    """No file of a model folder ever runs."""
    path = write_pair(tmp_path, draft=False)
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    (tmp_path / "target" / "config.json").write_text(json.dumps({**config, "model_file": "evil.py"}))
    (tmp_path / "target" / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(HarnessError, match=r"as a target: .*custom module"):
        load_pair(str(path))


def test_shipped_pairs_are_valid_and_pinned() -> None:
    """The files in configs/models load, and what comes as GGUF is pinned by hash."""
    pairs = dict(shipped_pairs())
    assert {"smollm2", "qwen-coder", "qwen2.5-7b", "qwen2.5-3b"} <= pairs.keys()
    for name in ("smollm2", "qwen-coder"):
        assert pairs[name].target.sha256


@pytest.mark.real
def test_smollm2_loads_and_predicts_english(smollm2: Any) -> None:
    """A wrong row order or tokenizer shows at once in the probability of plain text: -3.1 nats per token, -5.6 with rows mixed up."""
    loaded = smollm2
    text = "The capital of France is Paris. Water boils at 100 degrees Celsius. The sun rises in the east and sets in the west."
    ids = loaded.tokenizer.encode(text)
    losses = nn.losses.cross_entropy(loaded.target(mx.array([ids[:-1]]))[0], mx.array(ids[1:]))
    assert losses.mean().item() < 3.0
    assert loaded.eos_token_ids == {0, 2}
    assert loaded.context_tokens == 8192


def test_a_draft_vocabulary_is_read_with_the_pair_and_checked_before_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken or foreign file must not cost the minutes that a large target takes to load."""
    path = write_pair(tmp_path)
    with path.open("a", encoding="utf-8") as file:
        file.write("draft_vocab: ids.json\n")
    write_vocab(tmp_path / "ids.json", [3, 4, 9], "test")
    loaded = load_pair(path)
    assert loaded.draft is not None
    assert loaded.draft.vocab == (3, 4, 9)
    assert loaded.draft.proposer[1].tolist() == [3, 4, 9]
    monkeypatch.setattr("harness.models.pair.load_weights", lambda *args: pytest.fail("weights were read"))
    write_vocab(tmp_path / "ids.json", [3, 10**6], "test")
    with pytest.raises(HarnessError, match="names token 1000000"):
        load_pair(path)
    (tmp_path / "ids.json").write_text("{}")
    with pytest.raises(HarnessError, match=r"vocabulary .* has no schema_version"):
        load_pair(path)
