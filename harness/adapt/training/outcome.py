"""What training reports: progress, evaluations, the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.adapt.training.acceptance import Acceptance, DomainCounts, pool
from harness.core.stats import Estimate


class Enough(Exception):
    """Raised by who follows a training: end it here, and keep the best adapter so far."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Validation acceptance at one point of training."""

    step: int
    """Updates done."""
    value: float
    """The configured metric."""
    counts: DomainCounts
    """Counts of every validation trajectory by domain."""

    @property
    def by_domain(self) -> Mapping[str, Acceptance]:
        """Pooled counts by domain."""
        return {domain: pool(parts) for domain, parts in self.counts.items()}


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Passed to ``progress`` after each update."""

    step: int
    """Updates done."""
    total: int
    """Updates planned."""
    loss: float
    """Loss of this update, nats per weighted token."""
    tokens_per_s: float
    """Prompt and answer tokens per second of training so far, evaluation excluded."""
    value: float
    """Validation metric at the latest evaluation."""
    best: float
    """The best of them so far."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run came to."""

    accepted: bool
    """True when validation acceptance rose as ``stop`` demands; otherwise nothing was written over the old adapter."""
    adapter: Path | None
    """Folder of the new adapter; None when rejected."""
    before: Evaluation
    """The draft that training started from."""
    after: Evaluation
    """The best checkpoint (``before`` when none was better)."""
    gain: Estimate | None
    """Rise of the metric from ``before`` to ``after`` with its 95% interval, paired by validation trajectory; None where it is undefined.
    The best of several checkpoints is taken, so it is a little too high: what an adapter gains shows on prompts of neither split."""
    evaluations: tuple[Evaluation, ...]
    """All of them, the first at step 0."""
    losses: tuple[float, ...]
    """Training loss of each update."""
    steps: int
    """Updates done."""
    tokens: int
    """Prompt and answer tokens trained on."""
    train_s: float
    """Seconds in updates, hidden states included, evaluation excluded."""
    left_out: int
    """Examples without an answer token inside ``optim.max_tokens`` or that the draft's vocabulary cannot produce."""
