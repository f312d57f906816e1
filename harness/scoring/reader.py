"""Find the program in a model's answer: its last complete definition of the function, with the helpers and imports it needs.

This file is handed to the sandboxed process as text, so it uses the standard library alone. Every step is linear in the text, and what
Python's own parser is given is counted, so that no text can hold it up for long.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import sys
import textwrap
import warnings
from collections.abc import Iterator
from itertools import chain, dropwhile, takewhile, zip_longest
from typing import NamedTuple

from harness.scoring.markup import (
    MAX_CHARS,
    Fence,
    chunks,
    clean,
    closing,
    has_fence,
    one_line_blocks,
    opening,
    quote_state,
    reopens,
    unquoted,
)

WORK_CHARS = 40 * MAX_CHARS
"""Characters that are parsed or scanned for one answer, all tries together."""
TRIES = 40
"""How often the tail of one broken function is cut back, and how many fences a docstring may hold."""

_DEFINITION = re.compile(r"(?:@[^\n]*\n)*(?:async +)?(?:def|class)\b")
_FUTURE = re.compile(r"^from __future__ import [^\n(]*$", re.MULTILINE)
_CODE_SPAN = re.compile(r"(`{1,2})([^`\n]+)\1")


class Piece(NamedTuple):
    """One statement at the top level of some code."""

    source: str
    """Its lines."""
    node: ast.stmt
    """Its syntax tree."""
    whole: bool = True
    """False when a broken tail was cut off."""


def assemble(prompt: str, entry_point: str, text: str) -> str | None:
    """Return the program an answer amounts to, or None when there is no code in it.

    An answer that defines ``entry_point`` follows the prompt's imports and helpers; anything else is taken as the function's body.
    """
    return _Reader(prompt, entry_point).read(text)


class _Reader:
    """Reads one answer."""

    def __init__(self, prompt: str, entry_point: str) -> None:
        self._prompt, self._entry, self._left = prompt.rstrip() + "\n", entry_point, WORK_CHARS
        self._known: dict[str, ast.Module | int] = {}
        start = re.search(rf"^(?:async +)?def +{re.escape(entry_point)}\b", prompt, re.MULTILINE)
        self._head = prompt[: start.start()] if start else ""

    def read(self, text: str) -> str | None:
        text = clean(text)
        blocks, outside = self._blocks(text)
        if not any(part.strip() for part in (*blocks, outside)):
            return None
        body = None if blocks or not text.lstrip("\n")[:1].isspace() else self._body(text, returning=True)
        fenced = [self._pieces(block) for block in blocks]
        groups = [*fenced, [piece for piece in self._pieces(outside) if _is_code(piece)]]
        for whole, among in ((True, fenced), (True, groups[-1:]), (False, fenced), (False, groups[-1:])):
            for pieces in reversed(among if body is None else []):
                if self._answers(pieces, whole=whole):
                    return self._program(pieces, groups)
        return self._completed(blocks, outside, groups)

    # The parts of an answer.

    def _blocks(self, text: str, depth: int = 0) -> tuple[list[str], str]:
        """(code blocks in order, the text outside of them)."""
        lines, blocks, spans, outside, at = text.split("\n"), list[str](), list[str](), list[str](), 0
        while at < len(lines):
            line, fence = lines[at], opening(lines[at])
            at += 1
            if fence is None:
                outside.append(line)
                if self._entry in line or "return " in line:
                    blocks += one_line_blocks(line)
                if self._entry in line:
                    spans += [span for _, span in _CODE_SPAN.findall(line)]
                continue
            block, at = self._block(lines, at, fence)
            python = fence.language in ("", "python", "py", "ipython", "pycon")
            if depth < 3 and has_fence(block) and (fence.language in ("", "markdown", "md") or self._parse(block) is None):
                blocks += self._blocks(block, depth + 1)[0] or [block]
            elif python or self._entry in block:
                blocks.append(block)
        return [span for span in spans if any(map(self._defines, self._pieces(span)))] + blocks, "\n".join(outside)

    def _block(self, lines: list[str], start: int, fence: Fence) -> tuple[str, int]:
        """The code of the block that begins at line ``start``, and the line to go on with. A fence in a docstring does not end it."""
        quote: str | None = None
        ends: list[tuple[int, str, int]] = []
        for at in range(start, len(lines)):
            line = lines[at]
            self._left -= len(line) + 1
            rest, again = closing(line, fence.mark, quote), reopens(line, fence.mark)
            if rest is not None or again:
                ends.append((at, rest or "", at if again else at + 1))
                if quote is None or len(ends) > TRIES or self._left < 0:
                    break
            quote = quote_state(line, quote)[0]
        else:
            ends.append((len(lines), "", len(lines)))
        found = [("\n".join(unquoted([fence.code, *lines[start:at], rest], fence)), after) for at, rest, after in (ends[0], ends[-1])]
        return found[1] if len(ends) > 1 and self._answers(self._pieces(found[1][0])) else found[0]

    def _pieces(self, code: str, depth: int = 0) -> list[Piece]:
        """The statements of ``code``; where it does not parse, those that do, without prose and what is cut off."""
        if code.lstrip().startswith(">>> "):
            code = "\n".join(line[4:] for line in textwrap.dedent(code).split("\n") if line[:4] in (">>> ", "... "))
        if not re.search(r"^\S", code, re.MULTILINE):  # dedent would change blank lines inside strings
            code = textwrap.dedent(code)
        tree = self._parse(code)
        if tree is None:
            return [piece for chunk in chunks(code, 2) for piece in self._repaired(chunk, 2, depth)]
        return list(_split(code, tree))

    def _repaired(self, chunk: str, tracked: int, depth: int) -> Iterator[Piece]:
        """Statements of a chunk: all of it, or split without regard to brackets, then to quotes, or without its head or its tail."""
        tree = self._parse(chunk)
        if tree is not None:
            yield from (piece for piece in _split(chunk, tree) if _is_code(piece))
        elif tracked:
            for part in chunks(chunk, tracked - 1):
                yield from self._repaired(part, tracked - 1, depth)
        elif _DEFINITION.match(chunk):
            trimmed, tree = self._trimmed(chunk)
            yield from () if tree is None else (piece._replace(whole=False) for piece in _split(trimmed, tree))
        elif depth < 2 and f"def {self._entry}" in chunk:  # indented code below a line of prose
            yield from self._pieces(chunk.partition("\n")[2], depth + 1)

    def _trimmed(self, chunk: str) -> tuple[str, ast.Module | None]:
        """``chunk`` without the trailing lines that keep it from parsing, and its tree; None when nothing is left."""
        lines = chunk.split("\n")
        for _ in range(TRIES):
            while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("@") or lines[-1].endswith("\\")):
                lines.pop()
            shorter = "\n".join(lines) + "\n"
            parsed = self._parse_or_line(shorter)
            if isinstance(parsed, ast.Module):
                return shorter, parsed
            lines = lines[: min(len(lines), parsed) - 1]
        return "", None

    # The program.

    def _program(self, chosen: list[Piece], groups: list[list[Piece]]) -> str:
        """The prompt's head, what ``chosen`` needs of the other groups, and ``chosen`` without stubs of the function."""
        kept = [piece for piece in chosen if not (self._defines(piece) and _is_stub(piece.node))]
        own = set[str]().union(*(_bound(piece.node) for piece in kept if _is_definition(piece))) - {self._entry}
        later = chain.from_iterable(groups[groups.index(chosen) + 1 :])
        kept += [piece for piece in later if _is_definition(piece) and _bound(piece.node) <= own]  # corrected helpers
        code = "".join(f"{piece.source}\n" for piece in kept)
        return _futures_first(f"{self._head}\n{self._needed(f'{self._head}{code}', groups)}{code}")

    def _completed(self, blocks: list[str], outside: str, groups: list[list[Piece]]) -> str:
        """The prompt completed by the last block that makes a body, one with a result if there is, else by the text as it stands."""
        for returning in (True, False):
            for code in (*reversed(blocks), outside):
                body = self._body(code, returning=returning)
                if body is not None:
                    return _futures_first(f"{body}\n{self._needed(body, groups)}")
        return f"{self._prompt}{blocks[-1] if blocks else outside}\n"

    def _body(self, text: str, *, returning: bool) -> str | None:
        """The prompt and the longest reading of ``text`` as the function's body: models and tokenizers lose indentation."""
        text = text.strip("\n")
        flat = "\n".join(takewhile(lambda chunk: self._parse(chunk) is not None, chunks(textwrap.dedent(text), 2)))
        below = "\n".join(dropwhile(lambda line: not line[:1].isspace() and not _DEFINITION.match(line), text.split("\n")))
        first, shifted, below = (next(chunks(option, 2), "") for option in (text, f"    {text.lstrip()}", below))
        readings = [first, shifted, below, *(textwrap.indent(textwrap.dedent(option), "    ") for option in (first, below, flat))]
        given, good = self._prompt.count("\n"), list[str]()
        for code in (f"{self._prompt}{reading}\n" for reading in readings if reading.strip()):
            tree = self._parse(code)
            last = tree.body[-1] if tree is not None and tree.body else None
            if isinstance(last, ast.FunctionDef) and last.lineno <= given < (last.end_lineno or 0) and (not returning or _returns(last)):
                good.append(code)
        return max(good, key=len, default=None)

    def _needed(self, code: str, groups: list[list[Piece]]) -> str:
        """Source of the statements in ``groups`` that ``code`` needs names from, in order, and of what those need."""
        pieces = [piece for group in groups for piece in group if not self._defines(piece)]
        pool: dict[str, list[int]] = {}
        for i, piece in enumerate(pieces):
            for name in _touched(piece.node):
                pool[name] = [*(j for j in pool.get(name, ()) if not (_is_definition(piece) and _is_definition(pieces[j]))), i]
        wanted, found = _free(code) | {"*"}, set[int]()
        while names := wanted & pool.keys():
            new = set(chain.from_iterable(pool.pop(name) for name in names)) - found
            found |= new
            wanted = wanted.union(*(_free(pieces[i].source) for i in new))
        return "".join(f"{pieces[i].source}\n" for i in sorted(found))

    def _answers(self, pieces: list[Piece], *, whole: bool = True) -> bool:
        """Whether the function is among ``pieces``, with a body, and ``whole``; ``f = cached(f)`` is not the function."""
        return any(
            self._defines(piece)
            and piece.whole >= whole
            and not _is_stub(piece.node)
            and not any(
                isinstance(node, ast.Name) and node.id == self._entry and isinstance(node.ctx, ast.Load) for node in _own([piece.node])
            )
            for piece in pieces
        )

    def _defines(self, piece: Piece) -> bool:
        return self._entry in _bound(piece.node)

    # Parsing within bounds.

    def _parse(self, code: str) -> ast.Module | None:
        parsed = self._parse_or_line(code)
        return parsed if isinstance(parsed, ast.Module) else None

    def _parse_or_line(self, code: str) -> ast.Module | int:
        """The syntax tree, or the line (from 1) where parsing failed: no prefix that reaches it can parse either."""
        if code not in self._known:
            self._left -= len(code) + 1
            self._known[code] = _tree_or_line(code) if self._left >= 0 else 1
        return self._known[code]


def _tree_or_line(code: str) -> ast.Module | int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except SyntaxError as error:
            return max(error.lineno or 1, 1)
        except (ValueError, RecursionError, MemoryError):
            return 1


def _split(code: str, tree: ast.Module) -> Iterator[Piece]:
    """The statements of parsed code with their lines, what cannot be imported left out; several on one line are written apart."""
    lines, last = code.split("\n"), 0
    for node, following in zip_longest(tree.body, tree.body[1:]):
        start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        end = node.end_lineno or node.lineno
        shared = start <= last or (following is not None and following.lineno <= end)
        kept = _importable(node)
        if kept is not None:
            yield Piece(ast.unparse(kept) if shared or kept is not node else "\n".join(lines[start - 1 : end]), kept)
        last = end


def _is_code(piece: Piece) -> bool:
    """False for prose that happens to be Python: a name, ``Note: this``, ``this and that``, a call of nothing known, a lone return."""
    node = piece.node
    if isinstance(node, ast.Expr):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return isinstance(called, ast.Attribute) or (isinstance(called, ast.Name) and hasattr(builtins, called.id))
    if isinstance(node, ast.AnnAssign) and node.value is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(piece.source, "answer", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _importable(node: ast.stmt) -> ast.stmt | None:
    """``node`` without imports from outside the standard library, None where nothing is left: the sandbox lacks them, and often the name
    is the answer's own."""
    if isinstance(node, ast.ImportFrom):
        return node if node.level == 0 and _in_library(node.module or "") else None
    if not isinstance(node, ast.Import):
        return node
    kept = [alias for alias in node.names if _in_library(alias.name)]
    if len(kept) == len(node.names):
        return node
    return ast.copy_location(ast.Import(kept), node) if kept else None


def _in_library(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _is_definition(piece: Piece) -> bool:
    return isinstance(piece.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _is_stub(node: ast.stmt) -> bool:
    """A function without a body: a docstring, ``pass``, ``...`` or ``raise NotImplementedError``."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
        isinstance(part, ast.Pass)
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or (isinstance(part, ast.Raise) and "NotImplementedError" in ast.dump(part))
        for part in node.body
    )


def _own(nodes: list[ast.stmt]) -> list[ast.AST]:
    """The nodes below ``nodes`` that do not lie inside a function or class."""
    found: list[ast.AST] = list(nodes)
    for node in found:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            found += ast.iter_child_nodes(node)
    return found


def _returns(function: ast.FunctionDef) -> bool:
    """Whether the function itself, not one inside it, gives a result."""
    return any(isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) for node in _own(function.body))


def _bound(statement: ast.stmt) -> set[str]:
    """The names a statement gives a value to; ``*`` for a star import."""
    names = set()
    for node in _own([statement]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _touched(statement: ast.stmt) -> set[str]:
    """The names a statement gives a value to, or changes the value of: ``t[1] = 2``, ``t.append(3)``."""
    names = _bound(statement)
    for node in [] if isinstance(statement, ast.FunctionDef | ast.ClassDef) else _own([statement]):
        place: ast.AST | None = node if isinstance(getattr(node, "ctx", None), ast.Store) else None
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            place = node.value.func
        while isinstance(place, ast.Attribute | ast.Subscript):
            place = place.value
            names |= {place.id} if isinstance(place, ast.Name) else set()
    return names


def _free(code: str) -> set[str]:
    """Global names that code uses and does not define."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            top = symtable.symtable(code, "answer", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return set()
    names, tables = set[str](), [top]
    for table in tables:
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global()}
        tables += table.get_children()
    return names - {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def _futures_first(program: str) -> str:
    """The program with its ``from __future__`` imports where Python wants them."""
    found = dict.fromkeys(_FUTURE.findall(program))
    return "\n".join([*found, _FUTURE.sub("", program)]) if found else program
