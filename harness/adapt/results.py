"""What training reports: progress, evaluations, the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.adapt.acceptance import Acceptance


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Validation acceptance at one point of training."""

    step: int
    """Updates done."""
    value: float
    """The configured metric."""
    by_domain: Mapping[str, Acceptance]
    """Counts by domain."""


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
    """True when validation acceptance rose by more than ``stop.min_gain``; otherwise nothing was written over the old adapter."""
    adapter: Path | None
    """Folder of the new adapter; None when rejected."""
    before: Evaluation
    """The draft that training started from."""
    after: Evaluation
    """The best checkpoint (``before`` when none was better)."""
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
