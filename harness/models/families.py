"""Known model families (families.yaml): which draft goes with a target, a draft length to start from, and what they weigh. No mlx."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness.core.yamlfile import Strict, read_yaml, validate

TABLE = Path(__file__).with_name("families.yaml")
TIMES_SMALLER = 2.5
"""Drafting pays when a token of the target takes this many times the parameters of one of the draft."""
FORMATS = {"4 bits": 4.5, "8 bits": 8.5, "bfloat16": 16.0, "float32": 32.0}
"""Bits per weight as mlx stores them, scales included."""


class KnownModel(Strict):
    """One model of a family."""

    size: Annotated[float, Field(gt=0)]
    """Billions of parameters."""
    active: Annotated[float, Field(gt=0)] | None = None
    """Those that one token uses, where they are fewer."""
    licence: str | None = None
    """Where it is not the family's."""
    gb: Annotated[float, Field(gt=0)] | None = None
    """Gigabytes of the published weights, where they are quantised as trained."""

    @property
    def used(self) -> float:
        """Billions of parameters that one token takes."""
        return self.active or self.size

    def gigabytes(self, form: str) -> float:
        """Weights in one of :data:`FORMATS`."""
        if self.gb is not None and form != "float32":
            return self.gb
        return self.size * FORMATS[form] / 8


class Family(Strict):
    """Models that share one tokenizer."""

    family: str
    """Name for people."""
    licence: str
    """SPDX name where there is one."""
    k: Annotated[int, Field(ge=1, le=32)]
    """Draft length to start from."""
    note: str = ""
    """What to watch out for."""
    models: Annotated[dict[str, KnownModel], Field(min_length=1)]
    """Hub repository to what is known of it."""
    drafts: list[str] = Field(default_factory=list)
    """Those of ``models`` that draft for others, the best first."""

    def licence_of(self, name: str) -> str:
        """Licence of one of ``models``."""
        return self.models[name].licence or self.licence


class _Table(Strict):
    families: list[Family]


@dataclass(frozen=True)
class Suggestion:
    """What goes with a target."""

    family: Family
    """Family the target belongs to."""
    target: str
    """The entry of the table that it is, in whatever number format."""
    drafts: tuple[str, ...]
    """Hub repositories that draft for it, the best first; empty where none pays."""

    @property
    def draft(self) -> str | None:
        """The best draft."""
        return self.drafts[0] if self.drafts else None

    @property
    def k(self) -> int:
        """Draft length to start from."""
        return self.family.k

    @property
    def note(self) -> str:
        """What to watch out for, or why there is no draft."""
        if self.drafts or not self.family.drafts:
            return self.family.note
        smallest = min(self.family.models[name].used for name in self.family.drafts)
        own = self.family.models[self.target].used
        return f"No draft of its family pays: a token takes {own:g} B parameters, one of the smallest draft {smallest:g} B."

    def gigabytes(self, form: str, *, draft: bool = True) -> float:
        """Weights of the target, and of the best draft unless ``draft`` is False, in one of :data:`FORMATS`."""
        names = (self.target, *(self.drafts[:1] if draft else ()))
        return sum(self.family.models[name].gigabytes(form) for name in names)


@functools.cache
def families() -> tuple[Family, ...]:
    """The table.

    Raises:
        HarnessError: it is damaged.
    """
    return tuple(validate(_Table, read_yaml(TABLE)).families)


def suggest(target: str) -> Suggestion | None:
    """What goes with a hub name such as ``mlx-community/Qwen2.5-7B-Instruct-4bit``, or a folder's; None for models not in the table.

    The longest name of the table counts with which ``target`` begins; what follows is taken for its number format.
    """
    wanted = _plain(target)
    found: tuple[int, Family, str] | None = None
    for family in families():
        for name in family.models:
            known = _plain(name)
            if re.match(re.escape(known) + r"(?!\w|\.\d)", wanted) and (found is None or len(known) > found[0]):
                found = (len(known), family, name)
    if found is None:
        return None
    _, family, name = found
    used = family.models[name].used
    return Suggestion(family, name, tuple(draft for draft in family.drafts if used >= TIMES_SMALLER * family.models[draft].used))


def _plain(name: str) -> str:
    return name.rpartition("/")[2].lower().removeprefix("meta-").replace("_", "-")
