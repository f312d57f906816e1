"""Prints the changelog's section of a tag such as v0.2.0; fails where the tag, the package and the changelog name different versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions(root: Path = ROOT) -> tuple[str, str]:
    """The version in pyproject.toml, and in the package."""
    patterns = {"pyproject.toml": r'^version = "(.*)"$', "harness/core/version.py": r'^__version__ = "(.*)"$'}
    found = [re.search(pattern, (root / path).read_text(encoding="utf-8"), flags=re.M) for path, pattern in patterns.items()]
    project, package = (match.group(1) if match else "" for match in found)
    return project, package


def sections(text: str) -> dict[str, str]:
    """Version to what the changelog says of it, newest first; what is not released yet is ``Unreleased``."""
    parts = re.split(r"^## \[?([^\]\s]+)\]?.*$", text, flags=re.M)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def notes(tag: str, root: Path = ROOT) -> str:
    """The section of a tag.

    Raises:
        SystemExit: the versions differ, or the changelog has no section of it.
    """
    version = tag.removeprefix("v")
    if {version} != {*versions(root)}:
        raise SystemExit(f"tag {tag}, but pyproject.toml and harness/core/version.py say {' and '.join(versions(root))}")
    found = sections((root / "CHANGELOG.md").read_text(encoding="utf-8")).get(version)
    if not found:
        raise SystemExit(f"CHANGELOG.md says nothing of {version}: rename its section Unreleased")
    return found


if __name__ == "__main__":
    print(notes(sys.argv[1]))
