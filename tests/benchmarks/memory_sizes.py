"""Tokens per target pass of memories of different sizes, and of one domain alone, against lookup and the draft, on other prompts.

Both folders come from ``harness collect``: ``--train`` of training prompts, ``--test`` of test prompts. Everything is replayed.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.adapt.memory_sources import answers_in_folder
from harness.answers.collect import read_answers
from harness.core.paths import found_memory
from harness.core.records import Sample, Trajectory
from harness.datasets.splits import refuse_leaks
from harness.decode.drafters import Drafter, HybridDrafter
from harness.decode.making import memory_drafter, resolve_drafter
from harness.decode.memory import Answer, Base, pair_memory, write_memory
from harness.decode.replay import replay
from harness.models.pair import load_pair


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table: a line per drafter and size, a column per domain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="smollm2")
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--condense", type=int, nargs="+", default=[], help="also so many counts over all answers, the most useful")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[15_000, 30_000, 60_000])
    parser.add_argument("--k", type=int, default=8, help="longest draft of lookup and memory")
    args = parser.parse_args(argv)
    pair = load_pair(args.models, offline=True)
    test = [stored.trajectory() for stored in read_answers(args.test, pair.target_hash)]
    prompts = [Sample(id=a.sample_id, domain=a.domain, prompt=a.prompt) for a in answers_in_folder(args.test, pair)]
    said = [a for folder in args.train for a in answers_in_folder(folder, pair)]
    known = sorted(said, key=lambda a: hashlib.sha256(a.sample_id.encode()).digest())
    refuse_leaks([Sample(id=a.sample_id, domain=a.domain, prompt=a.prompt) for a in known], prompts)
    rows = [line("lookup, K = 4", pair, resolve_drafter(pair, "lookup"), 4, test)]
    rows.append(line(f"lookup, K = {args.k}", pair, resolve_drafter(pair, "lookup"), args.k, test))
    if pair.draft is not None:
        rows += [line("draft, K = 2", pair, resolve_drafter(pair, "generic"), 2, test)]
        rows += [line(f"hybrid, K = {k}", pair, resolve_drafter(pair, "hybrid"), k, test) for k in (2, args.k)]
    if found_memory(pair.name) is not None:
        rows.append(line(f"the pair's memory, K = {args.k}", pair, memory_drafter(pair_memory(pair).walker), args.k, test))
    for counts in args.condense:
        with tempfile.TemporaryDirectory() as folder:
            memory = write_memory(Path(folder) / "memory", pair.name, pair.target_hash, [], base=Base.of(known, counts))
            name = f"{counts} counts over {memory.info.base_tokens} tokens ({memory.file_bytes / 2**20:.1f} MiB), K = {args.k}"
            rows.append(line(name, pair, memory_drafter(memory.walker), args.k, test))
    for size in args.tokens:
        rows += sized(pair, first(known, size), args.k, test)
    for domain in sorted({a.domain for a in known}):  # near prompts in its own column, far ones in the others
        rows.append(sized(pair, first([a for a in known if a.domain == domain], max(args.tokens)), args.k, test, f" of {domain}")[0])
    domains = sorted({t.domain for t in test})
    print(tabulate(rows, ["drafter", *(f"{d}: tau (drafted per pass)" for d in domains)], tablefmt="github"))


def first(answers: Sequence[Answer], tokens: int) -> list[Answer]:
    """As many answers as fit into a number of tokens."""
    kept, total = [], 0
    for answer in answers:
        total += len(answer.tokens)
        if total > tokens:
            break
        kept.append(answer)
    return kept


def sized(pair: Any, answers: list[Answer], k: int, test: list[Trajectory], what: str = "") -> list[list[str]]:
    """The lines of one memory, alone first."""
    with tempfile.TemporaryDirectory() as folder:
        memory = write_memory(Path(folder) / "memory", pair.name, pair.target_hash, answers)
        name = f"{memory.info.tokens} tokens{what} ({memory.file_bytes / memory.info.tokens:.0f} bytes each)"
        alone = memory_drafter(memory.walker)
        rows = [line(f"memory of {name}, K = {k}", pair, alone, k, test)]
        if pair.draft is not None:
            both = HybridDrafter(alone, resolve_drafter(pair, "generic"), name="memory_hybrid")  # type: ignore[arg-type]
            rows += [line(f"then the draft, K = {k}", pair, both, k, test) for k in (2, k)]
        return rows


def line(name: str, pair: Any, drafter: Drafter, k: int, test: list[Trajectory]) -> list[str]:
    """Tokens per target pass and drafted tokens per pass in every domain."""
    rows = replay(pair, test, [drafter], [k])
    cells = [name]
    for domain in sorted({t.domain for t in test}):
        own = [row for row in rows if row.domain == domain]
        rounds = sum(row.rounds for row in own)
        cells.append(f"{sum(row.emitted for row in own) / rounds:.3f} ({sum(row.drafted for row in own) / rounds:.1f})")
    return cells


if __name__ == "__main__":
    main()
