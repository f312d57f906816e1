"""Learning while serving: every detailed generation is judged, failures are kept, and a training round runs when enough have come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.adapt.training.buffer import ReplayBuffer, mix
from harness.adapt.training.failures import Case, FailureStore, case_from_generation, is_failure
from harness.adapt.training.material import Material
from harness.adapt.training.outcome import TrainProgress
from harness.adapt.training.rounds import RoundRecord, read_rounds, record_round, write_rounds
from harness.adapt.training.tracker import AcceptanceTracker
from harness.adapt.training.trainer import train_adapter
from harness.adapt.training_config import TrainingConfig
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.core.records import Generation, Sample
from harness.datasets.splits import refuse_leaks

HELD_OUT_SHARE = 5
"""Without validation material, every fifth case (by its id) is held out."""


class Learner:
    """Failure store, replay buffer, tracker and adapters of one draft in one folder; reopening it goes on where it stopped.

    Args:
        draft: :class:`harness.models.pair.Draft`, without an adapter attached while :meth:`train` runs.
        folder: ``failures.jsonl``, ``buffer.jsonl``, ``tracker.json``, ``rounds.json`` and ``round-N`` folders.
        config: thresholds and training settings.
        validation: what decides whether a round helped; None holds out a fifth of the cases.
        evaluation: prompts that must never be trained on.
        cache_folder: where hidden states are kept; None is the user's cache.
    """

    def __init__(
        self,
        draft: LoadedDraft,
        folder: Path,
        config: TrainingConfig,
        *,
        validation: Sequence[Material] | None = None,
        evaluation: Sequence[Sample] = (),
        cache_folder: Path | None = None,
    ) -> None:
        self.draft, self.folder, self.config = draft, Path(folder), config
        self.validation, self.evaluation, self.cache_folder = validation, evaluation, cache_folder
        adapt = config.adapt
        self.store = FailureStore(self.folder / "failures.jsonl")
        self.buffer = ReplayBuffer(self.folder / "buffer.jsonl", capacity=adapt.buffer_cases, seed=config.optim.seed)
        self.tracker = AcceptanceTracker(
            window=adapt.window,
            threshold=adapt.threshold,
            min_failure_cases=adapt.min_failure_cases,
            path=self.folder / "tracker.json",
        )
        self.records = read_rounds(self.folder / "rounds.json")

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter in use; None is the plain draft."""
        return Path(self.records[-1].adapter) if self.records and self.records[-1].adapter else None

    @property
    def due(self) -> bool:
        """True when enough failure cases have come since the last round."""
        return self.tracker.due

    def observe(self, sample: Sample, prompt_tokens: Sequence[int], generation: Generation) -> Case:
        """Judge a detailed generation and keep it: below the threshold as a failure case, else in the replay buffer.

        Generations of test samples are stored for analysis only.
        """
        case = case_from_generation(sample, prompt_tokens, generation, round_=len(self.records))
        trainable = case.split != "test"
        failure = is_failure(case, self.config.adapt.threshold)
        fresh = self.store.append(case) if failure else trainable and case.rate is not None and self.buffer.add(case)
        self.tracker.update(case.accepted, case.drafted, case.domain, trainable=trainable and fresh)
        return case

    def train(self, *, resume: bool = False, progress: Callable[[TrainProgress], None] | None = None) -> RoundRecord:
        """Run one round on the failure cases since the last round; a round that does not help keeps the old adapter.

        Raises:
            HarnessError: no failure case to train on, a prompt that leaks into the evaluation, or what the trainer refuses.
        """
        number = len(self.records) + 1
        failures, held_out = self._failures(number - 1)
        replay = [case for case in self.buffer.cases() if case not in held_out]
        if not failures:
            raise HarnessError("no failure case has come since the last round", "Generate more, or raise adapt.threshold.")
        material = mix(failures, replay, failure_fraction=self.config.adapt.failure_fraction, seed=self.config.optim.seed + number)
        refuse_leaks([Sample(id=c.sample_id, domain=c.domain, prompt=c.prompt, split="train") for c in material], self.evaluation)
        current = self.adapter
        result = train_adapter(
            self.draft,
            material,
            self.config,
            validation=self.validation if self.validation is not None else held_out,
            out=self.folder / f"round-{number}",
            start=current,
            resume=resume,
            cache_folder=self.cache_folder,
            progress=progress,
        )
        self.records.append(record_round(number, result, self.config, len(failures), len(material) - len(failures), current))
        write_rounds(self.folder / "rounds.json", self.records)
        self.tracker.round_done()
        return self.records[-1]

    def _failures(self, round_: int) -> tuple[list[Case], list[Case]]:
        """Return the failure cases to train on and the cases held out; one prompt is never in both."""
        failures = [case for case in self.store.cases(round_=round_) if case.split != "test"]
        if self.validation is not None:
            return failures, []
        held_out = [case for case in (*failures, *self.buffer.cases()) if _held_out(case)]
        return [case for case in failures if not _held_out(case)], held_out


def _held_out(case: Case) -> bool:
    """Depends on the prompt alone, so that another answer to it falls on the same side."""
    return int(hashlib.sha256(repr(case.prompt_tokens).encode()).hexdigest()[:8], 16) % HELD_OUT_SHARE == 0
