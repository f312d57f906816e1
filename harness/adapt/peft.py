"""Adapters in PEFT's format: transposed matrices, ``alpha = scale * rank``, names under ``base_model.model``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.adapt.adapter_files import CONFIG, AdapterInfo, read_lora, write_adapter
from harness.adapt.checkpoint import save_arrays
from harness.adapt.config import LoraConfig
from harness.adapt.failures import utc_now
from harness.adapt.trees import mx
from harness.errors import HarnessError
from harness.files import write_atomic

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_LAYER = re.compile(r"\.layers\.(\d+)\.(.+)$")


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
    write_atomic(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return out


def import_peft(peft: Path, out: Path, draft: Any, *, name: str | None = None, domain: str | None = None) -> Path:
    """Write a PEFT LoRA or DoRA folder as an adapter folder for ``draft``.

    Args:
        peft: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        out: adapter folder to write.
        draft: :class:`harness.models.pair.Draft` it is meant for.
        name: adapter name; the folder's name by default.
        domain: domain to note.

    Raises:
        HarnessError: not PEFT LoRA, pickled weights, options without an equal here, or shapes that do not fit the draft.
    """
    config, arrays = _read(peft)
    weights, modules, layers = {}, set(), set()
    leaves = {theirs: ours for ours, theirs in _LEAVES.items()}
    for full, array in arrays.items():
        path, leaf = _split(full, leaves, peft)
        layer, module = _place(path, peft)
        layers.add(layer)
        modules.add(module)
        weights[f"{path}.{leaves[leaf]}"] = mx.contiguous(array.T) if array.ndim == 2 else array
    rank = int(config["r"])
    alpha = float(config["lora_alpha"])
    lora = LoraConfig(
        rank=rank,
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        dropout=float(config.get("lora_dropout", 0.0)),
        num_layers=len(draft.model.layers) - min(layers),
        keys=sorted(modules),
        dora=bool(config.get("use_dora", False)),
    )
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


def _read(peft: Path) -> tuple[dict[str, Any], dict[str, mx.array]]:
    try:
        config = json.loads((peft / CONFIG).read_text(encoding="utf-8"))
        kind, _, _ = config["peft_type"], config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{peft} holds no PEFT adapter: {error}", f"Give a folder with {CONFIG} and {WEIGHTS}.") from error
    refused = ("rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
    unsupported = [key for key in refused if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
    if kind != "LORA" or unsupported:
        what = f"PEFT type {kind}" if kind != "LORA" else f"the PEFT option {unsupported[0]}"
        raise HarnessError(f"{peft}: {what} has no equal here", "Import plain LoRA or DoRA adapters.")
    if not (peft / WEIGHTS).is_file():
        raise HarnessError(f"{peft} has no {WEIGHTS}", "Save the adapter as safetensors; pickled weights are not read.")
    try:
        return config, mx.load(str(peft / WEIGHTS))
    except RuntimeError as error:
        raise HarnessError(f"{peft / WEIGHTS} is damaged: {error}", "Export it again.") from error


def _split(full: str, leaves: Mapping[str, str], peft: Path) -> tuple[str, str]:
    for leaf in leaves:
        if full.startswith(_PREFIX) and full.endswith(f".{leaf}"):
            return full[len(_PREFIX) : -len(leaf) - 1], leaf
    raise HarnessError(f"{peft}: {full} is not a LoRA or DoRA array", "Import plain LoRA or DoRA adapters.")


def _place(path: str, source: Path) -> tuple[int, str]:
    """Split ``model.layers.3.self_attn.q_proj`` into (3, ``self_attn.q_proj``)."""
    found = _LAYER.search(path)
    if found is None:
        raise HarnessError(f"{source}: {path} is not inside a transformer block", "Only layers of the blocks can be adapted.")
    return int(found[1]), found[2]


def _complete(model: Any, lora: LoraConfig, weights: dict[str, mx.array], source: Path) -> None:
    """Check shapes against the draft and add zero updates where the PEFT adapter left blocks out."""
    from harness.adapt.surface import adapter_weights, attached

    with attached(model, lora):
        expected = adapter_weights(model)
    for name, array in weights.items():
        if name not in expected or expected[name].shape != array.shape:
            raise HarnessError(
                f"{source}: {name} {tuple(array.shape)} does not fit the draft", "Import it for the draft it was trained on."
            )
    for name, array in expected.items():
        if name not in weights:  # lora_b starts at zero and m at the base's norms: no effect
            weights[name] = array
    mx.eval(weights)
