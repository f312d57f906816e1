"""What verifying a tree of drafted tokens would gain over a chain of them, by replay of stored answers: no clock but that of the costs.

    python tests/benchmarks/trees.py --models smollm2 --from answers/ --c 0.16 --v 1 1.18 1.21 1.25 1.25 1.24 1.51 1.51

A tree is a fixed set of paths of ranks: (1, 1, 2) is the draft's third choice for the place behind its two favourites. What the draft
thinks of an answer's token is known from one teacher-forced pass, so the depth at which the answer leaves a tree is too. The chances of
all paths are counted, and the tree of a depth and a number of rows has the likeliest ones. It is priced as a chain of its depth: the
tokens beside the favourites, and a mask of its own, are taken to cost nothing. So the gain is an upper bound.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from harness.answers.collect import read_answers
from harness.core.records import Trajectory
from harness.decode.calibrate import calibrate
from harness.decode.length import Costs
from harness.decode.making import resolve_drafter
from harness.decode.simulate import simulate_runs
from harness.models.blas import mx
from harness.models.forward import draft_ids, forced_head
from harness.models.opened import hidden_states
from harness.models.pair import load_pair

WIDEST = 4
"""Ranks beyond this are in no tree."""
Ranks = tuple[int, ...]
"""Ranks of the tokens from the root on."""


def ranks(model: Any, token_map: mx.array | None, t: Trajectory) -> np.ndarray:
    """(n,) rank that the draft gives each token of an answer, 1 for its favourite; beyond :data:`WIDEST` where it cannot say it."""
    head = forced_head(model, token_map, t.prompt_tokens, t.tokens)
    lookup = draft_ids(head.token_map)
    ids = mx.array([lookup.get(token, -1) if lookup else token for token in t.tokens], dtype=mx.int32)
    hidden = hidden_states(model, mx.array([[*t.prompt_tokens, *t.tokens[:-1]]], dtype=mx.int32))[0, len(t.prompt_tokens) - 1 :]
    logits = head.logits(hidden, 0)
    own = mx.take_along_axis(logits, mx.maximum(ids, 0)[:, None], axis=-1)
    above = mx.sum(logits > own, axis=-1)
    return np.array(mx.where((ids >= 0) & (own[:, 0] > -mx.inf), above + 1, WIDEST + 1))


def paths(found: Iterable[np.ndarray], depth: int) -> Counter[Ranks]:
    """How often the answers go along each path of up to ``depth`` ranks, from any of their tokens on."""
    counts: Counter[Ranks] = Counter()
    for own in found:
        for i in range(len(own)):
            for j in range(i, min(i + depth, len(own))):
                if own[j] > WIDEST:
                    break
                counts[tuple(own[i : j + 1].tolist())] += 1
    return counts


def likeliest(counts: Counter[Ranks], nodes: int, depth: int) -> frozenset[Ranks]:
    """The most frequent paths of up to ``depth``; what a path goes through is as frequent, and comes first."""
    order = sorted((path for path in counts if len(path) <= depth), key=lambda path: (-counts[path], len(path), path))
    return frozenset(order[:nodes])


def reached(own: np.ndarray, tree: frozenset[Ranks]) -> np.ndarray:
    """(n,) tokens of a tree that stand, from each token of an answer on."""
    found = []
    for i in range(len(own)):
        depth = 0
        while i + depth < len(own) and tuple(own[i : i + depth + 1].tolist()) in tree:
            depth += 1
        found.append(depth)
    return np.array(found)


def tau(found: Sequence[np.ndarray], tree: frozenset[Ranks], depth: int) -> float:
    """Emitted tokens per target pass along the answers."""
    rounds = sum(simulate_runs(reached(own, tree), depth, len(own) + depth + 1).rounds for own in found)
    return sum(map(len, found)) / rounds


def best(found: Sequence[np.ndarray], costs: Costs, rows: int, *, chains: bool) -> tuple[float, float, int, int]:
    """Predicted speedup, tokens per pass, depth and drafted tokens of the fastest tree, or chain, that a pass of ``rows`` verifies."""
    counts, tried = paths(found, rows - 1), []
    for depth in range(1, rows):
        candidates = [frozenset((1,) * n for n in range(1, depth + 1))]
        candidates += [] if chains else [likeliest(counts, nodes, depth) for nodes in range(depth, rows)]
        for tree in candidates:
            value = tau(found, tree, depth)
            tried.append((value / (costs.draft_cost(depth) + costs.v[len(tree)]), value, depth, len(tree)))
    return max(tried)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table: a line per domain, and one for all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="smollm2", help="pair name or YAML file")
    parser.add_argument("--from", dest="answers", type=Path, required=True, help="folder of `harness collect`")
    parser.add_argument("--rows", type=int, default=8, help="most tokens of a target pass")
    parser.add_argument(
        "--v", type=float, nargs="+", help="cost of a pass over 1, 2, ... tokens in target steps; without it v and c are measured"
    )
    parser.add_argument("--c", type=float, default=0.0, help="cost of a draft step in target steps, beside --v")
    args = parser.parse_args(argv)
    pair = load_pair(args.models, offline=True)
    drafter: Any = resolve_drafter(pair, "generic")
    costs = Costs(c=args.c, v=tuple(args.v)) if args.v else calibrate(pair, drafter, max_k=args.rows - 1).costs
    rows = min(args.rows, costs.max_k + 1)
    by_domain: dict[str, list[np.ndarray]] = {}
    for stored in read_answers(args.answers, pair.target_hash):
        t = stored.trajectory()
        by_domain.setdefault(t.domain, []).append(ranks(drafter.model, drafter.token_map, t))
        mx.clear_cache()
    groups = {**by_domain, "all": [own for found in by_domain.values() for own in found]}
    print(f"c {costs.c:.2f}, v {', '.join(f'{value:.2f}' for value in costs.v[:rows])}")
    print(tabulate([line(name, found, costs, rows) for name, found in groups.items()], HEADERS, tablefmt="github", floatfmt=".3f"))


HEADERS = (
    "domain",
    "tokens",
    "rank 1",
    "rank 2",
    "rank 3",
    "chain: depth",
    "tau",
    "speedup",
    "tree: depth",
    "tokens",
    "tau",
    "speedup",
    "gain",
)


def line(name: str, found: Sequence[np.ndarray], costs: Costs, rows: int) -> list[Any]:
    """One row of the table."""
    every = np.concatenate(found)
    chain, tree = (best(found, costs, rows, chains=chains) for chains in (True, False))
    shares = [float(np.mean(every == rank)) for rank in (1, 2, 3)]
    return [name, len(every), *shares, chain[2], chain[1], chain[0], tree[2], tree[3], tree[1], tree[0], tree[0] / chain[0]]


if __name__ == "__main__":
    main()
