"""Tiny pairs, installed adapters and session files for the tests of the public calls, sessions, chat and demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from adapting import quick_config

from harness import api
from harness.adapt.adapters.adapter_folder import AdapterInfo, adapter_folder, write_adapter
from harness.adapt.adapters.surface import adapted_layers, adapter_weights, attached
from harness.models.mlx_names import mx

PROMPTS = [f"question number {i * 37} about topic {i}" for i in range(24)]
"""Prompts that resemble no shipped one."""


def install_adapter(pair: Any, name: str, *, seed: int = 1, size: float = 0.06, **info: Any) -> Path:
    """Install an adapter with random updates under ``name``; a larger ``size`` disturbs the draft more."""
    lora = quick_config(lora={"rank": 4}).lora
    api.adapter_bank(pair).activate(None)
    model = pair.draft.model
    with attached(model, lora):
        mx.random.seed(seed)
        model.load_weights([(n, a + mx.random.normal(a.shape) * size) for n, a in adapter_weights(model).items()], strict=False)
        weights = adapter_weights(model)
        mx.eval(weights)
    about = {"draft_hash": pair.draft.hash, "draft_name": "tiny", "domain": None, "rank": 4, "data_hash": "", "examples": 0, **info}
    folder = adapter_folder(pair.name, name)
    write_adapter(folder, weights, lora, adapted_layers(model, lora), AdapterInfo(name=name, metric="alpha", **about))
    return folder


def session_file(folder: Path, **changes: Any) -> Path:
    """Write a session file with its own quick training settings; every answer counts as a failure case."""
    training = quick_config(optim={"epochs": 12}, stop={"every": 3, "patience": 20}).model_dump()
    (folder / "quick.yaml").write_text(json.dumps(training), encoding="utf-8")
    settings = {
        "models": str(folder / "tiny.yaml"),
        "k": 3,
        "max_tokens": 12,
        "training": str(folder / "quick.yaml"),
        "threshold": 1.0,
        "min_failure_cases": 20,
        "train_automatically": False,
        "evaluation": {"chat": {"dataset": "chat", "limit": 6}},
        "evaluation_tokens": 12,
        **changes,
    }
    path = folder / "session.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
