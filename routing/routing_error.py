"""The one error of this package: what is wrong, and what to do next."""

from __future__ import annotations


class RoutingError(Exception):
    """Input, file or environment problem a user can act on.

    Args:
        problem: one sentence, what is wrong, naming the file, column or value.
        advice: one sentence, what to do about it.
    """

    exit_code = 2

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}\n{advice}" if advice else problem)
        self.problem = problem
        self.advice = advice
