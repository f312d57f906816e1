"""Parts of a training step in torch: the draft's weights, what a LoRA adds to a projection, the loss over the output head, and chances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.loss_formulas import mixed
from harness.adapt.training.losses import logit_rows
from harness.answers import torch_llama
from harness.models.mlx_names import mx, tree_flatten
from routing.apart import apart

if TYPE_CHECKING:
    import torch


def shape_of(model: Any) -> torch_llama.Shape:
    """Shape of a draft that mlx has loaded; a cut has a head of its own.

    Raises:
        HarnessError: another architecture than llama or qwen2, or quantised weights.
    """
    quantised = any(hasattr(module, "scales") for module in model.modules())
    return torch_llama.read_shape({**vars(model.args), "tie_word_embeddings": True, "quantization": quantised})


def draft_weights(
    model: Any, shape: torch_llama.Shape, dtype: torch.dtype, rows: np.ndarray | None = None
) -> tuple[torch_llama.Weights, torch.Tensor]:
    """A copy of a draft's weights, norms in float32, and its output head, or the ``rows`` of it."""
    own = dict(tree_flatten(model.parameters())).get("lm_head.weight")
    return _arranged(torch_llama.load(model, shape, dtype), None if own is None else np.array(own.astype(mx.float32)), dtype, rows)


@apart
def _arranged(
    weights: torch_llama.Weights, own: np.ndarray | None, dtype: torch.dtype, rows: np.ndarray | None
) -> tuple[torch_llama.Weights, torch.Tensor]:
    import torch

    embed = weights["embed"]
    head = embed if own is None else torch.from_numpy(own).to(embed.device, dtype)
    head = head if rows is None else head[torch.from_numpy(rows).to(embed.device)]
    return {name: w.float() if "norm" in name else w for name, w in weights.items()}, head


def updated(
    shape: torch_llama.Shape,
    update: Mapping[str, torch.Tensor],
    scale: float,
    index: int,
    name: str,
    x: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """A stored projection's output ``y`` for ``x`` with the updates of the layers it joins.

    Args:
        shape: of the model.
        update: mlx-lm's names -> arrays; others are left alone.
        scale: factor of the update.
        index: block.
        name: of the projection, as in :data:`harness.answers.torch_llama.LAYERS`.
        x: its input.
        y: its output.
    """
    import torch

    found = [f"model.layers.{index}.{key}" for key in torch_llama.LAYERS[name]]
    if not any(f"{key}.lora_a" in update for key in found):
        return y
    added = []
    for key, width in zip(found, shape.rows(name), strict=True):
        if f"{key}.lora_a" in update:
            a, b = (update[f"{key}.lora_{part}"].to(y.dtype) for part in "ab")
            added.append((x @ a) @ (scale * b))
        else:
            added.append(y.new_zeros(*y.shape[:-1], width))
    return y + (added[0] if len(added) == 1 else torch.cat(added, dim=-1))


def head_loss(
    head: torch.Tensor, z: torch.Tensor, known: Mapping[str, np.ndarray], share: float, parts: Mapping[str, float]
) -> tuple[float, torch.Tensor]:
    """Loss over normed states and its gradient by them, some rows of logits at a time.

    Args:
        head: (V, dim) the output head.
        z: (N, dim).
        known: ``labels`` (N,), ``weights`` (N,), ``top_tokens`` (N, k), -1 is padding, and ``top_p`` (N, k), of a
            :class:`~harness.adapt.training.examples.Batch`.
        share: factor of the sum.
        parts: loss name -> weight.
    """
    import torch

    names = ("labels", "weights", "top_tokens", "top_p")
    labels, weights, tops, p = (torch.from_numpy(known[name]).to(z.device) for name in names)
    step = logit_rows(len(head))
    total, gradients = 0.0, []
    for at in range(0, len(z), step):
        part = slice(at, at + step)
        loss, gradient = _piece(head, z[part], labels[part].long(), weights[part], tops[part].long(), p[part], share, parts)
        total += loss
        gradients.append(gradient)
    return total, torch.cat(gradients)


def _piece(
    head: torch.Tensor,
    z: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    tops: torch.Tensor,
    p: torch.Tensor,
    share: float,
    parts: Mapping[str, float],
) -> tuple[float, torch.Tensor]:
    """Gradients go through the few logits that the loss names and through the normaliser, whose own is the softmax."""
    import torch

    with torch.no_grad():
        logits = (z @ head.T).float()  # (N, V)
        columns = torch.cat([labels[:, None], tops.clamp(min=0)], dim=1)
        named, most = logits.gather(1, columns), logits.amax(dim=1, keepdim=True)
        sums = logits.sub_(most).exp_().sum(dim=1, keepdim=True)
        normaliser = most + sums.log()
    normaliser.requires_grad_()
    named.requires_grad_()
    loss = (mixed(torch, named - normaliser, tops >= 0, p, parts) * weights).sum() * share
    by_normaliser, by_named = torch.autograd.grad(loss, (normaliser, named))
    with torch.no_grad():
        logits.mul_(by_normaliser / sums).scatter_add_(1, columns, by_named)
        return loss.item(), logits.to(z.dtype) @ head


def label_chances(head: torch.Tensor, z: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Probability (N,) of the ``labels`` (N,) at normed states ``z`` (N, dim), some rows of logits at a time; no gradients."""
    import torch

    ids, step = torch.from_numpy(labels).long().to(z.device), logit_rows(len(head))
    found = []
    with torch.no_grad():
        for at in range(0, len(z), step):
            logits = (z[at : at + step] @ head.T).float()
            found.append((logits.gather(1, ids[at : at + step, None])[:, 0] - logits.logsumexp(dim=1)).exp())
    chances: np.ndarray = torch.cat(found).cpu().numpy()
    return chances
