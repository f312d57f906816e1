"""Tiny targets, drafts and trajectories for the training tests."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from harness.adapt.training_config import TrainingConfig
from harness.core.records import Trajectory
from harness.models.draft import Draft
from harness.models.mlx_names import mx, nn, tree_flatten

VOCAB = 48


def tiny_llama(seed: int, *, layers: int = 3, noise: float = 0.0, tied: bool = True, dim: int = 32) -> Any:
    """A random llama; ``noise`` disturbs the weights of ``seed``."""
    from mlx_lm.models.llama import Model, ModelArgs

    args = ModelArgs(
        model_type="llama",
        hidden_size=dim,
        num_hidden_layers=layers,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
    )
    model = Model(args)
    rng, extra = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    weights = []
    for name, old in sorted(tree_flatten(model.parameters())):
        value = rng.normal(0, 0.25, old.shape) + noise * extra.normal(0, 0.25, old.shape)
        weights.append((name, mx.array(np.ones(old.shape) if len(old.shape) == 1 else value).astype(mx.float32)))
    model.load_weights(weights)
    model.eval()
    mx.eval(model.parameters())
    return model


def tiny_draft(*, noise: float = 0.35, layers: int = 3, quantised: str = "", token_map: np.ndarray | None = None) -> Any:
    """A disturbed copy of :func:`target_trajectories`'s target, as ``Draft`` has it; ``quantised`` is a mode and its bits."""
    model = tiny_llama(0, noise=noise, layers=layers, tied=token_map is None)
    if token_map is not None:
        model.lm_head = nn.Linear(32, len(token_map), bias=False)
        model.lm_head.weight = model.model.embed_tokens.weight[mx.array(token_map)]
    if quantised:
        mode, bits = quantised.split()
        nn.quantize(model, group_size=16 if mode == "nvfp4" else 32, bits=int(bits), mode=mode)
    mapped = None if token_map is None else mx.array(token_map.astype(np.int32))
    return Draft(model=model, token_map=mapped, hash=f"draft-{noise}-{layers}-{quantised}", name="tiny")


def forward(model: Any, tokens: Any) -> np.ndarray:
    """Logits (n, vocab) of a token sequence."""
    return np.array(model(mx.array([[int(t) for t in tokens]]))[0].astype(mx.float32))


@lru_cache(maxsize=32)
def target_trajectories(count: int = 40, answer: int = 16, first: int = 0, domain: str = "code", layers: int = 3) -> tuple[Trajectory, ...]:
    """Greedy answers of the tiny target with all its probabilities, one prompt per index from ``first``."""
    model = tiny_llama(0, layers=layers)
    prompts = [np.random.default_rng(1000 + first + i).integers(0, VOCAB, 5).tolist() for i in range(count)]
    tokens = np.array(prompts)
    for _ in range(answer):
        logits = np.array(model(mx.array(tokens))[:, -1])
        tokens = np.concatenate([tokens, logits.argmax(-1)[:, None]], axis=1)
    logits = model(mx.array(tokens[:, :-1]))[:, 4:]
    logp = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    order = np.argsort(-logp, axis=-1)[:, :, :8]
    top = np.take_along_axis(logp, order, axis=-1)
    return tuple(
        Trajectory(
            sample_id=f"{domain}/{first + i}",
            domain=domain,
            prompt_tokens=tuple(prompts[i]),
            tokens=tuple(int(t) for t in tokens[i, 5:]),
            finish="length",
            max_tokens=answer,
            top_tokens=np.array(order[i]),
            top_logprobs=np.array(top[i]),
        )
        for i in range(count)
    )


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest difference of two sets of gradients, relative to the largest entry of each array."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[n] - b[n]).max() / (np.abs(a[n]).max() + 1e-9)) for n in a)


def quick_config(**changes: Any) -> TrainingConfig:
    """Few updates, high rate."""
    base = TrainingConfig().replace(
        lora={"rank": 8, "scale": 2.0},
        optim={"learning_rate": 0.01, "warmup_steps": 2, "epochs": 4, "batch_size": 8},
        stop={"every": 5, "patience": 10, "k": 3},
        cache={"dtype": "float32"},
        checkpoint_every=3,
    )
    return base.replace(**changes)


def put_adapter(folder: Any, draft: Any, *, seed: int = 1, dora: bool = False, name: str = "code", **facts: Any) -> None:
    """Write an adapter of a draft with random updates of its top two blocks; ``facts`` are fields of its metadata."""
    from harness.adapt.adapters.adapter_folder import AdapterInfo, write_adapter
    from harness.adapt.adapters.surface import adapted_layers, adapter_weights, attached

    lora = quick_config(lora={"rank": 4, "num_layers": 2, "dora": dora}).lora
    with attached(draft.model, lora):
        mx.random.seed(seed)
        weights = {n: a + mx.random.normal(a.shape) * 0.1 for n, a in adapter_weights(draft.model).items()}
        mx.eval(weights)
    defaults = {"draft_hash": draft.hash, "draft_name": draft.name, "domain": None, "rank": 4, "data_hash": "", "examples": 0}
    info = AdapterInfo(**{"name": name, "metric": "alpha", **defaults, **facts})
    write_adapter(folder, weights, lora, adapted_layers(draft.model, lora), info)
