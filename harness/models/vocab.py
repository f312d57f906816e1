"""Draft vocabulary files: the token ids that a draft may propose, as JSON ranges."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from harness.core import files
from harness.core.errors import HarnessError

SCHEMA_VERSION = 1
MOST_IDS = 2**20
"""Ids that a vocabulary can have: four times those of the largest known."""


def write_vocab(path: Path, ids: Iterable[int], about: str) -> None:
    """Write ``ids`` to ``path``; ``about`` says where they come from."""
    groups = itertools.groupby(enumerate(sorted(set(ids))), key=lambda pair: pair[1] - pair[0])
    runs = [[token for _, token in group] for _, group in groups]
    ranges = [[run[0], run[-1]] for run in runs]
    data = {"schema_version": SCHEMA_VERSION, "about": about, "ranges": ranges}
    files.write_atomic(path, json.dumps(data, separators=(",", ":")) + "\n")


def read_vocab(path: Path) -> tuple[int, ...]:
    """Return the ids in ``path``, ascending.

    Raises:
        HarnessError: no such file, not a vocabulary file, or one of a newer version.
    """
    again = "Make it again: `harness models vocab`."
    data = files.this_version(files.read_json(path, advice=again), f"vocabulary {path}", newest=SCHEMA_VERSION, advice=again)
    ranges = data.get("ranges")
    if not isinstance(ranges, list) or not all(_is_range(pair) for pair in ranges):
        raise HarnessError(f"{path} is no draft vocabulary: ranges must be pairs of ids from 0 to {MOST_IDS - 1}", again)
    ends = [end for pair in ranges for end in pair]
    if any(a[1] >= b[0] for a, b in itertools.pairwise(ranges)) or not ends or ends[0] == ends[-1]:
        raise HarnessError(f"{path} is no draft vocabulary: its ids are missing or out of order", again)
    return tuple(token for first, last in ranges for token in range(first, last + 1))


def _is_range(pair: object) -> bool:
    """True for two ids in order."""
    return isinstance(pair, list) and len(pair) == 2 and all(type(i) is int for i in pair) and 0 <= pair[0] <= pair[1] < MOST_IDS
