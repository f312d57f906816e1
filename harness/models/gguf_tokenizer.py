"""Rebuild a byte-level BPE tokenizer (tokenizer.json and tokenizer_config.json) from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.models.gguf_file import OTHER, GgufFile

_CONTROL, _USER_DEFINED = 3, 4
"""GGUF token types that are matched whole, before BPE."""

_END_NAMES = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")
"""Tokens that end a turn in the families this project reads. Chat models emit any of theirs."""

_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def end_tokens(gguf: GgufFile) -> list[int]:
    """Return the ids that end generation: the file's end-of-sequence token first, then the family's other end tokens."""
    tokens, kinds = _tokens(gguf)
    eos = gguf.whole("tokenizer.ggml.eos_token_id", least=0, most=len(tokens) - 1)
    others = [i for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == _CONTROL and text in _END_NAMES and i != eos]
    return [eos, *others]


def _tokens(gguf: GgufFile) -> tuple[list[str], list[int]]:
    """Texts and kinds of all tokens."""
    tokens, kinds = gguf.items("tokenizer.ggml.tokens", str), gguf.items("tokenizer.ggml.token_type", int)
    if not len(kinds) == len(tokens) == len(set(tokens)):
        raise HarnessError(f"{gguf.path}: {len(tokens)} tokens, {len(set(tokens))} of them distinct, {len(kinds)} token types", OTHER)
    return tokens, kinds


def write_tokenizer(gguf: GgufFile, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises:
        HarnessError: the GGUF tokenizer is no byte-level BPE, or splits text in a way this reader does not know.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    model, pre = gguf.text("tokenizer.ggml.model"), gguf.text("tokenizer.ggml.pre", default="default")
    if model != "gpt2":
        raise HarnessError(f"GGUF tokenizer {model!r} is not supported (only byte-level BPE)", "Use the model's safetensors form.")
    tokens, kinds = _tokens(gguf)
    merges = [tuple(line.split(" ", 1)) for line in gguf.items("tokenizer.ggml.merges", str)]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    tokenizer.normalizer, tokenizer.pre_tokenizer = splitter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    whole = [
        AddedToken(text, special=kind == _CONTROL, normalized=False)
        for text, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(whole)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _tokenizer_config(gguf, tokens)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def splitter(pre: str) -> tuple[Any, Any]:
    """Return (normalizer or None, pre-tokenizer) for GGUF's ``tokenizer.ggml.pre`` name."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return None, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if pre in ("qwen2", "llama-bpe"):
        pattern = Regex(_QWEN2_SPLIT if pre == "qwen2" else _LLAMA3_SPLIT)
        sequence = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), byte_level])
        return (normalizers.NFC() if pre == "qwen2" else None), sequence
    if pre in ("default", "gpt-2"):
        return None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raise HarnessError(f"GGUF pre-tokenizer {pre!r} is not supported", "Use the model's safetensors form (a hub: or path: source).")


def _tokenizer_config(gguf: GgufFile, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "add_bos_token": False}
    for name in ("bos", "eos", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in gguf.fields:
            short = {"unknown": "unk", "padding": "pad"}.get(name, name)
            config[f"{short}_token"] = tokens[gguf.whole(key, least=0, most=len(tokens) - 1)]
    if "tokenizer.chat_template" in gguf.fields:
        config["chat_template"] = gguf.text("tokenizer.chat_template")
    return config
