"""Convert a GGUF file to a folder mlx-lm loads: float32 safetensors, config.json, tokenizer files.

Quantised blocks are dequantised to float32, not to float16 or bfloat16: a block value is ``scale * integer + offset``, which float32 holds
exactly and the shorter types round. Every backend then computes with the numbers the GGUF file defines, and the CPU has fast float32 matrix
products only. Tensors stream one slab of rows at a time, so memory stays far below the size of the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError
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


@dataclass(frozen=True)
class _Tensor:
    """One output tensor: where it comes from and how to read it."""

    name: str
    shape: tuple[int, ...]
    source: Any
    heads: int
    """Attention heads whose rows need de-interleaving; 0 leaves the rows alone."""


def convert(gguf_path: Path, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write ``folder`` (config.json, model.safetensors, tokenizer.json, tokenizer_config.json) from ``gguf_path``.

    ``progress`` gets (bytes written, bytes in all).

    Raises:
        HarnessError: not a GGUF file, cut short, or an architecture, tensor or tokenizer this converter does not know.
    """
    reader = open_gguf(gguf_path)
    fields = dict(reader.fields.items())
    architecture = _read(fields, "general.architecture", gguf_path)
    if architecture not in _PERMUTED:
        raise HarnessError(
            f"{gguf_path}: GGUF architecture {architecture!r} is not supported (supported: {', '.join(_PERMUTED)})",
            "Use the model's safetensors form (a hub: or path: source).",
        )
    folder.mkdir(parents=True, exist_ok=True)
    tied = _shares_embedding(reader)
    config = _config(fields, architecture, gguf_path, tied)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(fields, folder)
    write_safetensors(folder / "model.safetensors", list(_plan(reader, config, architecture, gguf_path, tied)), progress)


def open_gguf(path: Path) -> Any:
    """Open a GGUF file (memory-mapped).

    Raises:
        HarnessError: the file is missing, no GGUF, or shorter than its header says.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise HarnessError(f"no such file: {path}", "Check the path.")
    try:
        return GGUFReader(str(path))
    except Exception as error:
        raise HarnessError(f"{path} is not a readable GGUF file ({error})", "Delete it and fetch it again.") from error


def _read(fields: dict[str, Any], key: str, path: Path) -> Any:
    if key not in fields:
        raise HarnessError(f"{path}: GGUF field {key!r} is missing", "Use another file of the same model.")
    return fields[key].contents()


def _config(fields: dict[str, Any], architecture: str, path: Path, tied: bool) -> dict[str, Any]:
    """Return the transformers-style config of the model."""
    if f"{architecture}.rope.scaling.type" in fields:
        raise HarnessError(
            f"{path}: scaled rotary positions are not supported", "Use the model's safetensors form (a hub: or path: source)."
        )

    def get(key: str) -> Any:
        return _read(fields, f"{architecture}.{key}", path)

    heads = int(get("attention.head_count"))
    kv_key = f"{architecture}.attention.head_count_kv"
    theta_key = f"{architecture}.rope.freq_base"
    return {
        "model_type": architecture,
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]],
        "hidden_size": int(get("embedding_length")),
        "num_hidden_layers": int(get("block_count")),
        "intermediate_size": int(get("feed_forward_length")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields[kv_key].contents()) if kv_key in fields else heads,
        # Stored as float32: the shortest decimal that reads back to the same float32 is the value the authors wrote.
        "rms_norm_eps": float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        "vocab_size": len(fields["tokenizer.ggml.tokens"].data),
        "max_position_embeddings": int(get("context_length")),
        "rope_theta": float(fields[theta_key].contents()) if theta_key in fields else 10000.0,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "dtype": "float32",
        "eos_token_id": end_tokens(fields),
    }


def _shares_embedding(reader: Any) -> bool:
    """Tell whether the output head is the embedding: no head stored, or the same matrix quantised a second time.

    Some GGUF files of tied models carry a second, finer quantised copy as ``output.weight``. Rows of two roundings of one
    matrix are almost parallel (cosine above 0.97); rows of unrelated matrices are not.
    """
    tensors = {t.name: t for t in reader.tensors}
    if "output.weight" not in tensors:
        return True
    head, embedding = tensors["output.weight"], tensors["token_embd.weight"]
    if tuple(head.shape) != tuple(embedding.shape):
        return False
    rows = np.linspace(0, int(head.shape[1]) - 1, 64).astype(int)
    a, b = (np.concatenate([_rows(t, r, r + 1) for r in rows]) for t in (head, embedding))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1)[norms > 0] / norms[norms > 0]
    return bool(cosine.size) and float(np.median(cosine)) > 0.97


def _plan(reader: Any, config: dict[str, Any], architecture: str, path: Path, tied: bool) -> Iterator[_Tensor]:
    """Yield every output tensor. A tied model keeps one matrix: the finer copy where the file has two."""
    has_head = any(t.name == "output.weight" for t in reader.tensors)
    for tensor in reader.tensors:
        if tied and has_head and tensor.name == "token_embd.weight":
            continue
        name = _TOP_NAMES["token_embd.weight"] if tied and tensor.name == "output.weight" else _name(tensor.name, path)
        heads = 0
        if _PERMUTED[architecture] and ".q_proj" in name:
            heads = config["num_attention_heads"]
        if _PERMUTED[architecture] and ".k_proj" in name:
            heads = config["num_key_value_heads"]
        yield _Tensor(name, tuple(int(n) for n in reversed(tensor.shape)), tensor, heads)


def _name(gguf_name: str, path: Path) -> str:
    """Translate ``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``."""
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    parts = gguf_name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{parts[3]}"
    raise HarnessError(f"{path}: unknown GGUF tensor {gguf_name!r}", "Use the model's safetensors form (a hub: or path: source).")


def _rows(tensor: Any, start: int, stop: int) -> np.ndarray:
    """Dequantise rows ``start:stop`` of a 2-D tensor (rows, columns), or a whole 1-D one, to float32."""
    from gguf.quants import dequantize

    return np.ascontiguousarray(dequantize(tensor.data[start:stop], tensor.tensor_type), dtype=np.float32)


def _slabs(tensor: _Tensor) -> Iterator[np.ndarray]:
    """Yield the float32 values of one tensor in row order, a slab at a time."""
    if tensor.heads:
        yield unpermute(_rows(tensor.source, 0, tensor.shape[0]), tensor.heads)
        return
    width = int(np.prod(tensor.shape[1:])) * 4
    step = max(1, _SLAB_BYTES // width)
    for start in range(0, tensor.shape[0], step):
        yield _rows(tensor.source, start, start + step)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's interleaving of rotary pairs: per head (dim/2, 2) rows become (2, dim/2). Shape (heads * dim, ...) stays."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_safetensors(path: Path, tensors: list[_Tensor], progress: Callable[[int, int], None]) -> None:
    """Stream tensors to a safetensors file: 8-byte header length, JSON header, then the raw little-endian values."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        size = int(np.prod(tensor.shape)) * 4
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for slab in _slabs(tensor):
                file.write(slab.astype("<f4", copy=False).tobytes())
            progress(file.tell(), offset)
