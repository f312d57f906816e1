"""Rolling acceptance: the recent rate, its trend, and when a training round is due."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness.core.counts import quotient
from harness.core.files import read_stored, write_atomic
from harness.core.records import SCHEMA_VERSION

_Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class _State:
    """What the file holds."""

    recent: tuple[tuple[_Whole, Annotated[int, Field(ge=1)]], ...]
    """Accepted and drafted tokens of the last generations."""
    pending: Mapping[str, _Whole]
    """Failure cases by domain since the last round."""
    rounds: _Whole


class AcceptanceTracker:
    """Pools accepted and drafted tokens over the last generations and counts failure cases since the last round.

    Args:
        window: generations in the rolling rate.
        threshold: acceptance rate below which a generation is a failure case.
        min_failure_cases: failure cases that make a round due.
        path: JSON file the state is kept in; None keeps it in memory.
    """

    def __init__(self, *, window: int = 50, threshold: float = 0.5, min_failure_cases: int = 32, path: str | Path | None = None) -> None:
        self.threshold, self.min_failure_cases = threshold, min_failure_cases
        self.path = Path(path) if path is not None else None
        self._recent: deque[tuple[int, int]] = deque(maxlen=window)
        self.pending: dict[str, int] = {}
        self.rounds = 0
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def update(self, accepted: int, drafted: int, domain: str, *, trainable: bool = True) -> bool:
        """Add one generation; True when it is a failure case. A generation without drafted tokens changes nothing.

        Only a ``trainable`` failure counts towards the next round: evaluation prompts are tracked, not trained on.
        """
        if drafted == 0:
            return False
        self._recent.append((accepted, drafted))
        failure = accepted / drafted < self.threshold
        if failure and trainable:
            self.pending[domain] = self.pending.get(domain, 0) + 1
        self._save()
        return failure

    @property
    def rate(self) -> float | None:
        """Accepted / drafted, pooled over the window; None before the first generation."""
        return quotient(sum(a for a, _ in self._recent), sum(d for _, d in self._recent))

    @property
    def trend(self) -> float | None:
        """Least-squares slope of the acceptance rate per generation over the window; None below 3 generations."""
        n = len(self._recent)
        if n < 3:
            return None
        rates = [a / d for a, d in self._recent]
        centre, mean = (n - 1) / 2, sum(rates) / n
        return sum((i - centre) * (r - mean) for i, r in enumerate(rates)) / sum((i - centre) ** 2 for i in range(n))

    @property
    def due(self) -> bool:
        """True when enough failure cases wait for a training round."""
        return sum(self.pending.values()) >= self.min_failure_cases

    def round_done(self) -> None:
        """Start counting failure cases anew after a training round, accepted or not."""
        self.pending = {}
        self.rounds += 1
        self._recent.clear()
        self._save()

    def _save(self) -> None:
        if self.path is not None:
            state = {"schema_version": SCHEMA_VERSION, "recent": list(self._recent), "pending": self.pending, "rounds": self.rounds}
            write_atomic(self.path, json.dumps(state).encode())

    def _load(self, path: Path) -> None:
        state: _State = read_stored(_State, path, advice="Delete it to start counting anew.")
        self._recent.extend(state.recent)
        self.pending = dict(state.pending)
        self.rounds = state.rounds
