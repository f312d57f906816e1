"""What identifies the content of a model: SHA-256 of files and folders, large files read again only where they may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

from harness.core import files
from harness.core.paths import cache_dir

SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Files that a loader can read: weights, configuration, tokenizer, templates. All of them decide what a model says."""
SMALL_BYTES = 32 * 2**20
"""Files up to this size are read every time."""
_SETTLED_NS = 2 * 10**9
"""A file changed more recently than this could change again within one tick of its clock, so its hash is not remembered."""
RECORD = "source.json"
"""The harness's own note in a converted folder, which holds the folder's hash."""


def model_files(folder: Path) -> list[Path]:
    """Files of a model folder that a loader can read, sorted by name; a link that leads nowhere and a folder so named are among them."""
    found = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*.jinja")]
    return sorted(path for path in found if path.suffix in SUFFIXES and path.name != RECORD)


def hash_folder(folder: Path, *, remembered: bool = True) -> str:
    """SHA-256 over the lines ``<name> <SHA-256 of the file>`` of :func:`model_files`.

    Args:
        folder: the model.
        remembered: accept the remembered hash of a large file whose device, inode, size, modification and change time are as they
            were. A write through the file system moves the change time, which no program can set; what such a comparison cannot see
            is a change below the file system, or under a clock that was set back. False reads every byte.

    Raises:
        HarnessError: a file is no regular file or cannot be read.
    """
    lines = [f"{path.relative_to(folder)} {_remembered(path) if remembered else files.sha256(path)}\n" for path in model_files(folder)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _remembered(path: Path) -> str:
    with files.open_regular(path) as file:
        before = os.fstat(file.fileno())
    if before.st_size <= SMALL_BYTES:
        return files.sha256(path)
    stamp = (str(path.resolve()), before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    note = cache_dir() / "hashes" / hashlib.sha256(repr(stamp).encode("utf-8", "surrogateescape")).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", known := note.read_text(encoding="ascii")):
            return known
    digest = files.sha256(path)
    after = path.stat()
    unchanged = (after.st_ino, after.st_size, after.st_mtime_ns, after.st_ctime_ns) == stamp[2:]
    if unchanged and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > _SETTLED_NS:
        with contextlib.suppress(OSError):  # only a shortcut: a read-only cache is fine
            files.write_atomic(note, digest)
    return digest
