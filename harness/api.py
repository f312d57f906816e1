"""The public calls: as :mod:`harness.decode.generation`'s, where ``drafter`` may also be an installed adapter's name or ``router``.

Adapters of one pair share its draft, whose weights a swap changes: run one answer of a pair at a time.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.adapt.adapters.names import adaptable, built_in, check_drafter, installed
from harness.adapt.training.bank import AdapterBank
from harness.core.drafter_kinds import split_name
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedPair
from harness.core.records import Generation, Rule, Trajectory
from harness.decode import generation as decoding
from harness.decode import replay as replaying
from harness.decode.drafters import Drafter
from harness.decode.length import Costs
from harness.decode.making import around_draft
from harness.models.pair import Pair, load_pair

if TYPE_CHECKING:
    from harness.decode.replay import ReplayRow
    from harness.decode.sampling import Sampling
    from harness.decode.speculative import Step
    from routing.policy import PromptRouter

__all__ = ["Pair", "adapter_bank", "generate", "load_pair", "pair_router", "replay", "stream"]

Prompt = str | list[dict] | Sequence[int]

_BANKS: dict[int, AdapterBank] = {}
"""One bank per loaded pair, by the pair's id; dropped with the pair."""
_ROUTERS: dict[int, tuple[Any, PromptRouter]] = {}
"""Likewise its router, with the times of the files it came from."""


def adapter_bank(pair: LoadedPair, names: Sequence[str] = ()) -> AdapterBank:
    """Return the pair's bank, holding at least the installed adapters called ``names`` in their latest version.

    Raises:
        HarnessError: no such adapter, a damaged one, one of another draft, or a pair without a draft that takes adapters.
    """
    draft = adaptable(pair)
    for name in names:
        check_drafter(pair.name, name)
    bank = _BANKS.get(id(pair))
    if bank is None:
        bank = _BANKS[id(pair)] = AdapterBank(draft, {})
        weakref.finalize(pair, _BANKS.pop, id(pair), None)
    folders = installed(pair.name) if names else {}
    for name in names:
        bank.put(name, folders[name])
    return bank


def pair_router(pair: LoadedPair, *, offline: bool = False) -> PromptRouter:
    """Return the router trained for the pair, its adapters in the pair's bank; read again when a file of either changed.

    Raises:
        HarnessError: no router, a damaged one, or other adapters than it was trained with.
    """
    from harness.adapt.routers.arms import arm_parts
    from harness.adapt.routers.routed import load_router, router_path

    bank = adapter_bank(pair)
    folders = installed(pair.name)
    files = [router_path(pair.name), *(path for folder in folders.values() for path in sorted(folder.glob("*.*")))]
    stamp = tuple((str(path), path.stat().st_mtime_ns) for path in files if path.is_file())
    known = _ROUTERS.get(id(pair))
    if known is None or known[0] != stamp:
        if known is None:
            weakref.finalize(pair, _ROUTERS.pop, id(pair), None)
        known = _ROUTERS[id(pair)] = (stamp, load_router(pair.name, folders, offline=offline))
    router = known[1]
    for arm in router.arms_:
        if (adapter := arm_parts(arm.drafter)[1]) is not None:
            bank.put(adapter, folders[adapter])
    return router


def stream(pair: LoadedPair, prompt: Prompt, *, drafter: str | Drafter | None = "generic", **settings: Any) -> Iterator[Step]:
    """Decode ``prompt`` and yield one step per target pass; arguments are those of :func:`generate`.

    Names and settings are checked at the call, decoding starts with the first step.
    """
    around, drafter = _parts(pair, drafter)
    if drafter == "router":
        chosen, k = _choose(pair, prompt, around)
        around, drafter = _parts(pair, chosen)
        settings["k"] = k if settings.get("k") is None else settings["k"]
    adapter = _adapter_of(pair, drafter)
    steps = decoding.stream(pair, prompt, drafter=_activate(pair, drafter, adapter, around), **settings)
    return _with_adapter(pair, adapter, steps)


def generate(pair: LoadedPair, prompt: Prompt, *, drafter: str | Drafter | None = "generic", **settings: Any) -> Generation:
    """Decode one answer and return it with its raw counts and times.

    Args:
        pair: from :func:`load_pair`.
        prompt: a string (chat template applied), a list of chat messages, or token ids.
        drafter: None (plain decoding), a name of :data:`harness.core.drafter_kinds.DRAFTERS` such as ``generic`` or ``lookup``, the
            name of an installed adapter, ``router`` (the pair's router chooses for this prompt), one of the two, ``parallel`` or ``head``
            inside a drafter that runs a draft (``hybrid+code``, ``cascade+router``, ``hybrid+parallel``), or a drafter object.
        **settings: as in :func:`harness.decode.generation.generate`: ``k``, ``rule``, ``temperature``, ``max_tokens``, ``seed``,
            ``detailed``, ``loop``, ``on_step``, ``stop`` and more.

    Returns:
        A frozen :class:`~harness.core.records.Generation`. With an adapter ``swap_s`` is the time of putting it in, with the router
        ``route_s`` that of choosing too; both count in ``ttft_s`` and ``wall_s``.

    Raises:
        HarnessError: unknown drafter (names the nearest), a damaged or foreign adapter, no router, or bad settings.
    """
    around, drafter = _parts(pair, drafter)
    if drafter == "router":
        from harness.adapt.routers.routed import route_and_decode

        router = pair_router(pair)
        return route_and_decode(pair, prompt, router=router, bank=adapter_bank(pair), around=around, **settings)
    adapter = _adapter_of(pair, drafter)
    chosen = _activate(pair, drafter, adapter, around)
    generation = decoding.generate(pair, prompt, drafter=chosen, **settings)
    if adapter is None:
        return generation
    swap_s = adapter_bank(pair).swaps[-1].swap_s
    return dataclasses.replace(generation, swap_s=swap_s, ttft_s=generation.ttft_s + swap_s, wall_s=generation.wall_s + swap_s)


def replay(
    pair: LoadedPair,
    trajectories: Sequence[Trajectory],
    drafters: Sequence[str | Drafter],
    ks: Sequence[int | str],
    *,
    sampling: Sampling | None = None,
    costs: Costs | None = None,
    progress: Callable[[int], None] | None = None,
    rule: Rule = "rejection",
    seed: int | None = None,
) -> list[ReplayRow]:
    """Acceptance of every drafter x sample x K from stored target trajectories, without running the target.

    Arguments and rows are those of :func:`harness.decode.replay.replay`; a drafter may also be an installed adapter's name.

    Raises:
        HarnessError: unknown drafter, or one that replay cannot follow, such as the router.
    """
    parts = [_parts(pair, drafter) for drafter in drafters]
    adapters = [_adapter_of(pair, drafter) for _, drafter in parts]
    if any(drafter == "router" for _, drafter in parts):
        raise HarnessError("replay follows drafters, not the router", "Replay the router's drafters; each prompt's choice is one of them.")
    rows: list[ReplayRow] = []
    how: dict[str, Any] = {"sampling": sampling, "costs": costs, "progress": progress, "rule": rule, "seed": seed}
    for (around, drafter), adapter in zip(parts, adapters, strict=True):
        chosen = _activate(pair, drafter, adapter, around)
        rows += replaying.replay(pair, trajectories, [chosen], ks, **how)  # type: ignore[list-item]
    return rows


def _parts(pair: LoadedPair, drafter: str | Drafter | None) -> tuple[str | None, str | Drafter | None]:
    """What is around a drafter, and the drafter; checked where both are named."""
    if not isinstance(drafter, str) or split_name(drafter)[0] is None:
        return None, drafter
    check_drafter(pair.name, drafter)
    return split_name(drafter)


def _adapter_of(pair: LoadedPair, drafter: str | Drafter | None) -> str | None:
    """Return the adapter that a drafter's name stands for; None for the built-in ones and for drafter objects."""
    if not isinstance(drafter, str):
        return None
    check_drafter(pair.name, drafter)
    return None if built_in(drafter) else drafter


def _activate(pair: LoadedPair, drafter: str | Drafter | None, adapter: str | None, around: str | None = None) -> str | Drafter | None:
    """Put the adapter into the draft, or take out what another answer left there; return what decoding understands."""
    if adapter is not None:
        bank = adapter_bank(pair, [adapter])
        bank.activate(adapter)
        draft = bank.drafter(adapter)
        return draft if around is None else around_draft(pair, around, draft)
    present = _BANKS.get(id(pair))
    if present is not None and isinstance(drafter, str) and present.active is not None:
        present.activate(None)
    if around is None or drafter is None:
        return drafter
    return f"{around}+{drafter}"


def _choose(pair: LoadedPair, prompt: Prompt, around: str | None) -> tuple[str | None, int | str | None]:
    """Return the name of what the pair's router takes for a prompt, in ``around`` where one is named, and its draft length."""
    from harness.adapt.routers.arms import arm_in
    from harness.adapt.routers.routed import route

    routed = route(prompt, router=pair_router(pair), bank=adapter_bank(pair))
    return arm_in(routed.drafter, around), routed.decision.arm.k


def _with_adapter(pair: LoadedPair, adapter: str | None, steps: Iterator[Step]) -> Iterator[Step]:
    """Start an answer with its own adapter, whatever another one put in since the call."""
    bank = _BANKS.get(id(pair))
    if bank is not None and bank.active != adapter:
        bank.activate(adapter)
    yield from steps
