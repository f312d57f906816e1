"""The one way to a terminal: what models, files and people wrote arrives as text, never as control sequences or as rich's markup."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from harness.core.errors import HarnessError
from harness.core.files import reason
from harness.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console

INPUT_CHARACTERS = 2**20
"""More on standard input than fits any context is refused."""


def say(text: object, *, err: bool = False, end: str = "\n") -> None:
    """Print to standard output, or to standard error; control characters are shown as escapes."""
    stream = sys.stderr if err else sys.stdout
    stream.write(printable(str(text), None) + end)
    stream.flush()


def say_json(data: Any) -> None:
    """Print data as JSON to standard output: the form that other programs read."""
    import json

    say(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))


def show(console: Console, what: Any = "", style: str = "", *, end: str = "\n") -> None:
    """Print text on a console as it is: no markup, no emoji codes, no control characters. A table, or another thing of rich's, is drawn."""
    from rich.text import Text

    console.print(Text(printable(what, None), style=style) if isinstance(what, str) else what, end=end, soft_wrap=isinstance(what, str))


def read_input(line: bool = False) -> str:
    """Standard input as text, or its next line; empty at its end.

    Raises:
        HarnessError: it is not text in the terminal's encoding, or longer than any prompt can be.
    """
    try:
        text = sys.stdin.readline(INPUT_CHARACTERS + 1) if line else sys.stdin.read(INPUT_CHARACTERS + 1)
    except (UnicodeDecodeError, OSError) as error:
        raise HarnessError(f"cannot read standard input: {reason(error)}", "Give it UTF-8 text.") from None
    if len(text) > INPUT_CHARACTERS:
        raise HarnessError(f"standard input has more than {INPUT_CHARACTERS} characters", "Give a shorter prompt.")
    return text


def forgiving_streams() -> None:
    """Let a terminal that cannot show a character show its escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
