"""GSM8K: find the number an answer ends on and compare it with the reference, both read exactly by the same parser."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice

from harness.core.number import normalise, numbers, parse_number, shown
from harness.scoring.result import Score, unscored, verdict
from harness.scoring.thinking import final_part

_MAX_CHARS = 100_000
_SCOPE = 500
"""Characters behind a mark in which its number stands."""
_TRIES = 100
"""Marks that are looked at."""
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*:?[ \t]*")
_HEADING = re.compile(r"\d+[.):]\s+\S")
_LIST = re.compile(r"1[.):]\s.*?\b2[.):]\s", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_PHRASE = re.compile(r"answers?\s*(?:(?P<verb>(?:is|are|was|will be|would be|equals|comes to)\b|[=≈])\s*:?|[:\n→]|->)\s*", re.IGNORECASE)
_LEAD = re.compile(r"(?:[\s:({}\[\\=≈]|(?:about|approximately|exactly|just|only|therefore|thus|then|[a-z]\s*=)(?=\W))*", re.IGNORECASE)
_OPERATOR = re.compile(r"\s*(?:[^\W\d]+\s+){0,3}(?:[=≈]|[-+*/×x]\s*[$(]?\d|\\(?:times|cdot|div)\b)")
_CLAUSE_END = re.compile(r"[.!?](?=\s|$)")
_FURTHER = re.compile(r"[.!?=]\s*\S")
_BARE = re.compile(r"\s*(?:[%.!?,;:)\]}$\\]|$)")
_NEXT_PROBLEM = re.compile(r"^[ \t]*(?:Question|Problem|Q)[ \t]*\d*[ \t]*[:.]", re.IGNORECASE | re.MULTILINE)


def score_number(expected: str, text: str) -> Score:
    """Score an answer by its final number; unscored when the reference itself is none."""
    wanted = parse_number(expected)
    if wanted is None:
        return unscored("exact_match", f"the reference answer {expected[:80]!r} is not a number")
    found = final_number(text)
    if found is None:
        return verdict("exact_match", False, "the answer holds no number", expected=shown(wanted))
    reason = "" if found == wanted else f"{shown(found)} is not {shown(wanted)}"
    return verdict("exact_match", found == wanted, reason, expected=shown(wanted), found=shown(found))


def final_number(text: str) -> Fraction | None:
    """The number an answer ends on, or None. Thinking is not looked at.

    Looked for behind the first ``####`` that a number follows (the form of GSM8K's solutions; what a model writes below it is another
    problem), in the last ``\\boxed{}``, behind the last "answer is" or "answer:", and else the last number of the text. Of a calculation
    the result counts, not the terms.
    """
    text = normalise(re.sub(r"\*\*|__|`", "", final_part(text[-10 * _MAX_CHARS :])[-_MAX_CHARS:]))
    own = _NEXT_PROBLEM.split(text, maxsplit=1)[0]
    if re.search(r"####|boxed|answer", own, re.IGNORECASE):
        text = own
    marked = next(chain(_behind_hashes(text), _boxed(text), _behind_phrase(text)), None)
    return marked if marked is not None else next(iter(deque((value for value, _, _ in numbers(text)), maxlen=1)), None)


def _behind_hashes(text: str) -> Iterator[Fraction]:
    for mark in islice(_HASHES.finditer(text), _TRIES):
        part = _without_lead(text[mark.end() : mark.end() + _SCOPE].split("\n")[0].split("####")[0])
        if not _HEADING.match(part):
            yield from _conclusion(part, certain=True)


def _boxed(text: str) -> Iterator[Fraction]:
    for mark in reversed(deque(_BOXED.finditer(text), maxlen=_TRIES)):
        part = text[mark.end() : mark.end() + _SCOPE]
        yield from _result(part[1 : _closing_brace(part)] if part[:1] == "{" else part.split("\n")[0])


def _closing_brace(part: str) -> int:
    """Where the brace that ``part`` begins with is closed, or its line ends."""
    depth = 0
    for at, letter in enumerate(part):
        depth += (letter == "{") - (letter == "}")
        if depth == 0 or letter == "\n":
            return at
    return len(part)


def _behind_phrase(text: str) -> Iterator[Fraction]:
    for mark in reversed(deque(_PHRASE.finditer(text), maxlen=_TRIES)):
        below = text[mark.end() : mark.end() + _SCOPE]
        part = _without_lead(below.split("\n")[0])
        if _HEADING.match(part) if "\n" in mark[0] else _LIST.match(below):  # steps
            continue
        yield from _conclusion(part, certain=mark["verb"] is not None)
        if mark["verb"] and next(numbers(part), (0, 1))[1]:  # the answer is a sentence
            yield from _result(_CLAUSE_END.split(part)[0])


def _without_lead(part: str) -> str:
    """What stands before an answer's number taken away: brackets, "about", ``x =``."""
    lead = _LEAD.match(part)
    return part[lead.end() if lead else 0 :]


def _conclusion(part: str, *, certain: bool) -> Iterator[Fraction]:
    """The number that ``part`` begins with, of a calculation its result; when not ``certain``, only if no derivation follows."""
    value, start, end = next(numbers(part), (None, 1, 0))
    if value is None or start:
        return
    if _OPERATOR.match(part, end):
        clause = _CLAUSE_END.split(part)[0]
        yield from _result(clause) if re.search("[=≈]", clause) else ()
    elif certain or _BARE.match(part, end) or not _FURTHER.search(part, end):
        yield value


def _result(part: str) -> Iterator[Fraction]:
    """The first number behind the last equals sign that a number follows."""
    for side in reversed(re.split("[=≈]", part)):
        yield from (value for value, _, _ in islice(numbers(side), 1))
