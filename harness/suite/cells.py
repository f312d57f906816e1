"""A cell: one combination of settings, over the prompts of one domain. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.drafter_kinds import DRAFTERS, needs_draft, split_name
from harness.core.records import Loop, Rule, Scalar


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How adapters and routers are made."""

    training: str
    """Training config."""
    samples: int
    """Training prompts per domain."""
    shipped: bool = False
    """Whether a domain whose adapter comes with the package takes that one, and trains none."""
    router: str = "default"
    """Router config."""
    router_samples: int = 0
    """Prompts per domain, beyond the adapters' own, that a router learns from."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of settings; every cell runs over the prompts of one domain."""

    experiment: str
    """Label of the suite entry."""
    kind: str
    """Kind of the suite entry."""
    domain: str
    """Domain whose prompts are decoded."""
    drafter: str | None
    """A drafter's name, ``adapter`` or ``router``; None is target-only decoding."""
    k: int | str | None
    """Draft length, ``dynamic``, ``auto``, or None for target-only decoding."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    rule: Rule = "match"
    """Acceptance rule."""
    loop: Loop = "own"
    """Whose loop decodes."""
    timed: bool = True
    """True: decoded with a clock. False: counts may come from replay."""
    lenience: float = 1.0
    """Above 1 the output is lossy."""
    layers: int | None = None
    """Target layers of the early-exit draft; None is a quarter."""
    ngram: int | None = None
    """Longest suffix that prompt lookup searches."""
    options: tuple[tuple[str, Scalar], ...] = ()
    """Further options of the drafter, where an entry sets any."""
    adapter_domain: str | None = None
    """Domain whose training prompts made the adapter."""
    rank: int | None = None
    """Adapter rank; None keeps the training config's."""
    round: int | None = None
    """Adaptive training rounds done before this cell; 0 is the untrained draft."""
    recipe: Recipe | None = None
    """How the adapters and the router are made, where the cell needs any."""
    installed: str | None = None
    """An adapter of the pair that was there before the run."""
    around: str | None = None
    """The drafter whose draft the adapter, or what the router picks, stands for; None is that draft alone."""

    @property
    def outer(self) -> str | None:
        """The drafter that proposes: what is around an adapter or the router, where anything is."""
        return self.around or self.drafter

    @property
    def needs_draft(self) -> bool:
        """True when the pair must have a draft model of its own."""
        return needs_draft(self.drafter)

    @property
    def lossy(self) -> bool:
        """True when the output may differ from the target's."""
        return self.lenience > 1

    @property
    def replayable(self) -> bool:
        """True when the counts follow from answers of the target alone, greedy ones or samples at the cell's temperature."""
        if self.drafter is None or self.lossy or self.loop != "own":
            return False
        return self.temperature == 0 or self._drawn

    @property
    def _drawn(self) -> bool:
        """Whether what is proposed can be drawn along an answer, as :mod:`harness.decode.drawn` does."""
        names = [name for name in split_name(self.outer or "") if name is not None]
        kinds = [DRAFTERS.get(name) for name in names if name not in ("adapter", "router")]
        if any(kind is None or kind.needs_head for kind in kinds):
            return False
        chosen = isinstance(self.k, str) or "cascade" in names  # where a draft of several tokens a pass is not followed
        return not (chosen and (self.installed or any(kind is not None and kind.needs_parallel for kind in kinds)))
