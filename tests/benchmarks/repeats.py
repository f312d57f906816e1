"""A workload that repeats itself: what a memory that has grown by the first requests saves on the second ones, over lookup alone.

    python tests/benchmarks/repeats.py --models smollm2 --prompts 14 --tokens 128

Three kinds, as many requests of each domain or kind as ``--prompts`` says: prompts asked again in other words, another question on a
text that was asked about before, and another change of the same code. The target answers both requests; only the answers to the first
are remembered, beside the pair's own memory where it has one. Tokens per target pass by replay: no clock needed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from shift import scramble_templates, strip_templates
from tabulate import tabulate

from harness.answers.collect import collect
from harness.core import stats
from harness.core.paths import found_memory
from harness.core.records import Sample, Trajectory
from harness.decode.drafters import Drafter
from harness.decode.making import memory_drafter
from harness.decode.memory import Answer, pair_memory, write_memory
from harness.decode.replay import ReplayRow, replay
from harness.models.cache_key import answers_folder
from harness.models.pair import load_pair

NOTES = 4
"""Texts of a passage."""
ALL = "all"
Request = tuple[str, str, str]
"""Kind of the workload, the first request, and the second."""


def requests(samples: Sequence[Sample], count: int) -> list[Request]:
    """The workload that these prompts make."""
    texts, sources = [s.prompt for s in samples], [s.source for s in samples]
    bare = strip_templates(texts, sources)
    found = [("reworded", text, other) for text, other in zip(texts, scramble_templates(texts, sources), strict=True)]
    notes = [" ".join(text.split()) for text, s in zip(bare, samples, strict=True) if s.domain != "code"]
    for i in range(min(count, len(notes) // NOTES)):
        passage = "\n".join(f"Note {j + 1}: {note}" for j, note in enumerate(notes[i * NOTES : (i + 1) * NOTES]))
        asked = i % NOTES + 1
        found.append(("retrieval", f"{passage}\n\nWhat is note {asked} about?", f"{passage}\n\nSummarise note {asked} in two sentences."))
    code = [text for text, s in zip(bare, samples, strict=True) if s.domain == "code"]
    for text in code[:count]:
        found.append(("edit", f"Write this function:\n\n{text}", f"Write this function with a comment on each line:\n\n{text}"))
    return found


def workload(found: Sequence[Request]) -> tuple[list[Sample], list[Sample]]:
    """First and second requests as samples, alike in order and ids."""
    return tuple(  # type: ignore[return-value]
        [Sample(id=f"{kind}/{i}/{turn}", domain=kind, prompt=pair[turn]) for i, (kind, *pair) in enumerate(found)] for turn in (0, 1)
    )


def line(name: str, rows: Sequence[ReplayRow], base: Sequence[ReplayRow], kinds: Sequence[str]) -> list[str]:
    """Tokens per pass of every kind, and how many times those of ``base``."""
    cells = [name]
    for kind in kinds:
        own, other = ([r for r in some if kind in (ALL, r.domain)] for some in (rows, base))
        ratio = stats.ratio([r.rounds for r in other], [r.rounds for r in own])
        cells.append(f"{sum(r.emitted for r in own) / sum(r.rounds for r in own):.2f}, {common.text(ratio, 2)}x")
    return cells


def replayed(pair: Any, drafter: str | Drafter, answers: Sequence[Trajectory], k: int) -> list[ReplayRow]:
    """Rows in the order of the samples."""
    return sorted(replay(pair, answers, [drafter], [k]), key=lambda row: row.sample_id)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per drafter, a column per kind."""
    parser = common.parser(__doc__ or "", models="smollm2", prompts=14, tokens=128, domains=("code", "math", "chat"))
    parser.add_argument("-k", type=int, default=8, help="longest draft")
    args: argparse.Namespace = parser.parse_args(argv)
    pair = load_pair(args.models, draft=False)
    first, second = workload(requests(common.samples(args), args.prompts))
    said, asked = (list(collect(pair, some, max_tokens=args.tokens, out=answers_folder(pair))) for some in (first, second))
    by_id = {t.sample_id: t for t in said}
    new = [Answer.of(s, by_id[s.id].prompt_tokens, by_id[s.id].tokens) for s in first]
    base = replayed(pair, "lookup", asked, args.k)
    drafters: dict[str, Any] = {f"lookup, K = {args.k}": "lookup"}
    known: list[Answer] = []
    if found_memory(pair.name) is not None:
        known = pair_memory(pair).answers()
        drafters["memory as it was"] = "memory"
    with tempfile.TemporaryDirectory() as folder:
        grown = write_memory(Path(folder) / "memory", pair.name, pair.target_hash, [*known, *new])
        drafters["memory with the first answers"] = memory_drafter(grown.walker)
        kinds = [*dict.fromkeys(row.domain for row in base), ALL]
        lines = [line(name, replayed(pair, drafter, asked, args.k), base, kinds) for name, drafter in drafters.items()]
    tokens, remembered = sum(len(t.tokens) for t in asked), sum(len(a.tokens) for a in new)
    print(f"{len(asked)} second requests, {tokens} tokens; {remembered} tokens of first answers")
    print(tabulate(lines, ["drafter", *(f"{kind}: tau, times lookup's" for kind in kinds)], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
