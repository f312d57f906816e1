"""The measuring scripts run on a tiny pair and report what they found, so that a long run on a real pair does not fail at its end."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import busy_core
import data_efficiency
import detailed
import lossless
import memory_sizes
import numpy as np
import psutil
import pytest
import repeats
import replay
import served
import training
import trees
from adapting import VOCAB, quick_config, target_trajectories, tiny_draft
from tiny import write_pair

from harness.adapt.training.examples import from_trajectory
from harness.answers.collect import collect, read_answers
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.decode.replay import replay as replay_answers
from harness.models.pair import load_pair


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny pair and two short prompts."""
    path = write_pair(tmp_path_factory.mktemp("pair"), max_position_embeddings=4096)
    return ["--models", str(path), "--domains", "chat", "--prompts", "2", "--tokens", "6"]


def test_replay_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds replay equal to decoding, and would report a replay that counts wrongly as a bug."""
    out = tmp_path / "replay.json"
    settings = [*options, "--ks", "1", "4", "--drafters", "generic", "lookup", "--out", str(out)]
    replay.main([*settings, "--rounds", "20"])
    raw = json.loads(out.read_text())
    assert [c["equal"] for c in raw["cases"]] == [True] * 8
    assert all(c["replay_s"] > 0 and c["decode_s"] > 0 for c in raw["costs"])
    assert sum(s["rounds"] for s in raw["sampled"]) >= 20
    assert "8 cases, 8 equal, 0 near ties, 0 bugs" in capsys.readouterr().out
    right = replay.replay

    def wrong(pair: Any, trajectories: Any, drafters: Any, ks: list[int]) -> list[Any]:
        return [dataclasses.replace(row, k=row.k - 1) for row in right(pair, trajectories, drafters, [k + 1 for k in ks])]

    monkeypatch.setattr(replay, "replay", wrong)
    replay.main([*settings, "--rounds", "0"])
    assert "0 bugs" not in capsys.readouterr().out


def test_serving_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients over a SIGTERM: no answer is lost or differs, and the second turn of a conversation is read on."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    served.main([*options, "--prompts", "9", "--long", "90"])
    out = capsys.readouterr().out
    assert "9 answers, 0 differ from plain decoding []; no round" in out
    assert "overhead per token" in out
    first, second, kept = map(int, re.findall(r"turn 1, (\d+) tokens[\s\S]*turn 2, (\d+) tokens of which (\d+)", out)[0])
    assert first - 2 <= kept < second


def answers(pair: Any, folder: Path, numbers: range) -> str:
    """A folder of a target's answers of 40 tokens to prompts that are like each other."""
    prompts = [f"question number {i * 37} about topic {i}" for i in numbers]
    samples = [Sample(id=f"{folder.name}/{i}", domain="chat", prompt=text) for i, text in enumerate(prompts)]
    list(collect(pair, samples, max_tokens=40, batch=4, out=folder))
    return str(folder)


def test_memory_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line per drafter and size; more remembered answers to like prompts save passes, those to test prompts are refused."""
    pair = load_pair(options[1])
    train, test = answers(pair, tmp_path / "train", range(12)), answers(pair, tmp_path / "test", range(20, 23))
    memory_sizes.main([*options[:2], "--train", train, "--test", test, "--tokens", "80", "400"])
    lines = [line.split("|")[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(lines) == 5 + 2 * 3 + 1
    sizes = {name.split(" (")[0].strip(): float(cell.split()[0]) for name, cell, _ in lines if name.startswith(" memory of")}
    assert list(sizes) == ["memory of 80 tokens", "memory of 400 tokens", "memory of 400 tokens of chat"]
    assert sizes["memory of 400 tokens"] > sizes["memory of 80 tokens"] >= 1
    with pytest.raises(HarnessError, match="near-duplicates"):
        memory_sizes.main([*options[:2], "--train", test, "--test", test])


def test_data_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of draft learns from the same shards and is replayed; a second call makes nothing anew."""
    pair = load_pair(options[1])
    train, test = answers(pair, tmp_path / "train", range(12)), answers(pair, tmp_path / "test", range(20, 23))
    small = ["head.vocab=24", "cut.vocab=24", "cut.layers=1", "fit.epochs=1", "fit.warmup_steps=1"]
    small += [f"{key}=32" for key in ("head.group_size", "cut.group_size", "cut.mlp_group_size")]
    masks = ["parallel.k=3", "lora.rank=2", "optim.epochs=2", "optim.learning_rate=0.01", "optim.warmup_steps=1", "stop.every=1"]
    settings = [*options[:2], "--train", train, "--test", test, "--tokens", "200", "--work", str(tmp_path / "work")]
    settings += ["--set-distill", *small, "--set-parallel", *masks]
    data_efficiency.main(settings)
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name.strip() for name, *_ in lines] == ["the pair's draft", "memory", "parallel", "head", "cut"]
    assert {int(tokens) for _, tokens, *_ in lines[1:]} == {320}, "two shards of four answers"
    assert all(0 <= float(rate) <= 1 <= float(tau) for _, _, *cells in lines for rate, tau in (cells[:2], cells[2:]))
    monkeypatch.setattr(data_efficiency, "train_parallel", None)
    data_efficiency.main(settings)
    assert [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]] == lines


def test_tree_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Chains count as replay does, the best tree is at least as good as the best chain, and in wider ones more tokens stand."""
    pair = load_pair(options[1])
    folder = answers(pair, tmp_path / "answers", range(3))
    trees.main([*options[:2], "--from", folder, "--rows", "5", "--c", "0.2", "--v", "1", "1.1", "1.1", "1.2", "1.2"])
    header, _, *rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0].strip() for row in rows] == ["chat", "all"]
    assert all(float(row[-1]) >= 1 for row in rows)
    assert len(header) == len(rows[0])
    model, token_map = pair.draft.proposer
    known = [stored.trajectory() for stored in read_answers(Path(folder), pair.target_hash)]
    found = [trees.ranks(model, token_map, t) for t in known]
    counts = trees.paths(found, 4)
    for depth in (1, 3):
        chain = frozenset((1,) * n for n in range(1, depth + 1))
        endless = [dataclasses.replace(t, max_tokens=1000) for t in known]
        counted = replay_answers(pair, endless, ["generic"], [depth])
        assert trees.tau(found, chain, depth) == pytest.approx(sum(r.emitted for r in counted) / sum(r.rounds for r in counted))
        narrow, wide = (trees.likeliest(counts, nodes, depth) for nodes in (depth, depth + 8))
        assert all((trees.reached(own, wide) >= trees.reached(own, narrow)).all() for own in found)


def test_repeating_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of request asked twice, a line per drafter; answers to like requests save passes that lookup does not."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    repeats.main([*options[:2], "--domains", "code", "chat", "--prompts", "8", "--tokens", "24"])
    out = capsys.readouterr().out
    lines = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| ")]
    assert [cell.partition(":")[0].strip() for cell in lines[0]] == ["drafter", "edit", "retrieval", "reworded", "all"]
    assert [name.strip() for name, *_ in lines[1:]] == ["lookup, K = 8", "memory with the first answers"]
    lookup, memory = (float(cells[-1].split(",")[0]) for cells in lines[1:])
    assert memory > lookup > 1


def test_lossless_script_goes_on_where_it_stopped(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases are compared once, a second call decodes nothing, other settings are refused."""
    out = tmp_path / "cases.jsonl"
    settings = [*options, "--ks", "1", "3", "--drafters", "generic", "lookup", "--out", str(out)]
    with pytest.raises(SystemExit, match="0"):
        lossless.main(settings)
    whole = out.read_bytes()
    assert len(whole.splitlines()) == 1 + 8
    out.write_bytes(whole[: -len(whole.splitlines()[-1]) // 2])
    with pytest.raises(SystemExit, match="0"):
        lossless.main(settings)
    assert out.read_bytes() == whole
    monkeypatch.setattr(lossless, "generate", None)
    with pytest.raises(SystemExit, match="0"):
        lossless.main(settings)
    with pytest.raises(HarnessError, match="other settings"):
        lossless.main([*settings, "--tokens", "7"])


def test_detailed_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both modes are timed for every prompt and give the same answers."""
    out = tmp_path / "detailed.json"
    detailed.main([*options, "--repeats", "1", "--out", str(out)])
    runs = json.loads(out.read_text())["runs"]["generic"]
    assert len(runs["counts_s"]) == len(runs["detailed_s"]) == 2
    assert "0 answers differ" in capsys.readouterr().out


@pytest.mark.parametrize("pruned", [False, True])
def test_training_script(tmp_path: Path, pruned: bool) -> None:
    """Both trainers see the same batches from the same start: equal losses, every epoch timed; a pruned draft is no exception."""
    draft = tiny_draft(token_map=np.arange(0, VOCAB, 2) if pruned else None)
    config = quick_config(lora={"rank": 4, "num_layers": 1}, loss={"kind": "ce"}).replace(
        optim={"epochs": 3, "learning_rate": 0.003, "warmup_steps": 0, "final_fraction": 1.0, "clip_norm": 0.0}
    )
    examples = [from_trajectory(t) for t in target_trajectories(12)]
    own, theirs = training.measure(draft, examples, config, tmp_path)
    assert len(own.epoch_s) == len(theirs.epoch_s) == 3
    assert len(own.losses) == 6
    assert own.losses[-1] < own.losses[0]
    np.testing.assert_allclose(own.losses, theirs.losses, atol=1e-4)


def test_busy_core_script() -> None:
    """Beside the command, and only as long as it runs, another process computes; the command's exit status is passed on."""
    look = (
        "import os, psutil, sys, time; time.sleep(1); others = psutil.Process(os.getppid()).children();"
        "sys.exit(round(sum(p.cpu_times().user for p in others if p.pid != os.getpid()) > 0.1) + 6)"
    )
    assert busy_core.main([sys.executable, "-c", look]) == 7
    assert not [p for p in psutil.Process().children() if "burn" in " ".join(p.cmdline())]
