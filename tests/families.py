"""Tiny random models of many of mlx-lm's families: every scale, cap, bias and wrapper an output head may have."""

from __future__ import annotations

import importlib
from typing import Any

from all_families import ALL

from harness.models.blas import mx, nn

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "vocab_size": 64,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 128, "sliding_window_pattern": 2}
GRANITE = {"logits_scaling": 8.0, "attention_multiplier": 0.35, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama untied": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "granite": {**GRANITE, "attention_bias": False, "mlp_bias": False},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 128, "sliding_window_pattern": 2},
    "gemma": {},
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": GEMMA,
    "phi3": {"tie_word_embeddings": False},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4},
    "stablelm": {"partial_rotary_factor": 0.25, "use_qkv_bias": True},
    "minicpm": {"dim_model_base": 8, "scale_depth": 1.4, "scale_emb": 12},
    "starcoder2": {"norm_epsilon": 1e-5},
    "gpt_neox": {"rotary_pct": 0.25, "use_parallel_residual": True, "rotary_emb_base": 10000},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_ctx": 512,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-5,
    },
    "glm4": {"partial_rotary_factor": 0.5, "attention_bias": True},
    "helium": {"attention_bias": False, "mlp_bias": False},
    "internlm2": {"bias": False},
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5, "attention_bias": False, "mlp_bias": False},
    "seed_oss": {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False},
    "gemma3": {"text_config": {**COMMON, **GEMMA, "model_type": "gemma3_text"}},
    "mistral3": {"text_config": {**COMMON, "model_type": "llama"}},
}
"""Name (its first word is mlx-lm's module) -> what its configuration adds to :data:`COMMON`."""


def tiny_model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model of a family; its weights are large, so that choices are clear and vary, its biases not zero."""
    from mlx.utils import tree_map_with_path

    name = family.split()[0]
    module = importlib.import_module(f"mlx_lm.models.{name}")
    own = FAMILIES.get(family) or ALL.get(family, {})
    config = {**COMMON, **own, "model_type": name, **changes}
    if "text_config" in own:
        config["text_config"] = {**COMMON, **own["text_config"], **changes}
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))

    def drawn(path: str, w: mx.array) -> mx.array:
        if w.ndim > 1:
            return mx.random.normal(w.shape) * (1.0 if "embed" in path or "wte" in path else 0.3)
        return w + 0.3 * mx.random.normal(w.shape)

    model.update(tree_map_with_path(drawn, model.parameters()))
    mx.eval(model.parameters())
    return model
