"""Train an adapter for a draft: LoRA updates, distillation loss, early stop on replayed acceptance, resume after a kill.

Only the blocks above the lowest update are run in an epoch; the hidden states below come from :mod:`harness.adapt.training.hidden`. The
output head runs on answer positions alone. Both leave the gradients as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness.adapt.adapters.adapter_folder import load_into, read_info, read_lora, write_adapter
from harness.adapt.adapters.surface import adapted_layers, adapter_weights, attached, check_surface, head
from harness.adapt.training import checkpoint as checkpoints
from harness.adapt.training.acceptance import DomainCounts
from harness.adapt.training.examples import Batch, make_batch
from harness.adapt.training.hidden import prefix_cache
from harness.adapt.training.judged import Course, Judged
from harness.adapt.training.losses import logit_rows, weighted_loss
from harness.adapt.training.material import Material, as_examples, check_examples, inverse_ids
from harness.adapt.training.measure import acceptance, output_hidden
from harness.adapt.training.outcome import TrainProgress, TrainResult
from harness.adapt.training.torch_step import TorchStep, torch_step
from harness.adapt.training_config import LoraConfig, TrainingConfig
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.models.mlx_names import mx, nn, tree_map, tree_unflatten
from harness.models.opened import vocabulary_rows


def train_adapter(
    draft: LoadedDraft,
    material: Sequence[Material],
    config: TrainingConfig,
    *,
    validation: Sequence[Material],
    out: Path,
    name: str | None = None,
    domain: str | None = None,
    start: Path | None = None,
    resume: bool = False,
    cache_folder: Path | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    before: DomainCounts | None = None,
) -> TrainResult:
    """Train an adapter and write it to ``out`` when it raises validation acceptance. The draft's own weights never change.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        material: trajectories, cases or examples to train on.
        config: what and how.
        validation: the same kinds; decides early stopping and acceptance. No prompt may be in ``material``.
        out: adapter folder; an adapter in it stays until a better one is done.
        name: adapter name; the folder's name by default.
        domain: domain whose validation acceptance counts; None pools all. The others are guarded by ``stop.guard_drop``.
        start: adapter folder to start from, also what must be beaten; None starts from the draft.
        resume: continue from the checkpoint in ``out``, if there is one.
        cache_folder: where hidden states are kept; None is the user's cache.
        progress: called after each update; when it raises :class:`Enough`, training ends with the best adapter so far.
        before: acceptance of the start on ``validation``; measured when None.

    Raises:
        HarnessError: nothing to train or validate on, a prompt in both, an unsupported draft, a checkpoint of another run.
    """
    train, left_out = as_examples(draft, material, config)
    held_out, _ = as_examples(draft, validation, config)
    check_examples(train, held_out, domain, config.stop)
    check_surface(draft.model)
    if not resume:
        (out / checkpoints.FILE).unlink(missing_ok=True)
    course = Course(draft=draft, train=train, held_out=held_out, config=config, domain=domain, out=out, start=start, progress=progress)
    mx.random.seed(config.optim.seed)
    in_torch = torch_step(draft, config)
    with attached(draft.model, config.lora):
        if start is not None:
            _load_start(draft, start, config.lora)
        run = _Run(course, cache_folder, in_torch)
        result = run.carried_out(before, left_out)
        if result.accepted:
            write_adapter(out, run.best, config.lora, adapted_layers(draft.model, config.lora), run.info(name or out.name, result))
    (out / checkpoints.FILE).unlink(missing_ok=True)
    return result


class _Run(Judged):
    """A run whose updates are attached to the model while it lives."""

    def __init__(self, course: Course, cache_folder: Path | None, in_torch: TorchStep | None = None) -> None:
        super().__init__(course)
        draft, config = course.draft, course.config
        model = draft.model
        self.inverse = inverse_ids(draft)
        self.vocab = vocabulary_rows(model)
        self.cache = self.training_cache = prefix_cache(draft, config, cache_folder)
        self.in_torch = in_torch
        if in_torch is not None and not config.adapt.mine:  # looking for mistakes has computed the states already, in mlx
            self.training_cache = prefix_cache(draft, config, cache_folder, in_torch.states, in_torch.name)
        self.optimiser.init(model.trainable_parameters())
        self._loss_and_grad = nn.value_and_grad(model, self._loss)

    def weights(self) -> dict[str, mx.array]:
        return adapter_weights(self.draft.model)

    def put(self, weights: dict[str, mx.array]) -> None:
        self.draft.model.load_weights(list(weights.items()), strict=False)

    def _loss(self, batch: Batch, prefix: mx.array, share: float) -> mx.array:
        hidden = output_hidden(self.cache, batch, checkpointing=self.config.optim.gradient_checkpointing, prefix=prefix)
        arrays = (hidden, *(mx.array(a) for a in (batch.labels, batch.weights, batch.top_tokens, batch.top_p)))
        rows = logit_rows(self.vocab)
        if len(batch.labels) <= rows:
            return self._head_loss(*arrays) * share
        total = mx.array(0.0)
        for at in range(0, len(batch.labels), rows):
            part, *fixed = (a[at : at + rows] for a in arrays)
            # Logits of one piece at a time, computed again in the backward pass.
            total = total + mx.checkpoint(lambda part, fixed=fixed: self._head_loss(part, *fixed))(part)
        return total * share

    def _head_loss(self, hidden: mx.array, labels: mx.array, weights: mx.array, tops: mx.array, probs: mx.array) -> mx.array:
        return weighted_loss(head(self.draft.model, hidden), labels, weights, tops, probs, self.config.loss.parts())

    def _gradients(self, batch: Batch, share: float) -> tuple[float, dict]:
        """Loss and gradients of one batch."""
        if self.in_torch is not None:
            prefix = self.training_cache.padded(batch).astype(np.float32) if self.training_cache.depth else None
            loss, flat = self.in_torch(batch, prefix, share, adapter_weights(self.draft.model))
            return loss, tree_unflatten(list(flat.items()))
        value, grads = self._loss_and_grad(batch, self.cache.batch(batch), share)
        mx.eval(value, grads)
        return value.item(), grads

    def update(self) -> float:
        """Do one update and return its loss."""
        self.draft.model.train()
        mx.random.seed(self.config.optim.seed * 1_000_003 + self.step + 1)  # dropout depends on the step alone: resuming needs no state
        batches = [make_batch(examples, self.inverse) for examples in self.group()]
        share = 1.0 / float(sum(b.weights.sum() for b in batches))
        loss, grads = 0.0, None
        for batch in batches:
            value, new = self._gradients(batch, share)
            grads = new if grads is None else tree_map(lambda a, b: a + b, grads, new)
            mx.eval(grads)
            loss += value
            self.tokens += sum(batch.lengths)
        self.optimiser.update(self.draft.model, self.paced(grads))
        mx.eval(self.draft.model.trainable_parameters(), self.optimiser.state)
        self.losses.append(loss)
        return loss

    def measure(self) -> None:
        """Replay the validation trajectories and judge."""
        self.judge(acceptance(self.draft, self.cache, self.held_out, self.config.stop.k))
        mx.clear_cache()


def _load_start(draft: LoadedDraft, start: Path, lora: LoraConfig) -> None:
    read_info(start, draft.hash)
    written, weights = read_lora(start)
    if (written.rank, written.scale, written.dora) != (lora.rank, lora.scale, lora.dora):
        raise HarnessError(
            f"the adapter in {start} has rank {written.rank}, scale {written.scale} and dora {written.dora}, the settings differ",
            "Start from an adapter of the same shape, or from the draft.",
        )
    load_into(draft.model, weights, start)
