"""What training is given: trajectories, cases or examples, made examples that fit, and checked against the validation ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.adapt.training.examples import Example, from_case, from_trajectory, invert, truncate
from harness.adapt.training.failures import Case
from harness.adapt.training_config import StopConfig, TrainingConfig
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.core.records import Trajectory
from harness.core.stats import MIN_PROMPTS
from harness.models.opened import vocabulary_rows

Material = Trajectory | Case | Example


def inverse_ids(draft: LoadedDraft) -> np.ndarray | None:
    """Draft id of each target id; None where the two are the same."""
    rows = vocabulary_rows(draft.model)
    if draft.token_map is not None:
        return invert(np.array(draft.token_map), draft.model.args.vocab_size)
    return invert(np.arange(rows), draft.target_rows) if draft.target_rows is not None and draft.target_rows > rows else None


def as_examples(draft: LoadedDraft, material: Sequence[Material], config: TrainingConfig) -> tuple[list[Example], int]:
    """Turn the material into examples that fit; also return how many were left out."""
    inverse = inverse_ids(draft)
    kept = []
    for item in material:
        example = item if isinstance(item, Example) else _to_example(item, config)
        cut = truncate(example, config.optim.max_tokens)
        if cut is not None and (inverse is None or (inverse[cut.answer] >= 0).any()):
            kept.append(cut)
    return kept, len(material) - len(kept)


def _to_example(item: Trajectory | Case, config: TrainingConfig) -> Example:
    return from_trajectory(item) if isinstance(item, Trajectory) else from_case(item, config.loss.failure_weight)


def check_examples(train: list[Example], held_out: list[Example], domain: str | None, stop: StopConfig) -> None:
    """Check that there is enough to train and to judge on.

    Raises:
        HarnessError: nothing to train or validate on, too few prompts for an interval, or a prompt in both.
    """
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
