"""What a session keeps: its folder, its lock, its counts, and the record of where it stands."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from harness.core.counts import Rates
from harness.core.errors import HarnessError
from harness.core.files import read_stored, write_atomic
from harness.core.lock import take_lock
from harness.core.paths import cache_dir, expand
from harness.core.protocols import LoadedPair
from harness.core.records import SCHEMA_VERSION, Generation

if TYPE_CHECKING:
    from harness.session.session_config import SessionConfig

STATE, LOCK = "session.json", "lock"


@dataclass(frozen=True, kw_only=True)
class Totals(Rates):
    """Raw counts over all answers of a session."""

    generations: int = 0
    """Answers."""
    tokens: int = 0
    """Emitted tokens of all answers."""
    wall_s: float = 0.0
    """Time of all answers."""
    rounds: int = 0
    """Target passes of the answers that used a drafter."""
    emitted: int = 0
    """Tokens of the answers that used a drafter."""
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0

    def plus(self, generation: Generation) -> Totals:
        """Return the totals with one more answer."""
        used = generation.drafter is not None
        return Totals(
            generations=self.generations + 1,
            tokens=self.tokens + generation.emitted,
            wall_s=self.wall_s + generation.wall_s,
            rounds=self.rounds + used * generation.rounds,
            emitted=self.emitted + used * generation.emitted,
            drafted=self.drafted + generation.drafted,
            accepted=self.accepted + generation.accepted,
            rejected=self.rejected + generation.rejected,
        )


@dataclass(frozen=True, kw_only=True)
class SessionStats:
    """Where a session stands. None where nothing was measured."""

    generations: int
    """Answers so far, earlier openings included."""
    tokens: int
    """Tokens of all answers."""
    tokens_per_s: float | None
    """Tokens / wall time, over all answers."""
    rate: float | None
    """Accepted / drafted, pooled."""
    alpha: float | None
    """Accepted / (accepted + rounds ended by a rejection), pooled."""
    tau: float | None
    """Tokens per target pass where a drafter was used."""
    rolling_rate: float | None
    """Accepted / drafted over the last answers."""
    trend: float | None
    """Slope of the acceptance rate per answer over the same window."""
    failures: int
    """Failure cases stored in all."""
    pending: int
    """Failure cases since the last training round."""
    needed: int
    """Failure cases that make a round due."""
    due: bool
    """A training round can run now."""
    rounds: int
    """Training rounds done."""
    rounds_accepted: int
    """Rounds that raised acceptance on held-out cases."""
    drafter: str | None
    """Drafter of the next answer, by the name ``generate`` takes; None is plain decoding."""
    refusal: str | None
    """Why the last due round did not run."""


def session_folder(pair: LoadedPair, config: SessionConfig) -> Path:
    """Return the session's folder: one per pair, session and draft: cases of one draft are no failures of another."""
    if config.folder is not None:
        return expand(config.folder)
    draft = pair.draft.hash[:12] if pair.draft is not None else "no-draft"
    return cache_dir() / "sessions" / pair.name / f"{config.name}-{draft}"


def lock_session(folder: Path) -> BinaryIO:
    """Create the folder and keep other processes out of it until the returned file is closed.

    Raises:
        HarnessError: the folder cannot be written, or another process has it.
    """

    def busy(owner: str) -> HarnessError:
        return HarnessError(
            f"the session in {folder} is open in another process (pid {owner})", "Leave that one, or choose another `name`."
        )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return take_lock(folder / LOCK, busy)
    except OSError as error:
        raise HarnessError(
            f"cannot write to {folder}: {error.strerror}", "Set `folder` in the session file to one you can write to."
        ) from error


def read_totals(path: Path) -> Totals:
    """Read the counts; zero where there is no file yet.

    Raises:
        HarnessError: damaged, or written by a newer version.
    """
    if not path.exists():
        return Totals()
    totals: Totals = read_stored(Totals, path, advice="Delete it to count anew; what was learned stays.")
    return totals


def write_totals(path: Path, totals: Totals) -> None:
    """Replace the counts on disk."""
    write_atomic(path, json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(totals)}).encode())
