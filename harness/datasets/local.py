"""Files of prompts: the shipped ``chat`` and ``structured`` sets and any file of the user's own."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.number import parse_number
from harness.core.records import Sample
from harness.core.terminal import say
from harness.core.text import printable
from harness.datasets.conversation import Message, read_asked, turn_id
from harness.datasets.rows_file import read_rows as read_file
from harness.datasets.spec import Dataset, DatasetSpec
from harness.datasets.splits import GROUP_KEY, assign_splits
from harness.datasets.table import from_rows

NAME_CHARACTERS = 200
"""Longest id or domain."""
Problem = str | None
"""What is wrong with a row."""


def load(spec: DatasetSpec, seed: int, offline: bool) -> list[Sample]:
    """Return the prompts of a file.

    Keys of a row: what is asked (:func:`harness.datasets.conversation.read_asked`); optional ``id``, ``domain``, and ``reference``
    (a mapping, or one value that becomes ``answer``).

    Raises:
        HarnessError: as :func:`read_rows`.
    """
    return assign_splits(samples(read_rows(spec), source_of(spec), "local" if spec.path else spec.dataset))


def samples(rows: Iterable[dict[str, str]], source: str, domain: str) -> list[Sample]:
    """Samples, without their splits, of rows that :func:`normalised` gave."""
    return [
        Sample(
            id=row["id"],
            domain=row["domain"] or domain,
            prompt=row["prompt"],
            messages=tuple((role, text) for role, text in json.loads(row["messages"])),
            reference=json.loads(row["reference"]),
            source=source,
        )
        for row in from_rows(list(rows))
    ]


def read_rows(spec: DatasetSpec, domain: str | None = None) -> list[dict[str, str]]:
    """Return the rows of a file as text columns.

    Args:
        spec: the file.
        domain: replaces the rows' own. In the domain ``math`` a reference answer must be a number.

    Raises:
        HarnessError: bad rows, a bad value of an optional key, or an id used twice.
    """
    path = Path(spec.path) if spec.path else shipped_file(spec.dataset)
    rows = read_file(path, functools.partial(problem_of, spec=spec, domain=domain))
    return normalised(rows, spec, source_of(spec), str(path))


def shipped_file(name: str) -> Path:
    """Path of a dataset that ships with the package (``chat``, ``structured``)."""
    return Path(__file__).parent / "data" / f"{name}.jsonl"


def source_of(spec: DatasetSpec) -> str:
    """What the ids of a dataset begin with."""
    return Path(spec.path.removesuffix(".gz")).stem if spec.path else spec.dataset


def problem_of(row: Mapping[str, Any], *, spec: DatasetSpec, domain: str | None) -> Problem:
    """What is wrong with a row; None when nothing is."""
    try:
        read_asked(row, spec.prompt)
    except ValueError as error:
        return str(error)
    if spec.reference and spec.reference not in row:
        return f"the key {spec.reference!r} is missing (it has {', '.join(row)})"
    if isinstance(row.get(spec.reference or "reference"), bytes):
        return "the reference answer is bytes, not text"
    answer = (_reference(row.get(spec.reference or "reference")) or {}).get("answer")
    if (domain or row.get("domain")) != "math" or answer is None or parse_number(answer) is not None:
        return None
    return f"the reference answer {answer[:80]!r} is not a number"


def normalised(rows: Iterable[Mapping[str, Any]], spec: DatasetSpec, source: str, where: str) -> list[dict[str, str]]:
    """Rows without a problem as text columns, so that mixed types of optional keys cannot clash; one for each turn that is answered.

    Raises:
        HarnessError: a bad value of an optional key, or an id used twice.
    """
    found = [part for index, row in enumerate(rows) for part in _parts(row, index, spec, source, where)]
    seen: set[str] = set()
    for part in found:
        if part["id"] in seen:
            raise HarnessError(f"{where}: the id {part['id']!r} is used twice", "Give every prompt its own id, or none.")
        seen.add(part["id"])
    return found


def _parts(row: Mapping[str, Any], index: int, spec: DatasetSpec, source: str, where: str) -> Iterator[dict[str, str]]:
    number = row.get("id", row.get("custom_id"))
    own = _name(str(number) if isinstance(number, int) and not isinstance(number, bool) else number, "id", f"{where}: prompt {index + 1}")
    own = str(index) if own is None else own
    own = own if own.startswith(f"{source}/") else f"{source}/{own}"
    asked = read_asked(row, spec.prompt)
    if asked.tools:
        _note_tools(where)
    turns = asked.turns()
    reference = _reference(row.get(spec.reference or "reference"))
    several = spec.turns == "all" and len(turns) > 1
    for turn in range(len(turns)) if several else [len(turns) - 1]:
        group = {GROUP_KEY: own} if several else {}
        last = turn == len(turns) - 1
        yield {
            "id": turn_id(own, turn) if several else own,
            "domain": _name(row.get("domain"), "domain", f"{where}: prompt {own.rpartition('/')[2]}") or "",
            "prompt": "\n\n".join(text for role, text in turns[turn] if role == "user"),
            "messages": json.dumps(_messages(turns[turn])),
            "reference": json.dumps({**((reference or {}) if last else {}), **group} or None if several else reference),
        }


def _messages(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation, where there is more to it than one user turn."""
    return () if len(turns) == 1 else turns


@functools.cache
def _note_tools(where: str) -> None:
    say(f"note: {where}: tools are not offered to the model; their calls and results are left out", err=True)


def _name(value: Any, key: str, where: str) -> str | None:
    """An id or a domain: short text on one line; null counts as absent."""
    one_line = isinstance(value, str) and printable(value).splitlines() == [value]
    if value is None or (one_line and value.strip() and len(value) <= NAME_CHARACTERS):
        return value
    problem = f"the {key} must be one line of at most {NAME_CHARACTERS} characters, got {printable(repr(value), 100)}"
    raise HarnessError(f"{where}: {problem}", "Quote it, or shorten it.")


def _reference(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    items = value if isinstance(value, dict) else {"answer": value}
    return {str(key): item if isinstance(item, str) else json.dumps(item, default=str) for key, item in items.items()}


def _check(spec: DatasetSpec, domain: str | None) -> None:
    read_rows(spec, domain)


CHAT = Dataset(domain="chat", load=load, check=_check, takes={})
STRUCTURED = Dataset(domain="structured", load=load, check=_check, takes={})
LOCAL = Dataset(domain="local", load=load, check=_check, takes={"path": True, "prompt": False, "reference": False, "turns": False})
