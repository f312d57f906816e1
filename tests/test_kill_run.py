"""kill -9 at random moments of a run: no finished sample is lost, and the resumed run has the records of one never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from killing import Finished, killed_and_resumed
from test_runner import fake_generate, make_engine, run, without_times
from tiny import write_pair

from harness.core.cell import record_key
from harness.results.reading import read_records
from harness.results.store import RunStore

SUITE = """
name: tiny
models: {pair}
max_tokens: 8
domains:
  chat: {{dataset: chat, limit: 4}}
experiments:
  - kind: baseline
  - {{kind: drafters, drafters: [generic, lookup]}}
  - {{kind: ablation_k, k: [1, 3]}}
"""


def newest(results: Path) -> Path | None:
    """Folder of the run under way; None before its manifest is written."""
    return next(iter(sorted(p.parent for p in results.glob("*/manifest.json"))), None)


def slow_generate(*args: Any, **settings: Any) -> Any:
    """The fake decoder at a speed that leaves time to be killed."""
    time.sleep(0.002)
    return fake_generate(*args, **settings)


def child(root: Path, acknowledge: int) -> None:
    """Run or resume, and write the key of every record that is on disk to ``acknowledge``."""
    extend = RunStore.extend

    def told(self: RunStore, records: Any) -> None:
        records = list(records)
        extend(self, records)
        os.write(acknowledge, "".join(f"{record_key(r)}\n" for r in records).encode())

    RunStore.extend = told  # type: ignore[method-assign]
    folder = newest(root / "results")
    run(root, resume=folder.name if folder else None, engine=make_engine(generate=slow_generate), report=True)


def attempt(root: Path, kill_after_s: float | None) -> tuple[bool, set[str]]:
    """Fork a child and kill it; returns whether it finished before, and the records it acknowledged."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(root, write)
        os._exit(0)
    os.close(write)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        acknowledged = set(pipe.read().splitlines())
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0, acknowledged


def kill_forks(root: Path, kills: int) -> None:
    """Kill ``kills`` children at random moments; a new run begins where one ended before the kill."""
    rng, whole = random.Random(kills), root / "whole"
    attempt(whole, None)
    expected = without_times(read_records(newest(whole / "results")))
    landed = runs = 0
    while landed < kills:
        folder, runs = root / f"killed-{runs}", runs + 1
        acknowledged: set[str] = set()
        done = False
        while not done:
            done, new = attempt(folder, rng.uniform(0, 0.2) if landed < kills else None)
            landed += not done
            acknowledged |= new
            found = newest(folder / "results")
            records = {str(record_key(r)) for r in read_records(found)} if found else set()
            assert acknowledged <= records, f"lost after kill {landed}: {acknowledged - records}"
        assert without_times(read_records(newest(folder / "results"))) == expected
        assert len(acknowledged) <= len(expected)
    print(f"{landed} kills in {runs} runs")


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_runs(tmp_path: Path, kills: int) -> None:
    """Everything a run told its user is done must be there after any kill. A process without mlx forks the children in milliseconds."""
    script = "import sys; from pathlib import Path; import test_kill_run as t; t.kill_forks(Path(sys.argv[1]), int(sys.argv[2]))"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(kills)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert f"{kills} kills" in done.stdout


@pytest.mark.parametrize("kills", [1, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_run_on_tiny_models(tmp_path: Path, kills: int) -> None:
    """The same through the command line with real decoding, replay and reports."""
    suite = tmp_path / "tiny.yaml"
    suite.write_text(SUITE.format(pair=write_pair(tmp_path / "pair", max_position_embeddings=1024)), encoding="utf-8")

    def command(folder: Path) -> list[str]:
        found = newest(folder / "results")
        resume = ["--resume", found.name] if found else []
        return ["run", str(suite), "--results", str(folder / "results"), *resume]

    def finished(folder: Path) -> Finished:
        found = newest(folder / "results")
        return {str(record_key(r)): r for r in read_records(found)} if found else {}

    whole, folders = killed_and_resumed(command, finished, tmp_path, kills, seed=kills)
    expected = without_times([*finished(whole).values()])
    assert len(expected) == 4 * 5
    for folder in folders:
        assert without_times([*finished(folder).values()]) == expected
