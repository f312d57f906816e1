"""Texts of a run for its readers: prompts, and answers token by token, in ``texts.json`` beside the records, which hold ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.core.files import read_stored, write_atomic
from harness.core.records import SCHEMA_VERSION

TEXTS = "texts.json"
MOST = 500
"""Texts of more prompts are not kept: nobody reads them on one page."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What stands behind the ids of a run, as far as it was kept."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """Sample id to the user turn."""
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """:func:`answer_key` to the text that each token adds."""


def answer_key(tokens: Sequence[int]) -> str:
    """What tells an answer from another: 16 hex digits of the SHA-256 of its token ids."""
    return hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:16]


def read_texts(folder: Path) -> Texts:
    """Texts of a run; empty ones where the run kept none.

    Raises:
        HarnessError: the file is damaged or from a newer version.
    """
    if not (folder / TEXTS).exists():
        return Texts()
    texts: Texts = read_stored(Texts, folder / TEXTS, advice="Restore the file from a copy, or delete it.")
    return texts


def write_texts(folder: Path, texts: Texts) -> None:
    """Write ``texts.json``.

    Raises:
        OSError: the folder cannot be written.
    """
    write_atomic(folder / TEXTS, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(texts)}, ensure_ascii=False) + "\n")
