"""Loss and gradients of masks in mlx, by the pass that decodes: of every draft that takes masks, quantised ones too, on a GPU and a CPU.

As in replay, one pass over an answer gives the keys and values that masks see, and the groups behind its tokens are rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from harness.adapt.training.examples import Example
from harness.adapt.training.losses import weighted_loss
from harness.adapt.training.parallel_lessons import NO_GROUPS, Lesson, Vocabulary
from harness.adapt.training_config import TrainingConfig
from harness.core.protocols import LoadedDraft
from harness.decode.parallel_replay import Along, read_along
from harness.models.forward import widened
from harness.models.mlx_names import mx, nn
from harness.models.opened import head_logits, hidden_states
from harness.models.parallel_masks import MaskedDraft, with_masks

TRAINED_BYTES = 256 * 2**20
"""Most memory for what the groups of one batch see of the answer in all layers, which gradients need; at least one group is run."""
Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class _Batch:
    """Some groups of a lesson, B of them, with n masks that learn."""

    starts: mx.array
    """(B,) int32: tokens that each group stands behind."""
    places: mx.array
    """(n,) int32: where these masks are among the B x m that are run."""
    part: slice
    """Which of the lesson's they are."""


class MlxStep:
    """Computes what training asks of masks, as :class:`harness.adapt.training.parallel_step.ParallelStep` does.

    Args:
        draft: it is not changed.
        config: the loss, and what masks weigh.
    """

    def __init__(self, draft: LoadedDraft, config: TrainingConfig) -> None:
        self.draft, self.vocab = draft, Vocabulary(draft)
        self.scale, self.parts, self.by_length = config.lora.scale, config.loss.parts(), config.parallel.by_length
        self._made: MaskedDraft | None = None
        self._first: dict[str, np.ndarray] = {}

    def __call__(self, lessons: Sequence[Lesson], share: float, update: Mapping[str, mx.array]) -> tuple[float, Arrays]:
        """Loss over the masks of some examples, times ``share``, and its gradients by name; arguments as there."""
        given: Arrays = dict(update)
        masked = self._made = self._made or with_masks(self.draft, given, self.scale)
        total, sums = 0.0, {name: mx.zeros_like(array) for name, array in given.items()}
        for lesson in lessons:
            one = _One(masked, self.scale, lesson)
            known = lesson.known
            if self.by_length:
                first = self.first_chances(lesson.example)
                known = {**known, "weights": lesson.weighed(first, one.chances(given), self.by_length)}
            for batch in one.batches():
                loss = partial(one.loss, batch=batch, known=known, parts=self.parts)
                value, gradients = mx.value_and_grad(loss)(given)
                sums = {name: array + share * gradients[name] for name, array in sums.items()}
                mx.eval(value, sums)
                total += share * value.item()
        mx.clear_cache()
        return total, sums

    def first_chances(self, example: Example) -> np.ndarray:
        """(m,) chance of each answer token to be the draft's own proposal, computed once."""
        if example.key not in self._first:
            lesson = self.vocab.lesson(example, NO_GROUPS)
            model = widened(*self.draft.proposer, lesson.extra.tolist())[0]
            hidden = read_along(model, example.tokens[:-1].tolist()).hidden[example.start - 1 :]
            self._first[example.key] = lesson.first_stands(_chances(head_logits(model, hidden), np.maximum(lesson.first, 0)))
        return self._first[example.key]


class _One:
    """A lesson along whose answer the draft has been run.

    Args:
        masked: the draft.
        scale: factor of the LoRA.
        lesson: what masks learn there.
    """

    def __init__(self, masked: MaskedDraft, scale: float, lesson: Lesson) -> None:
        self._masked, self._scale, self._lesson = masked, scale, lesson
        self._model: nn.Module = widened(*masked.draft.proposer, lesson.extra.tolist())[0]
        self._along: Along = read_along(self._model, lesson.example.tokens[:-1].tolist())
        self._width = int(lesson.groups.steps.max()) + 1

    def batches(self) -> Iterator[_Batch]:
        """All groups, in their order."""
        groups, rows = self._lesson.groups, self._lesson.rows
        starts = np.unique(groups.starts)
        place = np.searchsorted(starts, groups.starts[rows]) * self._width + groups.steps[rows]
        most = max(1, TRAINED_BYTES // max(1, self._along.nbytes))
        for first in range(0, len(starts), most):
            part = slice(*np.searchsorted(place, [first * self._width, (first + most) * self._width]).tolist())
            own = place[part] - first * self._width
            if len(own):
                yield _Batch(mx.array(starts[first : first + most]), mx.array(own.astype(np.int32)), part)

    def logits(self, arrays: Arrays, batch: _Batch) -> mx.array:
        """(n, V) of the batch's masks under a LoRA and masks of the draft's own number."""
        self._masked.put(arrays, self._scale)
        with self._masked.gate.of(self._width):
            tokens = mx.zeros((len(batch.starts), self._width), dtype=mx.int32)
            states = hidden_states(self._model, tokens, self._along.behind(batch.starts))
        return head_logits(self._model, states.reshape(-1, states.shape[-1])[batch.places])

    def loss(self, arrays: Arrays, *, batch: _Batch, known: Mapping[str, np.ndarray], parts: Mapping[str, float]) -> mx.array:
        """Weighted sum of the batch's losses."""
        labels, weights, tops, p = (mx.array(known[name][batch.part]) for name in ("labels", "weights", "top_tokens", "top_p"))
        return weighted_loss(self.logits(arrays, batch), labels, weights, tops, p, parts)

    def chances(self, arrays: Arrays) -> np.ndarray:
        """(N,) chance of the answer's token at each mask."""
        labels = self._lesson.known["labels"]
        return np.concatenate([_chances(self.logits(arrays, batch), labels[batch.part]) for batch in self.batches()])


def _chances(logits: mx.array, labels: np.ndarray) -> np.ndarray:
    """(N,) probability of each row's label."""
    logits = logits.astype(mx.float32)
    named = mx.take_along_axis(logits, mx.array(labels.astype(np.int32))[:, None], axis=-1)[:, 0]
    return np.array(mx.exp(named - mx.logsumexp(logits, axis=-1)))
