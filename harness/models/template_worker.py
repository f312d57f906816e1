"""Renders chat templates in a process that can be stopped: a template is a program of a stranger, with loops and strings without end.

Run as a script: it imports nothing of the project. One JSON line comes in per prompt, one goes out. The environment is the one that
transformers gives templates, with a fixed date.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose modules have common names

import contextlib
import datetime
import json
import resource
import signal
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils


class Generation(jinja2.ext.Extension):
    """The tag ``generation``, which marks what the assistant says; here its body alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body).set_lineno(line)]


class Namespace(jinja2.utils.Namespace):
    """``namespace()`` without names that lead into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        names = dict(*args[1:], **kwargs)
        for name in names:
            _check(name)
        jinja2.utils.Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a name that does not begin with an underscore."""
        _check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


class Dict:
    """``dict()`` and ``dict.fromkeys()``, nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A new dict of equal values."""
        return dict.fromkeys(*args)


def _check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


@lru_cache(maxsize=4)
def compiled(template: str, date: str) -> jinja2.Template:
    """The template, for which it is always midnight of ``date``."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    now = datetime.datetime.fromisoformat(date)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:  # not jinja2's own, which escapes HTML
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    clock: Callable[[str], str] = now.strftime
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": clock, "dict": Dict(), "namespace": Namespace}
    return environment.from_string(template)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Text of one prompt, or why there is none."""
    try:
        text = compiled(request["template"], request["date"]).render(**request["variables"])
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # templates raise their own errors for roles they refuse
        return {"error": str(error)[:500] or type(error).__name__}
    if len(text) > request["most_chars"]:
        return {"error": f"its text is longer than {request['most_chars']} characters"}
    return {"text": text}


def main(memory_bytes: int) -> None:
    """Serve requests until standard input ends. After the start no file can be opened, and the process ends itself when time is up."""
    compiled("{% for m in [1] %}{{ strftime_now('%d') }}{% endfor %}", "2025-01-01").render()
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS refuses some; the parent watches memory too
            resource.setrlimit(what, (value, value))
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["clock_s"])
        reply = json.dumps(answer(request))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
