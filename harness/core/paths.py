"""Where things live: shipped configs and suites, the user's cache, run folders."""

from __future__ import annotations

import os
from pathlib import Path

from harness.core.errors import HarnessError, did_you_mean
from harness.core.text import odd_character

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root() -> Path:
    """Folder that holds ``configs/`` and ``suites/``: the checkout, or the copy inside an installed wheel."""
    inside = _PACKAGE / "_shipped"
    return inside if inside.is_dir() else _PACKAGE.parent


def cache_dir() -> Path:
    """The platform's cache folder for models, trajectories and adapters. ``HARNESS_CACHE`` overrides it."""
    override = os.environ.get("HARNESS_CACHE")
    if override:
        return expand(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("specdraft-harness"))


def memory_path(pair_name: str) -> Path:
    """Where a pair's own memory is kept: what its target said before."""
    return cache_dir() / "memory" / f"{pair_name}.safetensors"


def found_memory(pair_name: str) -> Path | None:
    """A pair's memory: its own, else the one that comes with the package; None where there is neither."""
    shipped = [path for path in shipped_memories() if path.stem == pair_name]
    return next((path for path in (memory_path(pair_name), *shipped) if path.is_file()), None)


PARALLEL = "parallel"
"""Name of the adapter that a pair's parallel drafts come from."""


def adapters_root(pair_name: str) -> Path:
    """Folder that holds a pair's adapters."""
    return cache_dir() / "adapters" / pair_name


SHIPPED_ADAPTERS = _PACKAGE / "models" / "adapters"
"""Folder of the adapters that come with the package, by pair."""


def shipped_adapters_root(pair_name: str) -> Path:
    """Folder that holds the adapters that come with the package for a pair; it need not exist."""
    return SHIPPED_ADAPTERS / pair_name


def found_parallel(pair_name: str) -> Path | None:
    """The adapter of a pair that its parallel drafts come from; None where it has none."""
    folder = adapters_root(pair_name) / PARALLEL
    return folder if (folder / "metadata.json").is_file() else None


def shipped_memories() -> list[Path]:
    """Memories that come with the package."""
    return sorted((_PACKAGE / "models" / "memories").glob("*.safetensors"))


def expand(text: str) -> Path:
    """A path as it was written, ``~`` and ``~user`` replaced by the home folder.

    Raises:
        HarnessError: no such user, no home folder, or a character that no path can have.
    """
    if (odd := odd_character(text)) is not None:
        raise HarnessError(f"the path {text!r} holds the character {odd}", "Write a path without control characters.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise HarnessError(f"no home folder for {text!r}", "Write the whole path instead of ~.") from None


def find_config(name_or_path: str, kind: str) -> Path:
    """Resolve a YAML file by path, or by name under ``configs/<kind>/`` (``suites/`` for kind ``suites``).

    Raises:
        HarnessError: nothing matches; names the nearest shipped file.
    """
    path = expand(name_or_path)
    if os.path.isfile(path):
        return path
    folder = "suites" if kind == "suites" else f"configs/{kind}"
    stem = path.name.removesuffix(".yaml")
    roots = [Path.cwd(), shipped_root()]
    for root in roots:
        for candidate in (root / path, *([root / folder / f"{stem}.yaml"] if len(path.parts) == 1 else [])):
            if os.path.isfile(candidate):
                return candidate
    known = sorted({p.stem for root in roots for p in (root / folder).glob("*.yaml")})
    raise HarnessError(f"no {kind.removesuffix('s')} file {name_or_path!r}: {did_you_mean(stem, known)}", f"Shipped ones are in {folder}/.")
