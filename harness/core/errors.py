"""Errors a user can act on: every one says what is wrong and what to do next."""

from __future__ import annotations

from harness.core.text import printable


class HarnessError(Exception):
    """Input or environment problem. The CLI prints it without a traceback and exits with ``exit_code``.

    Args:
        problem: one sentence, what is wrong, naming the file, key or value; control characters in it are shown as escapes.
        advice: one sentence, what to do about it.
    """

    exit_code = 2

    def __init__(self, problem: str, advice: str = "") -> None:
        problem, advice = printable(problem, None), printable(advice, None)
        super().__init__(f"{problem}\n{advice}" if advice else problem)
        self.problem = problem
        self.advice = advice


class CheckFailed(HarnessError):
    """A check ran and did not pass (regression, failed verification): exit code 1."""

    exit_code = 1


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return ``did you mean 'x'?`` for the nearest of ``known``, or the sorted list of what exists."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
