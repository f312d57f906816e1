"""Exact arithmetic and random draws for word problems."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")
Number = int | Fraction

_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_STEP = re.compile(r"\[\[(.+?)\]\]")
_NAMES = (
    "Ada", "Bruno", "Carla", "Dmitri", "Elif", "Felix", "Gita", "Hugo", "Ines", "Jamal", "Kira", "Luca", "Mina", "Nils", "Olga",
    "Pedro", "Quinn", "Rosa", "Stefan", "Tara", "Uma", "Viktor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What a template returns: text, steps with ``[[expression]]`` marks, and the answer by a closed formula."""

    question: str
    solution: str
    answer: Number


class Draw:
    """Random choices of one problem."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def whole(self, low: int, high: int, step: int = 1) -> int:
        """A whole number from ``low`` to ``high``, both included, in steps."""
        return self._rng.randrange(low, high + 1, step)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return self._rng.choice(options)

    def some(self, options: Sequence[T], n: int) -> list[T]:
        """``n`` different options."""
        pool = list(options)
        self._rng.shuffle(pool)
        return pool[:n]

    def name(self) -> str:
        """A first name."""
        return self.pick(_NAMES)

    def names(self, n: int) -> list[str]:
        """``n`` different first names."""
        return self.some(_NAMES, n)

    def price(self, low: int, high: int) -> Fraction:
        """An amount from ``low`` to ``high`` in steps of a quarter."""
        return Fraction(self.whole(4 * low, 4 * high), 4)


def number(value: Number) -> str:
    """Write an exact number as a whole or decimal number.

    Raises:
        ValueError: the number has more than three decimals, so a template drew badly.
    """
    value = Fraction(value)
    thousandths = value * 1000
    if thousandths.denominator != 1:
        raise ValueError(f"{value} is no decimal number with at most three places")
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.3f}".rstrip("0")


def money(value: Number) -> str:
    """Write an amount of dollars: ``$4`` or ``$4.50``."""
    value = Fraction(value)
    return f"${value.numerator}" if value.denominator == 1 else f"${float(value):.2f}"


def value_of(expression: str) -> Fraction:
    """Value of an expression of decimal numbers, ``+ - * /`` and parentheses, exactly."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        raise ValueError(f"{expression!r} is not plain arithmetic")

    return value(ast.parse(expression, mode="eval").body)


def fill_steps(text: str) -> str:
    """Replace each ``[[a * b]]`` by ``a * b = c``."""
    return _STEP.sub(lambda match: f"{match.group(1)} = {number(value_of(match.group(1)))}", text)
