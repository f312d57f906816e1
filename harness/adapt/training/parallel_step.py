"""Loss and gradients of masks in torch: one pass over some answers, then one over many groups of masks that stand behind their tokens.

The draft is frozen and masks are invisible to its own tokens, so what the masks see of an answer, keys and values of every block, is
computed once without gradients. The groups of all answers are laid out in one row; a mask sees its answer up to its group's start and
the masks of its group up to itself. On a CPU or through CUDA; llama and qwen2, whole or a cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.training.examples import Example, make_batch
from harness.adapt.training.parallel_lessons import NO_GROUPS, Groups, Lesson, Vocabulary
from harness.adapt.training.torch_parts import draft_weights, head_loss, label_chances, shape_of, updated
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.core.protocols import LoadedDraft
from harness.models.mlx_names import mx
from harness.models.parallel_masks import MASKS
from routing.apart import apart

if TYPE_CHECKING:
    import torch

MASKS_AT_ONCE = 1024
"""Masks that go through the draft together, whole answers at least: more of them take memory and save no time."""
KEPT_BYTES = 512 * 2**20
"""Most memory for what masks see of answers, kept from epoch to epoch."""
Known = tuple["torch.Tensor", "torch.Tensor"]
"""Keys and values (B, heads, n, dim) of one block."""


class ParallelStep:
    """Computes what training asks of masks.

    Args:
        draft: its weights are copied.
        config: which blocks and layers get a LoRA, the loss, and what masks weigh.
        dtype: of the matrix products; the fastest one here when None.

    Raises:
        HarnessError: another architecture, or quantised weights.
    """

    def __init__(self, draft: LoadedDraft, config: TrainingConfig, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or torch_llama.fast_dtype()
        self.shape = shape_of(draft.model)
        self.scale, self.parts, self.by_length = config.lora.scale, config.loss.parts(), config.parallel.by_length
        self.vocab = Vocabulary(draft)
        self.weights, self.head = draft_weights(draft.model, self.shape, self.dtype, self.vocab.rows)
        self.where = self.head.device
        self._first: dict[str, np.ndarray] = {}
        self._kept: dict[str, list[Known]] = {}
        self._room = KEPT_BYTES

    def __call__(self, lessons: Sequence[Lesson], share: float, update: Mapping[str, mx.array]) -> tuple[float, dict[str, Any]]:
        """Loss over the masks of some examples, times ``share``, and its gradients by name.

        Args:
            lessons: answers and their masks.
            share: factor, the inverse of the sum of weights of the update.
            update: ``masks`` (m, dim) and mlx-lm's names of the LoRA -> arrays.
        """
        loss, found = self._differentiate(lessons, share, {name: np.array(array) for name, array in update.items()})
        return loss, {name: mx.array(array) for name, array in found.items()}

    @apart
    def _differentiate(self, lessons: Sequence[Lesson], share: float, arrays: dict[str, np.ndarray]) -> tuple[float, dict]:
        import torch

        update = {name: torch.from_numpy(array).to(self.where).requires_grad_() for name, array in arrays.items()}
        total, sums = 0.0, [torch.zeros_like(w) for w in update.values()]
        for part in _portions(lessons):
            planned, rows = [(lesson.example, lesson.groups) for lesson in part], [lesson.rows for lesson in part]
            z = self._states(planned, update, rows).to(self.dtype)
            gradients = []
            for lesson, own in zip(part, z.detach().split([len(own) for own in rows]), strict=True):
                loss, gradient = self._loss(lesson, own, share)
                gradients.append(gradient)
                total += loss
            for known, new in zip(sums, torch.autograd.grad(z, list(update.values()), torch.cat(gradients)), strict=True):
                known += new
        return total, {name: array.cpu().numpy() for name, array in zip(update, sums, strict=True)}

    def _loss(self, lesson: Lesson, z: torch.Tensor, share: float) -> tuple[float, torch.Tensor]:
        """Loss over the states (N, dim) of a lesson's masks, and its gradient by them."""
        head, known = self._head(lesson), lesson.known
        if self.by_length:
            chances = label_chances(head, z, known["labels"])
            known = {**known, "weights": lesson.weighed(self.first_chances(lesson.example), chances, self.by_length)}
        return head_loss(head, z, known, share, self.parts)

    @apart
    def first_chances(self, example: Example) -> np.ndarray:
        """(m,) chance of each answer token to be the draft's own proposal, computed once."""
        import torch

        if example.key not in self._first:
            lesson = self.vocab.lesson(example, NO_GROUPS)
            places = torch.arange(example.start - 1, len(example.tokens) - 1, device=self.where)
            with torch.no_grad():
                z = torch_llama.norm(self.shape, self._along([example], places)[1], self.weights["norm"]).to(self.dtype)
            self._first[example.key] = lesson.first_stands(label_chances(self._head(lesson), z, np.maximum(lesson.first, 0)))
        return self._first[example.key]

    def _head(self, lesson: Lesson) -> torch.Tensor:
        """(V, dim) the head with the prompt's tokens."""
        import torch

        if not len(lesson.extra):
            return self.head
        return torch.cat([self.head, self.weights["embed"][torch.from_numpy(lesson.extra).to(self.where)]])

    @apart
    def states(self, planned: Sequence[tuple[Example, Groups]], update: Mapping[str, np.ndarray]) -> np.ndarray:
        """Normed states (M, dim) of the masks of some answers."""
        import torch

        with torch.no_grad():
            tensors = {name: torch.from_numpy(array).to(self.where) for name, array in update.items()}
            found: np.ndarray = self._states(planned, tensors, [np.arange(len(groups.steps)) for _, groups in planned]).cpu().numpy()
            return found

    def _states(
        self, planned: Sequence[tuple[Example, Groups]], update: Mapping[str, torch.Tensor], rows: Sequence[np.ndarray]
    ) -> torch.Tensor:
        """Normed states (N, dim) of the masks ``rows`` (n,) of each answer."""
        import torch

        sizes = [len(groups.steps) for _, groups in planned]
        before = np.cumsum([0, *sizes[:-1]])
        wanted = torch.from_numpy(np.concatenate([own + at for own, at in zip(rows, before, strict=True)])).long().to(self.where)
        starts, steps = (
            torch.from_numpy(np.concatenate([getattr(groups, name) for _, groups in planned])).long().to(self.where)
            for name in ("starts", "steps")
        )
        known = self._seen([example for example, _ in planned])
        allowed = [_allowed(len(example.tokens) - 1, groups, self.where) for example, groups in planned]
        rope = torch_llama.rope_tables(self.shape, (starts + steps)[None], self.dtype)
        h = update[MASKS].float()[steps][None]
        for i, seen in enumerate(zip(*known, strict=True)):
            h = torch_llama.block(
                self.shape,
                self.weights,
                i,
                h,
                rope,
                attend=partial(_attend, seen, allowed),
                added=partial(updated, self.shape, update, self.scale, i),
                rows=wanted if i == self.shape.layers - 1 else None,
            )
        return torch_llama.norm(self.shape, h, self.weights["norm"])

    def _seen(self, examples: Sequence[Example]) -> list[list[Known]]:
        """What masks see of each answer, by block; kept for the next epoch while there is room."""
        import torch

        found = {e.key: self._kept[e.key] for e in examples if e.key in self._kept}
        lacking = [e for e in examples if e.key not in found]
        known = self._along(lacking, torch.zeros(0, dtype=torch.long, device=self.where))[0] if lacking else []
        for b, example in enumerate(lacking):
            n = len(example.tokens) - 1
            own = [(keys[b : b + 1, :, :n].clone(), values[b : b + 1, :, :n].clone()) for keys, values in known]
            found[example.key] = own
            if (size := sum(part.nbytes for pair in own for part in pair)) <= self._room:
                self._kept[example.key], self._room = own, self._room - size
        return [found[e.key] for e in examples]

    def _along(self, examples: Sequence[Example], places: torch.Tensor) -> tuple[list[Known], torch.Tensor]:
        """Keys and values (B, heads, n, dim) of every block along B answers, and the last block's states at flat ``places``; no gradients.

        Shorter answers are padded on the right, where causal attention does not look.
        """
        import torch

        found: list[Known] = []

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            found.append((k, v))
            return torch_llama.attend(q, k, v)

        with torch.no_grad():
            tokens = np.minimum(make_batch(examples).tokens, len(self.weights["embed"]) - 1)
            h = self.weights["embed"][torch.from_numpy(tokens).long().to(self.where)].float()
            rope = torch_llama.rope_tables(self.shape, torch.arange(tokens.shape[1], device=self.where)[None], self.dtype)
            for i in range(self.shape.layers):
                last = places if i == self.shape.layers - 1 else None
                h = torch_llama.block(self.shape, self.weights, i, h, rope, attend=attend, rows=last)
        return found, h


def _portions(lessons: Sequence[Lesson]) -> Iterator[list[Lesson]]:
    """Lessons of about :data:`MASKS_AT_ONCE` masks, at least one."""
    part: list[Lesson] = []
    for lesson in lessons:
        if part and sum(len(known.groups.steps) for known in (*part, lesson)) > MASKS_AT_ONCE:
            yield part
            part = []
        part.append(lesson)
    yield part


def _allowed(tokens: int, groups: Groups, where: torch.device) -> torch.Tensor:
    """(M, tokens + M) bool: what each mask sees of its answer and of the answer's masks."""
    import torch

    starts, steps = (torch.from_numpy(a).long().to(where) for a in (groups.starts, groups.steps))
    seen = torch.arange(tokens, device=where)[None] < starts[:, None]
    own = (starts[:, None] == starts[None]) & (steps[None] <= steps[:, None])
    return torch.cat([seen, own], dim=1)


def _attend(seen: Sequence[Known], allowed: Sequence[torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention (1, heads, M, d) -> (1, M, heads d) of masks over their own answer and its masks, where it is ``allowed``, per answer."""
    import torch
    import torch.nn.functional as fn

    sizes, found = [len(one) for one in allowed], []
    for known, one, queries, *own in zip(seen, allowed, *(part.split(sizes, dim=2) for part in (q, k, v)), strict=True):
        keys, values = (torch.cat(parts, dim=2) for parts in zip(known, own, strict=True))
        found.append(fn.scaled_dot_product_attention(queries, keys, values, attn_mask=one, enable_gqa=True))
    return torch.cat(found, dim=2).transpose(1, 2).flatten(2)
