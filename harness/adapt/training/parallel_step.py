"""Loss and gradients of masks in torch: one pass over an answer, then one over many groups of masks that stand behind its tokens.

The draft is frozen and masks are invisible to its own tokens, so what the masks see of the answer, keys and values of every block, is
computed once without gradients. The groups are laid out in one row; a mask sees the answer up to its group's start and the masks of
its group up to itself. On a CPU or through CUDA; llama and qwen2, whole or a cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.training.examples import Example, invert, make_batch
from harness.adapt.training.torch_parts import head_loss, updated
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.models.mlx_names import mx, tree_flatten
from harness.models.parallel import MASKS
from routing.apart import apart

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Masks behind some tokens of one example: M of them."""

    starts: np.ndarray
    """(M,) int32: tokens that the mask's group stands behind, prompt included."""
    steps: np.ndarray
    """(M,) int32: which mask of its group it is, from 0."""


def plan_groups(example: Example, masks: int, keep: float, rng: np.random.Generator) -> Groups:
    """A group behind every answer token but the last ones, of random length.

    A group has mask j + 1 in ``keep`` of the cases in which it has mask j: what is dropped is always the end, which no other mask sees.

    Args:
        example: the answer.
        masks: most of a group.
        keep: chance of going on.
        rng: draws the lengths.
    """
    answer = len(example.answer)
    drawn = 1 + (np.cumprod(rng.random((answer - 1, masks - 1)) < keep, axis=1)).sum(axis=1)
    lengths = np.minimum(drawn, np.arange(answer - 1, 0, -1)).astype(np.int64)  # a mask predicts a token of the answer
    starts = np.repeat(example.start + np.arange(answer - 1), lengths)
    steps = np.concatenate([np.arange(n) for n in lengths]) if answer > 1 else np.zeros(0)
    return Groups(starts=starts.astype(np.int32), steps=steps.astype(np.int32))


class ParallelStep:
    """Computes what training asks of masks.

    Args:
        draft: its weights are copied.
        config: which blocks and layers get a LoRA, and the loss.
        dtype: of the matrix products; the fastest one here when None.

    Raises:
        HarnessError: another architecture, or quantised weights.
    """

    def __init__(self, draft: LoadedDraft, config: TrainingConfig, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or torch_llama.fast_dtype()
        self.shape = _shape(draft.model)
        self.scale, self.parts = config.lora.scale, config.loss.parts()
        self.vocab = _Vocabulary(draft)
        self.weights, self.head = _load(draft, self.shape, self.dtype, self.vocab.rows)
        self.where = self.head.device

    def __call__(self, lesson: Lesson, share: float, update: Mapping[str, mx.array]) -> tuple[float, dict[str, Any]]:
        """Loss over the masks of an example, times ``share``, and its gradients by name.

        Args:
            lesson: the answer and its masks.
            share: factor, the inverse of the sum of weights of the update.
            update: ``masks`` (m, dim) and mlx-lm's names of the LoRA -> arrays.
        """
        loss, found = self._differentiate(lesson, share, {name: np.array(array) for name, array in update.items()})
        return loss, {name: mx.array(array) for name, array in found.items()}

    @apart
    def _differentiate(self, lesson: Lesson, share: float, arrays: dict[str, np.ndarray]) -> tuple[float, dict]:
        import torch

        update = {name: torch.from_numpy(array).to(self.where).requires_grad_() for name, array in arrays.items()}
        z = self._states(lesson.example, lesson.groups, update, lesson.rows).to(self.dtype)
        extra = self.weights["embed"][torch.from_numpy(lesson.extra).to(self.where)]
        head = torch.cat([self.head, extra]) if len(lesson.extra) else self.head
        loss, gradient = head_loss(head, z.detach(), lesson.known, share, self.parts)
        found = torch.autograd.grad(z, list(update.values()), gradient)
        return loss, {name: array.cpu().numpy() for name, array in zip(update, found, strict=True)}

    @apart
    def states(self, example: Example, groups: Groups, update: Mapping[str, np.ndarray]) -> np.ndarray:
        """Normed states (M, dim) of the masks."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(self.where) for name, array in update.items()}
            found: np.ndarray = self._states(example, groups, tensors, np.arange(len(groups.steps))).cpu().numpy()
            return found

    def _states(self, example: Example, groups: Groups, update: Mapping[str, torch.Tensor], rows: np.ndarray) -> torch.Tensor:
        """Normed states (N, dim) of the masks ``rows`` (N,)."""
        import torch

        starts, steps = (torch.from_numpy(a).long().to(self.where) for a in (groups.starts, groups.steps))
        answer = self._answer(example.tokens[:-1])
        seen = torch.arange(len(example.tokens) - 1, device=self.where)[None] < starts[:, None]
        own = (starts[:, None] == starts[None]) & (steps[None] <= steps[:, None])
        allowed = torch.cat([seen, own], dim=1)
        rope = torch_llama.rope_tables(self.shape, (starts + steps)[None], self.dtype)
        h, wanted = update[MASKS].float()[steps][None], torch.from_numpy(rows).long().to(self.where)
        for i, (keys, values) in enumerate(answer):
            h = torch_llama.block(
                self.shape,
                self.weights,
                i,
                h,
                rope,
                attend=partial(_attend, keys, values, allowed),
                added=partial(updated, self.shape, update, self.scale, i),
                rows=wanted if i == self.shape.layers - 1 else None,
            )
        return torch_llama.norm(self.shape, h, self.weights["norm"])

    def _answer(self, tokens: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values (1, heads, n, dim) of every block along the tokens (n,), without gradients."""
        import torch

        found: list[tuple[torch.Tensor, torch.Tensor]] = []

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            found.append((k, v))
            return torch_llama.attend(q, k, v)

        with torch.no_grad():
            ids = torch.from_numpy(np.minimum(tokens, len(self.weights["embed"]) - 1)).long().to(self.where)
            h = self.weights["embed"][ids][None].float()
            rope = torch_llama.rope_tables(self.shape, torch.arange(len(tokens), device=self.where)[None], self.dtype)
            for i in range(self.shape.layers):
                h = torch_llama.block(self.shape, self.weights, i, h, rope, attend=attend)
        return found


def _attend(
    keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Attention of the masks over the answer and themselves, where it is ``allowed`` (M, n + M)."""
    import torch
    import torch.nn.functional as fn

    k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    return fn.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Lesson:
    """An example, its masks, and what the target said where they propose: N masks have a token that the draft can say."""

    example: Example
    groups: Groups
    rows: np.ndarray
    """(N,) which masks."""
    known: dict[str, np.ndarray]
    """As :func:`harness.adapt.training.torch_parts.head_loss` takes them, draft ids."""
    extra: np.ndarray
    """(e,) int64 ids of the prompt beyond the head, which are proposed through their embeddings."""


class _Vocabulary:
    """The ids that a draft proposes."""

    def __init__(self, draft: LoadedDraft) -> None:
        self.rows = None if draft.token_map is not None or draft.vocab is None else np.array(draft.vocab)
        """Rows of the model's head that are proposed; None is all of it."""
        self._open = draft.vocab is not None
        ids = self.rows if draft.token_map is None else np.array(draft.token_map)
        embedded = draft.model.args.vocab_size
        size = max(embedded, draft.target_rows or 0)
        if ids is None and size > embedded:
            ids = np.arange(embedded)
        self._inverse = None if ids is None else invert(ids, size)
        self._size = 0 if ids is None else len(ids)

    def lesson(self, example: Example, groups: Groups) -> Lesson:
        """What the target said, in ids of the head with the prompt's tokens behind it."""
        inverse, extra = self._inverse, np.zeros(0, dtype=np.int64)
        if self._open and inverse is not None:
            prompt = np.unique(example.tokens[: example.start]).astype(np.int64)
            extra, inverse = prompt[inverse[prompt] < 0], inverse.copy()
            inverse[extra] = self._size + np.arange(len(extra))
        batch = make_batch([example], inverse)
        place = np.full(len(example.answer) + 1, -1)
        place[batch.rows - (example.start - 1)] = np.arange(len(batch.rows))
        predicted = place[groups.starts + groups.steps + 1 - example.start]
        rows = np.flatnonzero(predicted >= 0)
        names = ("labels", "weights", "top_tokens", "top_p")
        return Lesson(example, groups, rows, {name: getattr(batch, name)[predicted[rows]] for name in names}, extra)


def _shape(model: Any) -> torch_llama.Shape:
    """A cut has a head of its own; else as :func:`harness.answers.torch_llama.shape_of`."""
    quantised = any(hasattr(module, "scales") for module in model.modules())
    if quantised:
        raise HarnessError(
            "the draft's weights are quantised, and masks are trained on plain ones", "Set `dtype: float32` in the pair's file."
        )
    return torch_llama.read_shape({**vars(model.args), "tie_word_embeddings": True})


def _load(
    draft: LoadedDraft, shape: torch_llama.Shape, dtype: torch.dtype, rows: np.ndarray | None
) -> tuple[torch_llama.Weights, torch.Tensor]:
    """The draft's weights, norms in float32, and its head's ``rows``."""
    weights = torch_llama.load(draft.model, shape, dtype)
    own = dict(tree_flatten(draft.model.parameters())).get("lm_head.weight")
    return _arranged(weights, None if own is None else np.array(own.astype(mx.float32)), dtype, rows)


@apart
def _arranged(
    weights: torch_llama.Weights, own: np.ndarray | None, dtype: torch.dtype, rows: np.ndarray | None
) -> tuple[torch_llama.Weights, torch.Tensor]:
    import torch

    embed = weights["embed"]
    head = embed if own is None else torch.from_numpy(own).to(embed.device, dtype)
    head = head if rows is None else head[torch.from_numpy(rows).to(embed.device)]
    return {name: w.float() if "norm" in name else w for name, w in weights.items()}, head
