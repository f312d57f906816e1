"""The shape of a model's answer, line by line: code fences, open quotes and brackets, unindented lines. Linear in the text.

Handed to the sandboxed process as text with :mod:`harness.scoring.reader`, so it uses the standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_CHARS = 32_000
"""Longer answers are cut here: no solution is that long."""
_TOKEN = re.compile(r"""\\.|\"""|'''|["'#()\[\]{}]""")
_CODE = re.compile(r"(?:def|async|class|import|from|return)\s|@\w|\w+ *= *lambda")
_CONTINUES = re.compile(r"[)\]}#]|(?:elif|else|except|finally)\b")
_CHAT_TOKENS = re.compile(r"(?:<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|\s)+\Z")
_INVISIBLE = {0x0: None, 0xFEFF: None, 0x200B: None, 0xA0: " "}


class Fence(NamedTuple):
    """The opening fence of a code block."""

    mark: str
    """Its characters, three or more backticks or tildes."""
    language: str
    """First word behind it, letters only."""
    code: str
    """Code that stands on the same line."""
    quoted: bool
    """In a block quote, where every line begins with ``>``."""


def clean(text: str) -> str:
    """Text of bounded length with one kind of line end, no byte order mark, and no tokens of the chat format at its end."""
    text = text[: 2 * MAX_CHARS].replace("\r\n", "\n").replace("\r", "\n").translate(_INVISIBLE)
    text = text.replace("[PYTHON]", "\n```python\n").replace("[/PYTHON]", "\n```\n")[:MAX_CHARS]
    tail = _CHAT_TOKENS.search(text, max(len(text) - 500, 0))
    return f"{text[: tail.start()] if tail else text}\n"


def _mark(line: str) -> tuple[str, str, str] | None:
    """(text before, fence, text behind) of the first fence in a line."""
    starts = [at for at in (line.find("```"), line.find("~~~")) if at >= 0]
    if not starts:
        return None
    at = min(starts)
    behind = line[at:].lstrip(line[at])
    return line[:at], line[at : len(line) - len(behind)], behind


def opening(line: str) -> Fence | None:
    """The fence that a line opens: at its start, behind a list mark, or with nothing but its language at the end of a sentence."""
    parts = _mark(line)
    if parts is None or (parts[1][0] == "`" and "`" in parts[2]) or parts[2].rstrip().endswith("~~~"):
        return None
    before, mark, behind = parts
    words = behind.split(None, 1)
    code = next((option for option in ("".join(words[1:]), behind.strip()) if _CODE.match(option)), "")
    language = "" if not words or behind.strip() == code else re.sub(r"[^a-z]", "", words[0].lower().rpartition(".")[2])
    prose = before.strip(" \t>")
    if prose and (mark[0] == "~" or (not code and len(words) > 1)):
        return None
    return Fence(mark, language, code, ">" in before and not prose)


def closing(line: str, mark: str, quote: str | None) -> str | None:
    """What stands before the closing fence in a line, or None: a line of its own, or glued to the last line of the code."""
    alone = line.strip(" \t>")
    if alone.startswith(mark):
        return None if alone.strip(mark[0]) else ""
    at = line.find(mark)
    if at < 0 or alone.startswith("#") or quote_state(line[:at], quote)[2]:
        return None
    return line[:at]


def reopens(line: str, mark: str) -> bool:
    """Whether a line opens the next block although the one with ``mark`` was never closed."""
    fence = opening(line)
    return fence is not None and fence.mark.startswith(mark) and line.strip(" \t>").startswith(mark) and bool(fence.language or fence.code)


def has_fence(text: str) -> bool:
    return any(line.lstrip(" \t>").startswith(("```", "~~~")) for line in text.split("\n"))


def one_line_blocks(line: str) -> Iterator[str]:
    """Code between two fences on one line."""
    for mark in ("```", "~~~"):
        for part in line.split(mark)[1::2]:
            word, _, code = part.strip("`~ ").partition(" ")
            yield code if _CODE.match(code) and not _CODE.match(f"{word} ") else part.strip("`~ ")


def unquoted(lines: list[str], fence: Fence) -> list[str]:
    return [re.sub(r"^[ \t]*(?:>[ \t]?)+", "", line) for line in lines] if fence.quoted else lines


def quote_state(line: str, quote: str | None, depth: int = 0) -> tuple[str | None, int, bool]:
    """After a line that began inside ``quote`` and ``depth`` brackets: (open triple quote, open brackets, any quote open)."""
    single = ""
    for match in _TOKEN.finditer(line):
        token = match[0]
        if quote:
            quote = None if token == quote else quote
        elif single:
            single = "" if token[0] == single else single
        elif token == "#":
            break
        elif len(token) == 3:
            quote = token
        elif token in "\"'":
            single = token
        elif token[0] != "\\":
            depth = max(depth + (1 if token in "([{" else -1), 0)
    return quote, depth, bool(quote or single)


def chunks(code: str, tracked: int) -> Iterator[str]:
    """``code`` cut before each unindented line; not inside brackets (``tracked`` 2) or triple quotes (1 or 2), nor behind a decorator."""
    chunk: list[str] = []
    quote, depth, joined = None, 0, False
    for line in code.split("\n"):
        if line[:1].strip() and not (quote or depth or joined or _CONTINUES.match(line)):
            if any(map(str.strip, chunk)):
                yield "\n".join(chunk)
            chunk = []
        chunk.append(line)
        joined = line.startswith("@") or line.endswith("\\") or (joined and not line.strip())
        if tracked:
            quote, depth, _ = quote_state(line, quote, depth)
            depth = depth if tracked == 2 else 0
    if any(map(str.strip, chunk)):
        yield "\n".join(chunk)
