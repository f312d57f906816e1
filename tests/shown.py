"""What Markdown files show: command lines, links, code. Command lines are read by the program's own parser; nothing is run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.cli import COMMANDS, load_command

ROOT = Path(__file__).parent.parent


def pages() -> list[Path]:
    """README, the pages in docs/ and the READMEs of folders. The log is apart: it records command lines of their day."""
    found = [ROOT / "README.md", ROOT / "LOG.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "harness").rglob("README.md"))]
    return [path for path in found if path.name != "log.md"]


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def inline(text: str) -> list[str]:
    """Commands of this program between backquotes; some are only named."""
    return [" ".join(code.split()) for code in re.findall(r"`(harness(?:\s[^`]*)?)`", prose(text))]


def command_lines(text: str) -> list[str]:
    """Command lines of this program in the shell blocks."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("harness")]


def parse(line: str) -> None:
    """Read a command line as the program would.

    Raises:
        AssertionError: no such command.
        Exception: the parser's own, for an unknown option, a wrong value or an option or argument that is missing.
    """
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "--debug"]
    if words in (["--help"], ["--version"], []):
        return
    command, rest = find(words)
    assert not hasattr(command, "commands"), f"{line}: a command is missing"
    if rest != ["--help"]:
        command.make_context(command.name, list(rest))


def mentioned(line: str) -> None:
    """Check a command between backquotes: in full where it has arguments, else that it exists."""
    command, rest = find(shlex.split(line)[1:]) if line != "harness" else (None, [])
    if rest and rest != ["--help"]:
        command.make_context(command.name, list(rest))


def find(words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """The command that ``words`` begin with, and what follows its name."""
    if words[0].startswith("-"):
        return None, []
    assert words[0] in COMMANDS, f"no command {words[0]}"
    command, rest = load_command(words[0]), words[1:]
    while rest and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"no command {' '.join(words[:2])}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its full name, groups left out."""
    for name in COMMANDS:
        command = load_command(name)
        inner = getattr(command, "commands", None)
        yield from [(name, command)] if inner is None else [(f"{name} {part}", c) for part, c in inner.items()]


def links(text: str) -> list[str]:
    """Targets of the relative links."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", prose(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def nodes() -> Iterator[ast.AST]:
    """Everything in the sources."""
    for folder in ("harness", "routing"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


@cache
def messages() -> list[str]:
    """Every text in the sources, with ``…`` where a value is put in."""
    found = []
    for node in nodes():
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def advised() -> set[str]:
    """Options that the errors of the program name."""
    calls = (node for node in nodes() if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HarnessError")
    return {option for call in calls for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", ast.unparse(call))}
