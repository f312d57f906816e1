"""Damaged copies of valid files, for the tests that look for tracebacks."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""How many times as many inputs as CI tries."""
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**63, 2**64, -(10**30), 10**40, 0.0, 0.5, -0.5, 1e308, 5e-324, "", " ", "x", "1", "true",
    "null", "~",
    "~nosuchuser/x", "../../x", "/dev/zero", "/", ".", "\0", "\x1b[31m", "\ud800", "\u202e", "a\nb", "x" * 300, "x" * 5000, "2024-99-99",
    "code",
    "router", "adapter", "decode", "1e999", [], [[]], [1], ["x"], [None], {}, {"": 1}, {"x": 1}, {"a": {"b": {"c": []}}}, {"1": None},
]  # fmt: skip
"""Values to put where others belong."""
SNIPPETS = [
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1b[31m", b"\r", b"\n", b"\t", b"  ", b"{", b"}", b"[", b"]", b"[" * 400,
    b'"', b"'", b":",
    b": ", b",", b"- ", b"? ", b"|", b">", b"%", b"@", b"`", b"!", b"!!bool ", b"!!int x", b"!!timestamp x", b"!!python/name:os.system ",
    b"!x ", b"&a ",
    b"*a", b"<<: ", b"---\n", b"...", b"#", b"NaN", b"Infinity", b".inf", b".nan", b"1e999", b"-", b"1" * 5000, b"null", b"\\ud800",
    b"\\u0000", b"\\",
    b"0x", b"1:1:1", b"=", b"\xe2\x80\xa8", b"a" * 3000,
]  # fmt: skip


def fuzz(examples: int) -> settings:
    """Settings of a fuzz test: the same inputs every time, no clock on a single one."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples * TIMES, derandomize=True, deadline=None, suppress_health_check=checks)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside ``tree``."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()):
        yield tree, key
        yield from places(value)


@st.composite
def damaged_tree(draw: st.DrawFn, tree: Any) -> Any:
    """``tree`` with up to three values replaced, removed, added or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        spots = list(places(tree))
        if not spots:
            break
        inside, key = draw(st.sampled_from(spots))
        match draw(st.sampled_from(["odd", "odd", "odd", "number", "remove", "add", "move", "wrap"])):
            case "odd":
                inside[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "number":
                inside[key] = draw(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
            case "remove":
                del inside[key]
            case "add" if isinstance(inside, dict):
                inside[draw(st.sampled_from(["", "x", "schema_version", "\x1b", "name", "k", "x" * 300]))] = draw(st.sampled_from(ODD[:20]))
            case "move":
                other, name = draw(st.sampled_from(spots))
                inside[key] = copy.deepcopy(other[name]) if name in other or (isinstance(other, list) and name < len(other)) else None
            case _:
                inside[key] = [inside[key]] if not isinstance(inside[key], list) else {"x": inside[key]}
    return tree


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with up to three stretches cut out, replaced or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20, 10**6])))
        data = data[:start] + draw(st.sampled_from([*SNIPPETS, data[start:end] * 2])) + data[end:]
    return data
