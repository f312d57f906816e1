"""GSM8K: find the final number of an answer and compare it with the reference as a number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from harness.scoring.result import Score, unscored, verdict

_MAX_CHARS = 100_000
_SIGN = r"(?:(?<![\w.)\]}%])[-−–])?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_NUMBER = re.compile(rf"{_SIGN}(?:\\?[$€£][ ]?)?{_SIGN}(?:{_DIGITS})")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_PHRASE = re.compile(r"answer\s*(?:is|are|=|:|would be|will be)\s*:?((?:[^\n.]|\.(?=\d))*)", re.IGNORECASE)


def score_number(expected: str, text: str) -> Score:
    """Score an answer by its final number; unscored when the reference itself has none."""
    wanted, found = final_number(expected), final_number(text)
    if wanted is None:
        return unscored("exact_match", f"the reference answer {expected[:80]!r} holds no number")
    if found is None:
        return verdict("exact_match", False, "the answer holds no number", expected=str(wanted))
    passed = found == wanted
    return verdict("exact_match", passed, "" if passed else f"{found} is not {wanted}", expected=str(wanted), found=str(found))


def final_number(text: str) -> Decimal | None:
    """The number an answer ends on, or None.

    Looked for after the last ``####``, in the last ``\\boxed{}``, after the last "answer is" (or "answer:"), and else the last number of
    the text. After an "=" the result counts, not the terms. Thousands separators, currency and per cent signs do not change the value.
    """
    text = text[-_MAX_CHARS:].replace("**", "").replace("{,}", ",").replace("\\!", "")
    for pattern in (_HASHES, _BOXED, _PHRASE):
        for part in reversed(pattern.findall(text)):
            after_equals = part.rsplit("=", 1)[-1]
            numbers = _numbers(after_equals) or _numbers(part)
            if numbers:
                return numbers[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[Decimal]:
    return [value for match in _NUMBER.findall(text) if (value := _value(match)) is not None]


def _value(match: str) -> Decimal | None:
    digits = re.sub(r"[^\d.]", "", match)
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return None
    return -value if re.search(r"[-−–]", match) else value
