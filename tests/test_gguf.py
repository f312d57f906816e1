"""GGUF conversion: exact values, right rows, right tokenizer, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny import SPECIALS, TEMPLATE, tiny_config, tiny_weights

from harness.core.errors import HarnessError
from harness.models.gguf import convert, converted_bytes, unpermute

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k, written from its definition: row 2i+j of a head holds row j*(dim/2)+i."""
    dim = rows.shape[0] // heads
    order = [h * dim + j * (dim // 2) + i for h in range(heads) for i in range(dim // 2) for j in range(2)]
    return rows[order]


def gguf_name(name: str) -> str:
    """``model.layers.0.mlp.up_proj.weight`` to ``blk.0.ffn_up.weight``."""
    if name.startswith("model.layers."):
        _, _, i, rest = name.split(".", 3)
        stem, _, kind = rest.rpartition(".")
        return f"blk.{i}.{_NAMES[stem]}.{kind}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[
        name
    ]


def write_gguf(
    path: Path, *, arch: str = "llama", quant: str = "F32", head: bool = False, pre: str = "smollm", model: str = "gpt2", **numbers: int
) -> dict[str, np.ndarray]:
    """Write a tiny GGUF file, ``numbers`` in its metadata; return its weights under transformers names, before quantisation."""
    config = tiny_config(hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    weights = tiny_weights(config)
    if head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    writer = gguf.GGUFWriter(str(path), arch)
    usual = {"block_count": 1, "embedding_length": 64, "feed_forward_length": 64, "context_length": 128}
    usual |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    for key, value in {**usual, **numbers}.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 1e5)
    from tokenizers import pre_tokenizers

    texts = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "ab", "<pad0>", "<pad1>", "<pad2>"]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts)
    writer.add_token_types([3] * 3 + [1] * (len(texts) - 6) + [5] * 3)
    writer.add_token_merges(["1 2", "a b"])
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, w in weights.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0) if arch == "llama" else 0
        stored = permute(w, heads) if heads else w
        kind = gguf.GGMLQuantizationType[quant] if w.ndim == 2 and not name.startswith("lm_head") else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(stored, kind) if kind != gguf.GGMLQuantizationType.F32 else stored
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_unpermute_undoes_the_interleaving(heads: int, half: int, width: int) -> None:
    """A wrong row order gives fluent-looking nonsense, so the inverse must hold for every shape."""
    rows = np.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    assert np.array_equal(unpermute(permute(rows, heads), heads), rows)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_float32_weights_come_back_exactly(tmp_path: Path, arch: str) -> None:
    """Every tensor keeps its name, shape and bits; only llama's q and k rows are reordered."""
    weights = write_gguf(tmp_path / "m.gguf", arch=arch)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert converted.keys() == weights.keys()
    for name, w in weights.items():
        assert np.array_equal(converted[name], w), name


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_1", "Q5_0"])
def test_quantised_weights_equal_the_blocks_float32_value(tmp_path: Path, quant: str) -> None:
    """No rounding after dequantisation: the stored numbers are scale * integer + offset in float32."""
    weights = write_gguf(tmp_path / "m.gguf", quant=quant)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert converted_bytes(tmp_path / "m.gguf") == sum(w.nbytes for w in converted.values())
    kind = gguf.GGMLQuantizationType[quant]
    up = weights["model.layers.0.mlp.up_proj.weight"]
    assert np.array_equal(converted["model.layers.0.mlp.up_proj.weight"], gguf.quants.dequantize(gguf.quants.quantize(up, kind), kind))


def test_second_copy_of_the_embedding_stays_tied(tmp_path: Path) -> None:
    """Files of tied models may carry the embedding twice; the finer copy serves both ends and memory is not doubled."""
    weights = write_gguf(tmp_path / "m.gguf", quant="Q8_0", head=True)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in converted
    assert np.array_equal(converted["model.embed_tokens.weight"], weights["lm_head.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_config_keeps_the_decimal_the_authors_wrote(tmp_path: Path) -> None:
    """GGUF stores 1e-5 as a float32; 9.99999974e-06 in the config would change the hash of equal models."""
    write_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["vocab_size"]) == (1e-5, 1e5, 264)
    assert config["eos_token_id"] == [2, 0]


def test_smollm_splits_digits_before_merging(tmp_path: Path) -> None:
    """The family reads numbers digit by digit; a merge across digits would change every math prompt."""
    from tokenizers import Tokenizer

    write_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("ab12<|im_end|>").tokens == ["ab", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("naïve 12 ab 你好\n").ids) == "naïve 12 ab 你好\n"


@pytest.mark.parametrize(
    ("changes", "word"), [({"arch": "mamba"}, "mamba"), ({"pre": "unheard-of"}, "unheard-of"), ({"model": "bert"}, "bert")]
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: dict[str, str], word: str) -> None:
    """Guessing a tokenizer or a layout would give wrong tokens without an error."""
    write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(HarnessError, match=word):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """A download cut short must not become a model."""
    write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(HarnessError, match=r"cannot read .*short.gguf"):
        convert(tmp_path / "short.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("block_count", n) for n in (0, 2, 4_000_000_000)),
        *(("embedding_length", n) for n in (0, 63, 128, 4_000_000_000)),
        *(("feed_forward_length", n) for n in (0, 65, 4_000_000_000)),
        *(("attention.head_count", n) for n in (0, 3, 64, 4_000_000_000)),
        *(("attention.head_count_kv", n) for n in (0, 1, 3, 8)),
        ("context_length", 0),
        ("rope.dimension_count", 8),
    ],
)
def test_a_number_that_the_tensors_do_not_bear_out_is_refused(tmp_path: Path, key: str, value: int) -> None:
    """Metadata is checked against bounds and against every tensor's shape before anything is made from it."""
    write_gguf(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(HarnessError, match=r"m.gguf") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert "\n" not in caught.value.problem
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("at", [8, 16, 24], ids=["tensors", "fields", "first key"])
@pytest.mark.parametrize("count", [2**16 + 1, 2**40, 2**63])
def test_a_count_that_no_file_holds_is_refused_at_once(tmp_path: Path, at: int, count: int) -> None:
    """Counts and lengths are bounded before they are believed."""
    write_gguf(tmp_path / "m.gguf")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[at : at + 8] = count.to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(HarnessError, match="cannot read"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
