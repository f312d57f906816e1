"""Weights of a cut under both naming schemes: mlx-lm's, as stored and decoded with, and the joined ones that torch trains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness.answers.torch_llama import LAYERS, Shape, Weights, device
from harness.core.errors import HarnessError
from harness.models.blas import mx
from harness.models.cut import AGAIN, read_cut
from harness.models.packed import TOKEN_MAP
from harness.models.pair_config import CutSource, parse_source
from routing.apart import apart


def mlx_weights(shape: Shape, weights: Weights) -> dict[str, mx.array]:
    """Torch weights of the cut under mlx-lm's names, joined projections split."""
    return {name: mx.array(w) for name, w in _split(shape, weights).items()}


@apart
def _split(shape: Shape, weights: Weights) -> dict[str, np.ndarray]:
    out = {"model.norm.weight": weights["norm"], "lm_head.weight": weights["head"]}
    for i in range(shape.layers):
        for name, parts in LAYERS.items():
            split = weights[f"layers.{i}.{name}"].split(shape.rows(name))
            out |= {f"model.layers.{i}.{part}.weight": w for part, w in zip(parts, split, strict=True)}
    return {name: w.detach().cpu().numpy() for name, w in out.items()}


def read_start(source: str, layers: int) -> tuple[dict[str, Any], np.ndarray, Weights]:
    """A finished draft to train on from: its configuration, output vocabulary (vocab,) int32 and weights under torch's names.

    Args:
        source: the draft's folder, or ``shipped:<name>``.
        layers: blocks the new draft has.

    Raises:
        HarnessError: no draft there, or one with another number of blocks.
    """
    found = parse_source(source) if source.startswith("shipped:") else CutSource(Path(source))
    assert isinstance(found, CutSource)
    config, arrays = read_cut(found.path)
    if config.layers != layers:
        raise HarnessError(f"{source} has {config.layers} blocks, cut.layers is {layers}", "Set cut.layers to the draft's own number.")

    exact = {name: np.array(array.astype(mx.float32)) for name, array in arrays.items() if name.endswith(".weight")}
    return asdict(config), np.array(arrays[TOKEN_MAP]), _join(exact, layers, found.path)


@apart
def _join(arrays: dict[str, np.ndarray], layers: int, path: Path) -> Weights:
    import torch

    def read(*names: str) -> torch.Tensor:
        if lacking := [name for name in names if f"{name}.weight" not in arrays]:
            raise HarnessError(f"{path} lacks {lacking[0]}.weight", AGAIN)
        return torch.cat([torch.from_numpy(arrays[f"{name}.weight"]) for name in names]).to(device())

    weights: Weights = {"norm": read("model.norm"), "head": read("lm_head")}
    for i in range(layers):
        at = f"model.layers.{i}"
        weights |= {f"layers.{i}.{name}": read(*(f"{at}.{part}" for part in parts)) for name, parts in LAYERS.items()}
    return weights
