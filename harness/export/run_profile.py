"""``speculation_profile.json``: what a run measured of drafting, in the quantities an engine or a simulator can compute with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.records import SCHEMA_VERSION
from harness.core.schema import Calibration
from harness.core.stats import Estimate
from harness.report import Run
from harness.results.summary import CellRow

PROFILE = "speculation_profile.json"


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number with its 95% interval."""

    value: float
    low: float | None
    """None with too few prompts."""
    high: float | None
    n: int
    """Prompts it rests on."""


@dataclass(frozen=True, kw_only=True)
class ProfileCell:
    """One way of drafting on the prompts of one domain, or of all of them (``all``)."""

    drafter: str
    adapter: str | None
    k: int | str | None
    rule: str
    temperature: float
    loop: str
    settings: Mapping[str, Any]
    domain: str
    method: str
    """``decode``, or ``replay`` where the counts follow from the target's answers."""
    prompts: int
    rounds: float
    """Target passes."""
    drafted: float
    accepted: float
    rejected: float
    """Rounds that a rejection ended."""
    emitted: float
    acceptance_rate: Value | None
    """accepted / drafted."""
    alpha: Value | None
    """accepted / (accepted + rejected): the chance that one drafted token stands."""
    tau: Value | None
    """Emitted tokens per target pass."""
    marginal: tuple[float, ...]
    """At position j = 1, 2, ...: rounds that accepted j or more / rounds that drafted j or more."""
    conditional: tuple[float | None, ...]
    """The same over the rounds that accepted everything before."""
    reached: tuple[int, ...]
    """Rounds that drafted j or more."""
    speedup: Value | None
    """Over the target alone, where it was timed."""
    predicted_speedup: float | None
    """tau / (K c + v(K + 1))."""


@dataclass(frozen=True, kw_only=True)
class SpeculationProfile:
    """The file, its schema version apart."""

    run: str
    finished: bool
    started: str
    pair: str
    models: Mapping[str, str | None]
    """SHA-256 of ``target`` and ``draft``, and ``dtype``."""
    packages: Mapping[str, str]
    machine: Mapping[str, Any]
    cost: Mapping[str, Calibration]
    """By drafter: ``c``, a draft step over a target step, and ``v``, a target pass over 1, 2, ... tokens over a step."""
    cells: tuple[ProfileCell, ...]


def profile(run: Run) -> SpeculationProfile:
    """The profile of a run."""
    m = run.manifest
    return SpeculationProfile(
        run=m.run, finished=m.finished, started=m.started, pair=m.pair, models=m.models, packages=m.packages, machine=m.machine,
        cost=m.measured.calibration, cells=tuple(_cell(row) for row in run.shown if row.drafter is not None and row.counts.drafted),
    )  # fmt: skip


def profile_json(run: Run) -> str:
    """:func:`profile` as the text of the file."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(profile(run))}, indent=1, ensure_ascii=False) + "\n"


def _cell(row: CellRow) -> ProfileCell:
    counts = row.counts
    return ProfileCell(
        drafter=row.drafter or "", adapter=row.adapter, k=row.k, rule=row.rule, temperature=row.temperature, loop=row.loop,
        settings=row.settings, domain=row.domain, method=row.method, prompts=row.n, rounds=counts.rounds, drafted=counts.drafted,
        accepted=counts.accepted, rejected=counts.rejected, emitted=counts.emitted, acceptance_rate=_value(row.rate),
        alpha=_value(row.alpha), tau=_value(row.tau), marginal=row.marginal, conditional=row.conditional, reached=row.reached,
        speedup=_value(row.speed), predicted_speedup=row.predicted,
    )  # fmt: skip


def _value(estimate: Estimate | None) -> Value | None:
    return None if estimate is None else Value(value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n)
