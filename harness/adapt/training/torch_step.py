"""Loss and gradients of an adapter in torch, where mlx computes on a CPU: the trainer's own mathematics, several times faster.

A torch that sees a GPU computes there. Matrix products are bfloat16 where the device has instructions for them, else float32; the
residual stream, the norms, the losses and the adapter itself are float32. The logits are gone through once: their gradient is written
over them. Validation, and whatever decides whether an adapter is kept, stays on mlx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.adapters.surface import adapted_layers
from harness.adapt.training.examples import Batch
from harness.adapt.training.losses import EPSILON, logit_rows
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.core.errors import HarnessError
from harness.models.mlx_names import mx
from routing.apart import apart

if TYPE_CHECKING:
    import torch


class TorchStep:
    """Computes what :class:`harness.adapt.training.trainer` asks of the draft in an update.

    Args:
        model: plain draft, llama or qwen2 as mlx-lm loads it, before updates are attached; its weights are copied.
        config: which blocks and layers are trained, and the loss.
        dtype: of the matrix products; the fastest one here when None.

    Raises:
        HarnessError: as :func:`harness.answers.torch_llama.read_shape`.
    """

    def __init__(self, model: Any, config: TrainingConfig, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or torch_llama.fast_dtype()
        self.shape = torch_llama.shape_of(model)
        self.weights = torch_llama.load(model, self.shape, self.dtype)
        self.where = self.weights["embed"].device
        self.norms = _norms(self.weights)
        self.first = self.shape.layers - adapted_layers(model, config.lora)
        self.scale, self.parts = config.lora.scale, config.loss.parts()

    @property
    def name(self) -> str:
        """Number format of the products: states computed here differ by it."""
        return str(self.dtype).removeprefix("torch.")

    @apart
    def states(self, tokens: np.ndarray) -> np.ndarray:
        """Hidden states (n, dim) float32 of one sequence (n,) below the lowest trained block."""
        import torch

        with torch.inference_mode():
            h = self._embed(tokens[None])
            cos, sin = self._rope(h)
            for i in range(self.first):
                h = self._block(i, h, cos, sin, {})
            found: np.ndarray = h[0].cpu().numpy()
            return found

    def __call__(self, batch: Batch, prefix: np.ndarray | None, share: float, adapter: Mapping[str, mx.array]) -> tuple[float, dict]:
        """Return the loss of a batch, times ``share``, and its gradients by adapter array name.

        Args:
            batch: B examples of length L.
            prefix: (B, L, dim) states below the lowest trained block; None computes them.
            share: factor, the inverse of the sum of weights of the update.
            adapter: mlx-lm's names -> arrays.
        """
        loss, gradients = self._differentiate(batch, prefix, share, {name: np.array(array) for name, array in adapter.items()})
        return loss, {name: mx.array(gradient) for name, gradient in gradients.items()}

    @apart
    def _differentiate(self, batch: Batch, prefix: np.ndarray | None, share: float, adapter: dict[str, np.ndarray]) -> tuple[float, dict]:
        import torch

        update = {name: self._tensor(array).requires_grad_() for name, array in adapter.items()}
        rows = self._tensor(batch.rows).long()
        h = self._embed(batch.tokens) if prefix is None else self._tensor(prefix)
        cos, sin = self._rope(h)
        for i in range(0 if prefix is None else self.first, self.shape.layers):
            last = i == self.shape.layers - 1
            h = self._block(i, h, cos, sin, update, rows if last else None)
        z = self._norm(h, "norm")
        loss, gradient = self._head(z.detach(), batch, share)
        found = torch.autograd.grad(z, list(update.values()), gradient)
        return loss, {name: array.cpu().numpy() for name, array in zip(update, found, strict=True)}

    # --- the model ---

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self.where)

    def _embed(self, tokens: np.ndarray) -> torch.Tensor:
        return self.weights["embed"][self._tensor(tokens).long()].float()

    def _rope(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        return torch_llama.rope_tables(self.shape, torch.arange(h.shape[1], device=self.where)[None], self.dtype)

    def _norm(self, h: torch.Tensor, name: str) -> torch.Tensor:
        return torch_llama.norm(self.shape, h, self.norms[name]).to(self.dtype)

    def _block(
        self,
        index: int,
        h: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        update: Mapping[str, torch.Tensor],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One block, (B, L, dim) -> (B, L, dim), or (N, dim) where only ``rows`` (N,) of the flat positions go on behind its attention."""
        import torch.nn.functional as fn

        layer = f"layers.{index}"
        q, k, v = torch_llama.split_heads(self.shape, self._linear(index, "qkv", self._norm(h, f"{layer}.norm1"), update), cos, sin)
        a = fn.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
        if rows is not None:
            a, h = a.flatten(0, 1)[rows], h.flatten(0, 1)[rows]
        h = h + self._linear(index, "o", a, update)
        gate, up = self._linear(index, "gate_up", self._norm(h, f"{layer}.norm2"), update).split(self.shape.intermediate, dim=-1)
        return h + self._linear(index, "down", fn.silu(gate) * up, update)

    def _linear(self, index: int, name: str, x: torch.Tensor, update: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A stored projection with the updates of the layers it joins."""
        import torch
        import torch.nn.functional as fn

        layer = f"layers.{index}.{name}"
        y = fn.linear(x, self.weights[layer], self.weights.get(f"{layer}_bias"))
        found = [f"model.layers.{index}.{key}" for key in torch_llama.LAYERS[name]]
        if not any(f"{key}.lora_a" in update for key in found):
            return y
        added = []
        for key, width in zip(found, self.shape.rows(name), strict=True):
            if f"{key}.lora_a" in update:
                a, b = (update[f"{key}.lora_{part}"].to(self.dtype) for part in "ab")
                added.append((x @ a) @ (self.scale * b))
            else:
                added.append(y.new_zeros(*y.shape[:-1], width))
        return y + (added[0] if len(added) == 1 else torch.cat(added, dim=-1))

    # --- the loss ---

    def _head(self, z: torch.Tensor, batch: Batch, share: float) -> tuple[float, torch.Tensor]:
        """Loss over the normed states (N, dim) and its gradient by them."""
        import torch

        labels, weights, tops, p = (self._tensor(a) for a in (batch.labels, batch.weights, batch.top_tokens, batch.top_p))
        step = logit_rows(len(self.weights["embed"]))
        total, gradients = 0.0, []
        for at in range(0, len(z), step):
            part = slice(at, at + step)
            loss, gradient = self._piece(z[part], labels[part].long(), weights[part], tops[part].long(), p[part], share)
            total += loss
            gradients.append(gradient)
        return total, torch.cat(gradients)

    def _piece(
        self, z: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, tops: torch.Tensor, p: torch.Tensor, share: float
    ) -> tuple[float, torch.Tensor]:
        """Gradients go through the few logits that the loss names and through the normaliser, whose own is the softmax."""
        import torch

        with torch.no_grad():
            logits = (z @ self.weights["embed"].T).float()  # (N, V)
            columns = torch.cat([labels[:, None], tops.clamp(min=0)], dim=1)
            named, most = logits.gather(1, columns), logits.amax(dim=1, keepdim=True)
            sums = logits.sub_(most).exp_().sum(dim=1, keepdim=True)
            normaliser = most + sums.log()
        normaliser.requires_grad_()
        named.requires_grad_()
        loss = (weighted(named - normaliser, tops >= 0, p, self.parts) * weights).sum() * share
        by_normaliser, by_named = torch.autograd.grad(loss, (normaliser, named))
        with torch.no_grad():
            logits.mul_(by_normaliser / sums).scatter_add_(1, columns, by_named)
            return loss.item(), logits.to(self.dtype) @ self.weights["embed"]


@apart
def _norms(weights: torch_llama.Weights) -> torch_llama.Weights:
    return {name: w.float() for name, w in weights.items() if "norm" in name}


def weighted(log_q: torch.Tensor, valid: torch.Tensor, p: torch.Tensor, parts: Mapping[str, float]) -> torch.Tensor:
    """The mix of losses at N positions, (N,): :func:`harness.adapt.training.losses.weighted_loss` before its sum.

    Args:
        log_q: (N, 1 + k) draft log-probabilities of the label and of the target's top tokens.
        valid: (N, k), False is padding.
        p: (N, k) target probabilities.
        parts: loss name -> factor.
    """
    import torch

    total = -parts["ce"] * log_q[:, 0] if "ce" in parts else torch.zeros_like(log_q[:, 0])
    top = torch.where(valid, log_q[:, 1:], 0.0)
    q = torch.where(valid, top.exp(), 0.0)
    p = torch.where(valid, p, 0.0)
    p_rest, q_rest = ((1 - x.sum(dim=1, keepdim=True)).clamp(min=0) for x in (p, q))
    p, q, log_q = torch.cat([p, p_rest], 1), torch.cat([q, q_rest], 1), torch.cat([top, _log(q_rest)], 1)
    for name, factor in parts.items():
        if name != "ce":
            total = total + factor * DIVERGENCES[name](p, _log(p), q, log_q).sum(dim=1)
    return total


def _log(p: torch.Tensor) -> torch.Tensor:
    return p.clamp(min=EPSILON).log()


def _js(p: torch.Tensor, log_p: torch.Tensor, q: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    middle = _log((p + q) / 2)
    return (p * (log_p - middle) + q * (log_q - middle)) / 2


DIVERGENCES: dict[str, Callable[..., torch.Tensor]] = {
    "forward_kl": lambda p, log_p, q, log_q: p * (log_p - log_q),
    "reverse_kl": lambda p, log_p, q, log_q: q * (log_q - log_p),
    "js": _js,
}
"""The divergences of :mod:`harness.adapt.training.losses`, before their sum over bins."""


def torch_step(draft: Any, config: TrainingConfig) -> TorchStep | None:
    """The step in torch where ``optim.backend`` allows it and it helps; None is the trainer's own on mlx.

    Dropout, DoRA, gradient checkpointing, quantised drafts, pruned vocabularies and other architectures stay on mlx.
    """
    odd = config.optim.gradient_checkpointing or config.lora.dora or config.lora.dropout > 0 or draft.token_map is not None
    if config.optim.backend == "mlx" or odd or not torch_llama.worthwhile(draft.model, torch_llama.fast_dtype()):
        return None
    try:
        return TorchStep(draft.model, config)
    except HarnessError:  # another architecture, or quantised
        return None
