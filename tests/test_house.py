"""The shape of the code: what the import contracts do not say."""

from __future__ import annotations

import re

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
