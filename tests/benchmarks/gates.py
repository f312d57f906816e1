"""How often does the gate raise a false alarm, and how small a loss does it find? Candidates made from stored counts, no model.

    python tests/benchmarks/gates.py results/reference/smollm2.json

Every prompt of the reference keeps its acceptance; old and new run each draw their rounds anew from it. Printed: the part of gates
between equal drafts that fail, about how many prompts the gate says would decide, and the part that finds a draft worse by 3 points there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.core.cell import from_key
from harness.results.gate import ALPHA, Verdict, drafts_by_model, judge
from harness.results.reference import Answer, Cells, Prompt, Reference, read_reference

Array = NDArray[np.float64]
DROP = 0.03


def drawn(chance: Array, tokens: Array, k: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """Answers of so many tokens, one per prompt, whose drafted tokens stand with the prompt's chance each.

    Returns:
        Rounds, drafted, accepted, rejected and emitted, (n,) each.
    """
    longest = int(tokens.max())
    runs = np.minimum(rng.geometric(1 - chance[:, None], (len(chance), longest)) - 1, k)  # (n, rounds at most)
    before = np.cumsum(runs + 1, axis=1) - (runs + 1)
    begun = before < tokens[:, None]
    drafts = np.where(begun, np.minimum(k, np.maximum(0, tokens[:, None] - before - 1)), 0)
    runs = np.where(begun, np.minimum(runs, drafts), 0)
    columns = (begun.sum(1), drafts.sum(1), runs.sum(1), (begun & (runs < drafts)).sum(1), tokens)
    return tuple(column.astype(float) for column in columns)


def answers(chance: Array, tokens: Array, k: int, rng: np.random.Generator) -> list[Answer]:
    """The same as a reference stores it."""
    return [
        Answer.model_construct(rounds=r, drafted=d, accepted=a, rejected=x, emitted=e, longest=k)
        for r, d, a, x, e in zip(*(column.tolist() for column in drawn(chance, tokens, k, rng)), strict=True)
    ]


def chances(found: Sequence[Answer]) -> Array:
    """Chance of a drafted token to stand, per prompt."""
    return np.array([(a.accepted + 0.5) / (a.accepted + a.rejected + 1) for a in found])


def lowered(chance: Array, tokens: Array, k: int, drop: float) -> Array:
    """Chances that give a pooled rate lower by ``drop``."""
    if not drop:
        return chance

    def rate(factor: float) -> float:
        _, drafted, accepted, _, _ = drawn(np.repeat(chance, 40) * factor, np.repeat(tokens, 40), k, np.random.default_rng(0))
        return float(accepted.sum() / drafted.sum())

    low, high, wanted = 0.0, 1.0, rate(1.0) - drop
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < wanted else (low, middle)
    return chance * (low + high) / 2


class Candidates:
    """Pairs of runs drawn from a reference.

    Args:
        reference: counts per prompt.
        drop: by how much the new run's rates are lower.
    """

    def __init__(self, reference: Reference, drop: float) -> None:
        self.reference = reference
        self.cells: dict[str, tuple[int, Array, Array, Array]] = {}
        for key, found in reference.cells.items():
            cell = from_key(key)
            if drafts_by_model(cell.drafter) and isinstance(cell.k, int):
                own, tokens = chances(list(found.values())), np.array([a.emitted for a in found.values()])
                self.cells[key] = (cell.k, tokens, own, lowered(own, tokens, cell.k, drop))

    @property
    def prompts(self) -> int:
        """Prompts that every drawn cell has counts of."""
        return min(len(tokens) for _, tokens, _, _ in self.cells.values())

    def gate(self, n: int, seed: int) -> list[Verdict]:
        """The gate between an old and a new run over ``n`` prompts of every domain, drawn with replacement."""
        rng = np.random.default_rng((n, seed))
        old: Cells = {}
        new: Cells = {}
        for key, (k, tokens, before, after) in self.cells.items():
            chosen = rng.integers(0, len(tokens), n)
            ids = [f"{from_key(key).domain}/{i}" for i in range(n)]
            for cells, chance in ((old, before), (new, after)):
                cells[key] = dict(zip(ids, answers(chance[chosen], tokens[chosen], k, rng), strict=True))
        prompts = {sample: Prompt.model_construct(hash="drawn") for cell in old.values() for sample in cell}
        shared = {"prompts": prompts, "spot_checks": {}}
        runs = [self.reference.model_copy(update={**shared, "cells": cells}) for cells in (new, old)]
        return judge(*runs, candidate=True)


def failures(candidates: Candidates, gates: int, n: int) -> float:
    """Part of gates that fail."""
    return sum(any(v.failed for v in candidates.gate(n, seed)) for seed in range(gates)) / gates


def needed(candidates: Candidates, n: int) -> int:
    """The most prompts that a gate says would decide a rate, the median of ten gates."""
    said = [[v.prompts_needed for v in candidates.gate(n, seed) if v.what == "rate" and v.prompts_needed] for seed in range(10)]
    return int(statistics.median(max(found, default=n) for found in said))


def main(argv: Sequence[str] | None = None) -> None:
    """Print false alarms, prompts needed and power."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("--gates", type=int, default=1000, help="between equal drafts")
    parser.add_argument("--drops", type=int, default=100, help="gates with a worse draft")
    args = parser.parse_args(argv)
    reference = read_reference(args.reference)
    same, worse = Candidates(reference, 0.0), Candidates(reference, DROP)
    n = same.prompts
    alarms = failures(same, args.gates, n)
    print(f"{alarms:.1%} of {args.gates} gates between equal drafts fail at {n} prompts of a domain (at most {ALPHA:.0%})")
    enough = needed(same, n)
    print(f"about {enough} prompts of a domain would decide, the gate says")
    found = failures(worse, args.drops, enough)
    print(f"{found:.1%} of {args.drops} gates find rates lower by {DROP} at {enough} prompts of a domain")


if __name__ == "__main__":
    main()
