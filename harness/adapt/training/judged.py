"""An adapter under training: judged on validation answers now and then, the best one kept, all of it in a checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.adapt.adapters.adapter_folder import AdapterInfo, weights_hash
from harness.adapt.training import checkpoint as checkpoints
from harness.adapt.training.acceptance import Acceptance, DomainCounts, gain, of_domain, pool
from harness.adapt.training.checkpoint import Checkpoint
from harness.adapt.training.examples import Example, data_hash, epoch_batches
from harness.adapt.training.loop import Training, learning_rate
from harness.adapt.training.outcome import Enough, Evaluation, TrainProgress, TrainResult
from harness.adapt.training_config import TrainingConfig
from harness.core.machine import utc_now
from harness.core.protocols import LoadedDraft
from harness.models.mlx_names import mx, optim, tree_flatten, tree_unflatten


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is trained, from what, and where to."""

    draft: LoadedDraft
    """What the adapter belongs to."""
    train: Sequence[Example]
    """Examples to learn from."""
    held_out: Sequence[Example]
    """Examples to judge by."""
    config: TrainingConfig
    """Settings."""
    domain: str | None
    """Whose acceptance counts; None pools all."""
    out: Path
    """Folder of the checkpoint."""
    start: Path | None = None
    """The adapter it begins with; None is the draft as it is."""
    progress: Callable[[TrainProgress], None] | None = None
    """Called after each update."""

    def fingerprint(self) -> str:
        """Hash of everything that decides the run: a checkpoint of another one is not taken up."""
        begun = weights_hash(self.start) if self.start is not None else ""
        data = [data_hash(self.train), data_hash(self.held_out)]
        parts = [*data, self.draft.hash, self.config.model_dump_json(), self.domain, begun]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Judged(Training):
    """State of one training run.

    Args:
        course: what it trains.
    """

    def __init__(self, course: Course) -> None:
        super().__init__()
        self.draft, self.train, self.held_out = course.draft, course.train, course.held_out
        self.config, self.domain, self.out = course.config, course.domain, course.out
        self.fingerprint, self.progress = course.fingerprint(), course.progress
        settings = self.config.optim
        self.optimiser = optim.AdamW(
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, bias_correction=settings.bias_correction
        )
        self.tokens = 0
        self.losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self.best: dict[str, mx.array] = {}
        micro = math.ceil(len(self.train) / settings.batch_size)
        self.per_epoch = math.ceil(micro / settings.accumulate)
        self.total = min(self.per_epoch * settings.epochs, settings.max_steps or 2**31)
        self.judge_every, self.save_every = self.config.stop.every, self.config.checkpoint_every
        self._batches: tuple[int, list[list[Example]]] = (-1, [])

    @abstractmethod
    def weights(self) -> dict[str, mx.array]:
        """What is trained, by name."""

    @abstractmethod
    def put(self, weights: dict[str, mx.array]) -> None:
        """Go on from these weights."""

    def carried_out(self, before: DomainCounts | None, left_out: int) -> TrainResult:
        """Go on from the checkpoint, where there is one, to the end; ``before`` is the start's acceptance, measured when None."""
        self.restore()
        if not self.evaluations:
            self.judge(before) if before else self.measure()
        with contextlib.suppress(Enough):
            self.loop()
        return self.result(left_out)

    def group(self) -> list[list[Example]]:
        """Examples of this update: ``accumulate`` batches of the epoch's order."""
        epoch, index = divmod(self.step, self.per_epoch)
        if self._batches[0] != epoch:
            optimisation = self.config.optim
            self._batches = (epoch, epoch_batches(self.train, optimisation.batch_size, seed=optimisation.seed, epoch=epoch))
        width = self.config.optim.accumulate
        return self._batches[1][index * width : (index + 1) * width]

    def paced(self, gradients: Any) -> Any:
        """Gradients as the optimiser takes them now: clipped, the learning rate of this update set."""
        optimisation = self.config.optim
        if optimisation.clip_norm > 0:
            gradients, _ = optim.clip_grad_norm(gradients, optimisation.clip_norm)
        self.optimiser.learning_rate = learning_rate(optimisation, self.step, self.total)
        return gradients

    def enough(self) -> bool:
        """True when acceptance has stopped rising."""
        return len(self.evaluations) - 1 - self.evaluations.index(self.after()) >= self.config.stop.patience

    def done(self, loss: float) -> None:
        """Pass on how far the run is."""
        if self.progress:
            rate = self.tokens / self.train_s if self.train_s else 0.0
            value, best = self.evaluations[-1].value, self.after().value
            self.progress(TrainProgress(step=self.step, total=self.total, loss=loss, tokens_per_s=rate, value=value, best=best))

    def judge(self, counts: DomainCounts) -> None:
        """Note the validation acceptance after this update; keep the adapter when it is the best so far."""
        value = pool(of_domain(counts, self.domain)).value(self.config.stop.metric)
        evaluation = Evaluation(step=self.step, value=value, counts=counts)
        better = bool(self.evaluations) and self._allowed(evaluation) and value > self.after().value
        self.evaluations.append(evaluation)
        if better:
            self.best = self.weights()

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

    def save(self) -> None:
        """Write the checkpoint."""
        progress = {
            "losses": self.losses,
            "tokens": self.tokens,
            "train_s": self.train_s,
            "evaluations": [asdict(e) for e in self.evaluations],
        }
        state = dict(tree_flatten(self.optimiser.state))
        checkpoints.save(
            self.out,
            Checkpoint(step=self.step, weights=self.weights(), best=self.best, optimiser=state, progress=progress),
            self.fingerprint,
        )

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        found = checkpoints.load(self.out, self.fingerprint)
        if found is None:
            return
        self.put(dict(found.weights))
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
