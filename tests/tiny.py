"""Tiny random-weight llama pairs with a byte-level tokenizer: real files, real loaders, no download, milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = 2
"""Id of <|im_end|>."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """config.json of the tiny llama; ``changes`` replace entries."""
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 264,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": [EOS],
    }
    return {**config, **changes}


def tiny_weights(config: dict[str, Any], seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
    """Random float32 weights under their transformers names; equal seeds give equal weights."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{n}_proj.weight": (kv if n in "kv" else hidden, hidden) for n in "qkvo"}
        shapes |= {f"{block}.mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{block}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return {n: (np.ones(s) if len(s) == 1 else rng.normal(0, scale, s)).astype(np.float32) for n, s in shapes.items()}


def write_tokenizer(folder: Path, specials: tuple[str, ...] = SPECIALS, base: int | None = None) -> None:
    """Write a tokenizer of ``specials`` (ids 0, 1, 2, ...) and the 256 bytes, which begin at ``base`` or right behind them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(specials)} | {t: i for i, t in enumerate(letters, start=base or len(specials))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[EOS], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_model(folder: Path, *, seed: int = 0, noise: float = 0.0, **changes: Any) -> Path:
    """Write a loadable model folder. ``noise`` disturbs the weights of ``seed``: the larger, the less two models agree."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**changes)
    weights = tiny_weights(config, seed)
    rng = np.random.default_rng(seed + 1)
    weights = {n: (w + noise * rng.normal(0, 0.3, w.shape)).astype(np.float32) if w.ndim > 1 else w for n, w in weights.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    write_tokenizer(folder)
    return folder


def write_pair(folder: Path, *, seed: int = 0, noise: float = 0.05, draft: bool = True, **changes: Any) -> Path:
    """Write target, draft (the target with ``noise``) and the pair's YAML file; return the file."""
    write_model(folder / "target", seed=seed, **changes)
    text = "target:\n  sources: ['path:target']\n"
    if draft:
        write_model(folder / "draft", seed=seed, noise=noise, **changes)
        text += "draft:\n  sources: ['path:draft']\n"
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def tiny_pair(folder: Path, **options: Any) -> Any:
    """Load the pair of :func:`write_pair`. A draft with ``noise`` 0.05 agrees on some positions and not on others."""
    from harness.models.pair import load_pair

    return load_pair(str(write_pair(folder, **options)))
