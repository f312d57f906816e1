"""A model as one GGUF file: what llama.cpp and the programs built on it load. Llama and Qwen2 models with a byte-level tokenizer."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.blas import mx
from harness.models.gguf_tokenizer import splitter

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""Model type -> GGUF architecture."""
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""Type of the numbers -> GGUF's name of it. Norms and biases are float32 under all of them."""
SPLITTERS = ("smollm", "qwen2", "llama-bpe", "gpt-2")
"""Ways to split text before merging that GGUF has names for, as far as they are known here."""
_PROBE = "It's 12345 o'clock,  we'RE\n\n\tgoing: naïve façade — 東京の日本語 ١٢٣ x1y22 'll 've\r\n   end  \u0301e"
_ADVICE = "Write --to mlx instead, and convert that with llama.cpp's own script."
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""GGUF token types."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as GGUF stores it."""

    tokens: list[str]
    """By id."""
    kinds: list[int]
    merges: list[str]
    """Two tokens with a blank between them, first merge first."""
    pre: str
    """Name of how text is split before merging."""
    special: Mapping[str, int]
    """``bos``, ``eos``, ``unk`` and ``pad``, as far as there are such."""
    add_bos: bool
    template: str | None
    """Chat template."""


def check_architecture(config: Mapping[str, Any]) -> str:
    """GGUF's name of a model's architecture.

    Raises:
        HarnessError: none that is known here, or one with parts that a GGUF of it has no place for.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise HarnessError(f"a {kind} model is not written as GGUF (only {', '.join(ARCHITECTURES)})", _ADVICE)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    scaling = config.get("rope_scaling") or {}
    plain = (scaling.get("rope_type") or scaling.get("type") or "default") == "default"
    if not plain or (config.get("head_dim") or width // heads) != width // heads:
        raise HarnessError("a model with scaled rotary positions or heads of another width is not written as GGUF", _ADVICE)
    return ARCHITECTURES[kind]


def write_gguf(path: Path, arrays: Mapping[str, mx.array], config: Mapping[str, Any], tokenizer: Path, *, dtype: str, name: str) -> None:
    """Write a GGUF file.

    Args:
        path: the file.
        arrays: weights under their transformers names, floating point.
        config: the model's configuration.
        tokenizer: folder of its tokenizer.
        dtype: a key of :data:`KINDS`.
        name: the model's name inside the file.

    Raises:
        HarnessError: an architecture or a tokenizer that is not known here.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    architecture, vocabulary = check_architecture(config), read_vocabulary(tokenizer, config)
    writer = GGUFWriter(None, architecture)
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[{"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}[KINDS[dtype]]])
    _add_shape(writer, config)
    _add_vocabulary(writer, vocabulary)
    for tensor, values, kind in _tensors(arrays, config, architecture, dtype):
        writer.add_tensor(tensor, values, raw_dtype=None if kind in ("F32", "F16") else GGMLQuantizationType[kind])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10000.0
    writer.add_context_length(config.get("max_position_embeddings", 4096))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(float(theta))
    writer.add_vocab_size(config["vocab_size"])


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.add_bos)
    for role, token in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(token)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _tensors(
    arrays: Mapping[str, mx.array], config: Mapping[str, Any], architecture: str, dtype: str
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, values and type of every tensor."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    turned = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads} if architecture == "llama" else {}
    for full in sorted(arrays):
        found = names.get_name(full, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise HarnessError(f"the weights hold {full}, for which GGUF has no name", _ADVICE)
        values = np.array(arrays[full].astype(mx.float32))
        part = full.split(".")[-2]
        if part in turned:
            values = permute(values, turned[part])
        kind = KINDS[dtype] if values.ndim > 1 else "F32"
        if kind == "Q8_0" and values.shape[-1] % 32:
            kind = "F16"
        if kind == "F16":
            values = values.astype(np.float16)
        elif kind != "F32":
            values = quantize(values, GGMLQuantizationType[kind])
        yield found, np.ascontiguousarray(values), kind


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the two halves of each head side by side, as GGUF stores rotary pairs of llama: per head (2, dim/2) rows become (dim/2, 2)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """A tokenizer's files as GGUF stores them; ids that the model has and the tokenizer lacks become unused tokens.

    Raises:
        HarnessError: no byte-level BPE, or one that splits text in a way GGUF's names known here do not stand for.
    """
    data = files.read_json(folder / "tokenizer.json")
    settings = files.read_json(folder / "tokenizer_config.json")
    model = data.get("model", {})
    if model.get("type") != "BPE" or not model.get("merges") or '"ByteLevel"' not in json.dumps(data.get("decoder")):
        raise HarnessError(f"the tokenizer in {folder} is no byte-level BPE with merges", _ADVICE)
    by_id = {token: text for text, token in model["vocab"].items()}
    kinds = dict.fromkeys(by_id, _NORMAL)
    for added in data.get("added_tokens", ()):
        by_id[added["id"]], kinds[added["id"]] = added["content"], _CONTROL if added.get("special") else _USER_DEFINED
    size = max(config["vocab_size"], max(by_id) + 1)
    if size > config["vocab_size"]:
        raise HarnessError(f"the tokenizer in {folder} has {size} tokens, the model {config['vocab_size']}", _ADVICE)
    return Vocabulary(
        tokens=[by_id.get(i, f"[PAD{i}]") for i in range(size)],
        kinds=[kinds.get(i, _UNUSED) for i in range(size)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        pre=_pre(folder),
        special=_special(settings, config, {text: i for i, text in by_id.items()}),
        add_bos=bool(settings.get("add_bos_token")),
        template=_template(folder, settings),
    )


def _special(settings: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    found = {}
    for role in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            found[role] = ids[text]
    ends = config.get("eos_token_id")
    if "eos" not in found and ends is not None:
        found["eos"] = ends[0] if isinstance(ends, list) else ends
    return found


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return files.read_text(folder / "chat_template.jinja")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None


def _pre(folder: Path) -> str:
    """GGUF's name of how the tokenizer splits text, found by what it does to a text that sets the known ways apart."""
    from tokenizers import Tokenizer

    with files.reading(folder / "tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = _pieces(tokenizer.normalizer, tokenizer.pre_tokenizer)
    name = next((name for name in SPLITTERS if _known(name) == pieces), None)
    if name is None:
        raise HarnessError(f"the tokenizer in {folder} splits text in a way that GGUF's names known here do not stand for", _ADVICE)
    return name


@functools.cache
def _known(name: str) -> list[str]:
    return _pieces(*splitter(name))


def _pieces(normalizer: Any, pre_tokenizer: Any) -> list[str]:
    text = normalizer.normalize_str(_PROBE) if normalizer is not None else _PROBE
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer is not None else [text]
