"""Structured-output prompts for training: extraction to JSON, tables from facts, SQL from a schema."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from importlib import resources
from typing import Any

import yaml

from harness.datasets.bank_chat import fill


@functools.cache
def _bank() -> dict[str, Any]:
    """Templates and slot values of the three kinds."""
    text = resources.files("harness.datasets").joinpath("data/training_structured.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _extraction(bank: dict[str, Any], rng: random.Random) -> str:
    kind = rng.choice(bank["extraction"])
    facts = fill(rng.choice(kind["texts"]), bank["slots"], rng)
    asked = fill(rng.choice(bank["asks"]), {"fields": [", ".join(kind["fields"])]}, rng)
    return f"{asked}\n\n{facts}" if rng.random() < 0.6 else f"{facts}\n\n{asked}"


def _table(bank: dict[str, Any], rng: random.Random) -> str:
    kind = rng.choice(bank["tables"])
    names = list(bank["slots"][kind["slot"]])
    rng.shuffle(names)
    rows = [fill(kind["row"].replace("{item}", name), bank["slots"], rng) for name in names[: rng.randrange(3, 6)]]
    columns = {"columns": [", ".join(kind["columns"])]}
    return f"{fill(rng.choice(bank['table_asks']), columns, rng)}\n\n{' '.join(rows)}"


def _sql(bank: dict[str, Any], rng: random.Random) -> str:
    schema = rng.choice(bank["schemas"])
    question = fill(rng.choice(schema["questions"]), bank["slots"], rng)
    return fill(rng.choice(bank["sql_asks"]), {"ddl": [schema["ddl"].strip()], "question": [question]}, rng)


_KINDS: tuple[Callable[[dict[str, Any], random.Random], str], ...] = (_extraction, _table, _sql)


def draw(rng: random.Random) -> str:
    """Return one structured-output prompt; the three kinds come equally often."""
    return rng.choice(_KINDS)(_bank(), rng)
