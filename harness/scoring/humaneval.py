"""HumanEval pass@1: find the code in an answer, complete the problem with it, run the tests in the sandbox."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Mapping

from harness.scoring.box import Limits
from harness.scoring.execute import Program
from harness.scoring.result import Score, unscored, verdict
from harness.scoring.sandbox import run_program

KEYS = ("prompt", "test", "entry_point")
"""What ``Sample.reference`` must hold."""

_MAX_CHARS = 50_000
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.DOTALL | re.MULTILINE)
_CODE_START = re.compile(r"^(?:def|async def|class|import|from|@)\b", re.MULTILINE)


def score_code(reference: Mapping[str, str], text: str, *, limits: Limits | None = None, unsafe: bool = False) -> Score:
    """Score ``text``, a chat answer or a raw completion, against the problem in ``reference`` (see :data:`KEYS`)."""
    prompt, entry_point = reference["prompt"], reference["entry_point"]
    source = assemble(prompt, entry_point, text)
    if source is None:
        return verdict("pass@1", False, "the answer holds no code")
    program = Program(source=source, entry_point=entry_point, prelude=prelude(prompt), test=reference["test"])
    outcome = run_program(program, limits=limits, unsafe=unsafe)
    if outcome.status == "unscored":
        return unscored("pass@1", outcome.reason, sandbox=outcome.sandbox)
    return verdict("pass@1", outcome.status == "passed", outcome.reason, sandbox=outcome.sandbox)


def prelude(prompt: str) -> str:
    """The problem's own imports and helper functions, which its tests may call; the function to write is an empty stub."""
    return f"{prompt.rstrip()}\n    pass\n"


def assemble(prompt: str, entry_point: str, text: str) -> str | None:
    """Return the program an answer amounts to, or None when there is no code in it.

    An answer that defines ``entry_point`` follows the prompt's imports and helpers; anything else is taken as the function's body.
    """
    text = text.replace("\r\n", "\n").replace("\x00", "")[:_MAX_CHARS]
    code = extract(text, entry_point)
    if not code.strip():
        return None
    if not _defines(code, entry_point):
        return _with_body(prompt, code)
    start = re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return f"{prompt[: start.start()] if start else ''}\n{code}\n"


def extract(text: str, entry_point: str) -> str:
    """The code in an answer: its best fenced block, or the text itself without the prose around it."""
    blocks = [block for language, block in _FENCE.findall(text) if language.lower() in ("", "python", "python3", "py")]
    options = [option for block in blocks for option in (block, textwrap.dedent(block))]
    defining = [option for option in options if _defines(option, entry_point)]
    complete = [block for block in defining if _parse(block) is not None]
    for choice in (complete, defining, blocks):
        if choice:
            return _without_tail(choice[0])
    if not _defines(text, entry_point):
        return text
    start = _CODE_START.search(text)
    return text if _parse(text) is not None or start is None else _without_tail(text[start.start() :])


def _with_body(prompt: str, body: str) -> str:
    """The prompt completed by a function body whose indentation models and tokenizers often lose at the start."""
    lines = body.strip("\n")
    head = prompt.rstrip() + "\n"
    indented = textwrap.indent(textwrap.dedent(lines), "    ")
    options = [_without_tail(head + option) for option in (lines, f"    {lines.lstrip()}", indented)]
    stub_lines = len(head.splitlines())
    good = [option for option in options if _parse(option) is not None and len(option.splitlines()) > stub_lines]
    return max(good, key=len) if good else head + lines + "\n"


def _without_tail(code: str) -> str:
    """``code`` without the trailing lines that keep it from parsing (prose, a cut-off statement); unchanged when nothing parses."""
    lines = code.split("\n")
    while lines:
        shorter = "\n".join(lines).rstrip() + "\n"
        parsed = _parse_or_line(shorter)
        if isinstance(parsed, ast.Module):
            return shorter
        lines = lines[: min(len(lines), parsed) - 1]
    return code


def _parse(code: str) -> ast.Module | None:
    parsed = _parse_or_line(code)
    return parsed if isinstance(parsed, ast.Module) else None


def _parse_or_line(code: str) -> ast.Module | int:
    """The syntax tree, or the line (from 1) where parsing failed: no prefix that reaches it can parse either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except SyntaxError as error:
            return max(error.lineno or 1, 1)
        except (ValueError, RecursionError, MemoryError):
            return 1


def _defines(code: str, entry_point: str) -> bool:
    """True when the code gives ``entry_point`` a value at its top level, or seems to where it does not parse."""
    tree = _parse(code)
    if tree is None:
        return re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", code, re.MULTILINE) is not None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == entry_point:
            return True
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == entry_point for target in targets):
            return True
    return False
