"""One process at a time in a folder: a lock file that names its owner and is free again when the process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from harness.core.errors import HarnessError


def wait_for_lock(path: Path) -> BinaryIO:
    """Lock ``path`` until the returned file is closed, after whoever holds it now.

    Raises:
        OSError: the file cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")  # noqa: SIM115  held until close()
    lock_descriptor(file.fileno())
    return file


def take_lock(path: Path, busy: Callable[[str], HarnessError]) -> BinaryIO:
    """Lock ``path`` until the returned file is closed.

    Args:
        path: the lock file; created where it is missing.
        busy: makes the error from the owner's process id.

    Raises:
        HarnessError: another process holds the lock.
        OSError: the file cannot be opened.
    """
    file = open(path, "a+b")  # noqa: SIM115  held until close()
    if not lock_descriptor(file.fileno(), blocking=False):
        file.seek(0)
        owner = file.read(32).decode(errors="replace") or "unknown"
        file.close()
        raise busy(owner)
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file
