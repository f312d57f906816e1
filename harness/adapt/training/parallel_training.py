"""Train the masks of a draft, and the LoRA that acts at them, so that one pass proposes several tokens (drafter ``parallel``).

The draft itself stays as it is. Masks learn from the target's answers what its next tokens will be, at a random number of places behind
each token, and the best of them by the acceptance that replay measures on validation answers is kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.adapt.adapters.adapter_folder import read_info, write_parallel
from harness.adapt.adapters.surface import adapted_layers, lora_keys
from harness.adapt.training import checkpoint as checkpoints
from harness.adapt.training.acceptance import Acceptance, DomainCounts
from harness.adapt.training.examples import Example
from harness.adapt.training.judged import Course, Judged
from harness.adapt.training.material import Material, as_examples, check_examples
from harness.adapt.training.outcome import TrainProgress, TrainResult
from harness.adapt.training.parallel_lessons import Lesson, Vocabulary, plan_groups, present
from harness.adapt.training.parallel_mlx import MlxStep
from harness.adapt.training.parallel_step import ParallelStep
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.core.counts import COUNTS
from harness.core.errors import HarnessError
from harness.core.progress import note
from harness.core.protocols import LoadedDraft
from harness.core.records import Trajectory
from harness.decode.parallel_drafter import ParallelDrafter
from harness.decode.parallel_replay import ParallelPass, parallel_passes
from harness.decode.simulate import simulate_runs
from harness.models.mlx_names import mx, tree_flatten, tree_unflatten
from harness.models.opened import open_model, refusal
from harness.models.parallel_masks import MASKS, read_masks, with_masks


def train_parallel(
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
    """Train masks and write a folder of kind ``parallel`` to ``out`` when they raise validation acceptance at ``config.parallel.k``.

    Arguments and result are those of :func:`harness.adapt.training.trainer.train_adapter`; nothing is kept in ``cache_folder``. Without
    a ``start`` they begin as the mean of the draft's embeddings, with a LoRA that does nothing.

    Raises:
        HarnessError: as there, or a draft that takes no masks.
    """
    train, left_out = as_examples(draft, material, config)
    train = [example for example in train if len(example.answer) > 1]
    held_out, _ = as_examples(draft, validation, config)
    check_examples(train, held_out, domain, config.stop)
    if not resume:
        (out / checkpoints.FILE).unlink(missing_ok=True)
    course = Course(draft=draft, train=train, held_out=held_out, config=config, domain=domain, out=out, start=start, progress=progress)
    run = ParallelRun(course)
    if start is not None:
        run.put(_started(start, draft, config.lora.scale, run.weights()))
    result = run.carried_out(before, left_out)
    if result.accepted:
        write_parallel(out, run.best, config.lora.scale, run.info(name or out.name, result))
    (out / checkpoints.FILE).unlink(missing_ok=True)
    return result


class ParallelRun(Judged):
    """A run whose masks and LoRA live beside the draft."""

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        assert self.config.parallel.k is not None
        self.masks = self.config.parallel.k - 1
        self.gradients = step_for(self.draft, self.config)
        self._answers = [_trajectory(example) for example in self.held_out]
        self.put(first_weights(self.draft, self.config))
        self.optimiser.init(self._tree)

    def weights(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self._tree))

    def put(self, weights: dict[str, mx.array]) -> None:
        self._tree: Any = tree_unflatten(sorted(weights.items()))  # an order of its own: sums over it are the same after a resume

    def update(self) -> float:
        """Do one update and return its loss."""
        lessons = self._lessons()
        if not lessons:  # the target said nothing that the draft can say
            self.losses.append(0.0)
            return 0.0
        share = 1.0 / float(sum(lesson.known["weights"].sum() for lesson in lessons))
        loss, flat = self.gradients(lessons, share, self.weights())
        self.tokens += sum(len(lesson.example.tokens) - 1 for lesson in lessons)
        self._tree = self.optimiser.apply_gradients(self.paced(tree_unflatten(list(flat.items()))), self._tree)
        mx.eval(self._tree, self.optimiser.state)
        self.losses.append(loss)
        return loss

    def _lessons(self) -> list[Lesson]:
        """What this update learns from; groups depend on seed and step alone, so that resuming needs no state."""
        rng = np.random.default_rng([self.config.optim.seed, self.step])
        examples = [example for batch in self.group() for example in batch]
        return [lesson for example in examples if len((lesson := self._lesson(example, rng)).rows)]

    def _lesson(self, example: Example, rng: np.random.Generator) -> Lesson:
        config = self.config.parallel
        kept = present(self.gradients.first_chances(example), config.by_length)[:-1] if config.by_length else None
        return self.gradients.vocab.lesson(example, plan_groups(example, self.masks, config.keep, rng, kept))

    def measure(self) -> None:
        """Replay the validation answers, say how often the proposals stand by their place, and judge."""
        masked = with_masks(self.draft, self.weights(), self.config.lora.scale)
        passes = parallel_passes(ParallelDrafter(masked), self._answers)
        note(
            f"update {self.step}: proposals 1 to {self.masks + 1} stand in {', '.join(f'{p:.3f}' for p in by_place(passes))} of all starts"
        )
        counts: dict[str, list[Acceptance]] = {}
        for example, found in zip(self.held_out, passes, strict=True):
            rounds = simulate_runs(found.runs, found.most, example.max_tokens)
            own = Acceptance(prompts=1, **{name: getattr(rounds, name) for name in COUNTS})
            counts.setdefault(example.domain, []).append(own)
        self.judge({domain: tuple(parts) for domain, parts in sorted(counts.items())})
        mx.clear_cache()


def by_place(passes: Sequence[ParallelPass]) -> list[float]:
    """Share of the starts along all answers at which the first 1, 2, ... K proposals stand; starts too near an end are left out."""
    stood, tried = np.zeros(passes[0].most), np.zeros(passes[0].most)
    for found in passes:
        for place in range(min(found.most, len(found.runs))):
            runs = found.runs[: len(found.runs) - place]
            stood[place] += (runs > place).sum()
            tried[place] += len(runs)
    shares: list[float] = (stood / np.maximum(tried, 1)).tolist()
    return shares


class Step(Protocol):
    """What computes losses and gradients: :class:`ParallelStep` or :class:`MlxStep`."""

    vocab: Vocabulary

    def __call__(self, lessons: Sequence[Lesson], share: float, update: Mapping[str, mx.array]) -> tuple[float, dict[str, Any]]:
        """Loss of some lessons, times ``share``, and its gradients by name."""

    def first_chances(self, example: Example) -> np.ndarray:
        """(m,) chance of each answer token to be the draft's own proposal."""


def step_for(draft: LoadedDraft, config: TrainingConfig) -> Step:
    """In torch where ``optim.backend`` allows it, mlx computes on a CPU and the draft is a plain llama or qwen2; else in mlx."""
    if config.optim.backend == "auto" and torch_llama.worthwhile(draft.model, torch_llama.fast_dtype()):
        with contextlib.suppress(HarnessError):  # another architecture, or quantised
            return ParallelStep(draft, config)
    return MlxStep(draft, config)


def first_weights(draft: LoadedDraft, config: TrainingConfig) -> dict[str, mx.array]:
    """What training begins with: masks that are the mean of the embeddings, and a LoRA whose second half is zero.

    Raises:
        HarnessError: a number of layers, or a layer's name, that the draft does not have, or one whose parts are not known.
    """
    lora, opened = config.lora, open_model(draft.model)
    if opened is None:
        raise refusal(draft.model, "parallel drafting")
    rng = np.random.default_rng(config.optim.seed)
    mean = opened.embedding(mx.arange(len(opened.embedding.weight))).astype(mx.float32).mean(axis=0)
    assert config.parallel.k is not None
    weights = {MASKS: mx.repeat(mean[None], config.parallel.k - 1, axis=0)}
    names = {id(module): name for name, module in draft.model.named_modules()}
    keys = lora_keys(draft.model, lora)
    for block in draft.model.layers[-adapted_layers(draft.model, lora) :]:
        modules = dict(block.named_modules())
        for module in (modules[key] for key in keys if key in modules):
            (inputs, outputs), at = _widths(module), names[id(module)]
            bound = 1 / math.sqrt(inputs)
            weights[f"{at}.lora_a"] = mx.array(rng.uniform(-bound, bound, (inputs, lora.rank)).astype(np.float32))
            weights[f"{at}.lora_b"] = mx.zeros((lora.rank, outputs))
    mx.eval(weights)
    return weights


def _widths(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, plain or quantised."""
    outputs, inputs = module.weight.shape
    return (inputs * 32 // module.bits if "scales" in module else inputs), outputs


def _started(start: Path, draft: LoadedDraft, scale: float, like: dict[str, mx.array]) -> dict[str, mx.array]:
    """Weights of an earlier folder to go on from, of the same shapes."""
    read_info(start, draft.hash)
    info, weights = read_masks(start, draft.hash)
    shapes = {name: array.shape for name, array in like.items()}
    if info.scale != scale or shapes != {name: array.shape for name, array in weights.items()}:
        raise HarnessError(f"the parallel adapter in {start} has another shape than the settings", "Start from one of the same shape.")
    return weights


def _trajectory(example: Example) -> Trajectory:
    prompt, answer = example.tokens[: example.start].tolist(), example.answer.tolist()
    return Trajectory(
        sample_id=example.id,
        domain=example.domain,
        prompt_tokens=tuple(prompt),
        tokens=tuple(answer),
        finish="length",
        max_tokens=example.max_tokens,
    )
