"""What the stages of a distillation share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.answers.collect import Pool
from harness.distill.distill_config import DistillConfig
from harness.models.pair import Pair


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What all stages share."""

    config: DistillConfig
    pair: Pair
    folder: Path
    """Folder of the target's weights."""
    work: Path
    """Rollouts, checkpoints and the loss log."""
    out: Path
    """Where the finished draft goes."""
    command: str
    """How to repeat the run, for the card."""
    numbers: Callable[[Mapping[str, float]], None] | None = None
    """Told the numbers of every update that is noted."""
    pool: Pool | None = None
    """Who answers elsewhere; this process where None. Prompts that the target writes itself are written here."""

    @property
    def rollouts(self) -> Path:
        """Shards of training trajectories."""
        return self.work / "rollouts"

    @property
    def fitted(self) -> Path:
        """Checkpoint, loss log and vocabulary."""
        return self.work / "fit"
