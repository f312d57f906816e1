"""Draft vocabulary files: the token ids that a draft may propose, as JSON ranges."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from harness.errors import HarnessError

SCHEMA_VERSION = 1


def write_vocab(path: Path, ids: Iterable[int], about: str) -> None:
    """Write ``ids`` to ``path``; ``about`` says where they come from."""
    groups = itertools.groupby(enumerate(sorted(set(ids))), key=lambda pair: pair[1] - pair[0])
    runs = [[token for _, token in group] for _, group in groups]
    ranges = [[run[0], run[-1]] for run in runs]
    data = {"schema_version": SCHEMA_VERSION, "about": about, "ranges": ranges}
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")


def read_vocab(path: Path) -> tuple[int, ...]:
    """Return the ids in ``path``, ascending.

    Raises:
        HarnessError: no such file, not a vocabulary file, or one of a newer version.
    """
    again = "Make it again: `harness models vocab`."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, ranges = data["schema_version"], data["ranges"]
        ids = [token for first, last in ranges for token in range(int(first), int(last) + 1)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path} is no draft vocabulary: {error}", again) from error
    if version > SCHEMA_VERSION:
        raise HarnessError(f"{path} was written by a newer version", "Upgrade the harness.")
    if len(ids) < 2 or ids[0] < 0 or any(a >= b for a, b in itertools.pairwise(ids)):
        raise HarnessError(f"{path} is no draft vocabulary: its ids are missing, negative or out of order", again)
    return tuple(ids)
