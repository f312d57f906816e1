"""Pairs without YAML: TARGET and TARGET+DRAFT as hub names, folders and GGUF files, read in one place and loaded by every command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_gguf import write_gguf
from tiny import EOS, write_model

from harness.core.errors import HarnessError
from harness.core.paths import cache_dir
from harness.models.naming import find_model, find_pair

HUB = "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("text", "name", "target", "draft"),
    [
        (HUB, "Qwen--Qwen3-8B", "hub:Qwen/Qwen3-8B@main", None),
        (f"{HUB}@v1+a/b", "Qwen--Qwen3-8B@v1+a--b", "hub:Qwen/Qwen3-8B@v1", "hub:a/b@main"),
        (f"{HUB}+auto", "Qwen--Qwen3-8B+Qwen--Qwen3-0.6B", "hub:Qwen/Qwen3-8B@main", "hub:Qwen/Qwen3-0.6B@main"),
        (f"{HUB}+none", "Qwen--Qwen3-8B+none", "hub:Qwen/Qwen3-8B@main", None),
        (f"hub:{HUB}@main", "Qwen--Qwen3-8B@main", "hub:Qwen/Qwen3-8B@main", None),
        ("qwen2.5-7b+a/b", "qwen2.5-7b+a--b", "hub:mlx-community/Qwen2.5-7B-Instruct-4bit@main", "hub:a/b@main"),
        ("a/b+qwen2.5-3b", "a--b+qwen2.5-3b", "hub:a/b@main", "hub:mlx-community/Qwen2.5-3B-Instruct-4bit@main"),
        ("a/b+shipped:smollm2", "a--b+smollm2", "hub:a/b@main", "shipped:smollm2"),
    ],
)
def test_names_without_a_file(text: str, name: str, target: str, draft: str | None) -> None:
    """What is not on this machine is told by its form; nothing is asked of the network."""
    found = find_pair(text)
    assert (found.name, found.config.target.sources) == (name, [target])
    assert (found.config.draft.sources if found.config.draft else None) == ([draft] if draft else None)


def test_a_configured_pair_keeps_its_settings_under_another_draft() -> None:
    """The target's own facts stay; the ids that its own draft may propose do not."""
    own, other = find_pair("qwen-coder"), find_pair("qwen-coder+a/b")
    assert own.config.draft_vocab is not None
    assert other.config.draft_vocab is None
    assert (other.config.k, other.config.target.sha256) == (own.config.k, own.config.target.sha256)


def test_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths become absolute, also from a link and with a + inside; one name in two folders is two pairs; a hub cache gives its name."""
    snapshot = tmp_path / "models--org--Big-7B" / "snapshots" / ("a" * 40)
    for folder in (tmp_path / "x" / "m", tmp_path / "y" / "m", tmp_path / "one+two", snapshot, tmp_path / "smollm2"):
        folder.mkdir(parents=True)
    (tmp_path / "m.gguf").touch()
    (tmp_path / "link").symlink_to(tmp_path / "x" / "m")
    monkeypatch.chdir(tmp_path)
    assert find_pair("x/m").config.target.sources == [f"path:{tmp_path}/x/m"]
    assert find_pair("./link").config.target.sources == [f"path:{tmp_path}/link"]
    assert find_pair("one+two").config.draft is None
    both = find_pair("one+two+m.gguf").config
    assert both.draft is not None
    assert [both.target.sources, both.draft.sources] == [[f"path:{tmp_path}/one+two"], [f"path:{tmp_path}/m.gguf"]]
    assert find_pair("x/m").name != find_pair("y/m").name
    assert find_pair(str(snapshot)).name == "org--Big-7B"
    assert find_pair("smollm2").name == "smollm2"  # the configured pair, not the folder of that name
    assert find_pair("./smollm2").config.target.sources == [f"path:{tmp_path}/smollm2"]
    assert os.sep not in find_pair("x/m+y/m").name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the name of a model is missing"),
        ("+a/b", "the name of a model is missing"),
        ("a/b+", "the name of a model is missing"),
        ("smolm2", "did you mean 'smollm2'"),
        ("smollm2+qwencoder", "did you mean 'qwen-coder'"),
        ("./nowhere", "there is no .*/nowhere"),
        ("nowhere.gguf", "there is no .*/nowhere.gguf"),
        ("nowhere.yaml", "no model file"),
        ("a/b/c", "neither a file, a folder nor a hub name"),
        ("a/b#m.gguf", "needs sha256"),
        ("hub:a/b@main#m.gguf", "needs sha256"),
        ("hub:a", "no model source"),
        ("shipped:smollm2", "no target"),
        (__file__, "is no model"),
        ("someone/Mystery-7B+auto", "no draft is known"),
        ("Qwen/Qwen3-0.6B+auto", "No draft of its family pays"),
        ("~nosuchuser/m", "no home folder"),
        ("a\0b", "character"),
    ],
)
def test_a_name_that_is_none(text: str, problem: str) -> None:
    """One sentence and advice, before anything is loaded or fetched."""
    with pytest.raises(HarnessError, match=problem) as caught:
        find_pair(text)
    assert caught.value.advice


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a draft as folders, the target as a GGUF file, and a draft whose tokenizer loses what text says."""
    folder = tmp_path_factory.mktemp("models")
    for name, noise in (("target", 0.0), ("draft", 0.05), ("foreign", 0.05)):
        write_model(folder / name, noise=noise)
    foreign = folder / "foreign" / "tokenizer.json"
    foreign.write_text(json.dumps({**json.loads(foreign.read_text()), "normalizer": {"type": "Lowercase"}}))
    write_gguf(folder / "target.gguf")
    return folder


def test_folders_and_files_decode_like_the_pair_of_a_yaml_file(models: Path, tmp_path: Path) -> None:
    """The name changes nothing in the answer; the pair without a draft gives the same tokens."""
    from harness import generate
    from harness.models.pair import load_pair

    (tmp_path / "p.yaml").write_text(f"target: {{sources: ['path:{models}/target']}}\ndraft: {{sources: ['path:{models}/draft']}}\n")
    written, named, alone = (load_pair(n) for n in (str(tmp_path / "p.yaml"), f"{models}/target+{models}/draft", str(models / "target")))
    assert written.draft is not None
    assert named.draft is not None
    assert (named.target_hash, named.draft.hash, alone.draft) == (written.target_hash, written.draft.hash, None)
    results = [
        generate(pair, "Hello", max_tokens=12, drafter=d) for pair, d in ((written, "generic"), (named, "generic"), (alone, "lookup"))
    ]
    assert len({r.tokens for r in results}) == 1
    assert results[0].accepted == results[1].accepted


def test_a_gguf_file_alone(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is converted once; a damaged one leaves nothing behind."""
    from harness.models.pair import load_pair

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = load_pair(str(models / "target.gguf"))
    assert pair.encode([5, 6]) == [5, 6]
    assert EOS in pair.eos_token_ids
    (tmp_path / "bad.gguf").write_bytes((models / "target.gguf").read_bytes()[:-400])
    before = sorted((cache_dir() / "models").iterdir())
    with pytest.raises(HarnessError, match=r"bad\.gguf"):
        load_pair(str(tmp_path / "bad.gguf"))
    assert sorted((cache_dir() / "models").iterdir()) == before


def test_the_target_goes_on_alone_only_when_asked(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A draft whose text is not the target's, and one that is not there."""
    from harness.models.pair import load_pair

    for draft in (models / "foreign", "org/absent"):
        with pytest.raises(HarnessError):
            load_pair(f"{models}/target+{draft}", offline=True)
        pair = load_pair(f"{models}/target+{draft}", offline=True, fallback=True)
        assert pair.draft is None
        assert pair.without_draft
        assert "goes on without a draft" in capsys.readouterr().err


def test_check_reads_no_weights(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file's tokenizer is looked at without converting it, and nothing of it stays."""
    from harness.models.weights import tokenizer_folder

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with tokenizer_folder(str(models / "target.gguf")) as folder:
        assert (folder / "tokenizer.json").is_file()
        assert not list(folder.glob("*.safetensors"))
    assert not folder.exists()
    assert not (tmp_path / "cache").exists()
    assert find_model(str(models / "target"))[0].sources == [f"path:{models}/target"]


def test_a_run_of_a_target_alone_says_so(models: Path, tmp_path: Path) -> None:
    """Cells that need a draft are refused, or left out on request; the report names them, and the record is complete without them."""
    from rich.console import Console

    from harness.report import load_run, write_reports
    from harness.run.runner import run_suite
    from harness.suite.suite import load_suite

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n')
    (tmp_path / "s.yaml").write_text(
        "name: s\nmax_tokens: 6\ndomains: {mine: {dataset: local, path: prompts.jsonl, split: all}}\n"
        "experiments: [{kind: baseline}, {kind: drafters, drafters: [generic, lookup], k: [2]}]\n"
    )
    with pytest.raises(HarnessError, match=r"needs a draft model.*--fallback"):
        load_suite(tmp_path / "s.yaml", models=str(models / "target"))
    suite = load_suite(tmp_path / "s.yaml", models=str(models / "target"), fallback=True)
    folder = run_suite(suite, results_dir=tmp_path / "results", fallback=True, clock=False, console=Console(quiet=True))
    run = load_run(folder)
    assert {record.drafter for record in run.records} == {None, "lookup"}
    write_reports(run, tmp_path / "report")
    assert "Not run: everything that needs a draft model" in (tmp_path / "report" / "report.md").read_text()
