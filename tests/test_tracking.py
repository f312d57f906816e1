"""Trackers: each with its real local back end, off unless asked for, and refused before any work where it is not installed."""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import HarnessError
from harness.core.tracking import TRACKERS, NoTracker, check_tracker, tracking
from harness.report import load_run
from harness.report.tracked import numbers, track_run
from harness.run.runner import reports_folder

TELL = """
import sys
from pathlib import Path
from harness.core.tracking import tracking
from harness.report import load_run
from harness.report.tracked import track_run
from harness.run.runner import reports_folder
with tracking(sys.argv[1], "a run", {"suite": {"seed": 3}}) as tracker:
    tracker.log({"loss": 1.5, "validation/alpha": 0.25}, step=1)
    tracker.log({"loss": 0.5, "validation/alpha": 0.75}, step=2)
    track_run(load_run(Path(sys.argv[2])), reports_folder(Path(sys.argv[2])), tracker)
"""


def read_trackio(folder: Path) -> dict[str, Any]:
    """What Trackio's own database holds."""
    with sqlite3.connect(folder / "specdraft-harness.db") as base:
        rows = [json.loads(row[0]) for row in base.execute("select metrics from metrics order by id")]
        config = json.loads(base.execute("select config from configs").fetchone()[0])
    blobs = [path.read_bytes() for path in (folder / "artifacts").rglob("sha256/*/*")]
    return {
        "losses": [r["loss"] for r in rows if "loss" in r],
        "names": {n for r in rows for n in r},
        "seed": config["suite.seed"],
        "files": blobs,
    }


def read_mlflow(folder: Path) -> dict[str, Any]:
    """What MLflow's file store holds."""
    run = next(path.parent for path in folder.rglob("metrics"))
    losses = [float(line.split()[1]) for line in (run / "metrics/loss").read_text().splitlines()]
    names = {str(path.relative_to(run / "metrics")) for path in (run / "metrics").rglob("*") if path.is_file()}
    names |= {path.stem for path in (run / "artifacts/tables").iterdir()}
    seed = int((run / "params/suite.seed").read_text())
    return {"losses": losses, "names": names, "seed": seed, "files": [p.read_bytes() for p in (run / "artifacts").iterdir() if p.is_file()]}


def read_wandb(folder: Path) -> dict[str, Any]:
    """What an offline run of Weights & Biases holds: its log has no reader, so names and values are looked for in its bytes."""
    log = next(folder.rglob("*.wandb")).read_bytes()
    losses = [value for value in (1.5, 0.5) if re.search(rb"loss.{0,20}%g" % value, log, flags=re.S)]
    names = {"Acceptance" for path in folder.rglob("media/table/*.json") if b"rate, pooled" in path.read_bytes()}
    names |= {name.decode() for name in re.findall(rb"code/lookup K=\d/rate", log)}
    seed = re.search(rb"suite\.seed.{0,8}(\d)", log, flags=re.S)
    return {"losses": losses, "names": names, "seed": int(seed[1]) if seed else None, "files": re.findall("report.html", str(log))}


READERS: dict[str, tuple[dict[str, str], Callable[[Path], dict[str, Any]]]] = {
    "trackio": ({"TRACKIO_DIR": "HERE"}, read_trackio),
    "mlflow": ({"MLFLOW_TRACKING_URI": "file:HERE", "MLFLOW_ALLOW_FILE_STORE": "true"}, read_mlflow),
    "wandb": ({"WANDB_DIR": "HERE", "WANDB_MODE": "offline"}, read_wandb),
}


@pytest.mark.parametrize("name", list(TRACKERS))
def test_real_back_end_keeps_what_it_is_told(name: str, finished: Path, tmp_path: Path) -> None:
    """Losses by step, a run's numbers, tables and page, and the settings, read back from where the tracker keeps them."""
    pytest.importorskip(name, reason=f"{name} is an extra")
    environment, read = READERS[name]
    (here := tmp_path / "here").mkdir()
    settings = {**os.environ, **{key: value.replace("HERE", str(here)) for key, value in environment.items()}}
    result = subprocess.run([sys.executable, "-c", TELL, name, str(finished)], env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    kept = read(here)
    assert (kept["losses"], kept["seed"]) == ([1.5, 0.5], 3)
    assert "Acceptance" in kept["names"]
    assert any("lookup" in n and n.endswith("rate") for n in kept["names"])
    page = (reports_folder(finished) / "report.html").read_bytes()
    assert any(file in (page, "report.html") for file in kept["files"])


class Kept(NoTracker):
    """Keeps what it is told in memory."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.tables: list[str] = []
        self.files: list[str] = []

    def log(self, values: Any, step: int | None = None) -> None:
        """Numbers."""
        self.values |= values

    def table(self, name: str, headers: Any, rows: Any) -> None:
        """A table, every line as wide as its head."""
        assert all(len(row) == len(headers) for row in rows)
        self.tables.append(name)

    def file(self, path: Path) -> None:
        """A file."""
        self.files.append(path.name)


def test_a_run_tells_every_row_once(finished: Path) -> None:
    """No two cells share a name, and each number is that of the row."""
    run, kept = load_run(finished), Kept()
    track_run(run, reports_folder(finished), kept)
    assert len(kept.values) == sum(len(numbers(row)) for row in run.shown)
    row = next(r for r in run.shown if r.drafter == "lookup" and r.method == "decode" and r.rate)
    assert row.rate is not None
    assert kept.values[f"{row.domain}/{row.label} K={row.k}/rate"] == row.rate.value
    assert {"report.html", "cells.csv", "settings.yaml"} <= set(kept.files)
    assert len(set(kept.tables)) == len(kept.tables) > 4


def test_a_tracker_that_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Training of hours goes on without it, and says so once."""

    class Broken(Kept):
        def log(self, values: Any, step: int | None = None) -> None:
            raise OSError("no route to the server")

    monkeypatch.setitem(TRACKERS, "wandb", lambda name, config: Broken())
    with tracking("wandb", "x", {}) as tracker:
        for step in range(3):
            tracker.log({"loss": 1.0}, step)
    assert capsys.readouterr().err.count("no route to the server") == 1


def test_missing_package_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before prompts are read or models load, with the extra that brings it; off by default."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(HarnessError, match=r"specdraft-harness\[trackio\]"):
        check_tracker("trackio")
    check_tracker(None)
    with tracking(None, "x", {}) as tracker:
        assert isinstance(tracker, NoTracker)
    for command in (["run", "quick", "--limit", "1"], ["train", "full"], ["distill", "smollm2"]):
        result = CliRunner().invoke(app, [*command, "--track", "wandb"])
        assert isinstance(result.exception, HarnessError)
        assert "wandb is not installed" in result.exception.problem


def test_training_tells_every_update(capsys: pytest.CaptureFixture[str]) -> None:
    """Losses go on counting over rounds; the user sees those with a new validation."""
    from harness.adapt.training.outcome import TrainProgress
    from harness.adapt.training_config import load_training_config
    from harness.cli.train import _progress
    from harness.core.progress import notes_to
    from harness.core.terminal import say

    steps: list[tuple[int | None, float]] = []

    class Steps(Kept):
        def log(self, values: Any, step: int | None = None) -> None:
            steps.append((step, values["loss"]))

    settings = load_training_config("default").replace(stop={"every": 2})
    told = _progress(settings, Steps())
    with notes_to(partial(say, err=True)):
        for number, step in itertools.product((1, 2), (1, 2, 3)):
            told(number, TrainProgress(step=step, total=3, loss=number + step / 10, tokens_per_s=1.0, value=0.5, best=0.5))
    assert steps == [(1, 1.1), (2, 1.2), (3, 1.3), (4, 2.1), (5, 2.2), (6, 2.3)]
    assert capsys.readouterr().err.count("update 2/3") == 2
