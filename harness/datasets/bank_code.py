"""Small Python coding tasks for training: composed list, text and record tasks, and a bank of single tasks.

The examples shown in a prompt are computed by running the task's own reference, so they are always right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.datasets.bank_code_parts import (
    LIST_ENDS,
    LIST_FILTERS,
    LIST_MAPS,
    RECORD_KINDS,
    TEXT_ENDS,
    WORD_FILTERS,
    WORD_MAPS,
    RecordKind,
)
from harness.datasets.bank_code_single import SINGLE_TASKS

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One coding task. ``wanted`` completes the sentence "Return ..."."""

    name: str
    signature: str
    """Parameters and return type, e.g. ``(numbers: list[int]) -> int``."""
    wanted: str
    reference: Callable[..., Any]
    examples: tuple[tuple[Any, ...], ...]
    """Arguments of each example call."""

    def calls(self) -> list[tuple[str, str]]:
        """Each example as source text: the call and its result."""
        return [(f"{self.name}({', '.join(map(repr, args))})", repr(self.reference(*args))) for args in self.examples]


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randrange(-12, 60) for _ in range(rng.randrange(4, 8))]


def _list_task(rng: random.Random) -> Task:
    keep_slug, keep_words, keep = rng.choice(LIST_FILTERS)
    map_slug, map_words, change = rng.choice(LIST_MAPS)
    end_slug, end_words, end, result = rng.choice(LIST_ENDS)
    limit = rng.randrange(3, 12)
    items = map_words.format(f"the {keep_words.format(k=limit)} in the list")
    name = "_".join(part for part in (end_slug, map_slug, keep_slug.format(k=limit) or "numbers") if part)

    def reference(numbers: list[int]) -> Any:
        return end([change(n) for n in numbers if keep(n, limit)])

    return Task(name, f"(numbers: list[int]) -> {result}", end_words.format(items), reference, ((_numbers(rng),), (_numbers(rng),), ([],)))


_WORDS = (
    "apple",
    "river",
    "Stone",
    "level",
    "orange",
    "tree",
    "Otter",
    "window",
    "noon",
    "bridge",
    "Umbrella",
    "kayak",
    "table",
    "echo",
    "Paper",
    "radar",
    "island",
    "bottle",
    "eleven",
    "Mountain",
    "civic",
    "engine",
    "garden",
    "Olive",
    "sugar",
    "rotor",
    "yellow",
    "ant",
    "Harbour",
    "cup",
)


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(4, 7)))


def _text_task(rng: random.Random) -> Task:
    keep_slug, keep_words, keep = rng.choice(WORD_FILTERS)
    map_slug, map_words, change = rng.choice(WORD_MAPS)
    end_slug, end_words, end, result = rng.choice(TEXT_ENDS)
    limit = rng.randrange(3, 7)
    items = f"the words of the text {keep_words.format(k=limit)}" if keep_words else "all words of the text"
    name = "_".join(part for part in (end_slug, map_slug, "words", keep_slug.format(k=limit)) if part)

    def reference(text: str) -> Any:
        return end([change(w) for w in text.split() if keep(w, limit)])

    wanted = f"{end_words.format(map_words.format(items))}. Words are separated by single spaces"
    return Task(name, f"(text: str) -> {result}", wanted, reference, ((_text(rng),), (_text(rng),)))


def _grouped(rows: list[Row], kind: RecordKind, combine: Callable[[list[int]], Any]) -> dict[str, Any]:
    groups = dict.fromkeys(row[kind.group] for row in rows)
    return {group: combine([row[kind.number] for row in rows if row[kind.group] == group]) for group in groups}


def _record_options(kind: RecordKind, limit: int) -> list[tuple[str, str, Callable[[list[Row]], Any], str]]:
    """Name, wording, reference and result type of each question about records of one kind."""
    group, number, label, plural = kind.group, kind.number, kind.label, kind.plural
    folds: tuple[tuple[str, str, Callable[[list[int]], Any], str], ...] = (
        (f"total_{number}", f"the sum of {number}", sum, "int"),
        (f"highest_{number}", f"the highest {number}", max, "int"),
        (f"lowest_{number}", f"the lowest {number}", min, "int"),
        (f"count_{plural}", f"its number of {plural}", len, "int"),
        (f"average_{number}", f"the mean {number}, rounded to one decimal", lambda v: round(sum(v) / len(v), 1), "float"),
    )

    def folded(combine: Callable[[list[int]], Any]) -> Callable[[list[Row]], Any]:
        return lambda rows: _grouped(rows, kind, combine)

    options: list[tuple[str, str, Callable[[list[Row]], Any], str]] = [
        (f"{slug}_by_{group}", f"a dict that maps each {group} to {words}", folded(combine), f"dict[str, {result}]")
        for slug, words, combine, result in folds
    ]

    def ranked(rows: list[Row]) -> list[str]:
        return [row[label] for row in sorted(rows, key=lambda row: (-row[number], row[label]))]

    return [
        *options,
        (f"{plural}_by_{number}", f"the {label} values sorted by {number}, largest first, ties by {label}", ranked, "list[str]"),
        (
            f"{plural}_over_{limit}",
            f"the {label} values, in order, of all {plural} with {number} above {limit}",
            lambda rows: [row[label] for row in rows if row[number] > limit],
            "list[str]",
        ),
        (
            f"{group}s_of_{plural}",
            f"the sorted list of distinct {group} values",
            lambda rows: sorted({row[group] for row in rows}),
            "list[str]",
        ),
        (
            f"top_{kind.singular}",
            f"the {label} of the {kind.singular} with the highest {number} (the first by {label} when tied), or None for an empty list",
            lambda rows: next(iter(ranked(rows)), None),
            "str | None",
        ),
    ]


def _record_task(rng: random.Random) -> Task:
    kind = rng.choice(RECORD_KINDS)
    rows = [
        {kind.label: label, kind.group: rng.choice(kind.groups), kind.number: rng.randrange(*kind.span)}
        for label in _some(kind.labels, rng)
    ]
    name, wanted, reference, result = rng.choice(_record_options(kind, rng.randrange(*kind.span)))
    wanted += f". Each of the {kind.plural} is a dict with the keys '{kind.label}', '{kind.group}' and '{kind.number}'"
    return Task(name, f"({kind.plural}: list[dict]) -> {result}", wanted, reference, ((rows,),))


def _some(labels: tuple[str, ...], rng: random.Random) -> list[str]:
    pool = list(labels)
    rng.shuffle(pool)
    return pool[: rng.randrange(3, 5)]


def _single_task(rng: random.Random) -> Task:
    name, signature, wanted, reference, examples = rng.choice(SINGLE_TASKS)
    return Task(name, signature, wanted, reference, examples)


_STUB_ASKS = (
    "Complete the following Python function.",
    "Complete the Python function below. Reply with the finished function in one code block.",
    "Finish this function so that the examples in its docstring pass.",
    "Implement the function described by the signature and docstring.",
    "Fill in the body of this Python function:",
)
_PLAIN_ASKS = (
    "Write a Python function `{name}{signature}` that returns {wanted}.",
    "Write a Python function called `{name}` that returns {wanted}. Its signature is `def {name}{signature}`.",
    "I need a Python function `{name}{signature}`. It should return {wanted}.",
    "Write a Python function {name} that returns {wanted}.",
)
_EXTRAS = (
    "",
    "",
    "Use only the standard library.",
    "Include a docstring and type hints.",
    "Show only the code.",
    "Explain briefly how it works.",
    "Also write two assert statements that test it.",
    "Keep it as short as is readable.",
)


def _stub(task: Task, rng: random.Random) -> str:
    lines = [f"def {task.name}{task.signature}:", f'    """Return {task.wanted}.']
    calls = task.calls()
    for call, result in calls[: rng.randrange(1, len(calls) + 1)]:
        lines += ["", f"    >>> {call}"] if len(lines) == 2 else [f"    >>> {call}"]
        lines += [f"    {result}"] if result != "None" else []
    code = "\n".join([*lines, '    """'])
    return f"{rng.choice(_STUB_ASKS)}\n\n```python\n{code}\n```"


def _plain(task: Task, rng: random.Random) -> str:
    parts = [rng.choice(_PLAIN_ASKS).format(name=task.name, signature=task.signature, wanted=task.wanted)]
    call, result = task.calls()[0]
    if rng.random() < 0.5:
        parts.append(f"For example, `{call}` returns `{result}`.")
    parts.append(rng.choice(_EXTRAS))
    return " ".join(part for part in parts if part)


def draw_task(rng: random.Random) -> Task:
    """Return one task; composed tasks and single tasks are mixed."""
    kinds = (_list_task, _text_task, _record_task, _single_task)
    return rng.choice(kinds)(rng)


def draw(rng: random.Random) -> str:
    """Return one coding prompt: a stub with docstring examples, or a plain request."""
    task = draw_task(rng)
    return _stub(task, rng) if rng.random() < 0.6 else _plain(task, rng)
