"""Which adapters a suite's cells need, before anything is trained.

``shipped`` are the domains whose adapters come with the package for the pair's draft.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.suite.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A sequence of training rounds on the failures of one domain, or its adapter of the package."""

    domain: str
    rank: int | None
    """None is the training config's."""
    training: str
    """Training config."""
    samples: int
    """Training prompts per domain."""
    shipped: bool = False
    """True: the adapter comes with the package, and the rest is empty."""


def chain_of(cell: Cell, shipped: Collection[str] = ()) -> Chain:
    """The chain an adapter cell takes its draft from."""
    assert cell.adapter_domain is not None
    return domain_chain(cell, cell.adapter_domain, shipped, cell.rank)


def domain_chain(cell: Cell, domain: str, shipped: Collection[str] = (), rank: int | None = None) -> Chain:
    """The chain of a domain by a cell's recipe."""
    assert cell.recipe is not None
    if cell.recipe.shipped and rank is None and domain in shipped:
        return Chain(domain=domain, rank=None, training="", samples=0, shipped=True)
    return Chain(domain=domain, rank=rank, training=cell.recipe.training, samples=cell.recipe.samples)


def needed_chains(cells: Sequence[Cell], domains: Sequence[str], shipped: Collection[str] = ()) -> dict[Chain, int]:
    """Chain -> rounds that the cells need; a router needs one adapter of every domain."""
    rounds: dict[Chain, int] = {}
    for cell in cells:
        if cell.drafter == "adapter" and not cell.installed:
            chain = chain_of(cell, shipped)
            rounds[chain] = max(rounds.get(chain, 1), cell.round or 1)
        elif cell.drafter == "router":
            for domain in domains:
                rounds.setdefault(domain_chain(cell, domain, shipped), 1)
    return rounds


def adapter_names(chains: Mapping[Chain, int]) -> dict[tuple[Chain, int], str]:
    """A name per (chain, rounds): the domain, and whatever else tells it from the suite's other adapters."""
    names: dict[tuple[Chain, int], str] = {}
    for chain, rounds in chains.items():
        alike = [c for c in chains if (c.domain, c.rank, c.shipped) == (chain.domain, chain.rank, chain.shipped)]
        name = chain.domain if chain.rank is None else f"{chain.domain}-rank{chain.rank}"
        if chain.rank is None and not chain.shipped and any(c.shipped and c.domain == chain.domain for c in chains):
            name += "-trained"
        if len({c.training for c in alike}) > 1:
            name += f"-{Path(chain.training).stem}"
        if len({c.samples for c in alike}) > 1:
            name += f"-{chain.samples}prompts"
        for done in range(1, rounds + 1):
            names[chain, done] = name if done == 1 else f"{name}-round{done}"
    return names
