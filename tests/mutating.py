"""Mutations of valid files for the fuzz tests: bytes flipped, cut and inserted; JSON values replaced by others and by extremes."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 1e9, -0.5, 1e308, float("nan"), float("inf"), "", "x", "0", "\x1b[31m", "\ud800",
    "../../etc/passwd", "/dev/zero", "a\0b", "x" * 5000, [], [None], [[]], {}, {"type": "Sequence"}, [0] * 300, "{{ 1 }}",
)  # fmt: skip


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """A few flips, cuts, repeats and insertions; half of them near the start, where headers are."""
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        end = max(1, len(out))
        at = random.randrange(min(end, 400) if random.random() < 0.5 else end)
        kind = random.randrange(5)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << random.randrange(8)
        elif kind == 1:
            out[at : at + 8] = random.choice((0, 1, 2**16, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
        elif kind == 2:
            del out[at : at + random.choice((1, 8, 100, end))]
        elif kind == 3:
            out[at:at] = random.randbytes(random.choice((1, 8, 100)))
        else:
            out[at:at] = out[at : at + random.choice((8, 64))]
    return bytes(out)


def mutate_json(random: Random, data: bytes) -> bytes:
    """A value anywhere in the tree replaced, deleted or swapped with another; now and then the bytes instead."""
    if random.random() < 0.1:
        return mutate_bytes(random, data)
    tree = {"": json.loads(data)}
    for _ in range(random.randint(1, 3)):
        node, key = tree, ""
        while isinstance(node[key], (dict, list)) and node[key] and (node is tree or random.random() < 0.7):
            node = node[key]
            key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if random.random() < 0.2 and node is not tree:
            del node[key]
        else:
            node[key] = copy.deepcopy(random.choice(EXTREMES))
    return json.dumps(tree[""]).encode()


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """The file with other content, or none where there was none, put back afterwards."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def fresh(folder: Path) -> Path:
    """The folder, emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
