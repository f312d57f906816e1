"""One command decides: what can draft here is found, raced on one's own prompts, and the run is one like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import install_adapter
from tiny import write_pair

from harness import generate
from harness.adapt.adapters.adapter_folder import adapters_root
from harness.adapt.training.failures import FailureStore, case_from_generation
from harness.cli import main
from harness.core import machine
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.models.pair import load_pair
from harness.models.size import loaded_bytes
from harness.report import load_run
from harness.report.verify import verify
from harness.results.manifest import read_manifest
from harness.run.choose import OWN, SHIPPED, choice_suite, entrants, with_family_draft
from harness.run.runner import reports_folder

WORDS = ("tea", "salt", "rain", "iron", "moss", "clay", "wind", "rope")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cache of its own, a tiny pair and a file of prompts."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_pair(tmp_path / "pair")
    lines = [json.dumps({"prompt": f"write a short and plain text on {word}, {n} times"}) for n, word in enumerate(WORDS)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def poems(home: Path) -> Path:
    """The same with an adapter of the draft."""
    install_adapter(load_pair("pair/tiny.yaml"), "poems")
    return home


def test_a_choice_is_a_run_like_any_other(poems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with what to use, reports, verifies, and needs nothing more when it is asked to go on."""
    command = ["choose", "pair/tiny.yaml", "--max-tokens", "12", "--offline"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--prompts", "mine.jsonl", "--limit", "6"])
    said = capsys.readouterr().out
    assert "without memory: the pair has no memory" in said
    assert "harness generate PROMPT --models pair/tiny.yaml" in said
    (folder,) = (poems / "results").iterdir()
    loaded, manifest = load_run(folder), read_manifest(folder)
    assert manifest.finished
    assert manifest.suite["domains"][OWN]["path"] == str(poems / "mine.jsonl")
    assert {row.n for row in loaded.shown} == {6}
    assert {row.drafter for row in loaded.shown} == {None, "generic", "lookup", "early_exit", "hybrid", "cascade", "adapter"}
    assert {row.label for row in loaded.shown if row.drafter == "adapter"} == {"adapter poems", "cascade + adapter poems"}
    assert list(manifest.measured.installed) == ["poems"]
    assert loaded.recommendation.verdict != "nothing"
    assert verify(folder, reports_folder(folder)) > 20
    before = (folder / "records.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--resume", folder.name])
    assert (folder / "records.jsonl").read_bytes() == before
    with pytest.raises(SystemExit, match="2"):
        main(["choose", "smollm2", "--resume", folder.name])
    assert f"run {folder.name} is no choice for smollm2" in capsys.readouterr().err


def test_what_does_not_fit_is_left_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that does not fit beside its target drafts nothing; a target that does not fit is refused before it loads."""
    target, draft = (loaded_bytes(home / "pair" / role) for role in ("target", "draft"))
    assert target == draft == 4 * (264 * 32 + 32 + 3 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 64 * 32 + 2 * 32))
    facts = machine.machine_facts()
    monkeypatch.setattr(machine, "machine_facts", lambda: {**facts, "memory_bytes": 2 * target})
    found = entrants("pair/tiny.yaml", [], offline=True)
    assert found.drafters == ("lookup", "early_exit")
    assert found.left_out["generic"].startswith("target and draft take 0.0 GB, this machine has room for")
    monkeypatch.setattr(machine, "machine_facts", lambda: {**facts, "memory_bytes": target})
    with pytest.raises(HarnessError, match="the target takes"):
        entrants("pair/tiny.yaml", [], offline=True)


def test_a_memory_that_knows_the_prompts_does_not_draft(home: Path) -> None:
    """It would only repeat its answers; other prompts it may draft for."""
    from harness.core.paths import memory_path
    from harness.decode.memory import Answer, write_memory

    path = memory_path("tiny")
    path.parent.mkdir(parents=True)
    known = Sample(id="a/0", domain="a", prompt="a question that was answered some time ago")
    write_memory(path, "tiny", "0", [Answer.of(known, [5, 6, 7], [8, 9, 10])])
    assert "memory" in entrants("pair/tiny.yaml", [Sample(id="b/0", domain="b", prompt="another one")], offline=True).drafters
    found = entrants("pair/tiny.yaml", [known], offline=True)
    assert found.left_out["memory"] == "the pair's memory knows answers to these prompts, such as a/0"


def test_an_adapter_that_learned_from_the_prompts_does_not_draft(poems: Path) -> None:
    """Nor does one of another draft; both say why."""
    folder = adapters_root("tiny")
    known = Sample(id="a/0", domain="a", prompt="a question that was asked some time ago")
    answer = generate(load_pair("pair/tiny.yaml"), known.prompt, drafter="generic", max_tokens=6, detailed=True)
    FailureStore(folder / "poems/rounds/failures.jsonl").append(case_from_generation(known, answer.tokens, answer))
    shutil.copytree(folder / "poems", folder / "foreign")
    metadata = folder / "foreign/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "draft_hash": "0" * 64}))
    found = entrants("pair/tiny.yaml", [known], offline=True)
    assert found.adapters == ()
    assert found.left_out["adapter poems"] == "it was trained on these prompts, such as a/0"
    assert "was trained on draft" in found.left_out["adapter foreign"]
    assert entrants("pair/tiny.yaml", [replace(known, prompt="something else")], offline=True).adapters == ("poems",)


def test_without_a_file_every_shipped_domain_is_asked(home: Path) -> None:
    """A few prompts of each, all of them clocked if need be."""
    suite = choice_suite("pair/tiny.yaml", None, limit=3, max_tokens=32, offline=True)
    assert {name: (spec.dataset, spec.limit) for name, spec in suite.domains.items()} == {n: (d, 3) for n, d in SHIPPED.items()}
    assert (suite.clocked, suite.clock_tokens, suite.race) == (3, 32, True)


@pytest.mark.parametrize("name", ["smollm2", "pair/target", "pair/target+none"])
def test_a_target_keeps_its_name(home: Path, name: str) -> None:
    """Where a draft is named, none is wanted or no family is known, nothing is added."""
    assert with_family_draft(name) == name


def test_the_draft_of_the_family_joins_where_it_is_here(home: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    """It is used where it is in the cache, and named where it is not."""
    here: list[Any] = []
    monkeypatch.setattr("harness.models.weights.is_cached", lambda config, base: config in here)
    assert with_family_draft("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert "harness choose Qwen/Qwen3-8B+auto fetches it" in notes[-1]
    from harness.models.naming import find_pair

    here.append(find_pair("Qwen/Qwen3-8B+auto").config.draft)
    assert with_family_draft("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B+auto"
