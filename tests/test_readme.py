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


def tree_files() -> set[str]:
    """Paths in the README's tree, rebuilt from its indentation."""
    block = re.search(r"```text\n(.*?)\n```", README, flags=re.S)
    assert block
    stack: list[str] = []
    found = set()
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        stack = [*stack[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            found.add("/".join(stack))
    return found


def test_tree_matches_the_code() -> None:
    """A tree that lies is worse than none; package markers without content may be left out."""
    listed = subprocess.run(
        ["git", "ls-files", "harness", "routing", "suites", "configs", "tests/benchmarks", "docs", "results", "reports"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    real = {path for path in listed if not (path.endswith("__init__.py") and not (ROOT / path).read_text(encoding="utf-8").strip())}
    assert tree_files() == real


@pytest.mark.parametrize(("name", "rest"), COMMANDS)
def test_commands_and_flags_exist(name: str, rest: str) -> None:
    """Every command line of the README must be one the program knows."""
    from harness.cli import app

    group = rest.split()[:1] if name == "models" else []
    result = CliRunner().invoke(app, [name, *group, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
        assert flag in result.output, f"{name} has no {flag}"
