"""Everyday chat prompts for training: writing, explanation, summaries, translation, advice."""

from __future__ import annotations

import functools
import random
import re
from importlib import resources
from typing import Any

import yaml

_SLOT = re.compile(r"\{(\w+?)(\d?)\}")


@functools.cache
def _bank() -> dict[str, Any]:
    """Templates by category, the passage templates, and the values of each slot."""
    text = resources.files("harness.datasets").joinpath("data/training_chat.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def fill(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Replace each ``{slot}`` by one value; ``{slot2}`` gets a value that differs from ``{slot}``."""
    chosen: dict[str, str] = {}

    def pick(match: re.Match[str]) -> str:
        options = [value for value in slots[match.group(1)] if value not in chosen.values()]
        return chosen.setdefault(match.group(0), rng.choice(options))

    return _SLOT.sub(pick, template)


def draw(rng: random.Random) -> str:
    """Return one chat prompt; the categories come equally often."""
    bank = _bank()
    category = rng.choice(list(bank["templates"]))
    template = rng.choice(bank["templates"][category]).replace("{passage}", rng.choice(bank["passages"]))
    numbers = {
        "year": [str(year) for year in range(2009, 2024)],
        "money": [str(amount) for amount in range(80, 900, 10)],
        "hours": [str(hours) for hours in range(300, 4000, 50)],
        "years": [str(years) for years in range(6, 40)],
        "hour": ["five", "six", "seven"],
    }
    text = fill(template, bank["slots"] | numbers, rng)
    return text[0].upper() + text[1:]
