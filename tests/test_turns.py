"""Conversations of a prompt file in a run: a turn goes on where the one before ended, in every cell alike, and no answer changes."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console
from tiny import write_pair

from harness.core.records import Sample
from harness.datasets import DatasetSpec, load_samples
from harness.decode.generation import generate
from harness.models.pair import load_pair
from harness.results.reading import read_records
from harness.run.runner import run_suite
from harness.run.turns import Turns
from harness.suite.suite import load_suite


def write_talks(path: Path, talks: int, turns: int) -> Path:
    """A file of conversations."""
    lines = []
    for talk in range(talks):
        said = [(role, f"{role} {talk * 100 + turn} says words") for turn in range(turns) for role in ("user", "assistant")]
        lines.append({"id": f"t{talk}", "messages": [{"role": role, "content": text} for role, text in said]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_run_reads_turns_on(tmp_path: Path) -> None:
    """Every cell of a turn reuses what the turn before read, the first turn nothing; tokens are those of a fresh start."""
    path = write_pair(tmp_path / "pair", max_position_embeddings=1024)
    file = write_talks(tmp_path / "p.jsonl", talks=2, turns=3)
    (tmp_path / "q.jsonl").write_text('{"prompt": "One thing."}\n{"prompt": "Another thing."}\n')
    (tmp_path / "s.yaml").write_text(
        f"name: t\nmodels: {path}\nmax_tokens: 10\n"
        f"domains:\n  x: {{dataset: local, split: all, turns: all, path: {file}}}\n"
        f"  y: {{dataset: local, split: all, path: {tmp_path}/q.jsonl}}\n"
        "experiments:\n  - kind: baseline\n  - {kind: generic_draft, k: [2]}\n  - {kind: drafters, drafters: [hybrid], k: [3]}\n"
    )
    folder = run_suite(load_suite(tmp_path / "s.yaml"), results_dir=tmp_path / "results", console=Console(file=io.StringIO()))
    records, pair = read_records(folder), load_pair(str(path))
    samples = {s.id: s for s in load_samples(DatasetSpec(dataset="local", path=str(file), split="all", turns="all"))}
    reused: dict[str, set[int]] = {}
    for record in records:
        reused.setdefault(record.sample_id, set()).add(record.reused_tokens)
        assert record.divergence is None
        if record.domain == "x" and record.drafter is None:
            assert record.tokens == generate(pair, samples[record.sample_id].asked, drafter=None, max_tokens=10).tokens
    assert all(len(values) == 1 for values in reused.values())
    for name, (value,) in reused.items():
        last = name.rpartition("#")[2]
        if last not in ("2", "3"):
            assert value == 0
            continue
        before = samples[f"{name.rpartition('#')[0]}#{int(last) - 1}"].asked
        assert value >= len(pair.encode(before)) - 1
    assert {name.rpartition("#")[2] for name, values in reused.items() if max(values) > 0} == {"2", "3"}


def test_a_limit_takes_whole_conversations(tmp_path: Path) -> None:
    """Turns one after the other, in order; a larger limit adds prompts and changes none."""
    file = write_talks(tmp_path / "p.jsonl", talks=6, turns=3)
    taken = [
        [s.id for s in load_samples(DatasetSpec(dataset="local", path=str(file), split="all", turns="all", limit=n))] for n in (4, 7, 18)
    ]
    assert taken[0] == taken[1][:4] == taken[2][:4]
    assert [name.rpartition("#")[2] for name in taken[2]] == ["1", "2", "3"] * 6
    assert all(len({name.rpartition("#")[0] for name in taken[2][i : i + 3]}) == 1 for i in range(0, 18, 3))


def turn(name: str, number: int, domain: str = "x") -> Sample:
    """One turn."""
    return Sample(id=f"{name}#{number}", domain=domain, prompt="p", reference={"template": name})


def test_only_a_later_turn_of_the_same_conversation_goes_on() -> None:
    """Another conversation, an earlier turn and a plain prompt start afresh; domains take turns without disturbing each other."""
    turns = Turns()

    def source(sample: Sample) -> object:
        caches = turns.caches(sample)
        assert caches is not None
        assert caches.reused == 0
        return caches._source

    def kept(sample: Sample) -> object:
        caches = turns.caches(sample)
        assert caches is not None
        return caches._store

    first = kept(turn("a", 1))
    assert source(turn("a", 1)) is not first  # another cell of the same turn does not go on from this one
    assert turns.caches(Sample(id="b#2", domain="x", prompt="p")) is None
    kept(turn("z", 1, domain="y"))
    assert source(turn("a", 2)) is first
    assert source(turn("a", 2)) is first
    second = kept(turn("a", 2))
    assert source(turn("a", 1)) not in (first, second)
    assert source(turn("c", 2)) not in (first, second)
