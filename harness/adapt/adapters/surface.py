"""The parts of a draft that training needs: embedding, blocks, head, and LoRA put on and taken off. Llama-like models and cuts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.adapt.training_config import LoraConfig
from harness.core.errors import HarnessError
from harness.models.forward import inner
from harness.models.mlx_names import mx, nn, tree_flatten, tree_unflatten
from harness.models.opened import close, head_logits


def embed(model: Any, tokens: mx.array) -> mx.array:
    """Return embeddings (B, L, dim) of tokens (B, L)."""
    hidden: mx.array = inner(model).embed_tokens(tokens)
    return hidden


def run_blocks(blocks: list[Any], hidden: mx.array, *, checkpointing: bool = False) -> mx.array:
    """Run transformer blocks with a causal mask over (B, L, dim). Padding on the right cannot be seen by real positions."""
    for block in blocks:
        hidden = _checkpointed(block)(hidden) if checkpointing else block(hidden, "causal", None)
    return hidden


def head(model: Any, hidden: mx.array) -> mx.array:
    """Apply the final norm and the output head: (..., dim) -> (..., draft vocab)."""
    logits: mx.array = head_logits(model, inner(model).norm(hidden))
    return logits


def _checkpointed(block: Any) -> Callable[[mx.array], mx.array]:
    def run(parameters: dict, hidden: mx.array) -> mx.array:
        block.update(parameters)
        out: mx.array = block(hidden, "causal", None)
        return out

    return lambda hidden: mx.checkpoint(run)(block.trainable_parameters(), hidden)


def check_surface(model: Any) -> None:
    """Refuse a model whose own forward pass is not embedding, blocks with a causal mask, norm and head.

    Raises:
        HarnessError: sliding windows, extra steps between the parts, or another call signature.
    """
    from mlx_lm.models.cache import make_prompt_cache

    tokens = mx.array([[1, 2, 3, 4, 5, 6, 7, 8]])
    advice = "Train llama-like drafts (Llama, SmolLM2, Qwen2, Qwen2.5, Mistral), or cuts of them."
    sliding = any(getattr(block, "use_sliding", False) for block in inner(model).layers)
    if sliding or any(getattr(layer, "max_size", None) for layer in make_prompt_cache(model)):
        raise HarnessError("the draft uses sliding-window attention, which training does not support", advice)
    try:
        same = close(head(model, run_blocks(list(model.layers), embed(model, tokens))), model(tokens))
    except (TypeError, AttributeError, ValueError) as error:
        raise HarnessError(f"the draft's blocks cannot be run one by one: {error}", advice) from error
    if not same:
        raise HarnessError("running the draft block by block changes its logits", advice)


def adapted_layers(model: Any, lora: LoraConfig) -> int:
    """Return how many blocks, counted from the output, get an update.

    Raises:
        HarnessError: more than the draft has.
    """
    total = len(model.layers)
    if lora.num_layers > total:
        raise HarnessError(f"lora.num_layers is {lora.num_layers}, the draft has {total} layers", f"Use 1 to {total}, or -1 for all.")
    return total if lora.num_layers == -1 else lora.num_layers


def lora_keys(model: Any, lora: LoraConfig) -> list[str]:
    """Return the names of the linear layers inside a block that get an update.

    Raises:
        HarnessError: a configured key does not exist.
    """
    block = model.layers[-1]
    known = sorted(name for name, module in block.named_modules() if isinstance(module, nn.Linear | nn.QuantizedLinear))
    if lora.keys is None:
        return known
    unknown = sorted(set(lora.keys) - set(known))
    if unknown:
        raise HarnessError(f"lora.keys: the draft's blocks have no linear layer {unknown[0]!r}", f"Choose from {', '.join(known)}.")
    return sorted(lora.keys)


def attach(model: Any, lora: LoraConfig) -> None:
    """Freeze the draft and wrap its linear layers in mlx-lm's LoRA or DoRA modules, randomly initialised.

    Raises:
        HarnessError: settings that do not fit the draft, or a draft that carries an update already.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    if any(is_adapter(module) for _, module in model.named_modules()):
        raise HarnessError("the draft carries an adapter already", "Activate None in its adapter bank first.")
    odd = [m.bits for _, m in model.named_modules() if isinstance(m, nn.QuantizedLinear) and m.bits not in (2, 4, 8)]
    if lora.dora and odd:
        raise HarnessError(f"DoRA of weights in {odd[0]} bits, which mlx-lm does not take apart", "Train LoRA: set `dora: false`.")
    parameters = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout, "keys": lora_keys(model, lora)}
    model.freeze()
    linear_to_lora_layers(model, adapted_layers(model, lora), parameters, use_dora=lora.dora)


def detach(model: Any) -> None:
    """Put the wrapped base layers back: the model is bit for bit what it was before :func:`attach`."""
    bases = [(name, module.linear) for name, module in model.named_modules() if is_adapter(module)]
    if bases:
        model.update_modules(tree_unflatten(bases))


def is_adapter(module: Any) -> bool:
    """True for mlx-lm's LoRA and DoRA linear layers."""
    return "lora_a" in module and "linear" in module


@contextmanager
def attached(model: Any, lora: LoraConfig) -> Iterator[None]:
    """:func:`attach` for the duration of a block."""
    attach(model, lora)
    try:
        yield
    finally:
        detach(model)
        model.eval()


def adapter_weights(model: Any) -> dict[str, mx.array]:
    """Return the trained arrays by name, as mlx-lm names them."""
    return dict(tree_flatten(model.trainable_parameters()))
