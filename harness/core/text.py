"""Text from outside, made safe to show."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t\u200c\u200d"
"""Control and format characters that stay: line breaks, and the joiners that Persian, Indic scripts and emoji need."""


def printable(text: str, most: int | None = 2000) -> str:
    """Text from outside, safe for a terminal and a log: control and direction characters are shown as escapes, newlines and tabs stay.

    Args:
        text: anything.
        most: what is longer is cut; None cuts nothing.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}…"
    return "".join(c if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else ascii(c)[1:-1] for c in text)


def odd_character(text: str) -> str | None:
    """The first character, as an escape, that no name, path or setting can have: control characters and halves of a pair; None: none."""
    return next((ascii(c)[1:-1] for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")), None)
