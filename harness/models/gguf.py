"""Convert a GGUF file to a folder mlx-lm loads: float32 safetensors, config.json, tokenizer files.

Quantised blocks are dequantised to float32, not to float16 or bfloat16: a block value is ``scale * integer + offset``, which float32 holds
exactly and the shorter types round. Every backend then computes with the numbers the GGUF file defines, and the CPU has fast float32 matrix
products only. Tensors stream one slab of rows at a time, so memory stays far below the size of the model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.models.gguf_file import OTHER, GgufFile, GgufTensor, read_gguf
from harness.models.gguf_tokenizer import end_tokens, write_tokenizer

_SLAB_BYTES = 64 * 2**20
"""Float32 bytes dequantised at once."""

_PERMUTED = {"llama": True, "qwen2": False}
"""Supported architectures, and whether GGUF stores their q and k rows interleaved (rotary pairs side by side)."""

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


_MOST_LAYERS, _MOST_WIDTH, _MOST_POSITIONS = 4096, 2**20, 2**31
"""More than any model has: bounds on what a file may ask for before it is believed."""


@dataclass(frozen=True)
class _Tensor:
    """One output tensor: where it comes from and how to read it."""

    name: str
    source: GgufTensor
    heads: int
    """Attention heads whose rows need de-interleaving; 0 leaves the rows alone."""


def convert(gguf_path: Path, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write ``folder`` (config.json, model.safetensors, tokenizer.json, tokenizer_config.json) from ``gguf_path``.

    ``progress`` gets (bytes written, bytes in all).

    Raises:
        HarnessError: not a GGUF file, cut short, or an architecture, tensor or tokenizer this converter does not know.
    """
    gguf = read_gguf(gguf_path)
    architecture, config = _described(gguf)
    _check_shapes(gguf, config)
    with files.reading(gguf_path, advice=OTHER):
        config["tie_word_embeddings"] = _shares_embedding(gguf.tensors)
        plan = list(_plan(gguf, config, architecture))
        _write_description(gguf, config, folder)
        write_safetensors(folder / "model.safetensors", plan, progress)


def converted_bytes(gguf_path: Path) -> int:
    """Bytes of the float32 weights that :func:`convert` writes, at most (a second copy of a tied matrix is left out there).

    Raises:
        HarnessError: not a GGUF file.
    """
    return sum(4 * math.prod(tensor.shape) for tensor in read_gguf(gguf_path).tensors.values())


def write_description(gguf_path: Path, folder: Path) -> None:
    """Write the model's configuration and tokenizer alone, as :func:`convert` does; its tensors are not read.

    Raises:
        HarnessError: as :func:`convert`.
    """
    gguf = read_gguf(gguf_path)
    _, config = _described(gguf)
    with files.reading(gguf_path, advice=OTHER):
        _write_description(gguf, config, folder)


def _write_description(gguf: GgufFile, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(gguf, folder)


def _described(gguf: GgufFile) -> tuple[str, dict[str, Any]]:
    """Architecture and configuration of a file whose architecture is supported."""
    architecture = gguf.text("general.architecture")
    if architecture not in _PERMUTED:
        raise HarnessError(
            f"{gguf.path}: GGUF architecture {architecture!r} is not supported (supported: {', '.join(_PERMUTED)})",
            "Use the model's safetensors form: its hub name, or its folder.",
        )
    return architecture, _config(gguf, architecture)


def _config(gguf: GgufFile, architecture: str) -> dict[str, Any]:
    """Return the transformers-style config of the model, ``tie_word_embeddings`` left out."""

    def whole(key: str, most: int, default: int | None = None) -> int:
        return gguf.whole(f"{architecture}.{key}", most=most, default=default)

    width, heads = whole("embedding_length", _MOST_WIDTH), whole("attention.head_count", _MOST_WIDTH)
    kv_heads = whole("attention.head_count_kv", _MOST_WIDTH, default=heads)
    turned = whole("rope.dimension_count", _MOST_WIDTH, default=width // heads)
    if f"{architecture}.rope.scaling.type" in gguf.fields:
        raise HarnessError(f"{gguf.path}: scaled rotary positions are not supported", OTHER)
    if width % heads or heads % kv_heads or (width // heads) % 2 or turned != width // heads:
        raise HarnessError(f"{gguf.path}: {heads} heads, {kv_heads} key heads, width {width}, rotation {turned} do not fit", OTHER)
    return {
        "model_type": architecture,
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]],
        "hidden_size": width,
        "num_hidden_layers": whole("block_count", _MOST_LAYERS),
        "intermediate_size": whole("feed_forward_length", _MOST_WIDTH),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        # Stored as float32: the shortest decimal that reads back to the same float32 is the value the authors wrote.
        "rms_norm_eps": float(str(np.float32(gguf.number(f"{architecture}.attention.layer_norm_rms_epsilon")))),
        "vocab_size": len(gguf.items("tokenizer.ggml.tokens", str)),
        "max_position_embeddings": whole("context_length", _MOST_POSITIONS),
        "rope_theta": gguf.number(f"{architecture}.rope.freq_base", default=10000.0),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "dtype": "float32",
        "eos_token_id": end_tokens(gguf),
    }


def _check_shapes(gguf: GgufFile, config: dict[str, Any]) -> None:
    """Every tensor of the architecture is there, no other one is, and each has the shape that the metadata asks for."""
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    block = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width),
             "attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}  # fmt: skip
    needed = {"token_embd.weight": (vocab, width), "output_norm.weight": (width,)}
    needed |= {f"blk.{i}.{n}.weight": shape for i in range(config["num_hidden_layers"]) for n, shape in block.items()}
    if missing := next((name for name in needed if name not in gguf.tensors), None):
        raise HarnessError(f"{gguf.path}: GGUF tensor {missing!r} is missing", OTHER)
    biases = {f"blk.{i}.{n}.bias": shape[:1] for i in range(config["num_hidden_layers"]) for n, shape in block.items()}
    known = needed | biases | {"output.weight": (vocab, width)}
    for name, tensor in gguf.tensors.items():
        if tensor.shape != known.get(name):
            shown = f"has shape {tensor.shape}, expected {known[name]}" if name in known else "is unknown here"
            raise HarnessError(f"{gguf.path}: GGUF tensor {printable(name, 100)!r} {shown}", OTHER)


def _shares_embedding(tensors: Mapping[str, GgufTensor]) -> bool:
    """Tell whether the output head is the embedding: no head stored, or the same matrix quantised a second time.

    Some GGUF files of tied models carry a second, finer quantised copy as ``output.weight``. Rows of two roundings of one
    matrix are almost parallel (cosine above 0.97); rows of unrelated matrices are not.
    """
    if "output.weight" not in tensors:
        return True
    head, embedding = tensors["output.weight"], tensors["token_embd.weight"]
    rows = np.linspace(0, head.shape[0] - 1, 64).astype(int)
    a, b = (np.concatenate([t.rows(r, r + 1) for r in rows]) for t in (head, embedding))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1)[norms > 0] / norms[norms > 0]
    return bool(cosine.size) and float(np.median(cosine)) > 0.97


def _plan(gguf: GgufFile, config: dict[str, Any], architecture: str) -> Iterator[_Tensor]:
    """Yield every output tensor. A tied model keeps one matrix: the finer copy where the file has two."""
    tied, has_head = config["tie_word_embeddings"], "output.weight" in gguf.tensors
    for tensor in gguf.tensors.values():
        if tied and has_head and tensor.name == "token_embd.weight":
            continue
        name = _TOP_NAMES["token_embd.weight"] if tied and tensor.name == "output.weight" else _name(tensor.name)
        heads = 0
        if _PERMUTED[architecture] and ".q_proj" in name:
            heads = config["num_attention_heads"]
        if _PERMUTED[architecture] and ".k_proj" in name:
            heads = config["num_key_value_heads"]
        yield _Tensor(name, tensor, heads)


def _name(gguf_name: str) -> str:
    """Translate ``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``."""
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    _, layer, part, kind = gguf_name.split(".")
    return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{kind}"


def _slabs(tensor: _Tensor) -> Iterator[np.ndarray]:
    """Yield the float32 values of one tensor in row order, a slab at a time."""
    shape = tensor.source.shape
    if tensor.heads:
        yield unpermute(tensor.source.rows(0, shape[0]), tensor.heads)
        return
    step = max(1, _SLAB_BYTES // (4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield tensor.source.rows(start, start + step)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's interleaving of rotary pairs: per head (dim/2, 2) rows become (2, dim/2). Shape (heads * dim, ...) stays."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_safetensors(path: Path, tensors: list[_Tensor], progress: Callable[[int, int], None]) -> None:
    """Stream tensors to a safetensors file: 8-byte header length, JSON header, then the raw little-endian values."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        size = 4 * math.prod(tensor.source.shape)
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.source.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for slab in _slabs(tensor):
                file.write(slab.astype("<f4", copy=False).tobytes())
            progress(file.tell(), offset)
