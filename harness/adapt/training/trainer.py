"""Train an adapter for a draft: LoRA updates, distillation loss, early stop on replayed acceptance, resume after a kill.

Only the blocks above the lowest update are run in an epoch; the hidden states below come from :mod:`harness.adapt.training.hidden`. The
output head runs on answer positions alone. Both leave the gradients as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from harness.adapt.adapters.folder import AdapterInfo, load_into, read_info, read_lora, weights_hash, write_adapter
from harness.adapt.adapters.surface import adapted_layers, adapter_weights, attached, check_surface, head
from harness.adapt.training import checkpoint as checkpoints
from harness.adapt.training.acceptance import Acceptance, DomainCounts, gain, of_domain, pool
from harness.adapt.training.checkpoint import Checkpoint
from harness.adapt.training.examples import (
    Batch,
    Example,
    data_hash,
    epoch_batches,
    from_case,
    from_trajectory,
    invert,
    make_batch,
    truncate,
)
from harness.adapt.training.failures import Case
from harness.adapt.training.hidden import prefix_cache
from harness.adapt.training.loop import Training, learning_rate
from harness.adapt.training.losses import logit_rows, weighted_loss
from harness.adapt.training.measure import acceptance, output_hidden
from harness.adapt.training.outcome import Enough, Evaluation, TrainProgress, TrainResult
from harness.adapt.training.torch_step import TorchStep, torch_step
from harness.adapt.training_config import LoraConfig, StopConfig, TrainingConfig
from harness.core.errors import HarnessError
from harness.core.machine import utc_now
from harness.core.protocols import LoadedDraft
from harness.core.records import Trajectory
from harness.core.stats import MIN_PROMPTS
from harness.models.mlx_names import mx, nn, optim, tree_flatten, tree_map, tree_unflatten
from harness.models.opened import vocabulary_rows

Material = Trajectory | Case | Example


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
    train, left_out = _examples(draft, material, config)
    held_out, _ = _examples(draft, validation, config)
    _check(train, held_out, domain, config.stop)
    check_surface(draft.model)
    parts = [data_hash(train), data_hash(held_out), draft.hash, config.model_dump_json(), domain, _start_hash(start)]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if not resume:
        (out / checkpoints.FILE).unlink(missing_ok=True)
    mx.random.seed(config.optim.seed)
    in_torch = torch_step(draft, config)
    with attached(draft.model, config.lora):
        if start is not None:
            _load_start(draft, start, config.lora)
        run = _Run(draft, train, held_out, config, domain, out, cache_folder, fingerprint, in_torch, progress)
        run.restore()
        if not run.evaluations:
            run.judge(before) if before else run.evaluate()
        with contextlib.suppress(Enough):
            run.loop()
        result = run.result(left_out)
        if result.accepted:
            write_adapter(out, run.best, config.lora, adapted_layers(draft.model, config.lora), run.info(name or out.name, result))
    (out / checkpoints.FILE).unlink(missing_ok=True)
    return result


class _Run(Training):
    """State of one training run; updates are attached to the model while it lives."""

    def __init__(
        self,
        draft: LoadedDraft,
        train: list[Example],
        held_out: list[Example],
        config: TrainingConfig,
        domain: str | None,
        out: Path,
        cache_folder: Path | None,
        fingerprint: str,
        in_torch: TorchStep | None = None,
        progress: Callable[[TrainProgress], None] | None = None,
    ) -> None:
        super().__init__()
        self.draft, self.train, self.held_out, self.config, self.domain = draft, train, held_out, config, domain
        self.out, self.fingerprint = out, fingerprint
        model = draft.model
        self.inverse = _inverse(draft)
        self.vocab = vocabulary_rows(model)
        self.cache = self.training_cache = prefix_cache(draft, config, cache_folder)
        self.in_torch = in_torch
        if in_torch is not None and not config.adapt.mine:  # looking for mistakes has computed the states already, in mlx
            self.training_cache = prefix_cache(draft, config, cache_folder, in_torch.states, in_torch.name)
        settings = config.optim
        self.optimiser = optim.AdamW(
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, bias_correction=settings.bias_correction
        )
        self.optimiser.init(model.trainable_parameters())
        self.tokens, self.progress = 0, progress
        self.losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self.best: dict[str, mx.array] = {}
        micro = math.ceil(len(train) / config.optim.batch_size)
        self.per_epoch = math.ceil(micro / config.optim.accumulate)
        self.total = min(self.per_epoch * config.optim.epochs, config.optim.max_steps or 2**31)
        self.judge_every, self.save_every = config.stop.every, config.checkpoint_every
        self._loss_and_grad = nn.value_and_grad(model, self._loss)
        self._batches: tuple[int, list[list[Example]]] = (-1, [])

    # --- one update ---

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
        optimisation = self.config.optim
        self.draft.model.train()
        mx.random.seed(optimisation.seed * 1_000_003 + self.step + 1)  # dropout depends on the step alone: resuming needs no state
        batches = [make_batch(examples, self.inverse) for examples in self._group(self.step)]
        share = 1.0 / float(sum(b.weights.sum() for b in batches))
        loss, grads = 0.0, None
        for batch in batches:
            value, new = self._gradients(batch, share)
            grads = new if grads is None else tree_map(lambda a, b: a + b, grads, new)
            mx.eval(grads)
            loss += value
            self.tokens += sum(batch.lengths)
        if optimisation.clip_norm > 0:
            grads, _ = optim.clip_grad_norm(grads, optimisation.clip_norm)
        self.optimiser.learning_rate = learning_rate(optimisation, self.step, self.total)
        self.optimiser.update(self.draft.model, grads)
        mx.eval(self.draft.model.trainable_parameters(), self.optimiser.state)
        self.losses.append(loss)
        return loss

    def _group(self, step: int) -> list[list[Example]]:
        """Examples of one update: ``accumulate`` batches of the epoch's order."""
        epoch, index = divmod(step, self.per_epoch)
        if self._batches[0] != epoch:
            optimisation = self.config.optim
            self._batches = (epoch, epoch_batches(self.train, optimisation.batch_size, seed=optimisation.seed, epoch=epoch))
        width = self.config.optim.accumulate
        return self._batches[1][index * width : (index + 1) * width]

    def enough(self) -> bool:
        """True when acceptance has stopped rising."""
        return len(self.evaluations) - 1 - self.evaluations.index(self.after()) >= self.config.stop.patience

    def done(self, loss: float) -> None:
        """Pass on how far the run is."""
        if self.progress:
            rate = self.tokens / self.train_s if self.train_s else 0.0
            value, best = self.evaluations[-1].value, self.after().value
            self.progress(TrainProgress(step=self.step, total=self.total, loss=loss, tokens_per_s=rate, value=value, best=best))

    def evaluate(self) -> None:
        """Replay the validation trajectories and judge."""
        self.judge(acceptance(self.draft, self.cache, self.held_out, self.config.stop.k))
        mx.clear_cache()

    def judge(self, counts: DomainCounts) -> None:
        """Note the validation acceptance after this update; keep the adapter when it is the best so far."""
        value = pool(of_domain(counts, self.domain)).value(self.config.stop.metric)
        evaluation = Evaluation(step=self.step, value=value, counts=counts)
        better = bool(self.evaluations) and self._allowed(evaluation) and value > self.after().value
        self.evaluations.append(evaluation)
        if better:
            self.best = adapter_weights(self.draft.model)

    def _allowed(self, evaluation: Evaluation) -> bool:
        """No guarded domain fell by more than ``guard_drop``."""
        stop, first = self.config.stop, self.evaluations[0].by_domain
        others = [d for d in first if d != self.domain] if self.domain is not None else list(first)
        return all(evaluation.by_domain[d].value(stop.metric) >= first[d].value(stop.metric) - stop.guard_drop for d in others)

    def after(self) -> Evaluation:
        """Best evaluation so far: the first of the highest allowed values, or the start."""
        best = self.evaluations[0]
        for evaluation in self.evaluations[1:]:
            if evaluation.value > best.value and self._allowed(evaluation):
                best = evaluation
        return best

    # --- state ---

    def save(self) -> None:
        """Write the checkpoint."""
        progress = {
            "losses": self.losses,
            "tokens": self.tokens,
            "train_s": self.train_s,
            "evaluations": [asdict(e) for e in self.evaluations],
        }
        weights, state = adapter_weights(self.draft.model), dict(tree_flatten(self.optimiser.state))
        checkpoints.save(
            self.out, Checkpoint(step=self.step, weights=weights, best=self.best, optimiser=state, progress=progress), self.fingerprint
        )

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        found = checkpoints.load(self.out, self.fingerprint)
        if found is None:
            return
        self.draft.model.load_weights(list(found.weights.items()), strict=False)
        self.optimiser.state = tree_unflatten(list(found.optimiser.items()))
        self.step, self.best = found.step, dict(found.best)
        self.losses, self.tokens, self.train_s = list(found.progress["losses"]), found.progress["tokens"], found.progress["train_s"]
        for row in found.progress["evaluations"]:
            counts = {d: tuple(Acceptance(**one) for one in parts) for d, parts in row["counts"].items()}
            self.evaluations.append(Evaluation(step=row["step"], value=row["value"], counts=counts))

    def result(self, left_out: int) -> TrainResult:
        """Sum up the run."""
        before, after, stop = self.evaluations[0], self.after(), self.config.stop
        rise = gain(of_domain(before.counts, self.domain), of_domain(after.counts, self.domain), stop.metric)
        least = rise.low if stop.beyond_noise and rise else after.value - before.value
        accepted = bool(self.best) and least is not None and least > stop.min_gain
        return TrainResult(
            accepted=accepted,
            adapter=self.out if accepted else None,
            before=before,
            after=after,
            gain=rise,
            evaluations=tuple(self.evaluations),
            losses=tuple(self.losses),
            steps=self.step,
            tokens=self.tokens,
            train_s=self.train_s,
            left_out=left_out,
        )

    def info(self, name: str, result: TrainResult) -> AdapterInfo:
        """Metadata of the new adapter."""
        metric = self.config.stop.metric
        return AdapterInfo(
            name=name,
            draft_hash=self.draft.hash,
            draft_name=self.draft.name,
            domain=self.domain,
            rank=self.config.lora.rank,
            data_hash=data_hash(self.train),
            examples=len(self.train),
            metric=metric,
            before={d: a.value(metric) for d, a in result.before.by_domain.items()},
            after={d: a.value(metric) for d, a in result.after.by_domain.items()},
            steps=result.after.step,
            train_s=result.train_s,
            created=utc_now(),
            settings=self.config.model_dump(),
        )


def _inverse(draft: LoadedDraft) -> np.ndarray | None:
    """Draft id of each target id; None where the two are the same."""
    rows = vocabulary_rows(draft.model)
    if draft.token_map is not None:
        return invert(np.array(draft.token_map), draft.model.args.vocab_size)
    return invert(np.arange(rows), draft.target_rows) if draft.target_rows is not None and draft.target_rows > rows else None


def _examples(draft: LoadedDraft, material: Sequence[Material], config: TrainingConfig) -> tuple[list[Example], int]:
    """Turn the material into examples that fit; also return how many were left out."""
    inverse = _inverse(draft)
    kept = []
    for item in material:
        example = item if isinstance(item, Example) else _to_example(item, config)
        cut = truncate(example, config.optim.max_tokens)
        if cut is not None and (inverse is None or (inverse[cut.answer] >= 0).any()):
            kept.append(cut)
    return kept, len(material) - len(kept)


def _to_example(item: Trajectory | Case, config: TrainingConfig) -> Example:
    return from_trajectory(item) if isinstance(item, Trajectory) else from_case(item, config.loss.failure_weight)


def _check(train: list[Example], held_out: list[Example], domain: str | None, stop: StopConfig) -> None:
    if not train:
        raise HarnessError("there is nothing to train on", "Give training prompts, or raise optim.max_tokens so that their answers fit.")
    if domain is not None and domain not in {e.domain for e in held_out}:
        raise HarnessError(f"there is no validation trajectory of domain {domain!r}", "Give validation prompts of that domain.")
    if not held_out:
        raise HarnessError("there is nothing to validate on", "Give validation prompts; training keeps only what raises their acceptance.")
    judging = sum(domain in (None, e.domain) for e in held_out)
    if stop.beyond_noise and judging < MIN_PROMPTS:
        raise HarnessError(
            f"stop.beyond_noise needs {MIN_PROMPTS} validation prompts for an interval, there are {judging}",
            "Give more of them, or set stop.beyond_noise to false.",
        )
    prompts = {e.prompt_key: e.id for e in train}
    for example in held_out:
        if example.prompt_key in prompts:
            raise HarnessError(
                f"validation prompt {example.id} is training prompt {prompts[example.prompt_key]}", "Keep the two sets apart by split."
            )


def _load_start(draft: LoadedDraft, start: Path, lora: LoraConfig) -> None:
    read_info(start, draft.hash)
    written, weights = read_lora(start)
    if (written.rank, written.scale, written.dora) != (lora.rank, lora.scale, lora.dora):
        raise HarnessError(
            f"the adapter in {start} has rank {written.rank}, scale {written.scale} and dora {written.dora}, the settings differ",
            "Start from an adapter of the same shape, or from the draft.",
        )
    load_into(draft.model, weights, start)


def _start_hash(start: Path | None) -> str:
    return weights_hash(start) if start is not None else ""
