"""Loss and gradients of an adapter in torch, where mlx computes on a CPU: the trainer's own mathematics, several times faster.

A torch that sees a GPU computes there. Matrix products are bfloat16 where the device has instructions for them, else float32; the
residual stream, the norms, the losses and the adapter itself are float32. The logits are gone through once: their gradient is written
over them. Validation, and whatever decides whether an adapter is kept, stays on mlx.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.adapters.surface import adapted_layers
from harness.adapt.training.examples import Batch
from harness.adapt.training.torch_parts import draft_weights, head_loss, shape_of, updated
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.models.mlx_names import mx
from routing.apart import apart

if TYPE_CHECKING:
    import torch

TOKENS_AT_ONCE = 4096
"""Tokens, padding included, that go through the draft together: what larger pieces leave behind comes from the system anew each time,
and takes several times as long."""
KNOWN = ("labels", "weights", "top_tokens", "top_p")
"""Fields of a batch that :func:`harness.adapt.training.torch_parts.head_loss` reads."""


class TorchStep:
    """Computes what :class:`harness.adapt.training.trainer` asks of the draft in an update.

    Args:
        model: draft, llama or qwen2 as mlx-lm loads it or a cut, before updates are attached; its weights are copied.
        config: which blocks and layers are trained, and the loss.
        dtype: of the matrix products; the fastest one here when None.

    Raises:
        HarnessError: as :func:`harness.adapt.training.torch_parts.shape_of`.
    """

    def __init__(self, model: Any, config: TrainingConfig, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or torch_llama.fast_dtype()
        self.shape = shape_of(model)
        self.weights, self.head = draft_weights(model, self.shape, self.dtype)
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
        total, sums = 0.0, [torch.zeros_like(w) for w in update.values()]
        for examples, answers in _pieces(batch):
            rows = batch.rows[answers] - examples.start * batch.tokens.shape[1]
            z = self._states_of(batch.tokens[examples], None if prefix is None else prefix[examples], rows, update)
            known = {name: array[answers] for name, array in vars(batch).items() if name in KNOWN}
            loss, gradient = head_loss(self.head, z.detach(), known, share, self.parts)
            total += loss
            for one, new in zip(sums, torch.autograd.grad(z, list(update.values()), gradient), strict=True):
                one += new
        return total, {name: array.cpu().numpy() for name, array in zip(update, sums, strict=True)}

    def _states_of(self, tokens: np.ndarray, prefix: np.ndarray | None, rows: np.ndarray, update: dict[str, torch.Tensor]) -> torch.Tensor:
        """Normed states (N, dim) at the flat ``rows`` (N,) of ``tokens`` (B, L)."""
        h = self._embed(tokens) if prefix is None else self._tensor(prefix)
        rope = self._rope(h)
        for i in range(0 if prefix is None else self.first, self.shape.layers):
            last = i == self.shape.layers - 1
            added = partial(updated, self.shape, update, self.scale, i)
            h = torch_llama.block(self.shape, self.weights, i, h, rope, added=added, rows=self._tensor(rows).long() if last else None)
        return torch_llama.norm(self.shape, h, self.weights["norm"]).to(self.dtype)

    # --- the model ---

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self.where)

    def _embed(self, tokens: np.ndarray) -> torch.Tensor:
        embed = self.weights["embed"]
        return embed[self._tensor(tokens).long().clamp(max=len(embed) - 1)].float()

    def _rope(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        return torch_llama.rope_tables(self.shape, torch.arange(h.shape[1], device=self.where)[None], self.dtype)


def _pieces(batch: Batch) -> Iterator[tuple[slice, slice]]:
    """Examples that go through the draft together, and their answer positions."""
    length = batch.tokens.shape[1]
    size = max(1, TOKENS_AT_ONCE // length)
    for at in range(0, len(batch.tokens), size):
        first, end = np.searchsorted(batch.rows, [at * length, (at + size) * length])
        if end > first:
            yield slice(at, at + size), slice(first, end)


def torch_step(draft: LoadedDraft, config: TrainingConfig) -> TorchStep | None:
    """The step in torch where ``optim.backend`` allows it and it helps; None is the trainer's own on mlx.

    Dropout, DoRA, gradient checkpointing, quantised drafts and other architectures stay on mlx.
    """
    odd = config.optim.gradient_checkpointing or config.lora.dora or config.lora.dropout > 0
    if config.optim.backend == "mlx" or odd or not torch_llama.worthwhile(draft.model, torch_llama.fast_dtype()):
        return None
    try:
        return TorchStep(draft.model, config)
    except HarnessError:  # another architecture, or quantised
        return None
