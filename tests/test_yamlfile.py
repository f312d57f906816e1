"""YAML reading: places, overrides and readable validation errors."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from harness.core.errors import HarnessError
from harness.core.problems import show_path
from harness.core.yamlfile import Strict, apply_overrides, read_yaml, set_value, validate


class Cat(Strict):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1)] = 9


class Dog(Strict):
    kind: Literal["dog"]
    weight_kg: float


class Zoo(Strict):
    name: str
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []  # noqa: RUF012
    rooms: dict[str, Cat] = {}  # noqa: RUF012


def write(folder: Path, text: str) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """Validate and return the lines of the error."""
    file = read_yaml(path)
    apply_overrides(file, overrides)
    with pytest.raises(HarnessError) as caught:
        validate(Zoo, file)
    return [line.strip().removeprefix(f"{path}:") for line in caught.value.problem.splitlines()[1:]]


def test_every_problem_is_reported_once_with_its_line(tmp_path: Path) -> None:
    """A user fixes a file in one pass only when all errors come together, in file order and without pydantic's union tags."""
    path = write(
        tmp_path,
        "nam: x\npets:\n  - kind: cat\n    live: 3\n  - kind: dgo\n  - kind: dog\n    weight_kg: 1e-5\n  - lives: 2\n"
        "rooms:\n  a: {kind: cat, lives: 0}\n",
    )
    assert problems(path) == [
        "1: nam: unknown key, did you mean 'name'?",
        "1: name: this key is missing",
        "4: pets[0].live: unknown key, did you mean 'lives'?",
        "5: pets[1]: unknown kind 'dgo', did you mean 'dog'?",
        "7: pets[2].weight_kg: expected a number, got the text '1e-5' (YAML wants a point and a sign: write 1.0e-5)",
        "8: pets[3]: the key kind is missing",
        "10: rooms.a.lives: must be greater than or equal to 1, got 0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 3\n", "expected text, got 3"),
        ("name: null\n", "expected text, got nothing"),
        ("name: x\npets: 3\n", "expected a list such as [1, 2], got 3"),
        ("name: x\npets: [3]\n", "expected a mapping"),
        ("name: x\npets: [{kind: cat, lives: 2.5}]\n", "expected a whole number, got 2.5"),
        ("name: x\npets: [{kind: cat, lives: true}]\n", "expected a whole number, got true or false"),
        ("name: x\npets: [{kind: cat, lives: '3'}]\n", "expected a whole number, got the text '3'"),
        ("name: x\nrooms: {a: {kind: dog}}\n", "'dog' is not allowed"),
    ],
)
def test_wrong_types_are_named_plainly(tmp_path: Path, text: str, message: str) -> None:
    """Strict typing is only kind when the message says what was read and what was wanted."""
    assert any(message in line for line in problems(write(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y\n", ":2: name: this key is written twice"),
        ("a: [1\nb: 2\n", ":2: this is not valid YAML"),
        ("- 1\n- 2\n", "holds no keys"),
        ("", "holds no keys"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a: 1\nb: !!timestamp 2020-99-99\n", ":2: this is not valid YAML: could not determine a constructor for the tag"),
        ("a: !!set {x, y}\n", ":1: this is not valid YAML: could not determine a constructor"),
        ("a: !!omap [x: 1]\n", ":1: this is not valid YAML: could not determine a constructor"),
        ("a: !!binary aGk=\n", ":1: this is not valid YAML: could not determine a constructor"),
        ("a: 1\nb: !!bool abc\n", ":2: this is not valid YAML: this is no value of type bool"),
        ("a: !!int x\n", ":1: this is not valid YAML: this is no value of type int"),
        ("a: !!float x\n", ":1: this is not valid YAML: this is no value of type float"),
        ("a: " + "[" * 5000 + "\n", "nested too deeply"),
        ("a: " + "1" * 5000 + "\n", ":1: a: a number of 5000 characters is too long"),
        ("a: 1" + ":1" * 5000 + "\n", ":1: a: a number of 10001 characters is too long"),
        ("a: &a [*a]\n", ":1: this is not valid YAML: this value contains itself"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n" for x, y in pairwise("abcdef")),
            ":5: this is not valid YAML: this holds more than 50000 values",
        ),
        (
            "a: &a {k: 1}\n" + "".join(f"{y}: &{y} {{<<: [{', '.join([f'*{x}'] * 20)}]}}\n" for x, y in pairwise("abcdef")),
            "this holds more than 50000 values",
        ),
        ("name: x\n1: y\n", ":2: the key 1 is not text, put it in quotes"),
        ("on: y\n", ":1: the key on is not text"),
        ("? [a, b]\n: y\n", ":1: the key [...] is not text"),
        ('name: "a\\e[31m"\n', ":1: name: the character \\x1b cannot stand here"),
        ('"a\\0b": x\n', "the character \\x00 cannot stand here"),
        ('name: "\\ud800"\n', ":1: name: the character \\ud800 cannot stand here"),
        ('name: "\\U00110000"\n', "not valid YAML"),
        ("name: x\n\x1b: y\n", ":2: this is not valid YAML: unacceptable character #x001b"),
        ("\tname: x\n", ":1: this is not valid YAML"),
        ("name: x\n---\nname: y\n", "not valid YAML"),
        ("<<: 3\n", ":1: this is not valid YAML"),
        ("a: *none\n", ":1: this is not valid YAML"),
        ("name: " + "x" * 200_000, "larger than"),
    ],
)
def test_broken_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    """Syntax errors, repeated keys and unsafe tags stop before validation, never with a traceback."""
    with pytest.raises(HarnessError, match="zoo") as caught:
        read_yaml(write(tmp_path, text))
    assert message in str(caught.value)
    assert len(caught.value.problem.splitlines()) <= 2


def test_plain_dates_and_signs_are_text(tmp_path: Path) -> None:
    """No setting is a date: what YAML 1.1 would turn into one, or into a value of its own, is the text that was written."""
    file = read_yaml(write(tmp_path, "a: 2024-01-31\nb: 2024-99-99\nc: =\n"))
    assert file.data == {"a": "2024-01-31", "b": "2024-99-99", "c": "="}
    assert problems(write(tmp_path, "name: x\n"), "pets=2024-99-99") == [
        "--set pets=2024-99-99: pets: expected a list such as [1, 2], got the text '2024-99-99'"
    ]


def test_many_problems_are_counted(tmp_path: Path) -> None:
    """A file that is wrong all over does not fill the screen."""
    lines = problems(write(tmp_path, "name: x\n" + "".join(f"k{i}: 1\n" for i in range(50))))
    assert len(lines) == 21
    assert lines[-1] == "and 30 more"


def test_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    """A folder or a binary file in place of YAML is the user's mistake, not a crash."""
    with pytest.raises(HarnessError, match="cannot read"):
        read_yaml(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HarnessError, match="cannot read"):
        read_yaml(binary)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    """Aliases are ordinary YAML; errors in an aliased value are still located."""
    path = write(tmp_path, "name: x\nrooms:\n  a: &base {kind: cat, lives: 2}\n  b: *base\n  c:\n    <<: *base\n    lives: 4\n")
    zoo = validate(Zoo, read_yaml(path))
    assert [r.lives for r in zoo.rooms.values()] == [2, 2, 4]
    file = read_yaml(path)
    apply_overrides(file, ["rooms.a.lives=7"])
    assert [r.lives for r in validate(Zoo, file).rooms.values()] == [7, 2, 4], "an override changes the one place it names"


def test_overrides_win_and_are_blamed(tmp_path: Path) -> None:
    """A value from the command line replaces the file's, and its error names the flag instead of a line."""
    path = write(tmp_path, "name: x\npets: [{kind: cat}, {kind: cat}]\n")
    file = read_yaml(path)
    apply_overrides(file, ["pets.1.lives=3", "pets[0].lives=4", "name=new", "rooms.attic={kind: cat}"])
    zoo = validate(Zoo, file)
    assert (zoo.name, [p.lives for p in zoo.pets if isinstance(p, Cat)], list(zoo.rooms)) == ("new", [4, 3], ["attic"])
    assert problems(path, "pets.1.livs=3") == ["--set pets.1.livs=3: pets[1].livs: unknown key, did you mean 'lives'?"]
    assert problems(path, "pets=[{kind: cat, lives: 0}]")[0].startswith("--set pets=[{kind: cat, lives: 0}]: pets[0].lives: must be")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("name=[1", "not valid YAML"),
        ("name=!!bool abc", "not valid YAML: this is no value of type bool"),
        ("name=" + "[" * 5000, "nested too deeply"),
        ("name=\x1b[31m", "not valid YAML"),
        ("name=\ud800", "not valid YAML"),
        ("name={1: 2}", "is not text"),
        ("pets.\u00b2=1", "no item"),
        ("pets." + "9" * 5000 + "=1", "no item"),
        ("pets.5.lives=1", "no item 5 in pets"),
        ("pets.first.lives=1", "no item first in pets"),
        ("name.first=1", "name is a plain value"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path: Path, override: str, message: str) -> None:
    """A mistyped override must not be ignored."""
    file = read_yaml(write(tmp_path, "name: x\npets: [{kind: cat}]\n"))
    with pytest.raises(HarnessError) as caught:
        apply_overrides(file, [override])
    assert message in str(caught.value)


TREES = st.recursive(
    st.integers(0, 9) | st.text("ab", min_size=1, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), TREES, min_size=1))
def test_places_point_at_the_key_in_the_text(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    """Every mapping key's recorded line holds that key, for any nesting."""
    text = yaml.safe_dump(tree, default_flow_style=False)
    file = read_yaml(write(tmp_path_factory.mktemp("t"), text))
    assert file.data == tree
    lines = text.splitlines()
    for path, place in file.places.items():
        if path and isinstance(path[-1], str):
            assert path[-1] in lines[int(place.rpartition(":")[2]) - 1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2) | st.sampled_from(["x", "y"]), min_size=1, max_size=4))
def test_set_value_is_read_back_or_refused(tmp_path_factory: pytest.TempPathFactory, path: list) -> None:
    """Setting a path either fails clearly or changes exactly what the path reads."""
    file = read_yaml(write(tmp_path_factory.mktemp("t"), "x: [1, {y: 2}]\ny: {x: {}}\n"))
    try:
        set_value(file, tuple(path), 42, "flag")
    except HarnessError:
        return
    current = file.data
    for part in path:
        current = current[part] if part in current or isinstance(current, list) else current[str(part)]
    assert current == 42
    assert file.where(tuple(path)) == "flag"


def test_show_path() -> None:
    """Key paths read like the code that would reach them."""
    assert show_path(("experiments", 1, "k", 0)) == "experiments[1].k[0]"
