"""In-memory random models for decoding tests: token ids in, token ids out, milliseconds per call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.models.blas import mx, nn
from harness.models.draft import Draft


def toy_model(*, vocab: int = 64, layers: int = 2, dim: int = 32, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Return a random llama of mlx-lm in float32. ``scale`` sharpens the output distribution."""
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(seed)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=dim,
            num_hidden_layers=layers,
            intermediate_size=2 * dim,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=vocab,
            tie_word_embeddings=False,
        )
    )
    model.lm_head.weight = model.lm_head.weight * scale
    mx.eval(model.parameters())
    return model


def near_copy(model: nn.Module, noise: float, seed: int = 1, **shape: int) -> nn.Module:
    """Return a model with the same weights plus noise: a draft that often agrees."""
    from mlx.utils import tree_map

    copy = toy_model(seed=seed, **shape)
    mx.random.seed(seed)
    copy.update(tree_map(lambda w: w + noise * mx.std(w) * mx.random.normal(w.shape), model.parameters()))
    mx.eval(copy.parameters())
    return copy


def noisy(model: nn.Module) -> nn.Module:
    """Disturb a model's weights."""
    from mlx.utils import tree_map

    mx.random.seed(5)
    model.update(tree_map(lambda w: w + 0.1 * mx.std(w) * mx.random.normal(w.shape), model.parameters()))
    return model


@dataclass
class ToyPair:
    """The part of a pair that decoding reads; prompts are token ids."""

    target: Any
    draft: Draft | None = None
    eos_token_ids: frozenset[int] = frozenset()
    context_tokens: int = 2048
    name: str = "toy"
    target_hash: str = "toy-target"
    config: Any = None
    tokenizer: Any = None

    def encode(self, prompt: Any) -> list[int]:
        """Token ids pass through; text becomes one id per character."""
        return [ord(c) % 60 + 2 for c in prompt] if isinstance(prompt, str) else list(prompt)

    def decode(self, tokens: Any) -> str:
        """Ids as words."""
        return " ".join(map(str, tokens))

    def render(self, messages: Any, *, add_generation_prompt: bool = True) -> str:
        """Their contents, line by line."""
        return "\n".join(m["content"] for m in messages)


def toy_draft(model: Any, token_map: mx.array | None = None) -> Draft:
    """``model`` as a pair's draft."""
    return Draft(model=model, token_map=token_map, hash="toy-draft", name="toy")


def toy_pair(*, vocab: int = 64, noise: float = 0.3, scale: float = 4.0, seed: int = 0, eos: tuple[int, ...] = (1,)) -> ToyPair:
    """Return a random target with a noisy copy of itself as the draft."""
    target = toy_model(vocab=vocab, seed=seed, scale=scale)
    return ToyPair(target, toy_draft(near_copy(target, noise, seed + 1, vocab=vocab)), frozenset(eos))
