"""The README describes what exists: every command line in it is one, its tree is the code's, and it stays short."""

from __future__ import annotations

import re
import subprocess

import pytest
from shown import ROOT, command_lines, parse

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = command_lines(README)
MOST_BYTES = 12_000


def tree_paths() -> set[str]:
    """Paths in the README's tree, rebuilt from its indentation."""
    block = re.search(r"```text\n(.*?)\n```", README, flags=re.S)
    assert block
    stack: list[str] = []
    found = set()
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:depth], line.split()[0].rstrip("/")]
        found.add("/".join(stack))
    return found


def test_tree_matches_the_code() -> None:
    """A tree that lies is worse than none: every path exists, and every package and folder is there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] for path in listed if "/" in path and not path.startswith(".")}
    packages = {"/".join(path.split("/")[:2]) for path in listed if re.match(r"harness/\w+/.", path)}
    assert folders | packages <= tree_paths()
    assert all((ROOT / path).exists() for path in tree_paths())


def test_length() -> None:
    """A newcomer reads it in five minutes; the rest is in docs/."""
    assert len(README.encode()) < MOST_BYTES


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines_parse(line: str) -> None:
    """Every command line works as it stands: the command, its options and what it cannot do without."""
    parse(line)


def test_every_command_is_shown() -> None:
    """What is not in the README is not found."""
    from harness.cli import COMMANDS as KNOWN

    assert {line.split()[1] for line in COMMANDS} == set(KNOWN)
