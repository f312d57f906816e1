"""A tokenizer file is bounded before the library loads it: a few lines of JSON can ask for more text than memory holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.pattern_check import repeats_a_choice

FETCH = "Fetch the model again, or choose another one."
MOST_GROWTH = 10_000
"""Most characters or tokens that a tokenizer may make of one character."""
_GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 4, "NFD": 4, "Lowercase": 3, "Precompiled": 18, "ByteLevel": 4}
"""Longest that these steps make a character; U+FDFA becomes 18."""


def check_tokenizer(folder: Path) -> None:
    """Refuse a ``tokenizer.json`` that would make much of little, or take for ever; a folder without one passes.

    Raises:
        HarnessError: malformed JSON, steps that together make more than :data:`MOST_GROWTH` of one character, or a regular expression
            that repeats a choice.
    """
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        return
    data = files.read_json(path, advice=FETCH)
    with files.reading(path, advice=FETCH):  # nested too deeply
        bounds = {key: _growth(data.get(key)) for key in ("normalizer", "pre_tokenizer", "decoder")}
        bounds |= {"post_processor": _longest(data.get("post_processor")) ** 2, "padding": _padding(data.get("padding"))}
        slow = next((pattern for pattern in _patterns(data) if repeats_a_choice(pattern)), None)
    if slow is not None:
        raise HarnessError(f"{path}: the regular expression {slow!r:.100} repeats what can match in several ways", FETCH)
    model = data.get("model")
    bounds["model"] = max((len(text) for text in model.values() if isinstance(text, str)), default=0) if isinstance(model, dict) else 0
    for key, bound in bounds.items():
        if bound > MOST_GROWTH:
            raise HarnessError(f"{path}: {key} makes more than {MOST_GROWTH} characters or tokens of one", FETCH)


def _growth(node: Any) -> int:
    """Bound on how much longer a step, or a sequence of steps, makes a text; above the limit only that it is."""
    children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    factor = _own_growth(node) if isinstance(node, dict) else 1
    for child in children:
        factor = min(factor * _growth(child), MOST_GROWTH + 1)
    return factor


def _own_growth(step: dict[str, Any]) -> int:
    kind, pattern = step.get("type"), step.get("pattern")
    added = [text for key in ("content", "prepend", "replacement") if isinstance(text := step.get(key), str)]
    if kind == "Replace":
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(replaced) if isinstance(replaced, str) else 0  # a regular expression may match between any two characters
        return 1 + sum(map(len, added)) if length == 0 else -(-max(sum(map(len, added)), length) // length)
    return _GROWTH.get(str(kind), 1) + (sum(map(len, added)) if kind in ("Prepend", "Metaspace") else 0)


def _patterns(node: Any) -> Iterator[str]:
    """Every regular expression of a tokenizer's steps; the vocabulary has none."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "Regex" and isinstance(child, str):
            yield child
        elif key not in ("model", "added_tokens"):
            yield from _patterns(child)


def _longest(node: Any) -> int:
    """Length of the longest list anywhere in ``node``: a template repeats its pieces, each piece its token ids."""
    children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return max([len(children) if isinstance(node, list) else 0, *map(_longest, children)])


def _padding(node: Any) -> int:
    """Largest number of a padding rule, the ids of its token left out."""
    if not isinstance(node, dict):
        return node if type(node) is int else 0
    return max((_padding(value) for key, value in node.items() if not key.endswith("id")), default=0)
