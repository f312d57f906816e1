"""Regular expressions of a tokenizer are read before they run: one that repeats what can match in several ways can take for ever."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(?:[pPxokuh]\{[^}]*\}|.)", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:[:=!>|~]|<[=!]|[<'][^>']*[>']|[a-zA-Z-]*:|[a-zA-Z-]*(?P<bare>\))|#[^)]*(?P<comment>\))))?")
_QUANTIFIER = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\})(?P<more>[?+]?)")


def repeats_a_choice(pattern: str) -> bool:
    """Whether ``pattern`` repeats a group that can match in several ways, such as ``(a+)+`` or ``(a|b)*``, or calls itself.

    Groups that never go back, ``(?>a+)+`` and ``(?:a++)+``, are fine, and so are repeats of what has one length, ``(?:\\d{3})+``.
    """
    groups, varies, at = [False], False, 0  # whether each open group can match in several ways; whether what was read last can
    atomic = [False]
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            if pattern.startswith("\\g", at):
                return True
            varies, at = False, _end(_ESCAPE.match(pattern, at), at)
        elif char == "[":
            varies, at = False, _class_end(pattern, at)
        elif char == "(":
            found = _GROUP.match(pattern, at)
            assert found is not None
            if not (found["bare"] or found["comment"]):
                groups.append(False)
                atomic.append(found.group().startswith("(?>"))
            at = found.end()
        elif char == ")" and len(groups) > 1:
            inside, fixed = groups.pop(), atomic.pop()
            varies, at = inside and not fixed, at + 1
            groups[-1] |= varies
        elif char == "|":
            groups[-1], varies, at = True, False, at + 1
        elif found := _QUANTIFIER.match(pattern, at):
            low, high = _counts(found)
            if varies and (high is None or high > 1):
                return True
            possessive = found["sign"] is not None and found["more"] == "+"
            varies = low != high and not possessive
            groups[-1] |= varies
            at = found.end() - (found["sign"] is None and found["more"] == "+")
        else:
            varies, at = False, at + 1
    return False


def _counts(found: re.Match[str]) -> tuple[int, int | None]:
    """Least and most repetitions; None is no limit."""
    if sign := found["sign"]:
        return (1 if sign == "+" else 0), (1 if sign == "?" else None)
    low = int(found["low"] or 0)
    if not found["comma"]:
        return (0 if found["more"] == "?" else low), low  # a{2}? is an optional a{2} here, not a lazy one
    return low, int(found["high"]) if found["high"] else None


def _class_end(pattern: str, at: int) -> int:
    """Where the character class that begins at ``at`` ends; classes nest."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
            at += pattern.startswith("^", at + 1)
            at += pattern.startswith("]", at + 1)
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return at


def _end(found: re.Match[str] | None, at: int) -> int:
    return found.end() if found else at + 1
