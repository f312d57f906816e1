"""A tiny pair with random adapters, and prompts of two domains, for the tests of routing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapting import quick_config

from harness.adapt.adapters.adapter_folder import AdapterInfo, write_adapter
from harness.adapt.adapters.surface import adapted_layers, adapter_weights, attached
from harness.core.records import Sample
from harness.models.mlx_names import mx

K = 3
WORDS = {
    "code": ["def sort(a):", "class Queue:", "return x + 1", "import json", "for i in range(9):", "while True:"],
    "chat": ["Tell me a story", "How is the weather", "Please write a letter", "What do cats eat", "Sing me a song", "Who was Mozart"],
}


def random_adapter(folder: Path, draft: Any, seed: int, scale: float = 0.05) -> Path:
    """Write an adapter with random updates for a draft."""
    lora = quick_config(lora={"rank": 4, "num_layers": 2}).lora
    mx.random.seed(seed)
    with attached(draft.model, lora):
        weights = {n: a + mx.random.normal(a.shape) * scale for n, a in adapter_weights(draft.model).items()}
        mx.eval(weights)
        layers = adapted_layers(draft.model, lora)
    info = AdapterInfo(
        name=folder.name, draft_hash=draft.hash, draft_name="tiny", domain=None, rank=4, data_hash="", examples=0, metric="alpha"
    )
    write_adapter(folder, weights, lora, layers, info)
    return folder


def adapters(root: Path, draft: Any) -> Mapping[str, Path]:
    """Two adapters, one per domain by name."""
    return {name: random_adapter(root / name, draft, seed) for seed, name in enumerate(WORDS, start=1)}


def prompts(count: int = 24) -> list[Sample]:
    """``count`` distinct prompts, the domains in turn, none of them a test prompt."""
    samples = []
    for i in range(count):
        domain = list(WORDS)[i % 2]
        text = f"{WORDS[domain][i // 2 % 6]} {i}"
        samples.append(Sample(id=f"{domain}/{i}", domain=domain, prompt=text, source=domain, split="train"))
    return samples


def write_prompts(path: Path, count: int = 60) -> Path:
    """The same as a JSONL file, its splits given by the harness."""
    lines = [json.dumps({"id": s.id.replace("/", "-"), "domain": s.domain, "prompt": s.prompt}) for s in prompts(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
