"""The shape of the code: what the import contracts do not say."""

from __future__ import annotations

import re
from collections import Counter

from shown import ROOT

MODULES = [p.relative_to(ROOT) for top in ("harness", "routing") for p in (ROOT / top).rglob("*.py") if not p.stem.startswith("__")]


def test_few_packages_on_few_levels() -> None:
    """At most 20 packages and modules stand at the top, each of them on one of at most 8 levels."""
    (layers,) = re.findall(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.S | re.M)
    assert len(re.findall(r'"[^"]+"', layers)) <= 8
    placed = re.findall(r"(?:harness\.)?\w+", layers)
    tops = {"routing" if path.parts[0] == "routing" else f"harness.{path.parts[1].removesuffix('.py')}" for path in MODULES}
    assert sorted(placed) == sorted(tops)
    assert len(placed) <= 20


def test_a_modules_name_stands_for_one_thing() -> None:
    """A command's file is called as the command, a section's as its part of the report; no two others have one name."""
    named = Counter(path.name for path in MODULES if path.parent.as_posix() not in ("harness/cli", "harness/report/sections"))
    assert [name for name, times in named.items() if times > 1] == []
