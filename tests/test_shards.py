"""One target over several processes: the same tokens as in one, from the same command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sharding import compared
from tiny import tiny_pair, write_model, write_pair

from harness.core.errors import HarnessError
from harness.decode.generation import generate
from harness.models.shards import check_backend, check_split


def test_two_processes_decode_as_one(tmp_path: Path) -> None:
    """Plain, with a draft, with the target's own first layers and with lookup, greedy and sampled: equal in every round."""
    pair = write_pair(tmp_path, noise=0.1, num_hidden_layers=2)
    job = {"prompts": ["a prompt about fish"], "drafters": ["generic", "early_exit", "lookup"], "ks": [3], "max_tokens": 8}
    found = compared(str(pair), 2, tmp_path, job)
    assert found["decoded"] == 2 + 3 * 3
    assert found["different"] == []
    assert [found["answers"], found["replay"], found["forced"]] == [True] * 3
    assert min(found["v"]) >= 1


@pytest.mark.real
@pytest.mark.slow
def test_three_processes_decode_smollm2_as_one(tmp_path: Path) -> None:
    """50 prompts, K = 1 to 8 in turns, greedy and sampled: what differs is a near-tie, as sums over parts are rounded in another order."""
    prompts = [f"Tell me about the number {i}, its neighbours and" for i in range(50)]
    job = {"prompts": prompts, "drafters": ["generic"], "ks": list(range(1, 9)), "ks_each": 1, "ways": 2, "max_tokens": 6, "timeout": 3000}
    found = compared("smollm2", 3, tmp_path, job)
    assert found["decoded"] == 50 * (2 + 2)
    assert [d for d in found["different"] if d["kind"] != "tie"] == []
    assert found["replay"]


def harness(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HARNESS_CACHE": str(cwd / "cache"),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def counts(run: Path) -> dict[tuple[Any, ...], Any]:
    """What a run's records say apart from its clocks."""
    records = [json.loads(line) for line in (run / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("experiment", "method", "sample_id", "drafter", "k")
    return {tuple(r[key] for key in keys): (r["tokens"], r["accept_lengths"], r["draft_lengths"], r["finish"]) for r in records}


@pytest.mark.slow
def test_generate_over_two_processes(tmp_path: Path) -> None:
    """The command line starts itself under mlx.launch; the first process prints, once, what one process would."""
    pair = tiny_pair(tmp_path, noise=0.1, num_hidden_layers=2)
    done = harness("generate", "count to three", "--models", "tiny.yaml", "--max-tokens", "8", "--shards", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = generate(pair, "count to three", max_tokens=8)
    assert done.stdout == expected.text + "\n"
    assert f"accepted {expected.accepted} of {expected.drafted} drafted" in done.stderr


@pytest.mark.slow
def test_a_run_over_two_processes(tmp_path: Path) -> None:
    """One folder, one report, written by the first process; counts and tokens are those of a run in one."""
    write_pair(tmp_path, noise=0.1, num_hidden_layers=2)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"count to {i}"}) + "\n" for i in range(2)), encoding="utf-8")
    suite = {
        "name": "split", "models": "tiny.yaml", "max_tokens": 6, "clocked": 1,
        "domains": {"own": {"dataset": "local", "path": "prompts.jsonl", "split": "all"}},
        "experiments": [{"kind": "baseline"}, {"kind": "generic_draft", "k": [2]}],
    }  # fmt: skip
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    for name, options in {"one": (), "two": ("--shards", "2", "--shards-backend", "ring")}.items():
        done = harness("run", "suite.yaml", "--results", f"{name}/results", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    (one,), (two,) = ([*(tmp_path / name / "results").iterdir()] for name in ("one", "two"))
    assert counts(one) == counts(two)
    machine = json.loads((two / "manifest.json").read_text(encoding="utf-8"))["machine"]
    assert (machine["shards"], machine["shards_backend"]) == (2, "ring")
    assert done.stdout.count("records:") == 1
    assert len(list((tmp_path / "two" / "reports").iterdir())) == 1


@pytest.mark.slow
def test_the_exit_code_is_the_first_ones(tmp_path: Path) -> None:
    """What the first process refuses is printed once, and nobody is left behind."""
    write_pair(tmp_path, num_attention_heads=4, num_key_value_heads=1)
    done = harness("generate", "x", "--models", "tiny.yaml", "--shards", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("which do not come out even over 2 processes") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("changes", "parts", "message"),
    [
        ({}, 3, "4 attention heads, which do not come out even over 3 processes"),
        ({"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 36}, 2, "3 key-value heads"),
        ({"model_type": "phi"}, 2, "mlx-lm cannot split models of type 'phi'"),
        ({"model_type": "nothing"}, 2, "mlx-lm cannot split models of type 'nothing'"),
    ],
)
def test_what_cannot_be_split_is_refused_before_loading(tmp_path: Path, changes: dict[str, Any], parts: int, message: str) -> None:
    """One sentence, from the configuration alone."""
    folder = write_model(tmp_path / "m", **{name: value for name, value in changes.items() if name != "model_type"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    with pytest.raises(HarnessError, match=message):
        check_split(folder, parts)


def test_an_unknown_back_end_is_refused() -> None:
    """Before a process is started."""
    with pytest.raises(HarnessError, match="no back end 'pigeon'"):
        check_backend("pigeon")
