"""A model folder is checked before any library reads it: configuration, shards, tokenizer files. Every failure is one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.models.digest import model_files
from harness.models.tensors import read_header
from harness.models.tokenizer_check import FETCH, check_tokenizer

MOST_COUNT = 4096
"""Most layers, experts, heads or blocks a configuration may name."""
MOST_NUMBER = 2**53
"""Largest whole number in a configuration."""
_COUNT = re.compile(r"(layer|expert|head|block|stage|depth)s?$")
INDEX = "model.safetensors.index.json"
_OBJECTS = (
    "added_tokens.json", "chat_template.json", "hf_quant_config.json", "special_tokens_map.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""Further files that the tokenizer's and the model's loader read as JSON objects."""


def check_model(folder: Path) -> dict[str, Any]:
    """Check all files of a model folder that a loader reads; return its configuration.

    Raises:
        HarnessError: a file is missing, no regular file, malformed, or does not fit the others; names file and field.
    """
    config = read_config(folder)
    for path in model_files(folder):
        if path.name in _OBJECTS:
            files.read_json(path, advice=FETCH)
        elif path.suffix in (".jinja", ".txt", ".model"):
            files.read_bytes(path, most=files.JSON_BYTES, advice=FETCH)
    check_tokenizer(folder)
    _check_shards(folder)
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``; the end-of-sequence ids of ``generation_config.json`` are checked too.

    Raises:
        HarnessError: missing, malformed, or a number out of bounds; names file and key.
    """
    path = folder / "config.json"
    config = files.read_json(path, advice=FETCH)
    with files.reading(path, advice=FETCH):
        _check_numbers(config, path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", kind):
        raise HarnessError(f"{path}: model_type is {_show(kind)}, not the name of an architecture", FETCH)
    text = text_config(config, path)
    generation = folder / "generation_config.json"
    _check_ends(config, path)
    _check_ends(text, path)
    if os.path.lexists(generation):
        _check_ends(files.read_json(generation, advice=FETCH), generation)
    for key in ("vocab_size", "num_hidden_layers", "hidden_size", "max_position_embeddings"):
        if text.get(key) is not None:
            whole(text, key, path)
    return config


def text_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The part of a configuration that describes the text model: all of it, or ``text_config``."""
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise HarnessError(f"{path}: text_config is {_show(text)}, not an object", FETCH)
    return text


def whole(settings: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """The positive whole number ``settings[key]``; ``default`` where it is absent or null.

    Raises:
        HarnessError: absent without a default, another type, or below 1.
    """
    value = settings.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise HarnessError(f"{path}: {key} is {_show(value)}, not a positive whole number", FETCH)
    return value


def _check_numbers(node: Any, path: Path, key: str = "") -> None:
    """Refuse counts and numbers that no model has, anywhere in a configuration."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_numbers(value, path, name)
    elif isinstance(node, list):
        for value in node:
            _check_numbers(value, path, "")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        most = MOST_COUNT if _COUNT.search(key) else MOST_NUMBER
        if abs(node) > most and (most == MOST_COUNT or isinstance(node, int)):
            raise HarnessError(f"{path}: {printable(key, 100)} is {_show(node)}, more than any model has ({most})", FETCH)


def _check_ends(settings: dict[str, Any], path: Path) -> None:
    ids = settings.get("eos_token_id")
    listed = ids if isinstance(ids, list) else [ids]
    if ids is not None and not all(type(i) is int and i >= 0 for i in listed):
        raise HarnessError(f"{path}: eos_token_id is {_show(ids)}, not one or several token ids", FETCH)


def _check_shards(folder: Path) -> None:
    """Every shard is whole, every tensor stored once, and the index names what is there."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        for name in read_header(path).shapes:
            if name in found:
                raise HarnessError(f"{folder}: {printable(name, 100)} is stored in both {found[name]} and {path.name}", FETCH)
            found[name] = path.name
    if not found:
        raise HarnessError(f"{folder} has no weights in model*.safetensors", FETCH)
    if not os.path.lexists(index := folder / INDEX):
        return
    listed = files.read_json(index, advice=FETCH).get("weight_map")
    if not isinstance(listed, dict):
        raise HarnessError(f"{index}: weight_map is {_show(listed)}, not an object", FETCH)
    for name, shard in listed.items():
        if found.get(name) != shard:
            where = f"which is in {found[name]}" if name in found else "which is not there"
            raise HarnessError(f"{index}: {printable(name, 100)} should be in {_show(shard)}, {where}", FETCH)


def _show(value: object) -> str:
    return printable(repr(value), 60)
