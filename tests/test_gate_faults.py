"""Faults put into the code or into the records of a run: the shipped gate's own command line catches every one."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny
import yaml
from rich.console import Console
from test_gate import broken_up, exit_code, refused

from harness.core.records import Divergence, Record
from harness.decode import drafters, simulate, speculative
from harness.decode.cached import CachedModel
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.results.store import RunStore
from harness.run.engine import Engine, real_engine
from harness.run.runner import run_suite
from harness.suite.suite import load_suite

ROOT = Path(__file__).parent.parent
TEXTS = {
    "code": [
        "def add(a, b): return a + b",
        "for i in range(9): print(i, i)",
        "x = x + 1; x = x + 1;",
        "if a: a = b else: a = b",
        "import os, os",
    ],
    "chat": ["hello hello you there", "who are you, who am I", "the cat and the dog and the cat", "yes no yes no", "tell me, tell me"],
}
Patch = Callable[[pytest.MonkeyPatch], Engine | None]


def shipped() -> Iterator[list[str]]:
    """Every ``harness check`` of .ci/run and of the workflow: its words after the name of the run."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    for text in (*steps, (ROOT / ".ci/run").read_text(encoding="utf-8")):
        yield from (shlex.split(line)[3:] for line in text.splitlines() if line.startswith("harness check "))


GATES = list(shipped())


def gate(folder: Path, reference: Path) -> list[int]:
    """Exit codes of the shipped gates, with this run, this reference and these folders in the place of theirs."""
    own = {
        "--against": str(reference),
        "--results": str(folder.parent),
        "--junit": str(folder / "gate.xml"),
        "--summary": str(folder / "s.md"),
    }
    codes = []
    for words in GATES:
        swapped = [own.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]
        codes.append(exit_code(folder.name, *swapped))
    return codes


def go(place: Path, suite: Path, engine: Engine | None = None) -> Path:
    """Run the suite into a new results folder, without a clock as the shipped gates do."""
    quiet = Console(file=io.StringIO())
    with patch("harness.run.runner._report"):  # what no gate reads
        return run_suite(load_suite(suite), results_dir=place / "results", clock=False, console=quiet, engine=engine)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped suite's experiments on a tiny pair and a few short prompts."""
    folder = tmp_path_factory.mktemp("gate")
    tiny.write_pair(folder / "pair", noise=0.1)
    shipped_suite = yaml.safe_load((ROOT / "suites/regression.yaml").read_text(encoding="utf-8"))
    for domain, texts in TEXTS.items():
        lines = [json.dumps({"id": f"{domain}/{i}", "prompt": text}) for i, text in enumerate(texts)]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    domains = {domain: {"dataset": "local", "path": str(folder / f"{domain}.jsonl")} for domain in TEXTS}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({**shipped_suite, "models": str(folder / "pair" / "tiny.yaml"), "domains": domains, "max_tokens": 20}))
    return path


@pytest.fixture(scope="module")
def sound(suite: Path) -> Path:
    """A run without a fault."""
    return go(suite.parent / "sound", suite)


@pytest.fixture(scope="module")
def reference(sound: Path, suite: Path) -> Path:
    """The reference of that run, as another machine would have made it."""
    path = suite.parent / "reference.json"
    assert exit_code(sound.name, "--against", str(path), "--results", str(sound.parent), "--update") == 0
    path.write_text(re.sub(r'"processor": "[^"]*"', '"processor": "another"', path.read_text()))
    assert '"another"' in path.read_text()
    return path


def test_the_shipped_gates_are_found_and_pass_without_a_fault(suite: Path, reference: Path, tmp_path: Path) -> None:
    """One gate in .ci/run and one in the workflow; a second sound run passes both, although the reference is another machine's."""
    assert len(GATES) == 2
    assert all("--any-machine" in words and "--allow-undecided" not in words for words in GATES)
    assert gate(go(tmp_path, suite), reference) == [0, 0]


def _lookup_off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = drafters.LookupDrafter._match

    def match(self: Any, context: list[int]) -> tuple[int, int]:
        end, n = real(self, context)
        return (end - 1, n) if n else (end, n)

    patch.setattr(drafters.LookupDrafter, "_match", match)


def _trim_off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = CachedModel.trim_to

    def trim_to(self: CachedModel, length: int, **how: bool) -> None:
        real(self, max(0, length - 1), **how)
        self.offset = length  # what the cache says it holds: else the lost token is fed again and nothing is wrong

    patch.setattr(CachedModel, "trim_to", trim_to)


def _dropped_bonus(patch: pytest.MonkeyPatch) -> None:
    real = speculative._read

    def read(verdict: Any, draft: list[int], *rest: Any) -> tuple[int, int]:
        n, own = real(verdict, draft, *rest)
        return (n - 1, draft[-1]) if draft and n == len(draft) else (n, own)

    patch.setattr(speculative, "_read", read)


def _everything_accepted(patch: pytest.MonkeyPatch) -> None:
    real = speculative._read
    patch.setattr(speculative, "_read", lambda verdict, draft, *rest: (len(draft), real(verdict, draft, *rest)[1]))


def _k_off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = simulate.simulate
    patch.setattr(simulate, "simulate", lambda propose, emitted, k, max_tokens: real(propose, emitted, k + 1, max_tokens))


def _never_drafts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drafters.LookupDrafter, "_match", lambda self, context: (0, 0))


def _other_draft(patch: pytest.MonkeyPatch) -> Engine:
    engine = real_engine()

    def load(name: str, **options: Any) -> Any:
        pair = engine.load_pair(name, **options)
        pair.draft.model.update(_scaled(pair.draft.model))
        return pair

    return dataclasses.replace(engine, load_pair=load)


def _scaled(model: Any) -> Any:
    from mlx.utils import tree_map

    return tree_map(lambda weight: weight[::-1] if weight.ndim == 1 else weight * 1.5 - 0.1, model.parameters())


def _other_target(patch: pytest.MonkeyPatch) -> Engine:
    engine = real_engine()

    def load(name: str, **options: Any) -> Any:
        pair = engine.load_pair(name, **options)
        pair.target.update(_scaled(pair.target))
        return pair

    return dataclasses.replace(engine, load_pair=load)


def _old_answers(patch: pytest.MonkeyPatch) -> Engine:
    engine, before = real_engine(), []

    def generate(pair: Any, prompt: Any, *, drafter: Any, **settings: Any) -> Any:
        answer = engine.generate(pair, prompt, drafter=drafter, **settings)
        if drafter is None and settings["max_tokens"] == 20:
            before.append(answer)
            return before[max(0, len(before) - 2)]
        return answer

    return dataclasses.replace(engine, generate=generate)


def _other_template(patch: pytest.MonkeyPatch) -> Engine:
    engine = real_engine()

    def load(name: str, **options: Any) -> Any:
        pair = engine.load_pair(name, **options)
        pair.tokenizer.chat_template = pair.tokenizer.chat_template.replace("assistant", "helper")
        return pair

    return dataclasses.replace(engine, load_pair=load)


def _zero_scores(patch: pytest.MonkeyPatch) -> Engine:
    engine = real_engine()

    def score(*args: Any, **options: Any) -> Any:
        return dataclasses.replace(engine.score(*args, **options), value=0.0)

    return dataclasses.replace(engine, score=score)


CODE: dict[str, Patch] = {
    "lookup off by one": _lookup_off_by_one,
    "trim off by one": _trim_off_by_one,
    "dropped bonus": _dropped_bonus,
    "everything accepted": _everything_accepted,
    "K off by one": _k_off_by_one,
    "a draft that never drafts": _never_drafts,
    "another draft under the same hash": _other_draft,
    "another target under the same hash": _other_target,
    "old answers": _old_answers,
    "another template": _other_template,
    "scores of 0": _zero_scores,
}


@pytest.mark.parametrize("fault", CODE)
def test_faults_in_the_code_are_caught(fault: str, suite: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite runs with the fault, and both gates fail, but for counts that the run itself refuses."""
    with monkeypatch.context() as patch:
        change = CODE[fault](patch)
        if fault == "K off by one":
            with pytest.raises(ValueError, match="more than k = 2"):
                go(tmp_path, suite, change)
            return
        folder = go(tmp_path, suite, change)
    assert 0 not in gate(folder, reference)


def _reversed(kind: str | None) -> Callable[[Record], Record]:
    """Other tokens in every drafted answer, explained in some way or not at all."""
    divergence = None if kind is None else Divergence(position=0, gap=0.0, kind=kind)  # type: ignore[arg-type]

    def edit(r: Record) -> Record:
        return dataclasses.replace(r, tokens=r.tokens[::-1], divergence=divergence) if r.tokens and r.drafter else r

    return edit


RECORDS: dict[str, Callable[[Record], Record | None]] = {
    "nothing accepted in one domain": lambda r: refused(r) if r.domain == "code" and r.drafter and r.drafted else r,
    "other answers called bugs": _reversed("bug"),
    "other answers called ties": _reversed("tie"),
    "other answers called nothing": _reversed(None),
    "a cell dropped": lambda r: None if (r.domain, r.drafter, r.k) == ("chat", "lookup", 2) else r,
    "a drafter dropped": lambda r: None if r.drafter == "generic" else r,
    "a prompt dropped": lambda r: None if r.sample_id == "code/1" else r,
    "no scores": lambda r: dataclasses.replace(r, score=None),
    "one round in two": lambda r: broken_up(r) if r.k == 2 and r.drafter == "generic" and r.accepted else r,
}


@pytest.mark.parametrize("fault", RECORDS)
def test_faults_in_the_records_are_caught(fault: str, sound: Path, reference: Path, tmp_path: Path) -> None:
    """A sound run with edited records."""
    edited = [changed for r in read_records(sound) if (changed := RECORDS[fault](r)) is not None]
    assert edited != read_records(sound)
    manifest = read_manifest(sound)
    with RunStore.create(tmp_path / "results" / "edited", dataclasses.replace(manifest, run="edited", seal=None)) as store:
        store.extend(edited)
        store.finish()
    assert 0 not in gate(tmp_path / "results" / "edited", reference)


REFERENCES: dict[str, tuple[str, str]] = {
    "NaN": (r'"accepted": [\d.]+', '"accepted": NaN'),
    "a negative count": (r'"rounds": [\d.]+', '"rounds": -3'),
    "no count": (r'"drafted": [\d.]+, ', ""),
    "no cells": (r'(?s)"cells": \{.*?\n \}', '"cells": {}'),
    "a cell less": (r'(?s)("cells": \{)\n  "[^\n]*\{\n.*?\n  \},', r"\1"),
    "another suite": (r'"suite_hash": "', '"suite_hash": "0'),
    "another draft": (r'"draft": "', '"draft": "0'),
    "another prompt": (r'("hash": "\w{15})\w(",\s*"ties")', r"\1x\2"),
}


@pytest.mark.parametrize("fault", REFERENCES)
def test_damaged_and_foreign_references_are_refused(fault: str, sound: Path, reference: Path, tmp_path: Path) -> None:
    """A sound run passes no reference that was damaged or belongs to something else."""
    pattern, replacement = REFERENCES[fault]
    text, count = re.subn(pattern, replacement, reference.read_text(), count=1)
    assert count == 1
    (tmp_path / "reference.json").write_text(text)
    assert 0 not in gate(sound, tmp_path / "reference.json")
