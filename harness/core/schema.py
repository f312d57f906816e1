"""What the free-form parts of manifests and records may hold; checked when they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, Required, TypedDict

Scalar = str | int | float | bool | None
Amount = Annotated[float, Field(ge=0, le=1e18)]
Duration = Annotated[float, Field(gt=1e-12, le=1e12)]
"""Seconds, or a cost, that something is divided by."""


class Calibration(TypedDict):
    """Measured costs of one drafter."""

    c: Amount
    """Draft step over target step."""
    v: list[Duration]
    """Target pass over 1, 2, ... tokens, over a step."""


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
    """An adapter that the run trained."""

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
    k: int
    equal: bool
    near_ties: int | None
    replay_s: NotRequired[Duration]
    """What the replay of its cell took; not in runs of versions that did not store it."""


class Measured(TypedDict, total=False):
    """:attr:`harness.results.store.Manifest.measured`."""

    status: Literal["interrupted", "finished"]
    planned: Annotated[int, Field(ge=0)]
    calibration: dict[str, Calibration]
    reference_s: list[Duration]
    peak_memory_bytes: int
    time_s: Stages
    skipped: list[str]
    adapters: dict[str, Adapter]
    routers: dict[str, Any]
    swaps: list[Swap]
    spot_checks: list[SpotCheck]
    target_ties: dict[str, Annotated[int, Field(ge=0)]]


class Stages(TypedDict, total=False):
    """Seconds by stage of a run."""

    total: Required[Duration]
    train: Amount
    calibrate: Amount
    decode: Amount
    replay: Amount
    check: Amount
    load: Amount
    score: Amount


class Score(TypedDict):
    """How an answer was scored."""

    metric: str
    status: Literal["passed", "failed", "unscored"]
    value: Annotated[float, Field(ge=0, le=1)] | None


class Extra(TypedDict, total=False):
    """:attr:`harness.core.records.Record.extra`."""

    settings: dict[str, Scalar]
    score: Score | None
    profile: Parts | None
    near_ties: Annotated[int, Field(ge=0)] | None
    choice: str | None


class Parts(TypedDict):
    """A :class:`harness.core.records.Profile`."""

    draft_s: Amount
    verify_s: Amount
    sync_s: Amount
    host_s: Amount


class Machine(TypedDict, total=False):
    """:attr:`harness.results.store.Manifest.machine`."""

    memory_bytes: int
    cores: int | None
