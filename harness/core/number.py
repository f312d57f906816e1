"""Numbers as people and models write them, read exactly: the one parser of answers and of the references they are compared with."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

MAX_DIGITS = 300
"""A number with more digits, or a larger power of ten, is none."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
_SIGN = r"(?:(?<![\w.)\]}%])-)?"
_POWER = r"(?:\^|\*\*)\s?\{?(?P<NAME>[-+]?\d+)\}?"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN}(?:[$€£¥₹]\s?{_SIGN})?)(?<![\w^/])(?<![\^_]\{{)(?P<value>{_DIGITS})"
    rf"(?:(?:\s+(?:and\s+)?|-and-)(?P<top>\d+)/(?P<bottom>\d+)(?![\d/])|\s?/\s?(?P<divisor>{_DIGITS})(?!\s?/\s?\d)|[eE](?P<exponent>[-+]?\d+)(?!\w)"
    rf"|{_POWER.replace('NAME', 'power')})?(?:\s*(?:[×x*·⋅]|\\times|\\cdot)\s*10\s*{_POWER.replace('NAME', 'tens')})?"
    r"(?:\s+(?P<scale>hundred|thousand|million|billion|trillion)s?\b|(?P<kilo>k)(?!\w))?",
    re.IGNORECASE,
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|\{?\\[,;: !]\}?|[\u00a0\u2007\u2009\u202f~'’_])(?=\d{3}(?!\d))")
_SPACED = re.compile(r"(?<![\d.,/])\d{1,3}(?:(?: \d{3}){2,}| 0\d\d)(?![\d/])")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([-\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_NO_FRACTION = re.compile(r"\\[dtc]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}")
_VULGAR = re.compile(r"(\d?)\s?([¼-¾⅐-⅞])")
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴-⁹⁻]+")
_CURRENCY = re.compile(r"\b(?:Rs\.?|USD|EUR|GBP|INR)\s?(?=-?\d)")
_PLAIN = str.maketrans(dict.fromkeys("−–‐‑‒﹣-", "-") | {"⁄": "/", "∕": "/", "÷": "/"})
_UNIT = re.compile(r"[\s.!%$€£°]*(?:(?!x\s?\d)[^\W\d][^=<>+*]*)?")


def normalise(text: str) -> str:
    """``text`` with one minus sign, and with separators, fractions, powers and currencies of LaTeX and of Unicode in plain form."""
    text = text.translate(_PLAIN).replace("\\$", "$").replace("\\%", "%").replace("\\left", "").replace("\\right", "")
    text = _VULGAR.sub(lambda m: f"{m[1]} {unicodedata.normalize('NFKC', m[2])}".strip().translate(_PLAIN), text)
    text = _SUPERSCRIPT.sub(lambda m: f"^{unicodedata.normalize('NFKC', m[0])}".translate(_PLAIN), text)
    text = re.sub(r"\\[,;: ]", " ", _SEPARATOR.sub(",", text)).replace("\\!", "")
    text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    text = _FRACTION.sub(lambda m: f"{' ' if m.start() and text[m.start() - 1].isdigit() else ''}{m[1] or m[2]}/{m[3] or m[4]} ", text)
    return _CURRENCY.sub("$", _NO_FRACTION.sub(" ", text))


def numbers(text: str) -> Iterator[tuple[Fraction, int, int]]:
    """(value, start, end) of every number in normalised text, in order: integers, decimals, fractions, mixed numbers, powers.

    A digit behind a letter or a power sign, as in ``m2``, is part of a unit. Currency and per cent signs do not change the value.
    """
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield value, match.start(), match.end()


def parse_number(text: str) -> Fraction | None:
    """The value of text that is one number, perhaps with a unit behind it; None for anything else."""
    text = normalise(re.sub(r"^\+(?=[\d.$])", "", text.strip()))
    found = list(numbers(text))
    if len(found) != 1 or found[0][1] != 0 or not _UNIT.fullmatch(text, found[0][2]):
        return None
    return found[0][0]


def shown(value: Fraction) -> str:
    """A number as text that :func:`parse_number` reads back: an integer, a decimal where it is exact, or a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    return f"{decimal:f}" if Fraction(decimal) == value else f"{value.numerator}/{value.denominator}"


def _value(match: re.Match[str]) -> Fraction | None:
    if match.end() - match.start() > 2 * MAX_DIGITS:
        return None
    value = Fraction(match["value"].replace(",", ""))
    powers = [int(match[name] or 0) for name in ("exponent", "tens")]
    power = int(match["power"] or 1)
    if max(map(abs, powers)) > MAX_DIGITS or abs(power) * len(match["value"]) > MAX_DIGITS:
        return None
    try:
        if match["top"]:
            part = Fraction(int(match["top"]), int(match["bottom"]))
            value += part
        elif match["divisor"]:
            value /= Fraction(match["divisor"].replace(",", ""))
        value = value**power * Fraction(10) ** sum(powers)
    except ZeroDivisionError:
        return None
    value *= _SCALES[match["scale"].lower()] if match["scale"] else 1000 if match["kilo"] else 1
    return -value if "-" in match["sign"] else value
