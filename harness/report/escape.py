"""Names, ids and error texts in reports: they show as they were written, on one line, and never act as markup, links or formulas."""

from __future__ import annotations

import html as _html
import re

from harness.core.text import printable

_ANYWHERE = re.compile(
    r"[\\`*<|~$]"  # code, emphasis, HTML, cells, mathematics
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is none
    r"|(?<=\])[(\[:]"  # what makes a link, an image or the target of one of a bracket
    r"|:(?=//)|(?<=[wW]{3})\."  # addresses that become links by themselves
    r"|&(?=#?\w)"
)
_AT_START = re.compile(r"^(?:(?=>|#{1,6}(?:\s|$)|[+-](?:\s|$)|[-=]+$)|(\d{1,9})(?=[.)](?:\s|$)))")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _line(text: str) -> str:
    return printable(" ".join(text.split()))


def markdown(text: str) -> str:
    """Text for a paragraph, a heading, a list item or a table cell of GitHub Markdown."""
    return _AT_START.sub(r"\1\\", _ANYWHERE.sub(r"\\\g<0>", _line(text)))


def code(text: str) -> str:
    """Text as a code span of Markdown, whatever backticks it holds."""
    line = _line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def cells(row: str) -> list[str]:
    """The texts of one line of a pipe table whose cells :func:`markdown` wrote."""
    return [_ESCAPED.sub(r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", row.strip()[1:-1])]


def html(text: str) -> str:
    """Text for an HTML element or an attribute in quotes."""
    return _html.escape(printable(text))


def spreadsheet(value: object) -> object:
    """A value for a CSV field: text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
