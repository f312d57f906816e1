"""Files that travel by what they hold: a worker keeps them under their SHA-256 and asks only for those it lacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.core.errors import HarnessError
from harness.core.files import sha256, write_atomic
from harness.core.paths import cache_dir

Folder = tuple[tuple[str, str], ...]
"""Name and SHA-256 of every file of a flat folder, sorted."""


class LackingError(Exception):
    """This process lacks files that a task needs.

    Args:
        hashes: of the files.
    """

    def __init__(self, hashes: Iterable[str]) -> None:
        self.hashes = tuple(hashes)
        super().__init__(*self.hashes)


def described(folder: Path, sources: dict[str, Path], names: Iterable[str] | None = None) -> Folder:
    """What ``folder`` holds, and in ``sources`` where each hash is.

    Args:
        folder: flat.
        sources: hash to path; filled in.
        names: files that count; all where None.
    """
    found = []
    for path in sorted(folder / name for name in names) if names is not None else sorted(p for p in folder.iterdir() if p.is_file()):
        digest = sha256(path)
        sources[digest] = path
        found.append((path.name, digest))
    return tuple(found)


def kept(digest: str) -> Path:
    """Where the file with this SHA-256 is kept."""
    return cache_dir() / "cluster" / "files" / digest


def keep(files: Mapping[str, bytes]) -> None:
    """Keep files that came over the network.

    Raises:
        HarnessError: one does not have the SHA-256 it came under.
    """
    for digest, data in files.items():
        if hashlib.sha256(data).hexdigest() != digest:
            raise HarnessError(f"a file arrived that is not the one with SHA-256 {digest}", "Run again; the network or a disk is damaged.")
        write_atomic(kept(digest), data)


def fetched(digest: str) -> Path:
    """The kept file with this SHA-256.

    Raises:
        LackingError: it is not here, or was changed here.
    """
    path = kept(digest)
    if not path.is_file() or sha256(path) != digest:
        raise LackingError([digest])
    return path


def require(hashes: Iterable[str]) -> None:
    """Ask for all files that are missing at once.

    Raises:
        LackingError: some are.
    """
    lacking = [digest for digest in dict.fromkeys(hashes) if not kept(digest).is_file()]
    if lacking:
        raise LackingError(lacking)


def unpacked(folder: Folder) -> Path:
    """A folder with these files, made of the kept ones.

    Raises:
        LackingError: some are not here.
    """
    require(digest for _, digest in folder)
    key = hashlib.sha256(json.dumps(folder).encode()).hexdigest()[:24]
    place = cache_dir() / "cluster" / "folders" / key
    for name, digest in folder:
        if Path(name).name != name:
            raise HarnessError(f"{name!r} is no plain file name", "Use a client of the same version.")
        if not (place / name).is_file() or sha256(place / name) != digest:
            write_atomic(place / name, fetched(digest).read_bytes())
    return place
