"""Which drafters there are: a line each in :data:`DRAFTERS`, and those that installed packages bring. Loads no model code."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.files import reason
from harness.core.paths import found_memory, found_parallel
from harness.core.protocols import LoadedPair
from harness.core.text import printable

GROUP = "harness.drafters"
"""Entry-point group of packages that bring a drafter: its name, and the :class:`DrafterKind` it stands for."""


@dataclass(frozen=True, kw_only=True)
class DrafterKind:
    """What suites, sessions, commands and checks know about a drafter without making one."""

    summary: str
    """What it does, in a few words."""
    make: str | Callable[[Any, Any], Any]
    """``make(pair, options)`` returns the drafter; ``module:function`` is imported when the first one is made."""
    needs_draft: bool = False
    """The pair must have a draft model."""
    free: bool = False
    """It can propose without running a model."""
    remembers: bool = False
    """It holds answers to earlier prompts: none of them may be evaluated with it."""
    needs_memory: bool = False
    """The pair must have a memory."""
    needs_parallel: bool = False
    """The pair must have a parallel adapter called ``parallel``."""
    needs_head: bool = False
    """The pair must have a head that reads its target."""
    inner: bool = False
    """It can stand for the pair's draft in a drafter that runs one: ``hybrid+parallel``, ``cascade+head``."""
    options: tuple[str, ...] = ()
    """Fields of :class:`harness.decode.making.DrafterOptions` that change what it proposes."""

    @property
    def model_free(self) -> bool:
        """It never runs a model."""
        return self.free and not self.needs_draft

    @property
    def trainable(self) -> bool:
        """All it proposes is the draft's, so what it gets wrong can train the draft."""
        return self.takes_draft and not self.free

    @property
    def takes_draft(self) -> bool:
        """It runs the pair's draft, and would run another in its place, such as an adapted one."""
        return self.needs_draft and not self.needs_parallel

    def create(self, pair: LoadedPair, options: Any) -> Any:
        """A drafter for ``pair``."""
        if not isinstance(self.make, str):
            return self.make(pair, options)
        module, _, function = self.make.partition(":")
        return getattr(importlib.import_module(module), function)(pair, options)


_MAKING = "harness.decode.making"
_MEMORY_OPTIONS = ("memory_ngram", "memory_min_ngram", "memory_threshold")

DRAFTERS: dict[str, DrafterKind] = {
    "generic": DrafterKind(summary="the pair's draft", make=f"{_MAKING}:generic", needs_draft=True, options=("vocab",)),
    "lookup": DrafterKind(summary="copies from the text so far", make=f"{_MAKING}:lookup", free=True, options=("ngram", "min_ngram")),
    "early_exit": DrafterKind(summary="the target's first layers", make=f"{_MAKING}:early_exit", options=("layers",)),
    "hybrid": DrafterKind(
        summary="lookup, then the draft",
        make=f"{_MAKING}:hybrid",
        needs_draft=True,
        free=True,
        options=("hybrid_ngram", "hybrid_min_ngram", "vocab"),
    ),
    "memory": DrafterKind(
        summary="what the target said before, or lookup",
        make=f"{_MAKING}:memory",
        free=True,
        remembers=True,
        needs_memory=True,
        options=_MEMORY_OPTIONS,
    ),
    "memory_hybrid": DrafterKind(
        summary="memory, then the draft",
        make=f"{_MAKING}:memory_hybrid",
        needs_draft=True,
        free=True,
        remembers=True,
        needs_memory=True,
        options=(*_MEMORY_OPTIONS, "vocab"),
    ),
    "cascade": DrafterKind(
        summary="each token from lookup, memory or draft, whichever promises most for its cost",
        make=f"{_MAKING}:cascade",
        needs_draft=True,
        free=True,
        remembers=True,
        options=("memory_ngram", "memory_min_ngram", "vocab"),
    ),
    "parallel": DrafterKind(
        summary="the draft, several tokens in one pass", make=f"{_MAKING}:parallel", needs_draft=True, needs_parallel=True, inner=True
    ),
    "head": DrafterKind(
        summary="a block that reads the target's hidden states", make="harness.decode.head:head_drafter", needs_head=True, inner=True
    ),
}
"""The drafters that come with the package. A new one is one line here."""


def drafter_kinds() -> dict[str, DrafterKind]:
    """Name -> kind: those of the package, then those of installed packages.

    Raises:
        HarnessError: an installed package's drafter cannot be read, or has the name of another.
    """
    return {**DRAFTERS, **_installed()}


def find_kind(name: str | None) -> DrafterKind | None:
    """The kind called ``name``, such as ``hybrid+parallel``; None for plain decoding, adapters, the router and what nobody knows."""
    if name is None or name in DRAFTERS:
        return DRAFTERS.get(name or "")
    around, inner = split_name(name)
    return _installed().get(name) if around is None else _around(find_kind(around), find_kind(inner))


def _around(outer: DrafterKind | None, own: DrafterKind | None) -> DrafterKind | None:
    """A drafter with another one in the place of the pair's draft; None where that is no drafter."""
    if outer is None or own is None or not outer.takes_draft or not own.inner:
        return None

    def make(pair: Any, options: Any) -> Any:
        return outer.create(pair, replace(options, draft=own.create(pair, options)))

    needs = {"needs_draft": own.needs_draft, "needs_parallel": own.needs_parallel, "needs_head": own.needs_head}
    return replace(
        outer, summary=f"{outer.summary}; the draft is {own.summary}", make=make, options=(*outer.options, *own.options), **needs
    )


def drafter_kind(name: str) -> DrafterKind:
    """The kind called ``name``.

    Raises:
        HarnessError: there is none; names the nearest.
    """
    kind = find_kind(name)
    if kind is None:
        hint = did_you_mean(name, list(drafter_kinds()))
        raise HarnessError(f"unknown drafter {name!r}: {hint}", "Use a drafter's name, or install the package that brings it.")
    return kind


def split_name(name: str) -> tuple[str | None, str]:
    """``hybrid+code`` is the drafter ``hybrid`` around what ``code`` names, an adapter or the router; any other name stands alone."""
    around, plus, inner = name.partition("+")
    return (around, inner) if plus else (None, name)


def needs_draft(name: str | None) -> bool:
    """Whether decoding with ``name`` takes a draft model; adapters and the router do."""
    kind = find_kind(name)
    return name is not None and (kind is None or kind.needs_draft)


def remembers(name: str | None) -> bool:
    """Whether decoding with ``name`` drafts from the pair's memory, where there is one."""
    kind = find_kind(name)
    return kind is not None and kind.remembers


def needs_memory(name: str | None) -> bool:
    """Whether decoding with ``name`` takes a memory."""
    kind = find_kind(name)
    return kind is not None and kind.needs_memory


def needs_parallel(name: str | None) -> bool:
    """Whether decoding with ``name`` takes the pair's parallel adapter."""
    kind = find_kind(name)
    return kind is not None and kind.needs_parallel


def check_needs(pair_name: str, drafter: str | None) -> None:
    """Check before anything is loaded that a drafter which needs a memory, or a parallel adapter, has one.

    Raises:
        HarnessError: the pair has none.
    """
    if needs_memory(drafter) and found_memory(pair_name) is None:
        raise no_memory(pair_name)
    if needs_parallel(drafter) and found_parallel(pair_name) is None:
        raise no_parallel(pair_name)


def no_memory(pair_name: str) -> HarnessError:
    """What to do where a pair has no memory."""
    return HarnessError(f"pair {pair_name!r} has no memory", f"Make one: `harness memory build {pair_name} --from answers/`.")


def no_parallel(pair_name: str) -> HarnessError:
    """What to do where a pair has no parallel adapter."""
    return HarnessError(f"pair {pair_name!r} has no parallel adapter", f"Train one: `harness train --models {pair_name} --parallel 8`.")


def no_head(pair_name: str) -> HarnessError:
    """What to do where a pair has no head."""
    return HarnessError(
        f"pair {pair_name!r} has no head that reads its target",
        "Make one with `harness distill CONFIG --set kind=head`, and name its folder as `head` in the pair's file.",
    )


def described() -> str:
    """The package's drafters for a help text: ``generic (the pair's draft), lookup (...)``."""
    return ", ".join(f"{name} ({kind.summary})" for name, kind in DRAFTERS.items())


@functools.cache
def _installed() -> dict[str, DrafterKind]:
    """Name -> kind of the drafters that installed packages bring, read once."""
    found: dict[str, DrafterKind] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        advice = f"Update or remove the package {point.dist.name if point.dist else point.value!r}."
        if point.name in DRAFTERS or point.name in found or point.name == "router":
            raise HarnessError(f"an installed package brings a second drafter called {point.name!r}", advice)
        found[point.name] = _load(point, advice)
    return found


def _load(point: importlib.metadata.EntryPoint, advice: str) -> DrafterKind:
    try:
        kind = point.load()
    except Exception as error:  # whatever foreign code raises while it is imported
        raise HarnessError(f"cannot read the installed drafter {point.name!r}: {printable(reason(error))}", advice) from None
    if not isinstance(kind, DrafterKind):
        raise HarnessError(f"the installed drafter {point.name!r} is {type(kind).__name__}, no DrafterKind", advice)
    return kind
