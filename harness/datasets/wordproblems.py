"""Grade-school word problems in the style of GSM8K, generated offline, each with a worked solution and a numeric answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from harness.core.errors import HarnessError
from harness.datasets import problems_measure, problems_money, problems_people
from harness.datasets.arithmetic import Draw, Problem, fill_steps, number

_TEMPLATES: tuple[Callable[[Draw], Problem], ...] = (*problems_money.TEMPLATES, *problems_measure.TEMPLATES, *problems_people.TEMPLATES)
TEMPLATES: dict[str, Callable[[Draw], Problem]] = {template.__name__: template for template in _TEMPLATES}
"""Problem templates by name; each draws its own numbers, names and phrasing."""

_TRIES = 50


@dataclass(frozen=True, kw_only=True)
class WordProblem:
    """One generated problem."""

    id: str
    """``wordproblems/<seed>-<index>``."""
    template: str
    """Key of :data:`TEMPLATES`."""
    question: str
    solution: str
    """Worked steps with every calculation written out as ``a * b = c``; ends with the answer."""
    answer: str
    """Whole or decimal number without unit, e.g. ``12`` or ``7.5``."""


def generate(n: int, seed: int = 0) -> list[WordProblem]:
    """Return ``n`` problems with distinct questions, the same ones for the same seed on every platform.

    Templates take turns, so ``len(TEMPLATES)`` problems cover them all. A longer list starts with the shorter one.

    Raises:
        HarnessError: negative ``n``, or more problems asked for than a template can make.
    """
    if n < 0:
        raise HarnessError(f"cannot make {n} word problems", "Ask for 0 or more.")
    order = list(TEMPLATES)
    random.Random(f"order/{seed}").shuffle(order)
    seen: set[str] = set()
    problems: list[WordProblem] = []
    for index in range(n):
        problem = _make(order[index % len(order)], index, seed, seen)
        seen.add(problem.question)
        problems.append(problem)
    return problems


def _make(template: str, index: int, seed: int, seen: set[str]) -> WordProblem:
    for attempt in range(_TRIES):
        raw = TEMPLATES[template](Draw(random.Random(f"{template}/{seed}/{index}/{attempt}")))
        if raw.question not in seen:
            answer = number(raw.answer)
            solution = f"{fill_steps(raw.solution)} The answer is {answer}."
            return WordProblem(
                id=f"wordproblems/{seed}-{index:05d}", template=template, question=raw.question, solution=solution, answer=answer
            )
    raise HarnessError(f"template {template} makes no more new problems after {index} in all", "Ask for fewer problems.")
