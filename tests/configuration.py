"""Writes docs/configuration.md from the typed models of the config files: ``python tests/configuration.py``."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from harness.adapt.routers.routed import RouterConfig
from harness.adapt.training_config import TrainingConfig
from harness.core.settings_file import DecodeSettings
from harness.datasets.spec import DatasetSpec
from harness.distill.distill_config import DistillConfig
from harness.models.pair_config import ModelConfig, PairConfig
from harness.session.session_config import SessionConfig
from harness.suite.experiments import EXPERIMENTS, Experiment
from harness.suite.suite import Suite

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
INTRO = """# Configuration

Every file is YAML and is checked before anything is loaded: an unknown key, a wrong type or a value out of range is an error that names
the file, the line, the key and the nearest key that exists. All problems of a file are shown at once. Keys left out keep the defaults
below. `--set a.b=c` changes one key on the command line and wins over the file. None is written `null`. Write `1.0e-5`, not `1e-5`, which
YAML reads as text.

This page is written by `python tests/configuration.py` from the models that check the files; a test keeps it equal to them.
"""
Schema = Mapping[str, Any]


def page() -> str:
    """The whole page."""
    parts = [INTRO, *_suite()]
    parts += ["## Model pair\n", "`configs/models/*.yaml`; see [models.md](models.md).\n", table(PairConfig)]
    parts += ["### `target` and `draft`\n", table(ModelConfig)]
    for title, model, where in (
        ("Training", TrainingConfig, "`configs/training/*.yaml`; see [adapters.md](adapters.md)."),
        ("Router", RouterConfig, "`configs/router/*.yaml`; see [adapters.md](adapters.md#routing)."),
        ("Distillation", DistillConfig, "`configs/drafts/*.yaml`; see [models.md](models.md#a-draft-made-from-the-target)."),
        ("Settings of decoding", DecodeSettings, "`--settings FILE`; every report writes one, see [reports.md](reports.md)."),
        ("Session", SessionConfig, "`configs/session.yaml`; see [adapters.md](adapters.md#sessions)."),
    ):
        parts += [f"## {title}\n", f"{where}\n", table(model), *_sections(model)]
    return "\n".join(parts)


def _suite() -> Iterator[str]:
    yield from ("## Suite\n", "`suites/*.yaml`; `harness validate --schema` prints the JSON schema for editors.\n", table(Suite))
    yield from ("### `domains.<name>`\n", f"{_text(DatasetSpec.__doc__)} See [data.md](data.md).\n", table(DatasetSpec))
    yield from ("### `experiments[]`\n", "What every entry may say; the other keys depend on its `kind`.\n", table(Experiment))
    common = dict(rows(Experiment))
    for kind in EXPERIMENTS:
        own = {name: row for name, row in rows(kind) if name != "kind" and row != common.get(name)}
        name = kind.model_fields["kind"].annotation
        yield f"#### `kind: {name.__args__[0]}`\n"  # type: ignore[union-attr]
        yield _text(kind.__doc__) + "\n"
        if own:
            yield _table(own)


def _sections(model: type[BaseModel]) -> Iterator[str]:
    """A table for every key that is a mapping with keys of its own."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"### `{name}`\n", _text(field.annotation.__doc__) + "\n", table(field.annotation))


def table(model: type[BaseModel]) -> str:
    """Markdown table of a model's keys."""
    return _table(dict(rows(model)))


def _table(found: Mapping[str, tuple[str, str, str]]) -> str:
    lines = [f"| `{name}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for name, row in found.items()]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *lines, ""])


def rows(model: type[BaseModel]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Key -> (type, default, meaning).

    Raises:
        ValueError: a field has no docstring.
    """
    schema = model.model_json_schema()
    meanings = docstrings(model)
    for name, field in model.model_fields.items():
        if name not in meanings:
            raise ValueError(f"{model.__name__}.{name} has no docstring")
        value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
        yield name, (_type(schema["properties"][name], schema.get("$defs", {})), _default(value), meanings[name])


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the text under it, of the model and its bases; the nearest wins."""
    found: dict[str, str] = {}
    for base in reversed([b for b in model.__mro__ if issubclass(b, BaseModel) and b is not BaseModel]):
        body = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = _text(str(doc.value.value))
    return found


def _text(docstring: str | None) -> str:
    """A docstring as Markdown on one line."""
    plain = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", docstring or "")
    return " ".join(plain.replace("``", "`").split())


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, dict):
        value = {key: item.model_dump(exclude_unset=True) if isinstance(item, BaseModel) else item for key, item in value.items()}
    return "none" if value is None else f"`{json.dumps(value)}`"


def _type(schema: Schema, definitions: Mapping[str, Schema]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _type(definitions[name], definitions) if "properties" not in definitions[name] else "mapping"
    if "allOf" in schema:
        return _type(schema["allOf"][0], definitions)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(choice, definitions) for choice in choices))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema['items'], definitions)}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping of names to {_type(inner, definitions)}" if isinstance(inner, dict) else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "none"}[str(kind)]
    return words + _bounds(schema)


def _bounds(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    ends = [
        f"{text} {value:,.12g}" for text, value in (("from", low), ("above", above), ("to", high), ("below", below)) if value is not None
    ]
    return f" {' '.join(ends)}" if ends else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
