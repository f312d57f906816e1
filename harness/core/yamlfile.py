"""YAML with line numbers: read, override, validate with pydantic, and report every error at once.

Used for suites and every other config file. A file holds what JSON could hold: text, numbers, true and false, lists, and mappings with
text as keys; a date is text. Imports only yaml and pydantic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.core.errors import HarnessError
from harness.core.files import read_text, reason
from harness.core.limits import SEED
from harness.core.paths import find_config
from harness.core.problems import KeyPath, Problem, explained, fail, show_path
from harness.core.text import odd_character

FILE_BYTES = 128 * 2**10
"""A larger file is no configuration."""
NODES = 50_000
"""Most values in a file, counted after its aliases are written out."""
DIGITS = 40
"""A number that is written longer is a mistake."""

Model = TypeVar("Model", bound=BaseModel)

Seed = Annotated[int, Field(ge=SEED.low, le=SEED.high)]
"""What every random generator takes."""
Count = Annotated[int, Field(ge=0, le=10**6)]
"""How many of something that is made one by one."""


class Strict(BaseModel):
    """Base of every config model: unknown keys and silent type conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass
class YamlFile:
    """Parsed content of a YAML file together with where each key was written."""

    path: Path
    """File it was read from."""
    data: Any
    """Plain lists, dicts and scalars."""
    places: dict[KeyPath, str] = field(default_factory=dict)
    """Key path to ``file:line``, or to the override that set it."""

    def where(self, path: KeyPath) -> str:
        """Return the place of ``path``, or of its nearest written parent."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.path}:1"

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Build a :class:`Problem` located at ``path``."""
        return Problem(self.where(path), show_path(path), message)


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML mapping.

    Raises:
        HarnessError: unreadable or too large file, YAML syntax error or duplicate key (with its line), a value that JSON does not have,
            or a top level that is no mapping.
    """
    text = read_text(path, most=FILE_BYTES, advice="Check the path and that it is a UTF-8 text file.")
    file = parse_yaml(text, _short(path))
    if not isinstance(file.data, dict):
        raise HarnessError(f"{file.path} holds no keys", "Write it as `key: value` lines; see the files in suites/ and configs/.")
    return file


def parse_yaml(text: str, path: Path) -> YamlFile:
    """Read YAML text; ``path`` begins its errors.

    Raises:
        HarnessError: as :func:`read_yaml`, whatever the top level is.
    """
    file = YamlFile(path, None)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _count(node, {}, set())
            fail(path, list(_index(node, (), file, set())))
            # Aliases are written out, so that no override changes two places.
            file.data = json.loads(json.dumps(loader.construct_document(node)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _syntax_error(path, text, error) from error
    return file


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the types of JSON alone."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; whatever a wrong tag raises becomes an error with its line."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"this is no value of type {kind}", node.start_mark) from error


_TEXT, _MERGE, _INT, _FLOAT, *_OTHERS = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "merge", "int", "float", "null", "bool", "seq", "map")
)
_TAGS = (_TEXT, _MERGE, _INT, _FLOAT, *_OTHERS)
_Loader.yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _TAGS}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in _TAGS] for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values below ``node`` with its aliases written out; refuses too many, and a value that contains itself."""
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "this value contains itself", node.start_mark)
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_count(part, known, above | {id(node)}) for part in parts)
        if known[id(node)] > NODES:
            raise yaml.constructor.ConstructorError(None, None, f"this holds more than {NODES} values", node.start_mark)
    return known[id(node)]


def _short(path: Path) -> Path:
    """The path relative to the working directory where it lies inside."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


def _syntax_error(path: Path, text: str, error: Exception) -> HarnessError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line if mark else text.count("\n", 0, error.position) if isinstance(error, yaml.reader.ReaderError) else None
    what = getattr(error, "problem", None) or reason(error)
    place = path if line is None else f"{path}:{line + 1}"
    return HarnessError(f"{place}: this is not valid YAML: {what}", "Check indentation, colons and quotes near that line.")


def _index(node: yaml.Node, path: KeyPath, file: YamlFile, seen: set[int]) -> Iterable[Problem]:
    """Record the line of every key below ``node``; yield duplicate keys and odd values. Aliased nodes are visited once."""
    here = f"{file.path}:{node.start_mark.line + 1}"
    file.places.setdefault(path, here)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield from _odd_scalar(node, path, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _index(item, (*path, i), file, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            place = f"{file.path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TEXT, _MERGE):
                yield Problem(place, show_path(path), f"the key {_written(key)} is not text, put it in quotes")
                continue
            inside = (*path, key.value)
            yield from _odd_scalar(key, inside, place)
            if key.value in names and key.tag == _TEXT:
                yield Problem(place, show_path(inside), "this key is written twice, keep one")
            names.add(key.value)
            file.places[inside] = place
            yield from _index(value, inside, file, seen)


def _odd_scalar(node: yaml.ScalarNode, path: KeyPath, place: str) -> Iterable[Problem]:
    """What no key and no value of a configuration is: text with control characters, a number of a hundred digits."""
    if (odd := odd_character(node.value)) is not None:
        yield Problem(place, show_path(path), f"the character {odd} cannot stand here")
    elif node.tag in (_INT, _FLOAT) and len(node.value) > DIGITS:
        yield Problem(place, show_path(path), f"a number of {len(node.value)} characters is too long")


def _written(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "[...]"


def apply_overrides(file: YamlFile, overrides: Sequence[str], flag: str = "--set") -> None:
    """Set values by ``a.b=value`` or ``experiments.1.k=[2, 4]`` (values are YAML; ``experiments[1]`` works too).

    A key that does not exist is set all the same, so that validation reports it like any other unknown key.

    Raises:
        HarnessError: no ``=``, a value that is no YAML, a list index out of range, or a path through a plain value.
    """
    for text in overrides:
        name, equals, raw = text.partition("=")
        parts = re.split(r"[.\[\]]+", name.strip().rstrip("]"))
        path = tuple(int(p) if re.fullmatch(r"[0-9]{1,9}", p) else p for p in parts if p)
        if not equals or not path:
            raise HarnessError(f"{flag} {text}: expected KEY=VALUE", f"Write for example {flag} max_tokens=64.")
        try:
            value = parse_yaml(raw, Path(flag)).data
        except HarnessError as error:
            what = error.problem.rpartition(": ")[2]
            raise HarnessError(f"{flag} {text}: the value is not valid YAML: {what}", "Quote it, or write a list as [1, 2].") from error
        set_value(file, path, value, f"{flag} {text}")


def set_value(file: YamlFile, path: KeyPath, value: Any, place: str) -> None:
    """Set ``path`` to ``value`` and note ``place`` as its origin, creating missing mappings on the way."""
    current = file.data
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(current, list):
            if not isinstance(part, int) or part >= len(current):
                raise HarnessError(f"{place}: no item {part} in {show_path(path[:depth])}", f"Use an index from 0 to {len(current) - 1}.")
        elif isinstance(current, dict):
            part = str(part) if str(part) in current or not isinstance(part, int) else part
            if not last and current.get(part) is None:
                current[part] = {}
        else:
            raise HarnessError(f"{place}: {show_path(path[:depth])} is a plain value and has no keys", "Set a shorter path.")
        if last:
            current[part] = value
        else:
            current = current[part]
    file.places = {known: at for known, at in file.places.items() if known[: len(path)] != path}
    file.places[path] = place


def validate(model: type[Model], file: YamlFile) -> Model:
    """Build ``model`` from the file.

    Raises:
        HarnessError: every problem at once, each with file, line, key path and the nearest valid key or value.
    """
    try:
        return model.model_validate(file.data)
    except ValidationError as error:
        problems = [file.problem(path, message) for path, message in explained(model, file.data, error).items()]
        fail(file.path, sorted(problems, key=_file_order))
        raise


def load_config(model: type[Model], name_or_path: str, kind: str, overrides: Sequence[str] = ()) -> Model:
    """Read a file of ``configs/<kind>`` by name or path into ``model``; its ``name`` is the file's unless the file gives one.

    Args:
        model: with a field ``name``.
        name_or_path: as :func:`harness.core.paths.find_config` takes it.
        kind: folder under ``configs``.
        overrides: ``a.b=value`` strings, which win over the file.

    Raises:
        HarnessError: no such file, broken YAML, an unknown key or a wrong value; names file and line.
    """
    path = find_config(name_or_path, kind)
    file = read_yaml(path)
    apply_overrides(file, overrides)
    file.data.setdefault("name", path.stem)
    return validate(model, file)


def _file_order(problem: Problem) -> tuple[int, str]:
    line = problem.where.rpartition(":")[2]
    return (int(line) if line.isdigit() else 0, problem.key)
