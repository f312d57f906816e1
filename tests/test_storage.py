"""What is on the disk is shown with who needs it; nothing that is needed, or cannot be made again, goes unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_cli import run

from harness.core.errors import HarnessError
from harness.core.lock import take_lock
from harness.models.naming import shipped_pairs
from harness.results.manifest import read_manifest
from harness.run.storage import cache_items, disk_bytes, stored_runs

USER = ("adapters/fake/mine", "memory/fake.safetensors", "sessions/other/s-1", "routers/fake.safetensors")


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with its report, and a cache with something in every part."""
    shutil.copytree(finished.parent, tmp_path / "results")
    shutil.copytree(finished.parent.parent / "reports", tmp_path / "reports")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    configured = next(config.target.sha256 for _, config in shipped_pairs() if config.target.sha256)
    for name in (*USER, "trajectories/fake/a", "trained/gone/b", "trajectories/other/c", "downloads/d", "models/e", "speeds/fake.json"):
        path = tmp_path / "cache" / name
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 1000)
    model = tmp_path / "cache" / "models" / f"{configured[:16]}-v1"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return tmp_path


def names(home: Path) -> set[str]:
    """What the cache holds."""
    return {item.name for item in cache_items(home / "results")}


def test_runs_are_listed_shown_and_removed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With their size and state; a run that is written to, and one that nobody agrees to remove, stays."""
    (stored,) = stored_runs(home / "results")
    name, report = stored.folder.name, home / "reports" / stored.folder.name
    code, out, _ = run("results", "list", capsys=capsys)
    assert code == 0
    assert out.split()[:4] == [name, "finished", str(stored.records), "records"]
    assert stored.size == disk_bytes(stored.folder) + disk_bytes(report) > 10_000
    code, out, _ = run("results", "show", name, capsys=capsys)
    assert code == 0
    assert read_manifest(stored.folder).suite_hash[:12] in out
    assert "harness generate PROMPT" in out
    code, _, err = run("results", "rm", name, capsys=capsys)
    assert code == 2
    assert "nobody is there to agree" in err
    with take_lock(stored.folder / "lock", lambda owner: HarnessError("busy", "")):
        code, _, err = run("results", "rm", name, "--yes", capsys=capsys)
    assert code == 2
    assert "is written to by process" in err
    assert run("results", "rm", name, "--yes", capsys=capsys)[0] == 0
    assert not stored.folder.exists()
    assert not report.exists()
    assert run("results", "list", capsys=capsys)[1] == "no runs in results\n"


def test_an_unreadable_run_is_listed_with_its_problem(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bad folder hides no others."""
    (home / "results" / "broken").mkdir()
    (home / "results" / "broken" / "manifest.json").write_text("{")
    code, out, _ = run("results", "list", capsys=capsys)
    assert code == 0
    assert "unreadable" in out
    assert "finished" in out


def test_only_what_nobody_needs_is_collected(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run, a session or a configured pair refers to stays without --yes; what cannot be made again stays always."""
    before = names(home)
    code, out, _ = run("cache", "gc", "--dry-run", capsys=capsys)
    assert code == 0
    assert "would be freed" in out
    assert names(home) == before
    assert "session s-1" in run("cache", "ls", capsys=capsys)[1]
    assert run("cache", "gc", capsys=capsys)[0] == 0
    kept = names(home)
    assert before - kept == {"trained/gone", "downloads/d", "models/e"}
    assert run("cache", "gc", "--yes", capsys=capsys)[0] == 0
    assert {name.split("/")[0] for name in names(home)} == {"adapters", "memory", "sessions", "routers", "speeds"}
    assert all((home / "cache" / name).exists() for name in USER)
