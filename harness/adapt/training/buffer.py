"""Replay buffer: a uniform random sample of all accepted cases seen so far, capped, kept on disk, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from harness.adapt.training.failures import Case, case_to_dict
from harness.core import journal
from harness.core.errors import HarnessError
from harness.core.files import typed, write_atomic

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of the journal."""

    index: Annotated[int, Field(ge=0)]
    """Number of the case in the stream."""
    ids: tuple[str, ...] = ()
    """Cases seen."""
    slot: int | None = None
    """Where the case is kept; None where it was not."""
    case: Case | None = None
    buffer: dict[str, int] | None = None
    """Capacity and seed, in the first line."""


class ReplayBuffer:
    """Reservoir sampling (Vitter's algorithm R) over a stream of cases.

    The slot of the i-th case depends on (seed, i) alone, so a buffer reopened after a crash goes on exactly as one that was never closed.

    Args:
        path: JSONL journal; one line per case seen.
        capacity: most cases kept.
        seed: makes the choice repeatable.

    Raises:
        HarnessError: the file was written with another capacity or seed.
    """

    def __init__(self, path: str | Path, *, capacity: int = 1000, seed: int = 0) -> None:
        self.path, self.capacity, self.seed = Path(path), capacity, seed
        self.seen = 0
        self._slots: dict[int, Case] = {}
        self._ids: set[str] = set()
        self._lines = 0
        journal.repair_tail(self.path)
        for number, row in enumerate(journal.read(self.path), start=1):
            self._apply(row, f"{self.path}:{number}")

    def __len__(self) -> int:
        return len(self._slots)

    def cases(self) -> list[Case]:
        """Return the kept cases in slot order."""
        return [self._slots[slot] for slot in sorted(self._slots)]

    def add(self, case: Case) -> bool:
        """Offer a case; True when it is kept. A case offered before changes nothing. On disk before returning."""
        if case.id in self._ids:
            return False
        index = self.seen
        slot = self._slot(index)
        row: dict[str, Any] = {"index": index, "ids": [case.id]}
        if slot is not None:
            row.update(slot=slot, case=case_to_dict(case))
        if self._lines == 0:
            row["buffer"] = {"capacity": self.capacity, "seed": self.seed}
        journal.append(self.path, [row])
        self._lines += 1
        self.seen += 1
        self._ids.add(case.id)
        if slot is not None:
            self._slots[slot] = case
        if self._lines > 4 * self.capacity + 64:
            self._compact()
        return slot is not None

    def _slot(self, index: int) -> int | None:
        if index < self.capacity:
            return index
        slot = random.Random(f"{self.seed}:{index}").randrange(index + 1)
        return slot if slot < self.capacity else None

    def _apply(self, data: dict[str, Any], where: str) -> None:
        row: _Row = typed(_Row, data, where, advice="Delete the file to start a new sample.")
        own = {"capacity": self.capacity, "seed": self.seed}
        if row.buffer is not None and row.buffer != own:
            raise HarnessError(
                f"{self.path} was written with {row.buffer}, not capacity {self.capacity} and seed {self.seed}",
                "Use the same settings, or another file.",
            )
        if row.case is not None and row.slot is not None:
            self._slots[row.slot] = row.case
        self.seen = row.index + 1
        self._ids.update(row.ids)
        self._lines += 1

    def _compact(self) -> None:
        """Rewrite the journal with the kept cases and the ids of all."""
        rows: list[dict[str, Any]] = [
            {"index": self.seen - 1, "slot": slot, "case": case_to_dict(case)} for slot, case in sorted(self._slots.items())
        ]
        rows[0] |= {"buffer": {"capacity": self.capacity, "seed": self.seed}, "ids": sorted(self._ids)}
        write_atomic(self.path, journal.lines(rows))
        self._lines = len(rows)


def mix(failures: list[T], replay: list[T], *, failure_fraction: float, seed: int) -> list[T]:
    """Return all failures and so many replay cases that failures make up ``failure_fraction``, in a seeded order.

    Fewer replay cases than wanted are all used; without failures the replay cases are returned.
    """
    rng = random.Random(seed)
    if not failures:
        chosen = list(replay)
    elif failure_fraction <= 0:
        raise HarnessError("failure_fraction is 0 but there are failure cases", "Set adapt.failure_fraction above 0.")
    else:
        wanted = round(len(failures) * (1 - failure_fraction) / failure_fraction)
        chosen = failures + rng.sample(replay, min(wanted, len(replay)))
    rng.shuffle(chosen)
    return chosen
