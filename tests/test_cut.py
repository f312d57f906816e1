"""Cut drafts: what is shared, what is stored, and which folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_llama

from harness.core.errors import HarnessError
from harness.models.blas import mx
from harness.models.cut import CutModel, load_cut, save_cut

VOCAB = [0, 2, 5, 7, 11, 40, 41, 42, 60, 61, 70, 80, 90, 91, 92, 95]
EIGHT = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"), (8, 64))


def cut_of(target, layers=2):
    """A cut with the target's own first layers and head rows."""
    model = CutModel(target, layers, len(VOCAB))
    own = {n: w for n, w in CutModel(target, layers, len(VOCAB)).own_weights().items() if n == "lm_head.weight"}
    own["lm_head.weight"] = target.model.embed_tokens.weight[mx.array(VOCAB)]
    for i in range(layers):
        model.model.layers[i] = target.model.layers[i]
    model.model.norm = target.model.norm
    model.load_weights(list(own.items()), strict=False)
    return model


@pytest.fixture
def target(tmp_path):
    """A tiny target; each test gets its own."""
    return tiny_llama.make(tmp_path / "target")


@pytest.fixture
def folder(tmp_path, target):
    """A cut of it on disk, 8 bits."""
    save_cut(tmp_path / "cut", cut_of(target).own_weights(), mx.array(VOCAB), name="tiny", target_hash="t", quantise=EIGHT)
    return tmp_path / "cut"


def test_embeddings_are_the_targets_own(folder, target):
    """The draft must not double the embedding's memory: same object, and absent from the file."""
    draft = load_cut(folder, target)
    assert draft.model.model.embed_tokens is target.model.embed_tokens
    assert not any("embed" in name for name in mx.load(str(folder / "draft.safetensors")))


def test_quantised_round_trip_is_close(folder, target):
    """Eight bits must not change what the draft says by more than quantisation noise."""
    tokens = mx.array([[1, 5, 9, 33]])
    before, after = cut_of(target)(tokens), load_cut(folder, target).model(tokens)
    assert after.shape == (1, 4, len(VOCAB))
    assert after.dtype == mx.float32
    assert float(mx.abs(before - after).max()) < 0.05 * float(mx.abs(before).max())


def test_weights_without_bits_are_exact(tmp_path, target):
    """Without quantisation only float16 rounding is left, so names and order must have survived."""
    cut = cut_of(target)
    save_cut(tmp_path / "plain", cut.own_weights(), mx.array(VOCAB), name="tiny", target_hash="t", quantise={})
    loaded = load_cut(tmp_path / "plain", target).model.own_weights()
    for name, weight in cut.own_weights().items():
        np.testing.assert_allclose(np.array(loaded[name]), np.array(weight), rtol=1e-3, atol=1e-6, err_msg=name)


def test_cached_steps_equal_one_pass(folder, target):
    """Drafting goes token by token over a cache and must see what one full pass sees."""
    from mlx_lm.models.cache import make_prompt_cache

    model = load_cut(folder, target).model
    tokens = mx.array([[3, 1, 4, 1, 5, 9]])
    cache = make_prompt_cache(model)
    assert len(cache) == len(model.layers) == 2
    steps = mx.concatenate([model(tokens[:, i : i + 1], cache=cache) for i in range(6)], axis=1)
    np.testing.assert_allclose(np.array(steps), np.array(model(tokens)), rtol=1e-4, atol=1e-4)


def test_token_map_and_hash_travel(folder, target):
    """The map turns draft ids into target ids; the hash identifies the file."""
    draft = load_cut(folder, target)
    assert draft.token_map.tolist() == VOCAB
    assert draft.hash == json.loads((folder / "config.json").read_text())["sha256"]
    assert draft.name == "tiny"


def test_a_cut_trained_for_it_proposes_the_prompts_own_tokens(tmp_path, target):
    """The flag travels in the folder; tokens beyond the head are scored by the target's embedding rows, all others as before."""
    about = {"context_tokens": True}
    save_cut(tmp_path / "cut", cut_of(target).own_weights(), mx.array(VOCAB), name="tiny", target_hash="t", quantise={}, about=about)
    draft = load_cut(tmp_path / "cut", target)
    model, token_map = draft.proposer
    assert token_map.tolist() == VOCAB
    wider = model.widened([2, 33, 1, 33])
    assert wider.token_map.tolist() == [*VOCAB, 33, 1]
    tokens = mx.array([[2, 33, 1]])
    logits = wider(tokens)
    hidden = draft.model.model(tokens)
    np.testing.assert_allclose(np.array(logits[..., : len(VOCAB)]), np.array(draft.model(tokens)), rtol=1e-5, atol=1e-5)
    rows = target.model.embed_tokens.weight[mx.array([33, 1])]
    np.testing.assert_allclose(np.array(logits[..., len(VOCAB) :]), np.array(hidden @ rows.T), rtol=1e-4, atol=1e-4)
    assert wider.own_head, "mlx-lm's loop, which needs every token's row, must refuse it"


def spoil_bytes(folder: Path) -> None:
    """Flip one byte of the weights."""
    path = folder / "draft.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def newer(folder: Path) -> None:
    """Pretend that a later version wrote the folder."""
    config = json.loads((folder / "config.json").read_text()) | {"schema_version": 99}
    (folder / "config.json").write_text(json.dumps(config))


def other_width(folder: Path) -> None:
    """Pretend that the cut belongs to a wider target."""
    config = json.loads((folder / "config.json").read_text()) | {"hidden": 128}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_bytes, "damaged"),
        (newer, "newer version"),
        (other_width, "width 128"),
        (lambda folder: (folder / "draft.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    ],
)
def test_unusable_folders_are_refused(folder, target, spoil, message):
    """A damaged or foreign draft must stop with one message, not decode badly."""
    spoil(folder)
    with pytest.raises(HarnessError, match=message):
        load_cut(folder, target)


def test_a_token_map_beyond_the_target_is_refused(tmp_path, target):
    """Ids that the target lacks would crash deep in decoding."""
    save_cut(tmp_path / "far", cut_of(target).own_weights(), mx.array([*VOCAB[:-1], 5000]), name="x", target_hash="t", quantise={})
    with pytest.raises(HarnessError, match="tokens that the target lacks"):
        load_cut(tmp_path / "far", target)
