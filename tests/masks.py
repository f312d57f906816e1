"""Random masks and LoRAs for drafts: what a trained parallel adapter holds, without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.adapt.adapters.adapter_folder import AdapterInfo, write_parallel
from harness.core.paths import PARALLEL, adapters_root
from harness.models.mlx_names import mx, nn
from harness.models.parallel_masks import MASKS


def random_masks(model: Any, masks: int = 4, *, seed: int = 0, size: float = 0.5) -> dict[str, mx.array]:
    """Masks and a LoRA of rank 3 for every linear layer of a llama-like model's blocks."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> mx.array:
        return mx.array(rng.normal(0, size, shape).astype(np.float32))

    weights = {MASKS: drawn(masks, model.model.embed_tokens(mx.array([0])).shape[-1])}
    for name, module in model.named_modules():
        if ".layers." in name and isinstance(module, nn.Linear | nn.QuantizedLinear):
            outputs, inputs = module.weight.shape
            inputs = inputs * 32 // module.bits if "scales" in module else inputs
            weights |= {f"{name}.lora_a": drawn(inputs, 3), f"{name}.lora_b": drawn(3, outputs)}
    return weights


def put_parallel(folder: Path, draft: Any, *, name: str = PARALLEL, **options: Any) -> Path:
    """Write a folder of kind ``parallel`` for a draft; ``options`` are those of :func:`random_masks`."""
    facts = {"draft_name": draft.name, "domain": None, "rank": 3, "data_hash": "", "examples": 0, "metric": "tau"}
    write_parallel(folder, random_masks(draft.model, **options), 1.0, AdapterInfo(name=name, draft_hash=draft.hash, **facts))
    return folder


def install_parallel(pair: Any, **options: Any) -> Path:
    """The same where the drafter ``parallel`` of a pair looks for it."""
    return put_parallel(adapters_root(pair.name) / PARALLEL, pair.draft, **options)
