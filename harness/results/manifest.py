"""``manifest.json`` of a run folder: what ran, on what, and what its records are once it has finished."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import read_json, typed, version_of
from harness.core.records import RUN_VERSION
from harness.core.schema import Machine, Measured
from harness.results.upgrades import UPGRADES

MANIFEST = "manifest.json"
ADVICE = "Restore the file from a copy, or run the suite again."


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What the records of a finished run are."""

    records: int
    """How many."""
    sha256: str
    """SHA-256 of ``records.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run was: everything needed to repeat it or to refuse a wrong comparison."""

    run: str
    """Name of the run folder."""
    started: str
    """UTC time the run began, ISO 8601."""
    pair: str
    """Model pair."""
    suite: Mapping[str, Any]
    """The resolved suite, flags applied."""
    suite_hash: str
    """SHA-256 of the resolved suite."""
    models: Mapping[str, str | None]
    """``target`` and ``draft`` file hashes, ``dtype`` of the computation, and where the draft is ``translated``, why."""
    code: Mapping[str, Any]
    """``version``, ``commit``, ``dirty`` and ``hash`` of the sources that make records."""
    packages: Mapping[str, str]
    """Installed versions of the packages that matter."""
    machine: Mapping[str, Any]
    """Processor, cores, memory, system, device, BLAS."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds used."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Sample id to :func:`prompt_hash`: what stands behind the ids. Empty in runs of versions that did not store it."""
    measured: Measured = field(default_factory=Measured)
    """Facts learned while running."""
    seal: Seal | None = None
    """Set when the run finished; None before, and in runs of versions that did not seal."""
    schema_version: int = RUN_VERSION

    @property
    def finished(self) -> bool:
        """True when every planned record was written."""
        return self.measured.status == "finished"


def prompt_hash(tokens: Sequence[int], reference: Mapping[str, str] | None) -> str:
    """What tells a prompt from another under the same id: 16 hex digits of the SHA-256 of its token ids and its reference answer."""
    text = json.dumps([list(tokens), dict(reference or {})], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def upgrade(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring a manifest or record to the current schema version.

    Raises:
        HarnessError: written by a newer version of this package, or no version given.
    """
    version = version_of(data, where, newest=RUN_VERSION, advice="It was not written by this program; check the path.")
    while version < RUN_VERSION:
        if version not in UPGRADES:
            raise HarnessError(f"{where} has schema version {version}, which can no longer be read", "Run the suite again.")
        data = UPGRADES[version](data)
        version += 1
        data["schema_version"] = version
    return data


def run_folder(results_dir: Path, run: str) -> Path:
    """Folder of an existing run, given its name under ``results_dir`` or its path.

    Raises:
        HarnessError: there is no such run; lists the newest ones.
    """
    for folder in (results_dir / run, Path(run)):
        if (folder / MANIFEST).is_file():
            return folder
    known = sorted((p.parent for p in results_dir.glob(f"*/{MANIFEST}")), key=lambda p: (p / MANIFEST).stat().st_mtime)
    names = ", ".join(p.name for p in known[-5:]) or "none yet"
    raise HarnessError(f"no run {run!r} in {results_dir}", f"Newest runs: {names}.")


def read_manifest(folder: Path) -> Manifest:
    """Read and upgrade a manifest.

    Raises:
        HarnessError: missing, not JSON, from a newer version, or with fields missing or of a wrong type.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise HarnessError(f"{folder} is no run folder: it has no {MANIFEST}", "Give the name of a finished or interrupted run.")
    data = upgrade(read_json(path, advice=ADVICE), str(path))
    manifest: Manifest = typed(Manifest, data, str(path), advice=ADVICE)
    typed(Machine, dict(manifest.machine), f"{path}: machine", advice=ADVICE)
    return manifest


def resume_command(manifest: Manifest) -> str:
    """The command line that goes on with a run."""
    if not manifest.suite.get("race"):
        return f"harness run ... --resume {manifest.run}"
    return f"harness choose {shlex.quote(str(manifest.suite.get('models')))} --resume {manifest.run}"


def nothing_yet(manifest: Manifest) -> HarnessError:
    """The error for a run without a record."""
    return HarnessError(f"run {manifest.run} has no records yet", f"Go on with it: {resume_command(manifest)}.")
