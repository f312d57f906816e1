"""The README describes what exists: every command and flag in it works, its tree is the code's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.S))
COMMANDS = sorted(set(re.findall(r"(?:^|&& )harness ([a-z]+)((?: [^\n#]*)?)", SHELL, flags=re.M)))


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


@pytest.mark.parametrize(("name", "rest"), COMMANDS)
def test_commands_and_flags_exist(name: str, rest: str) -> None:
    """Every command line of the README must be one the program knows."""
    from harness.cli import app

    group = rest.split()[:1] if name == "models" else []
    result = CliRunner().invoke(app, [name, *group, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
        assert flag in result.output, f"{name} has no {flag}"
