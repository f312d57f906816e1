"""What tells one cell of a run from another: the one identity that store, plan, summary, gate and comparison go by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from harness.core.records import Record, Scalar

T = TypeVar("T", bound="CellId")
BOTH = "both"
"""Method of what is counted by replay and timed by decoding."""


class Settings(dict[str, Scalar]):
    """Further settings of a cell, such as ``lenience``, ``rank`` or ``round``; can be a key, so nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.key)

    @property
    def key(self) -> str:
        """As text, the same for the same settings."""
        return json.dumps(self, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class CellId:
    """One combination of settings over the prompts of one domain."""

    experiment: str
    """Suite entry it belongs to."""
    domain: str
    drafter: str | None
    """None is target-only decoding."""
    adapter: str | None
    """None too where a router picks: what it picks does not tell cells apart."""
    k: int | str | None
    rule: str
    temperature: float
    loop: str
    method: str
    """``decode``, ``replay``, ``answer``, or ``both``."""
    lossy: bool
    settings: Settings

    def __hash__(self) -> int:
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            found = hash(tuple(getattr(self, name) for name in FIELDS))
            object.__setattr__(self, "_hash", found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}  # texts hash otherwise in another process

    @property
    def key(self) -> str:
        """The identity as JSON text; :func:`from_key` reads it."""
        return json.dumps({name: getattr(self, name) for name in FIELDS}, sort_keys=True)

    def __str__(self) -> str:
        """For people: ``code lookup K=4 (ablation_k, replay)``."""
        settings = "".join(f" {key}={value}" for key, value in sorted(self.settings.items()))
        adapter = f" {self.adapter}" if self.adapter else ""
        temperature = f" T={self.temperature:g} {self.rule}" if self.temperature else ""
        k = "" if self.k is None else f" K={self.k}"
        drafter = self.drafter or "target only"
        place = ", ".join(filter(None, (self.experiment, self.method)))
        return f"{self.domain} {drafter}{adapter}{k}{temperature}{settings}" + (f" ({place})" if place else "")


FIELDS = tuple(field.name for field in dataclasses.fields(CellId))
"""Names of what tells cells apart."""


def cell_of(record: Record) -> CellId:
    """The cell that a record belongs to."""
    adapter = None if record.drafter == "router" else record.adapter
    settings = Settings(record.settings).key if record.settings else "{}"
    return one_cell(
        record.experiment, record.domain, record.drafter, adapter, record.k, record.rule, record.temperature, record.loop, record.method,
        record.lossy, settings,
    )  # fmt: skip


@lru_cache(maxsize=65536, typed=True)
def one_cell(*values: Any) -> CellId:
    """The one object for a cell, of which a large run has thousands of records; ``values`` are :data:`FIELDS`, the settings as text."""
    return CellId(**dict(zip(FIELDS, values, strict=True)) | {"settings": Settings(json.loads(values[-1]))})


@lru_cache(maxsize=4096)
def from_key(key: str) -> CellId:
    """The identity that a text holds.

    Raises:
        ValueError: it holds none.
    """
    data = json.loads(key)
    if not isinstance(data, dict) or set(data) != set(FIELDS) or not isinstance(data["settings"], dict):
        raise ValueError(f"{key!r} names no cell")
    kinds: Mapping[str, Any] = {
        "drafter": str | None,
        "adapter": str | None,
        "k": int | str | None,
        "temperature": int | float,
        "lossy": bool,
    }
    for name in FIELDS:
        if name != "settings" and not isinstance(data[name], kinds.get(name, str)):
            raise ValueError(f"{key!r} names no cell: {name} is {data[name]!r}")
    return CellId(**data | {"settings": Settings(data["settings"])})


class RecordKey(NamedTuple):
    """What identifies a finished sample in a cell: a resumed run skips the keys it already has."""

    cell: CellId
    sample_id: str
    seed: int
    repeat: int
    """Which of several equal decodes."""


def record_key(record: Record) -> RecordKey:
    """The key of a record."""
    return RecordKey(cell_of(record), record.sample_id, record.seed, record.repeat)
