"""Llama and Qwen2 models in torch, for the heavy jobs of training: target rollouts, updates of an adapter, fitting a cut of the target.

On Linux CPUs torch runs vectorised activations, and bfloat16 matrix products where the processor has them, several times faster than
mlx does; with a CUDA build of torch they run on the GPU. Decoding, replay and every measurement stay on mlx; a test holds the
two implementations to the same logits.
Projections that read the same input are stored joined: ``qkv`` and ``gate_up``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.folder import read_config
from harness.models.tensors import read_header
from harness.models.tokenizer_check import FETCH
from routing.apart import apart

if TYPE_CHECKING:
    import torch

FAMILIES = ("llama", "qwen2")
"""Architectures (``model_type``) that are decoded; ``qwen2`` differs by biases of ``qkv`` alone."""
_QUERY_BIAS = "model.layers.0.self_attn.q_proj.bias"
MEMORY_SHARE = 0.25
"""Largest second copy of a model that is made for speed, as a share of the machine's memory."""
LAYERS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "norm1": ("input_layernorm",),
    "norm2": ("post_attention_layernorm",),
}
"""Weight of a block as stored here -> the layers, by their names in mlx-lm, whose rows it joins."""
Weights = dict[str, "torch.Tensor"]
"""Name (``layers.0.qkv``, ``norm``, ``embed``, ``head``) -> weight."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of ``config.json`` that the forward pass needs."""

    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of one head."""
    intermediate: int
    """Width of the MLP."""
    layers: int
    """Transformer blocks."""
    eps: float
    """RMS norm epsilon."""
    rope_theta: float
    """Base of the rotary embedding."""

    def rows(self, name: str) -> list[int]:
        """Rows of each layer that the weight ``name`` of :data:`LAYERS` joins."""
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"qkv": [heads, kv, kv], "gate_up": [self.intermediate] * 2}.get(name, [self.hidden])


def read_shape(config: dict[str, Any], families: Sequence[str] = FAMILIES) -> Shape:
    """Shape of a ``config.json`` of one of the ``families``.

    Raises:
        HarnessError: another architecture, or a variant this forward pass does not cover.
    """
    odd = [key for key in ("rope_scaling", "attention_bias", "quantization", "use_sliding_window") if config.get(key)]
    if config.get("model_type") not in families or odd or not config.get("tie_word_embeddings"):
        raise HarnessError(
            f"this takes plain {' or '.join(families)} models with tied embeddings, not {config.get('model_type')!r} of this kind",
            "Choose another target, or train an adapter of its draft with `harness train`.",
        )
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        eps=config["rms_norm_eps"],
        rope_theta=config.get("rope_theta", 10000.0),
    )


def device() -> torch.device:
    """The GPU where torch sees one through CUDA, else the processor."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the device has instructions for its products, else float32: the same answer in every process of a machine.

    A resumed run must go on in the number format it began with, so this is not a matter of timing.
    """
    import torch

    fast = device().type == "cuda" or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if fast else torch.float32


def worthwhile(model: Any, dtype: torch.dtype) -> bool:
    """True where mlx computes on a CPU, on which torch is faster, and the memory has room for another copy of ``model``."""
    import psutil
    from mlx.utils import tree_flatten

    from harness.models.blas import mx

    if mx.default_device().type != mx.DeviceType.cpu:
        return False
    size = sum(p.size for _, p in tree_flatten(model.parameters())) * dtype.itemsize
    return size <= MEMORY_SHARE * int(psutil.virtual_memory().total)


def shape_of(source: Path | Any, families: Sequence[str] = FAMILIES) -> Shape:
    """Shape of a model folder, or of a model that mlx-lm has loaded.

    Raises:
        HarnessError: as :func:`read_shape`, or quantised weights.
    """
    if isinstance(source, Path):
        with files.reading(source / "config.json", advice=FETCH):
            return read_shape(read_config(source), families)
    quantised = any(hasattr(module, "scales") for module in source.modules())
    return read_shape({**vars(source.args), "quantization": quantised}, families)


def load(source: Path | Any, shape: Shape, dtype: torch.dtype) -> Weights:
    """Joined weights of ``dtype`` on :func:`device`, from a model folder or a model that mlx-lm has loaded."""
    return _read_folder(source, shape, dtype) if isinstance(source, Path) else _copy(_arrays(source), shape, dtype)


@apart
def _read_folder(folder: Path, shape: Shape, dtype: torch.dtype) -> Weights:
    from safetensors import safe_open

    where = device()
    read_header(path := folder / "model.safetensors")
    with files.reading(path, advice=FETCH), safe_open(path, framework="pt") as file:
        biased = _QUERY_BIAS in file.keys()  # noqa: SIM118
        return _join(shape, lambda name: file.get_tensor(name).to(where, dtype), biased=biased)


def _arrays(model: Any) -> dict[str, np.ndarray]:
    """The model's weights by mlx-lm's names, not copied, bfloat16 as its bits; mlx evaluates an array only on the thread that made it."""
    from mlx.utils import tree_flatten

    from harness.models.blas import mx

    return {n: np.asarray(w.view(mx.uint16) if w.dtype == mx.bfloat16 else w) for n, w in tree_flatten(model.parameters())}


@apart
def _copy(arrays: dict[str, np.ndarray], shape: Shape, dtype: torch.dtype) -> Weights:
    import torch

    where = device()

    def get(name: str) -> torch.Tensor:
        found = torch.from_numpy(arrays[name])
        return (found.view(torch.bfloat16) if found.dtype == torch.uint16 else found).to(where, dtype)

    return _join(shape, get, biased=_QUERY_BIAS in arrays)


def load_llama(folder: Path) -> tuple[Shape, Weights]:
    """Shape and float32 weights of a Llama in a model folder: what a draft can be cut from.

    Raises:
        HarnessError: as :func:`read_shape`.
    """
    import torch

    shape = shape_of(folder, ("llama",))
    return shape, load(folder, shape, torch.float32)


def _join(shape: Shape, get: Callable[[str], torch.Tensor], *, biased: bool) -> Weights:
    import torch

    def read(*names: str, kind: str = "weight") -> torch.Tensor:
        return torch.cat([get(f"model.{name}.{kind}") for name in names])

    weights: Weights = {"embed": read("embed_tokens"), "norm": read("norm")}
    for i in range(shape.layers):
        at = f"layers.{i}"
        weights |= {f"{at}.{name}": read(*(f"{at}.{part}" for part in parts)) for name, parts in LAYERS.items()}
        if biased:
            weights[f"{at}.qkv_bias"] = read(*(f"{at}.{part}" for part in LAYERS["qkv"]), kind="bias")
    return weights


def rope_tables(shape: Shape, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (B, n, 1, head_dim / 2) for integer ``positions`` (B, n)."""
    import torch

    half = shape.head_dim // 2
    rates = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32, device=positions.device) / half)
    angles = (positions.to(torch.float32)[..., None] * rates)[:, :, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of the last axis of ``x`` (B, n, heads, head_dim)."""
    import torch

    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def split_heads(shape: Shape, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries (B, heads, n, d) and keys, and values (B, kv_heads, n, d), from the joined projection (B, n, .)."""
    rows, n, _ = qkv.shape
    x = qkv.view(rows, n, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    qk = rotate(x[:, :, : shape.heads + shape.kv_heads], cos, sin).transpose(1, 2)
    values = x[:, :, shape.heads + shape.kv_heads :].transpose(1, 2)
    return qk[:, : shape.heads], qk[:, shape.heads :], values


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention without a cache, (B, heads, n, d) -> (B, n, heads d)."""
    import torch.nn.functional as fn

    return fn.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)


def block(
    shape: Shape,
    weights: Weights,
    index: int,
    h: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor],
    *,
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = attend,
    added: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor] = lambda name, x, y: y,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """One transformer block, (B, n, hidden) -> (B, n, hidden).

    Args:
        shape: of the model.
        weights: its weights; norms may be of a wider type than the products, whose type their inputs take.
        index: which block.
        h: the residual stream.
        rope: cosines and sines of the positions.
        attend: attention over rotated queries, keys and values; may keep them.
        added: what stands in place of a projection's output, given its name in :data:`LAYERS`, its input and that output.
        rows: (N,) flat positions that go on behind the attention: (N, hidden) comes back.
    """
    import torch.nn.functional as fn

    layer = f"layers.{index}"

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        return added(name, x, fn.linear(x, weights[f"{layer}.{name}"], weights.get(f"{layer}.{name}_bias")))

    def normed(name: str) -> torch.Tensor:
        return norm(shape, h, weights[f"{layer}.{name}"]).to(weights[f"{layer}.qkv"].dtype)

    a = attend(*split_heads(shape, project("qkv", normed("norm1")), *rope))
    if rows is not None:
        a, h = a.flatten(0, 1)[rows], h.flatten(0, 1)[rows]
    h = h + project("o", a)
    gate, up = project("gate_up", normed("norm2")).split(shape.intermediate, dim=-1)
    return h + project("down", fn.silu(gate) * up)


def states_after(shape: Shape, weights: Weights, tokens: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Residual streams of ``tokens`` (B, n) after some numbers of blocks, side by side: (B, n, places x hidden) float32.

    Norms in ``weights`` are float32, the other weights of the type of the products.
    """
    import torch

    h, found = weights["embed"][tokens].float(), {}
    rope = rope_tables(shape, torch.arange(tokens.shape[1], device=tokens.device)[None], weights["embed"].dtype)
    for i in range(max(places)):
        h = block(shape, weights, i, h, rope)
        found[i + 1] = h
    return torch.cat([found[place] for place in places], dim=-1)


def norm(shape: Shape, h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last axis."""
    import torch.nn.functional as fn

    return fn.rms_norm(h, (shape.hidden,), weight, shape.eps)
