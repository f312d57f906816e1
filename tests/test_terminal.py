"""What is printed is text: no control characters, no markup, and a sentence where the system refuses."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_gate import stored
from test_report import baseline, cell

from harness.cli import main
from harness.core.errors import HarnessError
from harness.core.terminal import read_input, say, show
from harness.report import load_run, show_table

PACKAGE = Path(__file__).parent.parent / "harness"
ODD = "a\x1b[31mb\x1b]0;title\x07\r\x9b2J\u202e [red]c[/red] [link=http://x]d[/link] :bomb:"
SAFE = "a\\x1b[31mb\\x1b]0;title\\x07\\r\\x9b2J\\u202e [red]c[/red] [link=http://x]d[/link] :bomb:"


def test_everything_is_printed_through_one_module() -> None:
    """No other module prints by itself, so the rule holds for the next line of output too."""
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("terminal.py", "template_worker.py")  # a worker's output is read by its parent
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?<![\w.])print\(|typer\.echo\(|click\.echo\(|console\.print\(|sys\.std(out|err)\.write\(", line)
    }
    assert found == set()


def test_text_reaches_the_terminal_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters are escapes, rich's markup is letters, on a terminal and elsewhere."""
    say(ODD)
    say(ODD, err=True, end="")
    assert capsys.readouterr() == (f"{SAFE}\n", SAFE)
    for terminal in (True, False):
        out = io.StringIO()
        show(Console(file=out, force_terminal=terminal, color_system=None, width=20), ODD)
        assert out.getvalue() == f"{SAFE}\n"


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (HarnessError(f"no {ODD}", "Try again."), [f"error: no {SAFE}", "Try again."]),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), ["error: /a: no space left on device", "Check the path"]),
        (PermissionError(errno.EACCES, "Permission denied", "/a\x1b"), ["error: /a\\x1b: permission denied", "Check the path"]),
        (OSError("odd"), ["error: odd", "Check the path"]),
        (MemoryError(), ["error: not enough memory", "Use a smaller"]),
    ],
)
def test_errors_are_sentences_without_control_characters(error: Exception, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The system's refusals are no fault of the harness, and no error can drive the terminal."""

    def command(*_: Any, **__: Any) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        main([], command)
    assert caught.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == len(lines)
    assert all(line.startswith(start) for line, start in zip(printed, lines, strict=True))


@pytest.mark.parametrize("argument", ["\x1b[31m", "a\0b", "\udcff", "\x7f"])
@pytest.mark.parametrize("before", [["validate"], ["generate"], ["report"], [], ["run", "--set"]])
def test_arguments_are_text(before: list[str], argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no UTF-8 and control characters stop before any command sees them."""
    with pytest.raises(SystemExit) as caught:
        main([*before, argument])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: argument {len(before) + 1} holds the character ")


@pytest.mark.parametrize(
    ("given", "problem"), [(b"\xff", "cannot read standard input"), (b"x" * (2**20 + 1), "more than 1048576 characters")]
)
@pytest.mark.parametrize("line", [True, False])
def test_standard_input_is_bounded_text(given: bytes, problem: str, line: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no text and input without end are refused."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
    with pytest.raises(HarnessError, match=problem):
        read_input(line)


def test_a_terminal_of_few_letters_shows_escapes() -> None:
    """Output in an encoding that lacks a character must not end in a traceback."""
    code = "from harness.cli import main\nfrom harness.core.terminal import say\nmain([], lambda *a, **k: say('\\u2013 \\u4e2d \\ud800'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == rb"\u2013 \u4e2d \ud800"


def test_tables_hold_text(tmp_path: Path) -> None:
    """Cells of a table on a terminal are no markup."""
    records = [baseline("a", 10, 4.0, domain=ODD), cell("a", [4, 4], wall_s=1.0, domain=ODD)]
    run, out = load_run(stored(tmp_path / "run", records)), io.StringIO()
    show_table(run, Console(file=out, force_terminal=True, color_system=None, width=400))
    assert SAFE in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "\x9b" not in out.getvalue()
