"""What is wrong with a configuration: located problems, listed all at once, and pydantic's errors in the words of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.core.errors import HarnessError, did_you_mean

SHOWN = 20
"""Problems listed before the rest is counted."""

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a file."""

    where: str
    """``file:line``, or the ``--set`` argument it came from."""
    key: str
    """Key path such as ``experiments[1].k``; empty for the whole file."""
    message: str
    """What is wrong and what would be right."""

    def __str__(self) -> str:
        return f"{self.where}: {self.key + ': ' if self.key else ''}{self.message}"


def show_path(path: KeyPath) -> str:
    """Format a key path as ``experiments[1].k``."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def fail(path: Path, problems: Iterable[Problem]) -> None:
    """Raise one HarnessError that lists all ``problems``; return when there are none."""
    lines = [str(p) for p in problems]
    if lines:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        shown = "\n".join(f"  {line}" for line in lines[:SHOWN]) + (f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
        raise HarnessError(f"{count} in {path}:\n{shown}", "Fix each line above and run the command again.")


def explained(model: type[BaseModel], data: Any, error: ValidationError) -> dict[KeyPath, str]:
    """Key path -> what is wrong there and what would be right, of the errors that ``model`` has with ``data``."""
    found: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        if item["type"] == "too_short" and item["input"]:  # its bad items are reported one by one
            continue
        found.setdefault(_data_path(data, item["loc"], item["type"] == "missing"), _message(model, item))
    return found


def _data_path(data: Any, loc: Sequence[Any], missing: bool) -> KeyPath:
    """Drop from a pydantic location the parts that are union tags, not keys of the file."""
    path: list[str | int] = []
    tagged: Any = None
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(data, dict) and data.get("kind") == part and data is not tagged:  # a kind may be called like one of its keys
            tagged = data
            continue
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside:
            data = data[part]
        elif not (last and missing):
            continue
        path.append(part)
    return tuple(path)


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list such as [1, 2]",
    "tuple_type": "a list such as [1, 2]",
    "dict_type": "a mapping (`key: value` lines)",
    "model_type": "a mapping (`key: value` lines)",
    "model_attributes_type": "a mapping (`key: value` lines)",
}


def _message(model: type[BaseModel], item: Any) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    tag_key = context.get("discriminator", "").strip("'")
    if kind == "extra_forbidden":
        return f"unknown key, {did_you_mean(str(item['loc'][-1]), _known_keys(model, item['loc'][:-1]))}"
    if kind == "missing":
        return "this key is missing"
    if kind == "union_tag_not_found":
        return f"the key {tag_key} is missing"
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", context["expected_tags"])
        return f"unknown {tag_key} {context['tag']!r}, {did_you_mean(str(context['tag']), tags)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return f"{value!r} is not allowed, {did_you_mean(str(value), allowed)}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_describe(value)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        return "this is empty, give at least one item"
    if kind == "too_long":
        return f"this has more than {context['max_length']} items"
    return f"{item['msg'].replace('Input should be', 'must be')}, got {_describe(value)}"


def _describe(value: Any) -> str:
    if isinstance(value, str):
        if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            mantissa, _, exponent = value.lower().partition("e")
            good = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
            return f"the text {value!r} (YAML wants a point and a sign: write {good})"
        return f"the text {value if len(value) <= 80 else value[:79] + '…'!r}"
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return names.get(type(value)) or ("true or false" if isinstance(value, bool) else repr(value))


def _known_keys(annotation: Any, loc: Sequence[str | int]) -> list[str]:
    """Field names of the model that ``loc`` leads to, starting at ``annotation``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _known_keys(get_args(annotation)[0], loc)
    if origin in (Union, UnionType):
        members = [a for a in get_args(annotation) if a is not type(None)]
        tagged = [m for m in members if loc and _tag(m) == loc[0]]
        return _known_keys(tagged[0], loc[1:]) if tagged else sorted({k for m in members for k in _known_keys(m, loc)})
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            return [f.alias or name for name, f in annotation.model_fields.items()]
        known = annotation.model_fields.get(str(loc[0]))
        return _known_keys(known.annotation, loc[1:]) if known else []
    arguments = get_args(annotation)
    return _known_keys(arguments[-1 if origin is dict else 0], loc[1:]) if loc and arguments else []


def _tag(annotation: Any) -> Any:
    """The value of the one-choice Literal field that tells this model from the others of its union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for info in annotation.model_fields.values():
            if get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1:
                return get_args(info.annotation)[0]
    return None
