"""The training rounds of one chain as a task: run here, or by a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.core.protocols import LoadedDraft
from harness.core.records import Trajectory

if TYPE_CHECKING:
    from harness.adapt.routers.arms import Replaying
    from harness.adapt.training.rounds import Known, RoundRecord
    from harness.adapt.training_config import TrainingConfig
    from harness.answers.collect import Pool
    from harness.decode.replay import ReplayRow

ROUNDS = "rounds.json"
"""File of a chain's finished rounds."""


@dataclass(frozen=True, kw_only=True)
class ChainTask:
    """What the training rounds of one chain need, wherever they are run."""

    name: str
    """Of the first round's adapter."""
    config: TrainingConfig
    rounds: int
    domain: str
    """Whose failures are trained on."""
    train: Sequence[Trajectory]
    """The target's answers to the training prompts of all domains."""
    validation: Sequence[Trajectory]
    prompts: Mapping[str, str]
    """Sample id to user turn."""
    folder: Path
    """Of the finished adapters, ``<cache>/trained/<pair>/<key>``."""

    @property
    def finished(self) -> list[RoundRecord] | None:
        """The rounds in the folder, where they are all there."""
        from harness.adapt.training.rounds import read_rounds

        found = read_rounds(self.folder / ROUNDS)
        return found if len(found) >= self.rounds else None

    def run(self, draft: LoadedDraft, folder: Path, known: Known, progress: Callable[[int, Any], None] | None = None) -> list[RoundRecord]:
        """Run the rounds in ``folder``, or go on with them."""
        from harness.adapt.training.rounds import run_rounds

        return run_rounds(
            draft,
            self.train,
            self.validation,
            self.config,
            rounds=self.rounds,
            out=folder,
            domain=self.domain,
            prompts=self.prompts,
            resume=True,
            progress=progress,
            known=known,
            min_failures=self.config.adapt.min_failure_cases,
        )


class Crew(Protocol):
    """Workers that train: :class:`harness.run.crew.ClusterCrew`."""

    @property
    def pool(self) -> Pool:
        """Answers in batches."""

    def train(self, tasks: Sequence[ChainTask]) -> list[list[RoundRecord]]:
        """Run chains, each on one worker; their files end up in their folders here."""

    def replay(self, folders: Mapping[str, Path], answers: Sequence[Trajectory], how: Replaying) -> list[ReplayRow]:
        """As :class:`harness.adapt.routers.arms.Replaying`."""

    def swaps(self, folders: Mapping[str, Path]) -> Sequence[Any]:
        """As :func:`harness.adapt.training.bank.swap_costs`."""
