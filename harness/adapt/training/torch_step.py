"""Loss and gradients of an adapter in torch, where mlx computes on a CPU: the trainer's own mathematics, several times faster.

A torch that sees a GPU computes there. Matrix products are bfloat16 where the device has instructions for them, else float32; the
residual stream, the norms, the losses and the adapter itself are float32. The logits are gone through once: their gradient is written
over them. Validation, and whatever decides whether an adapter is kept, stays on mlx.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.adapters.surface import adapted_layers
from harness.adapt.training.examples import Batch
from harness.adapt.training.torch_parts import head_loss, updated
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
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
        self.weights = _wide_norms(torch_llama.load(model, self.shape, self.dtype))
        self.where = self.weights["embed"].device
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
            rope = self._rope(h)
            for i in range(self.first):
                h = torch_llama.block(self.shape, self.weights, i, h, rope)
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
        rope = self._rope(h)
        for i in range(0 if prefix is None else self.first, self.shape.layers):
            last = i == self.shape.layers - 1
            added = partial(updated, self.shape, update, self.scale, i)
            h = torch_llama.block(self.shape, self.weights, i, h, rope, added=added, rows=rows if last else None)
        z = torch_llama.norm(self.shape, h, self.weights["norm"]).to(self.dtype)
        loss, gradient = head_loss(self.weights["embed"], z.detach(), vars(batch), share, self.parts)
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


@apart
def _wide_norms(weights: torch_llama.Weights) -> torch_llama.Weights:
    return {name: w.float() if "norm" in name else w for name, w in weights.items()}


def torch_step(draft: LoadedDraft, config: TrainingConfig) -> TorchStep | None:
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
