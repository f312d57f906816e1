"""What stands beside the weights of a head that reads its target, and the checks that need no more than that. Imports no mlx."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from harness.core import files
from harness.core.drafter_kinds import find_kind, no_head
from harness.core.errors import HarnessError
from harness.core.paths import expand
from harness.models.naming import NamedPair

SCHEMA_VERSION = 1
"""Version of the folder's layout."""
WEIGHTS = "head.safetensors"
AGAIN = "Run `harness distill` to make the head again."
LARGEST = 2**24
"""No size of a head is larger."""
MOST_BLOCKS = 64
"""No head has more blocks, or reads at more places."""


@dataclass(frozen=True, kw_only=True)
class HeadInfo:
    """``config.json`` of a head, as far as it is read."""

    name: str
    """Name of the head."""
    target_hash: str
    """Target that it reads."""
    taps: tuple[int, ...]
    """How many blocks of the target are behind each of the states that it reads."""
    layers: int
    """Blocks of its own."""
    vocab: int
    """Output ids."""
    hidden: int
    """Width of the target's states and of its own."""
    heads: int
    """Query heads of a block."""
    kv_heads: int
    """Key and value heads of a block."""
    head_dim: int
    """Width of one of them."""
    intermediate: int
    """Width of a block's MLP."""
    eps: float
    """Epsilon of the norms."""
    rope_theta: float
    """Base of the rotary embedding."""
    quantised: dict[str, tuple[int, int]]
    """Kind of layer -> bits and weights per scale."""
    sha256: str
    """Of the weights."""
    base: str | None = None
    """Pair it was distilled from."""
    steps: int | None = None
    """Updates it was trained with."""


def read_head_config(folder: Path) -> HeadInfo:
    """``config.json`` of a head.

    Raises:
        HarnessError: no head there, unreadable, written by a newer version, or numbers that no head has.
    """
    path = folder / "config.json"
    data = files.this_version(files.read_json(path, advice=AGAIN), str(path), newest=SCHEMA_VERSION, advice=AGAIN)
    known = {field.name for field in fields(HeadInfo)}
    info: HeadInfo = files.typed(HeadInfo, {key: value for key, value in data.items() if key in known}, str(path), advice=AGAIN)
    sizes = (*info.taps, info.layers, info.vocab, info.hidden, info.heads, info.kv_heads, info.head_dim, info.intermediate)
    sound = info.taps and all(1 <= size <= LARGEST for size in sizes) and max(info.layers, len(info.taps)) <= MOST_BLOCKS
    if not sound or info.heads % info.kv_heads or info.head_dim % 2 or min(info.eps, info.rope_theta) <= 0:
        raise HarnessError(f"{path} describes no head that could run", AGAIN)
    return info


def head_folder(pair: NamedPair) -> Path | None:
    """Folder of a pair's head; None where its file names none."""
    return None if pair.config.head is None else pair.base / expand(pair.config.head)


def check_head(pair: NamedPair, drafter: str | None) -> None:
    """Check before anything is loaded that a drafter which needs a head has one.

    Raises:
        HarnessError: the pair has none, or it cannot be read.
    """
    kind = find_kind(drafter)
    if kind is None or not kind.needs_head:
        return
    folder = head_folder(pair)
    if folder is None:
        raise no_head(pair.name)
    read_head_config(folder)
