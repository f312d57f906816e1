"""A random Llama with tied embeddings, on disk and in mlx, and a Qwen2 in mlx, for the tests of distillation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from toy import ToyPair

from harness.models.blas import mx, nn

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 96,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def make(folder: Path, seed: int = 0) -> nn.Module:
    """Write a model folder and return the same model in mlx, float32. Its weights are large, so that its choices are clear and vary."""
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    model.update(tree_map(lambda w: 6 * w if w.ndim == 2 else w, model.parameters()))
    model.model.embed_tokens.weight = mx.random.normal((CONFIG["vocab_size"], CONFIG["hidden_size"]))
    mx.eval(model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return model


def make_qwen2(seed: int = 0) -> nn.Module:
    """A Qwen2 of the same size in mlx, its biases not zero."""
    from mlx.utils import tree_map
    from mlx_lm.models.qwen2 import Model, ModelArgs

    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG | {"model_type": "qwen2"}))
    model.update(tree_map(lambda w: 6 * w if w.ndim == 2 else mx.random.normal(w.shape) + 1, model.parameters()))
    model.model.embed_tokens.weight = mx.random.normal((CONFIG["vocab_size"], CONFIG["hidden_size"]))
    mx.eval(model.parameters())
    return model


@dataclass
class TinyPair(ToyPair):
    """The part of a pair that collecting and distilling read."""

    target: nn.Module | None = None
    target_hash: str = "tiny-target"
    context_tokens: int = 4096

    def encode(self, prompt: str) -> list[int]:
        """One id per character."""
        return [ord(c) % 80 + 8 for c in prompt]
