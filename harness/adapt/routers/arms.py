"""What a router chooses among, by the names that ``generate`` takes: the plain draft, each adapter, the pair's memory alone, and the
memory before each of those drafts. Imports nothing heavy at the top.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.drafter_kinds import split_name
from harness.core.protocols import LoadedPair

if TYPE_CHECKING:
    from harness.adapt.memory_sources import HeldOut
    from harness.adapt.training.bank import AdapterBank
    from harness.core.records import Trajectory
    from harness.decode.drafters import Drafter, MemoryDrafter
    from harness.decode.length import Costs
    from harness.decode.replay import ReplayRow

GENERIC = "generic"
"""The plain draft."""
PLAIN = "plain"
"""No draft at all."""
MEMORY = "memory"
"""The pair's memory, without a draft."""
MEMORY_HYBRID = "memory_hybrid"
"""The memory, then the draft."""


def inside(around: str, draft: str) -> str:
    """The name of a draft, ``generic`` or an adapter, in another drafter."""
    return around if draft == GENERIC else f"{around}+{draft}"


def arm_names(adapters: Sequence[str], *, memory: bool) -> list[str]:
    """Names of the arms over these adapters, with the memory's or without."""
    drafts = [GENERIC, *(name for name in adapters if name != GENERIC)]
    return drafts + ([MEMORY, *(inside(MEMORY_HYBRID, draft) for draft in drafts)] if memory else [])


def arm_parts(arm: str) -> tuple[str | None, str | None]:
    """The drafter around an arm's draft, and the adapter of that draft; None where there is none."""
    around, draft = split_name(arm)
    if around is None and draft in (MEMORY, MEMORY_HYBRID):
        around, draft = draft, GENERIC
    return around, None if draft in (GENERIC, PLAIN) else draft


def arm_in(arm: str, around: str | None) -> str | None:
    """The name of what an arm decodes with, where ``around`` takes the place of what is around its own draft; None for no draft."""
    own, adapter = arm_parts(arm)
    outer = around or own
    if arm == PLAIN:
        return None
    return adapter or GENERIC if outer is None else inside(outer, adapter or GENERIC)


def arm_drafter(pair: LoadedPair, bank: AdapterBank, arm: str, around: str | None = None) -> Drafter | None:
    """What an arm decodes with; ``around`` as in :func:`arm_in`. None for no draft.

    Raises:
        HarnessError: no such adapter, or the pair has no memory for it.
    """
    from harness.decode.making import around_draft, resolve_drafter

    own, adapter = arm_parts(arm)
    outer = around or own
    if arm == PLAIN:
        return None
    if outer == MEMORY:
        return resolve_drafter(pair, MEMORY)
    draft = bank.drafter(adapter)
    return draft if outer is None else around_draft(pair, outer, draft)


def costs_of(arm: str, costs: Costs, around: str | None = None) -> Costs:
    """The draft's costs as they are for an arm: one without a draft has none of drafting."""
    return costs if around or arm not in (PLAIN, MEMORY) else costs.without_draft()


@dataclass(frozen=True, kw_only=True)
class Replaying:
    """How arms are replayed, here or on a worker."""

    k: int | str
    """Draft length, or ``auto``, which needs costs."""
    costs: Costs | None = None
    """The draft's."""
    memory: HeldOut | None = None
    """What the arms with a memory draft from; None leaves them out."""

    def __call__(
        self, pair: LoadedPair, bank: AdapterBank, answers: Sequence[Trajectory], adapters: Iterable[str] | None = None
    ) -> list[ReplayRow]:
        """Rows of every arm over adapters of a bank, arm by arm; over all of them where none are named.

        Raises:
            HarnessError: the memory is another one here.
        """
        first = None if self.memory is None else self.memory.drafter(pair)
        chosen = bank.names if adapters is None else sorted(adapters)
        if isinstance(self.k, int):
            return self._fixed(bank, answers, chosen, self.k, first)
        return self._auto(pair, bank, answers, chosen, self.k, first)

    @staticmethod
    def _fixed(
        bank: AdapterBank, answers: Sequence[Trajectory], adapters: Sequence[str], k: int, first: MemoryDrafter | None
    ) -> list[ReplayRow]:
        """One pass of each draft gives its own rows and those behind the memory."""
        from harness.adapt.training.bank import bank_passes
        from harness.decode.replay import replay_row, row_of
        from harness.decode.simulate import simulate_free

        passes = bank_passes(bank, answers, adapters)
        each = [(draft, t, own) for draft, found in passes.items() for t, own in zip(answers, found, strict=True)]
        rows = [replay_row(draft, t, own, k) for draft, t, own in each]
        if first is not None:
            rows += [row_of(MEMORY, t, k, simulate_free(first, t, k)) for t in answers]
            behind = [(inside(MEMORY_HYBRID, draft), t, own) for draft, t, own in each]
            rows += [row_of(arm, t, k, simulate_free(first, t, k, own.runs, own.most), own.near_ties()) for arm, t, own in behind]
        return rows

    def _auto(
        self,
        pair: LoadedPair,
        bank: AdapterBank,
        answers: Sequence[Trajectory],
        adapters: Sequence[str],
        k: str,
        first: MemoryDrafter | None,
    ) -> list[ReplayRow]:
        """Lengths that are chosen while decoding: arm by arm, and behind the memory from what each draft said before."""
        from harness.decode.drafters import HybridDrafter
        from harness.decode.passes import Passes
        from harness.decode.replay import Pass, replay

        assert self.costs is not None
        drafts = {name or GENERIC: bank.drafter(name) for name in (None, *adapters)}
        said = {name: Passes[Pass]() for name in drafts}
        found: list[tuple[str, Drafter, Passes[Pass] | None]] = [(name, draft, said[name]) for name, draft in drafts.items()]
        if first is not None:
            behind = {name: inside(MEMORY_HYBRID, name) for name in drafts}
            found += [(MEMORY, first, None), *((arm, HybridDrafter(first, drafts[name], arm), said[name]) for name, arm in behind.items())]
        costs = {arm: costs_of(arm, self.costs) for arm, _, _ in found}
        return [row for arm, drafter, known in found for row in replay(pair, answers, [drafter], [k], costs=costs[arm], known=known)]
