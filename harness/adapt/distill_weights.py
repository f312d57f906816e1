"""Weights of a cut under both naming schemes: mlx-lm's, as stored and decoded with, and the joined ones that torch trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.decode.torch_llama import LAYERS, Shape, Weights
from harness.errors import HarnessError
from harness.models.blas import mx
from harness.models.config import CutSource, parse_source
from harness.models.cut import TOKEN_MAP, read_cut


def mlx_weights(shape: Shape, weights: Weights) -> dict[str, mx.array]:
    """Torch weights of the cut under mlx-lm's names, joined projections split."""
    out = {"model.norm.weight": weights["norm"], "lm_head.weight": weights["head"]}
    for i in range(shape.layers):
        for name, parts in LAYERS.items():
            split = weights[f"layers.{i}.{name}"].split(shape.rows(name))
            out |= {f"model.layers.{i}.{part}.weight": w for part, w in zip(parts, split, strict=True)}
    return {name: mx.array(w.detach().cpu().numpy()) for name, w in out.items()}


def read_start(source: str, layers: int) -> tuple[dict[str, Any], np.ndarray, Weights]:
    """A finished draft to train on from: its configuration, output vocabulary (vocab,) int32 and weights under torch's names.

    Args:
        source: the draft's folder, or ``shipped:<name>``.
        layers: blocks the new draft has.

    Raises:
        HarnessError: no draft there, or one with another number of blocks.
    """
    import torch

    found = parse_source(source) if source.startswith("shipped:") else CutSource(Path(source))
    assert isinstance(found, CutSource)
    config, arrays = read_cut(found.path)
    if config["layers"] != layers:
        raise HarnessError(f"{source} has {config['layers']} blocks, cut.layers is {layers}", "Set cut.layers to the draft's own number.")

    def read(*names: str) -> torch.Tensor:
        return torch.cat([torch.from_numpy(np.array(arrays[f"{name}.weight"].astype(mx.float32))) for name in names])

    weights: Weights = {"norm": read("model.norm"), "head": read("lm_head")}
    for i in range(layers):
        at = f"model.layers.{i}"
        weights |= {f"layers.{i}.{name}": read(*(f"{at}.{part}" for part in parts)) for name, parts in LAYERS.items()}
    return config, np.array(arrays[TOKEN_MAP]), weights
