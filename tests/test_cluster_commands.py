"""Commands with ``--cluster``: what they write is what they write without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from routed import adapters, write_prompts
from test_cli_route import QUICK, invoke
from tiny import tiny_pair

from harness.answers.collect import shard_names
from harness.cluster.client import Cluster
from harness.core.cell import record_key
from harness.decode.generation import generate
from harness.report.verify import verify
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run.runner import reports_folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A tiny pair with two adapters, a file of prompts, and the address of two workers in this process."""
    root = tmp_path_factory.mktemp("home")
    pair = tiny_pair(root / "pair", max_position_embeddings=2048)
    adapters(root / "adapters", pair.draft)
    for drafter in ("generic", "hybrid", "early_exit"):  # constants of modules must be computed on the thread that imported them
        generate(pair, "a", drafter=drafter, max_tokens=4)
    with Cluster("local:2", processes=False) as cluster:
        yield SimpleNamespace(
            root=root,
            pair=str(root / "pair/tiny.yaml"),
            prompts=str(write_prompts(root / "prompts.jsonl")),
            at=cluster._own.scheduler_address,
        )


def both(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, str]:
    """Run a command in this process and on the workers, each with a cache of its own; ``{}`` in an argument is the side's folder."""
    said = {}
    for side, more in {"here": [], "there": ["--cluster", home.at]}.items():
        place = home.root / side
        monkeypatch.setenv("HARNESS_CACHE", str(place / "cache"))
        said[side] = invoke(*(text.replace("{}", str(place)) for text in arguments), "--offline", *more)
    return said


def files_of(folder: Path) -> dict[str, bytes]:
    """The shards of answers in a folder."""
    assert shard_names(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_collect(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers in the same files."""
    options = ["--models", home.pair, "--limit", "4", "--max-tokens", "6", "--batch", "2", "--temperature", "0.7"]
    both(home, monkeypatch, "collect", home.prompts, "--out", "{}/answers", *options)
    assert files_of(home.root / "here/answers") == files_of(home.root / "there/answers")


def test_the_first_stage_of_distill(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers in the same files, in the number format that drafts are distilled from."""
    config = home.root / "draft.yaml"
    rollouts = "{prompts: {chat: 5}, max_tokens: 4, batch: 2, top_k: 2, sampled_share: 0.4}"
    config.write_text(f"name: tiny\npair: {home.pair}\nrollouts: {rollouts}\ncut: {{layers: 1}}\n", encoding="utf-8")
    said = both(home, monkeypatch, "distill", str(config), "--stages", "collect", "--work", "{}/work", "--out", "{}/draft")
    assert files_of(home.root / "here/work/rollouts") == files_of(home.root / "there/work/rollouts")
    assert said["there"].splitlines()[-1] == f"answers: {home.root}/there/work/rollouts"


def test_train_router(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same table and the same router, from answers and replays of the workers."""
    options = ["--models", home.pair, "--adapters", str(home.root / "adapters"), "-k", "3", "--max-tokens", "8", *QUICK]
    said = both(home, monkeypatch, "train-router", home.prompts, *options, "--router", "{}/router", "--json")
    here, there = (json.loads(text) for text in said.values())
    assert here.pop("router") != there.pop("router")
    assert min(here.pop("route_s"), there.pop("route_s")) > 0
    assert there == here


def test_choose(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A race on workers ends with a report that follows from its records; replay is equal to decoding, and every record has its place."""
    monkeypatch.setenv("HARNESS_CACHE", str(home.root / "race/cache"))
    options = ["--max-tokens", "8", "--limit", "4", "--prompts", home.prompts, "--offline", "--results", str(home.root / "race/results")]
    said = invoke("choose", home.pair, *options, "--cluster", home.at)
    assert "harness generate PROMPT --models" in said
    (folder,) = (home.root / "race/results").iterdir()
    manifest, records = read_manifest(folder), read_records(folder)
    assert manifest.finished
    assert len({record_key(r) for r in records}) == len(records)
    assert {r.machine for r in records} == {manifest.measured.reference_machine}
    assert {r.method for r in records} == {"answer", "replay", "decode"}
    assert verify(folder, reports_folder(folder)) > 20
