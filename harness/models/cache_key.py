"""Where reusable results are kept: under a hash of everything that decides them, so that a changed input is another address."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core import machine
from harness.core.paths import cache_dir
from harness.core.protocols import LoadedPair

PACKAGES = ("mlx", "mlx-lm", "mkl", "numpy", "transformers")
"""Packages whose version can change a decoded token or a trained weight."""


def cache_key(**inputs: Any) -> str:
    """Return 24 hexadecimal digits that change with any input, with this package's sources and with the packages that compute.

    Inputs are plain JSON types; two mappings with the same entries in another order are the same input.

    Raises:
        TypeError: an input that JSON cannot hold exactly.
    """
    versions = machine.package_versions()
    facts = {"code": machine.source_hash(), "packages": {name: versions.get(name) for name in PACKAGES}}
    text = json.dumps({"inputs": inputs, **facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def pair_facts(pair: LoadedPair) -> Mapping[str, str | None]:
    """What identifies a pair's weights and prompts, and what multiplies its matrices: near-ties fall differently on another BLAS."""
    from harness.models.blas import blas_name

    template = getattr(pair.tokenizer, "chat_template", None)
    return {
        "target": pair.target_hash,
        "draft": None if pair.draft is None else pair.draft.hash,
        "draft_vocab": None if pair.draft is None else pair.draft.vocab_hash,
        "blas": blas_name(),
        "chat_template": hashlib.sha256(str(template).encode()).hexdigest(),
    }


def answers_folder(pair: LoadedPair) -> Path:
    """Folder of the target's answers to prompts, whoever asked for them; the draft has no say in them."""
    facts = {name: value for name, value in pair_facts(pair).items() if not name.startswith("draft")}
    return cache_folder("trajectories", pair.name, cache_key(kind="trajectories", **facts))


def cache_folder(kind: str, pair: str, key: str) -> Path:
    """Folder of one cached result: ``<cache>/<kind>/<pair>/<key>``."""
    return cache_dir() / kind / pair / key
