"""kill -9 at random moments of ``harness collect`` and ``harness train``: nothing finished is lost or done twice, and the resumed
work equals that of a process that was never killed, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from killing import Finished, killed_and_resumed
from tiny import write_pair

TRAINING = (
    "optim.epochs=8", "optim.batch_size=4", "optim.learning_rate=0.01", "optim.warmup_steps=0", "optim.max_tokens=512",
    "optim.backend=mlx", "stop.every=3", "stop.patience=50", "adapt.threshold=1.0", "checkpoint_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny pair, and a file of prompts that no two splits share."""
    folder = tmp_path_factory.mktemp("material")
    words = ("apple", "river", "stone", "cloud", "maple", "copper", "violet", "harbour")
    rng = random.Random(0)
    rows = [{"id": f"p/{i}", "prompt": " ".join(rng.sample(words, 4)) + f" {i}"} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return write_pair(folder, noise=0.6), folder / "prompts.jsonl"


def shards(folder: Path) -> Finished:
    """Finished shards under ``folder``: content and time of writing, so that one written twice shows."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.jsonl") if (p.with_suffix(".safetensors")).exists()}


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Bytes of the files that match, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in patterns for p in folder.rglob(pattern) if p.name[0] != "."}


MOMENTS = [1, pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", MOMENTS)
def test_killed_collect(material: tuple[Path, Path], tmp_path: Path, kills: int) -> None:
    """Answers cost hours on a real target: a kill may cost one batch, and the shards must come out the same."""
    pair, prompts = material

    def command(folder: Path) -> list[str]:
        options = ["--split", "all", "--batch", "2", "--max-tokens", "16", "--temperature", "0.8"]
        return ["collect", str(prompts), "--models", str(pair), "--out", str(folder / "answers"), *options]

    whole, folders = killed_and_resumed(command, shards, tmp_path, kills, seed=kills)
    expected = contents(whole, "*.jsonl", "*.safetensors")
    assert len(expected) == 2 * 20
    for folder in folders:
        assert contents(folder, "*.jsonl", "*.safetensors") == expected


def rounds(folder: Path) -> list[dict[str, Any]]:
    """Finished training rounds."""
    (path,) = [*folder.rglob("rounds.json")] or [None]
    found: list[dict[str, Any]] = json.loads(path.read_text())["rounds"] if path else []
    return found


@pytest.mark.parametrize("kills", MOMENTS)
def test_killed_train(material: tuple[Path, Path], tmp_path: Path, kills: int) -> None:
    """A training of two rounds, killed anywhere and resumed: the same adapters, cases and rounds as one that was never killed."""
    pair, prompts = material

    def command(folder: Path) -> list[str]:
        settings = [part for setting in TRAINING for part in ("--set", setting)]
        options = ["--name", "mine", "--rounds", "2", "--rank", "8", "--max-tokens", "12", "--batch", "8", "--resume"]
        return ["train", str(prompts), "--models", str(pair), *options, *settings]

    def finished(folder: Path) -> Finished:
        return {**shards(folder), **{f"round {r['round']}": r for r in rounds(folder)}}

    whole, folders = killed_and_resumed(command, finished, tmp_path, kills, seed=100 + kills)
    assert len(rounds(whole)) == 2
    assert rounds(whole)[0]["accepted"]
    for folder in folders:
        assert contents(folder, "adapters.safetensors") == contents(whole, "adapters.safetensors")
        assert [timeless(r) for r in rounds(folder)] == [timeless(r) for r in rounds(whole)]
        assert cases(folder) == cases(whole)
        assert not [*folder.rglob("checkpoint.safetensors")]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A round without its clock and its folder's name."""
    return {name: value for name, value in record.items() if name not in ("train_s", "adapter")}


def cases(folder: Path) -> list[str]:
    """Ids of the failure cases in the order of writing."""
    (path,) = folder.rglob("failures.jsonl")
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]
