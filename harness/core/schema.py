"""What the free-form parts of manifests and records may hold; checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import NotRequired, TypedDict

Amount = Annotated[float, Field(ge=0, le=1e18)]
Duration = Annotated[float, Field(gt=1e-12, le=1e12)]
"""Seconds, or a cost, that something is divided by."""


class Calibration(TypedDict):
    """Measured costs of one drafter."""

    c: Amount
    """Draft step over target step."""
    v: list[Duration]
    """Target pass over 1, 2, ... tokens, over a step."""
    once: NotRequired[Amount]
    """What a round with a draft costs beside ``c`` a token, over a step: the one pass of a drafter that proposes all tokens in it."""


class Round(TypedDict):
    """What the manifest keeps of a :class:`harness.adapt.training.rounds.RoundRecord`."""

    round: int
    accepted: bool
    before: dict[str, float]
    after: dict[str, float]
    steps: int
    tokens: int
    train_s: Amount
    gain: NotRequired[Interval | None]


class Interval(TypedDict):
    """A number with its interval, where it has one."""

    value: float
    low: float | None
    high: float | None


class Adapter(TypedDict):
    """An adapter that the run trained, or took from the package: then it is among ``installed``, and has no rounds."""

    hash: str | None
    domain: str
    metric: str
    rounds: list[Round]


class Swap(TypedDict):
    """What one policy of the adapter bank costs."""

    policy: str
    swap_s: Amount
    held_bytes: int
    step_ratio: float


class SpotCheck(TypedDict):
    """A replayed sample that was decoded too."""

    drafter: str
    sample_id: str
    k: int | str
    equal: bool
    near_ties: int | None
    replay_s: NotRequired[Duration]
    replayed: NotRequired[int]
    """Only in runs of older versions."""


class ReplayTime(TypedDict):
    """What replays took whose clock was not lost: a process that was killed took its own with it."""

    records: int
    """That they wrote."""
    seconds: Amount


class Verification(TypedDict):
    """One reading of what verification costs."""

    after: str
    """What went before."""
    v: Duration
    """A pass over five tokens, in passes over one."""


class Race(TypedDict):
    """Where a run that clocks only what can still win stands."""

    clocked: dict[str, Annotated[int, Field(ge=0)]]
    """Candidate to the number of the plan's prompts, from the first on, that it is decoded on with a clock; nothing else is."""
    dropped: list[str]
    """Candidates that were shown to be slower than the best or than the target alone, in order."""
    ended: Literal["", "decided", "time", "prompts"]
    """Why no more is clocked: nothing is open, the time or the prompts are used up; empty while it goes on."""


class WorkerFacts(TypedDict):
    """What the clocks of one worker process taught it."""

    worker: str
    """Its name."""
    machine: str
    """Kind of its machine, a key of ``machines``."""
    calibration: dict[str, Calibration]
    """Drafter label to its costs there."""
    reference_s: list[Duration]
    verification: list[Verification]


def _whole(seconds: dict[str, float]) -> dict[str, float]:
    if seconds.get("total", 0.0) < 1e-12:
        raise ValueError("total is missing")
    return seconds


Stages = Annotated[dict[str, Amount], AfterValidator(_whole)]
"""Seconds by stage of a run, and their ``total``."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run learned while it ran: :attr:`harness.results.manifest.Manifest.measured`."""

    status: Literal["running", "interrupted", "finished"] = "running"
    """``running`` also after a kill."""
    planned: Annotated[int, Field(ge=0)] | None = None
    """Records of the whole run; None before the plan was made."""
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    """Drafter label to its costs."""
    reference_s: tuple[Duration, ...] = ()
    """Seconds of one fixed workload before, between and after the cells."""
    verification: tuple[Verification, ...] = ()
    """What verification cost in the course of the run."""
    peak_memory_bytes: Annotated[int, Field(ge=0)] = 0
    time_s: Stages | None = None
    """Seconds by stage."""
    skipped: tuple[str, ...] = ()
    """Experiments that this pair cannot do."""
    without_memory: tuple[str, ...] = ()
    """Drafters that were left out because the pair has no memory."""
    without_draft: str | None = None
    """Why everything that needs a draft was left out (``--fallback``); None where nothing was."""
    warnings: tuple[str, ...] = ()
    """What this machine could not do."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """Adapters that the run trained, by name."""
    installed: Mapping[str, str] = field(default_factory=dict)
    """Adapters that were there before the run, and the SHA-256 of their weights."""
    routers: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the routers that the run fitted."""
    swaps: tuple[Swap, ...] = ()
    spot_checks: tuple[SpotCheck, ...] = ()
    """Replayed samples that were decoded too."""
    replayed: ReplayTime | None = None
    """None where nothing was replayed, and in runs of older versions."""
    samples_replayed: bool = False
    """Sampled cells are replayed too; False in runs of older versions."""
    target_ties: Mapping[str, Annotated[int, Field(ge=0)]] = field(default_factory=dict)
    """Sample id to the number of near-ties of the target in its answer."""
    race: Race | None = None
    """None where everything that was planned is clocked."""
    workers: Mapping[str, WorkerFacts] = field(default_factory=dict)
    """Worker processes of a cluster, by what :attr:`harness.core.records.Place.calibration` calls them."""
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Kinds of machine in the cluster, and their facts."""
    reference_machine: str | None = None
    """The kind whose costs ``calibration`` holds and whose clocks the tables show; None in runs of one process."""


class Machine(TypedDict, total=False):
    """:attr:`harness.results.manifest.Manifest.machine`."""

    memory_bytes: int
    cores: int | None
