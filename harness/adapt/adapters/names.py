"""Names a drafter may have: the built-in ones and the adapters installed for a pair; and which drafts take adapters. Loads no model."""

from __future__ import annotations

from pathlib import Path

from harness.adapt.adapters.adapter_folder import list_adapters, read_info
from harness.core.drafter_kinds import check_needs, drafter_kind, drafter_kinds, find_kind, split_name
from harness.core.errors import HarnessError, did_you_mean
from harness.core.paths import adapters_root, shipped_adapters_root
from harness.core.protocols import LoadedDraft, LoadedPair

ROUTER = "router"
"""Stands for the drafter that the pair's router chooses for a prompt."""


def built_in(name: str) -> bool:
    """Whether every pair understands a drafter's name, be it adapted or not."""
    return name == ROUTER or find_kind(name) is not None


def check_around(around: str, inner: str) -> None:
    """Check that one drafter can run around another.

    Raises:
        HarnessError: the outer one takes no draft, or the inner one is no adapter, no router and nothing that can stand for a draft.
    """
    if not drafter_kind(around).takes_draft or (built_in(inner) and inner != ROUTER and not drafter_kind(inner).inner):
        raise HarnessError(
            f"{around}+{inner} is no drafter",
            "Write a drafter that runs a draft, +, and an adapter's name, parallel, head or router, such as hybrid+code.",
        )


def installed(pair_name: str, draft_hash: str | None = None) -> dict[str, Path]:
    """Return name -> folder of a pair's adapters: those of ``harness train``, imports and sessions, then those of :func:`shipped`."""
    return shipped(pair_name, draft_hash) | list_adapters(adapters_root(pair_name))


def shipped(pair_name: str, draft_hash: str | None = None) -> dict[str, Path]:
    """Return name -> folder of the adapters that come with the package for a pair.

    Those of another draft than ``draft_hash`` are passed over, where it is known.
    """
    found = list_adapters(shipped_adapters_root(pair_name))
    return {name: folder for name, folder in found.items() if draft_hash in (None, read_info(folder).draft_hash)}


def check_drafter(pair_name: str, drafter: str | None, *, also: tuple[str, ...] = ()) -> None:
    """Check a drafter's name before anything is loaded, ``hybrid+code`` part by part; ``also`` are further names to suggest.

    Raises:
        HarnessError: neither built in nor installed; names the nearest. Or the pair has no memory for it.
    """
    around, inner = split_name(drafter or "")
    if around is not None:
        check_around(around, inner)
        check_needs(pair_name, around)
        drafter = inner
    if drafter is None or built_in(drafter):
        check_needs(pair_name, drafter)
        return
    adapters = installed(pair_name)
    if drafter not in adapters:
        known = [*also, *drafter_kinds(), ROUTER, *adapters]
        raise HarnessError(
            f"no drafter {drafter!r} for pair {pair_name!r}: {did_you_mean(drafter, known)}",
            "Adapters come from `harness train` and from sessions.",
        )


def adaptable(pair: LoadedPair) -> LoadedDraft:
    """The draft of a pair, to be adapted.

    Raises:
        HarnessError: the pair has none, or one with another tokenizer: the target's answers are not in its tokens.
    """
    if pair.draft is None:
        raise HarnessError(f"pair {pair.name!r} has no draft to adapt", "Load it with its draft, or name one in the pair's YAML.")
    if pair.draft.translation is not None:
        raise HarnessError(
            f"the draft of {pair.name!r} has another tokenizer than its target, and adapters learn from the target's tokens",
            "Choose a draft of the target's family; `harness models suggest TARGET` names one.",
        )
    return pair.draft
