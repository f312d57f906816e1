"""Adapters in PEFT's format: transposed matrices, ``alpha = scale * rank``, names under ``base_model.model``."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.adapt.adapters.adapter_folder import CONFIG, AdapterInfo, read_lora, write_adapter
from harness.adapt.training_config import LoraConfig
from harness.core import files
from harness.core.errors import HarnessError
from harness.core.machine import utc_now
from harness.core.protocols import LoadedDraft
from harness.core.text import printable
from harness.models.mlx_names import mx
from harness.models.tensors import load_arrays, save_arrays

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_LAYER = re.compile(r"\.layers\.(\d{1,6})\.(.+)$")
_MOST_RANK = 1024
_FREE = (
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "layers_pattern", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
)  # fmt: skip
"""Options that do not change what the stored arrays mean. Every other one must be one that is computed here, or be off."""
_PLAIN = "Import plain LoRA, rank-stabilised LoRA or DoRA adapters."
_FITTING = "Import it for the draft it was trained on."


def export_peft(adapter: Path, out: Path, *, base_model: str = "") -> Path:
    """Write an adapter folder of this project as a PEFT folder.

    Args:
        adapter: folder with ``adapters.safetensors``.
        out: folder to write.
        base_model: name or path of the draft for ``base_model_name_or_path``.

    Raises:
        HarnessError: no usable adapter.
    """
    lora, weights = read_lora(adapter)
    arrays, modules, layers = {}, set(), set()
    for name, array in weights.items():
        path, _, leaf = name.rpartition(".")
        layer, module = _place(path, adapter)
        layers.add(layer)
        modules.add(module)
        arrays[f"{_PREFIX}{path}.{_LEAVES[leaf]}"] = mx.contiguous(array.T) if array.ndim == 2 else array
    save_arrays(out / WEIGHTS, arrays, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": lora.dropout,
        "use_dora": lora.dora,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "layers_to_transform": sorted(layers),
        "layers_pattern": "layers",
    }
    files.write_atomic(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return out


def import_peft(peft: Path, out: Path, draft: LoadedDraft, *, name: str | None = None, domain: str | None = None) -> Path:
    """Write a PEFT LoRA or DoRA folder as an adapter folder for ``draft``.

    Args:
        peft: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        out: adapter folder to write.
        draft: :class:`harness.models.pair.Draft` it is meant for.
        name: adapter name; the folder's name by default.
        domain: domain to note.

    Raises:
        HarnessError: not PEFT LoRA, pickled weights, an option without an equal here, or shapes that do not fit the draft.
    """
    config = _read_config(peft)
    modules = _modules(peft, config)
    rank, scale = _rank_and_scale(peft, config, modules)
    places = [_place(path, peft) for path in modules]
    layers, total = {layer for layer, _ in places}, len(draft.model.layers)
    if max(layers) >= total:
        raise HarnessError(f"{peft}: an update of layer {max(layers)} does not fit a draft of {total} layers", _FITTING)
    only = config.get("layers_to_transform")
    if only is not None and set(only if isinstance(only, list) else [only]) != layers:
        raise HarnessError(f"{peft / CONFIG}: layers_to_transform names other layers than {WEIGHTS} holds", _PLAIN)
    lora = LoraConfig(
        rank=rank,
        scale=scale,
        dropout=float(config.get("lora_dropout", 0.0)),
        num_layers=total - min(layers),
        keys=sorted({module for _, module in places}),
        dora=config.get("use_dora", False),
    )
    weights = {f"{path}.{leaf}": mx.contiguous(array.T) for path, leaves in modules.items() for leaf, array in leaves.items()}
    _complete(draft.model, lora, weights, peft)
    info = AdapterInfo(
        name=name or out.name,
        draft_hash=draft.hash,
        draft_name=draft.name,
        domain=domain,
        rank=rank,
        data_hash="",
        examples=0,
        metric="alpha",
        created=utc_now(),
    )
    write_adapter(out, weights, lora, lora.num_layers, info)
    return out


def _read_config(peft: Path) -> dict[str, Any]:
    """``adapter_config.json``, every option in it known to be plain LoRA or DoRA, or off."""
    path = peft / CONFIG
    config = files.read_json(path, advice=f"Give a folder with {CONFIG} and {WEIGHTS}, or export it again.")
    if config.get("peft_type") != "LORA":
        raise HarnessError(f"{path}: peft_type {_show(config.get('peft_type'))} has no equal here", _PLAIN)
    for key, value in config.items():
        if key not in _FREE and not _allowed(key, value):
            raise HarnessError(f"{path}: the option {printable(key, 60)} = {_show(value)} has no equal here", _PLAIN)
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise HarnessError(f"{path}: {key} is missing", _PLAIN)
    return config


def _allowed(key: str, value: Any) -> bool:
    number = type(value) in (int, float)
    if key == "r":
        return type(value) is int and 1 <= value <= _MOST_RANK
    if key == "lora_alpha":
        return number and 0 < value < 1e6
    if key == "lora_dropout":
        return number and 0 <= value < 1
    if key in ("use_rslora", "use_dora"):
        return type(value) is bool
    if key in ("rank_pattern", "alpha_pattern"):
        numbers = isinstance(value, dict) and all(type(v) in (int, float) and 0 < v < 1e6 for v in value.values())
        return value is None or (numbers and all(re.fullmatch(r"[\w.]+", name) for name in value))
    if key == "layers_to_transform":
        layers = value if isinstance(value, list) else [value]
        return value is None or all(type(layer) is int for layer in layers)
    if key == "init_lora_weights":
        return value in (True, False, "gaussian", "eva") and type(value) in (bool, str)
    return (value in (None, False, "", [], {}) and type(value) is not int) or (key == "bias" and value == "none")


def _modules(peft: Path, config: Mapping[str, Any]) -> dict[str, dict[str, mx.array]]:
    """Path of a linear layer -> its arrays by our leaf names, each layer with all of them."""
    if not os.path.lexists(peft / WEIGHTS):
        raise HarnessError(f"{peft} has no {WEIGHTS}", "Save the adapter as safetensors; pickled weights are not read.")
    found: dict[str, dict[str, mx.array]] = {}
    leaves = {theirs: ours for ours, theirs in _LEAVES.items()}
    for full, array in load_arrays(peft / WEIGHTS, finite=True, advice="Export it again.")[0].items():
        path, leaf = _split(full, leaves, peft)
        found.setdefault(path, {})[leaves[leaf]] = array
    wanted = {"lora_a": 2, "lora_b": 2} | ({"m": 1} if config.get("use_dora") else {})
    for path, arrays in found.items():
        if {leaf: array.ndim for leaf, array in arrays.items()} != wanted:
            raise HarnessError(f"{peft / WEIGHTS}: {path} does not have the matrices A and B of its kind, and no others", _PLAIN)
    if not found:
        raise HarnessError(f"{peft / WEIGHTS} holds no arrays", _PLAIN)
    return found


def _rank_and_scale(peft: Path, config: Mapping[str, Any], modules: Mapping[str, dict[str, mx.array]]) -> tuple[int, float]:
    """Rank and factor of the update, which must be those of every layer."""
    found = set()
    for path, arrays in modules.items():
        rank = _pattern(config.get("rank_pattern"), path, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
        if arrays["lora_a"].shape[0] != rank or arrays["lora_b"].shape[1] != rank:
            raise HarnessError(f"{peft}: r and rank_pattern give {path} the rank {rank}, its matrices have another", _PLAIN)
        found.add((int(rank), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)))
    if len(found) > 1:
        raise HarnessError(f"{peft / CONFIG}: rank_pattern or alpha_pattern gives layers different ranks or scales", _PLAIN)
    return found.pop()


def _pattern(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """What PEFT takes for a layer: the value of the first key that ends its path, or the default."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _show(value: object) -> str:
    return printable(repr(value), 60)


def _split(full: str, leaves: Mapping[str, str], peft: Path) -> tuple[str, str]:
    for leaf in leaves:
        if full.startswith(_PREFIX) and full.endswith(f".{leaf}"):
            return full[len(_PREFIX) : -len(leaf) - 1], leaf
    raise HarnessError(f"{peft}: {printable(full, 200)} is not a LoRA or DoRA array", _PLAIN)


def _place(path: str, source: Path) -> tuple[int, str]:
    """Split ``model.layers.3.self_attn.q_proj`` into (3, ``self_attn.q_proj``)."""
    found = _LAYER.search(path)
    if found is None:
        raise HarnessError(
            f"{source}: {printable(path, 200)} is not inside a transformer block", "Only layers of the blocks can be adapted."
        )
    return int(found[1]), found[2]


def _complete(model: Any, lora: LoraConfig, weights: dict[str, mx.array], source: Path) -> None:
    """Check shapes against the draft and add zero updates where the PEFT adapter left blocks out."""
    from harness.adapt.adapters.surface import adapter_weights, attached

    with attached(model, lora):
        expected = adapter_weights(model)
    for name, array in weights.items():
        if name not in expected or expected[name].shape != array.shape:
            raise HarnessError(f"{source}: {name} {tuple(array.shape)} does not fit the draft", _FITTING)
    for name, array in expected.items():
        if name not in weights:  # lora_b starts at zero and m at the base's norms: no effect
            weights[name] = array
    mx.eval(weights)
