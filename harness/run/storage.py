"""What runs and the cache hold on disk, who needs it, and its removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import HarnessError
from harness.core.lock import take_lock
from harness.core.paths import cache_dir
from harness.models.naming import shipped_pairs
from harness.results.manifest import MANIFEST, Manifest, read_manifest
from harness.results.parquet import count_lines
from harness.results.reading import RECORDS
from harness.run.runner import reports_folder

MADE_AGAIN = ("cluster", "downloads", "hidden", "models", "trained", "trajectories")
"""Parts of the cache that are fetched or computed again where they are missed: models, and what runs trained and were answered."""


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run folder."""

    folder: Path
    manifest: Manifest | None
    """None where it cannot be read."""
    problem: str
    """Why; empty where it can."""
    records: int
    """Lines of its records."""
    size: int
    """Bytes, its report included."""


@dataclass(frozen=True, kw_only=True)
class CacheItem:
    """A part of the cache that can go by itself."""

    path: Path
    size: int
    """Bytes."""
    needed_by: tuple[str, ...]
    """Runs, sessions and pairs that would miss it."""
    stays: bool
    """It is not removed here: it cannot be made again by itself, such as adapters and sessions, or is small."""

    @property
    def name(self) -> str:
        """Where it is in the cache."""
        return self.path.relative_to(cache_dir()).as_posix()


def stored_runs(results_dir: Path) -> list[StoredRun]:
    """The runs of a results folder, oldest first."""
    folders = sorted((path.parent for path in results_dir.glob(f"*/{MANIFEST}")), key=lambda f: ((f / MANIFEST).stat().st_mtime, f.name))
    return [_stored_run(folder) for folder in folders]


def _stored_run(folder: Path) -> StoredRun:
    manifest, problem, lines, records = None, "", 0, folder / RECORDS
    try:
        lines = count_lines(records) if records.is_file() else 0
        manifest = read_manifest(folder)
    except HarnessError as error:
        problem = error.problem
    size = disk_bytes(folder) + disk_bytes(reports_folder(folder))
    return StoredRun(folder=folder, manifest=manifest, problem=problem, records=lines, size=size)


def remove_run(folder: Path) -> None:
    """Remove a run and its report.

    Raises:
        HarnessError: a process writes to it.
    """

    def busy(owner: str) -> HarnessError:
        return HarnessError(f"{folder} is written to by process {owner}", "Wait for it, or stop it with Ctrl-C.")

    with take_lock(folder / "lock", busy):
        _remove([reports_folder(folder), folder])


def cache_items(results_dir: Path) -> list[CacheItem]:
    """What the cache holds, and who of the runs in ``results_dir``, of the sessions and of the configured pairs needs it."""
    root = cache_dir()
    parts = sorted(path for path in root.glob("*") if path.name != "locks")
    users = _users(results_dir)
    return [
        CacheItem(
            path=path,
            size=disk_bytes(path),
            needed_by=tuple(sorted(users.get(f"{part.name}/{path.name}", ()))),
            stays=part.name not in MADE_AGAIN,
        )
        for part in parts
        for path in (sorted(part.iterdir()) if part.is_dir() else [part])
    ]


def remove_items(items: Iterable[CacheItem]) -> None:
    """Remove parts of the cache."""
    _remove([item.path for item in items])


def _users(results_dir: Path) -> dict[str, set[str]]:
    """Place in the cache to what needs it."""
    users: dict[str, set[str]] = {}
    hashes: dict[str, set[str]] = {}
    for run in stored_runs(results_dir):
        if run.manifest is not None:
            for part in ("hidden", "trained", "trajectories"):
                users.setdefault(f"{part}/{run.manifest.pair}", set()).add(f"run {run.folder.name}")
            for name in ("target", "draft"):
                hashes.setdefault(run.manifest.models.get(name) or "", set()).add(f"run {run.folder.name}")
    for session in sorted((cache_dir() / "sessions").glob("*/*")):
        for part in ("hidden", "trained", "trajectories"):
            users.setdefault(f"{part}/{session.parent.name}", set()).add(f"session {session.name}")
    for name, config in shipped_pairs():
        for model in (config.target, config.draft):
            if model is not None and model.sha256:
                hashes.setdefault(model.sha256, set()).add(f"pair {name}")
    for folder in (cache_dir() / "models").glob("*"):
        named = [names for sha256, names in hashes.items() if sha256 and folder.name.startswith(sha256[:16])]
        users[f"models/{folder.name}"] = set().union(*named)
    return users


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of everything in a folder; links count as themselves."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if os.path.lexists(path) else 0
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink())


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
