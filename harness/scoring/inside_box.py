"""The code that runs inside the sandbox: one process holds the answer, another one holds the tests.

This file is handed to ``python -c`` as text, so it uses the standard library alone and imports nothing of the project. Only JSON lines
cross between the two processes, and they rebuild nothing but plain built-in values: an object of the answer's own making, with its own
``__eq__``, can never reach an assertion. Argument vector: role, CPU seconds, memory bytes, reply bytes, then for the tests the numbers of
the descriptors that write to and read from the answer's process.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

SMALL_INT = 2**53
MAX_OPEN_FILES = 64


class NotPlain(Exception):
    """A value that is not made of built-in plain data."""


class CandidateError(Exception):
    """The answer raised, or returned something that is not plain data."""


class CandidateGone(BaseException):
    """The answer's process ended or broke the protocol; no test may catch it by accident."""


class UnusableTest(BaseException):
    """The tests do something this protocol cannot serve: nothing can be said about the answer."""


def encode(value: Any) -> Any:
    """Plain value -> JSON value. Raises NotPlain for anything that is not built-in data."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        return int(value) if abs(value) < SMALL_INT else ["int", hex(value)]
    if isinstance(value, float):
        return float(value)
    for name, kind in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return [name, [encode(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in value.items()]]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, Fraction):
        return ["Fraction", hex(value.numerator), hex(value.denominator)]
    if isinstance(value, Decimal):
        return ["Decimal", str(value)]
    raise NotPlain(f"a {type(value).__name__} is not plain data")


DECODERS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "list": lambda items: [decode(item) for item in items],
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: {decode(item) for item in items},
    "frozenset": lambda items: frozenset(decode(item) for item in items),
    "dict": lambda items: {decode(key): decode(item) for key, item in items},
    "complex": lambda real, imag: complex(real, imag),
    "bytes": lambda text: bytes.fromhex(text),
    "bytearray": lambda text: bytearray.fromhex(text),
    "Fraction": lambda top, bottom: Fraction(int(top, 16), int(bottom, 16)),
    "Decimal": lambda text: Decimal(text),
}


def decode(value: Any) -> Any:
    """JSON value -> plain value. Raises NotPlain for anything :func:`encode` does not write."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, list) or not value or not isinstance(value[0], str) or value[0] not in DECODERS:
        raise NotPlain("malformed value")
    return DECODERS[value[0]](*value[1:])


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write one JSON line."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def printable(text: str) -> str:
    """One short printable line of text that may be hostile."""
    return "".join(char if char.isprintable() else " " for char in text[:200])


def describe(error: BaseException) -> str:
    """One short printable line for an exception."""
    try:
        return printable(f"{type(error).__name__}: {error}")
    except BaseException:
        return "an exception that cannot be printed"


def run_candidate(reply_bytes: int) -> None:
    """Serve calls of the answer's function. Everything here is in the answer's reach; nothing here decides the verdict."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence()
    send(replies, {"ready": True})
    job = json.loads(requests.readline())
    module = ModuleType("candidate")
    sys.modules["candidate"] = module

    def load() -> None:
        source = assemble(job) if job["prompt"] else job["source"]
        try:
            exec(compile(source, "candidate", "exec"), module.__dict__)
        except (Exception, SystemExit):
            if job["entry_point"] not in module.__dict__:  # an example below the function may fail
                raise

    def call(request: dict[str, Any]) -> Any:
        return getattr(module, job["entry_point"])(*decode(request["args"]), **decode(request["kwargs"]))

    answer(replies, 0, load, reply_bytes)
    for line in requests:
        request = json.loads(line)
        answer(replies, request["id"], functools.partial(call, request), reply_bytes)


def assemble(job: dict[str, Any]) -> str:
    """The program in the text of an answer, read here, where the limits hold, since reading hostile text can take long."""
    for name, text in job["reader"].items():
        module = sys.modules[name] = ModuleType(name)
        exec(compile(text, name, "exec"), module.__dict__)
    source: str | None = module.assemble(job["prompt"], job["entry_point"], job["source"])
    if source is None:
        raise ValueError("the answer holds no code")
    return source


def answer(descriptor: int, number: int, function: Callable[[], Any], reply_bytes: int) -> None:
    """Run ``function`` and send its plain value, or what went wrong, as reply ``number``."""
    try:
        value = encode(function())
        if len(json.dumps(value)) > reply_bytes:
            raise NotPlain(f"a result of more than {reply_bytes} bytes")
        message = {"id": number, "value": value}
    except BaseException as error:
        message = {"id": number, "error": describe(error)}
    send(descriptor, message)


class Peer:
    """The answer's process as the tests see it: ``peer(*args)`` calls the answer's function there."""

    def __init__(self, requests: int, replies: int, reply_bytes: int) -> None:
        self._requests, self._replies, self._limit = requests, os.fdopen(replies, "rb"), reply_bytes + 256
        self._sent = -1
        self.gone: CandidateGone | None = None
        self.answered = 0

    def _end(self, reason: str) -> CandidateGone:
        self.gone = self.gone or CandidateGone(reason)
        return self.gone

    def line(self) -> Any:
        """Next message of the answer's process."""
        if self.gone:
            raise self.gone
        data = self._replies.readline(self._limit)
        if not data:
            raise self._end("eof")
        if not data.endswith(b"\n"):
            raise self._end("eof" if len(data) < self._limit else "more output than allowed")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._end("a malformed reply") from None

    def ask(self, message: dict[str, Any]) -> Any:
        """Send a request and return the plain value that came back."""
        self._sent += 1
        if not self.gone:
            with contextlib.suppress(BrokenPipeError):  # its end is then seen on the reply channel
                send(self._requests, {**message, "id": self._sent})
        reply = self.line()
        if not isinstance(reply, dict) or reply.get("id") != self._sent or type(reply["id"]) is not int:
            raise self._end("a reply that answers no request")
        if "value" not in reply:
            raise CandidateError(printable(str(reply.get("error"))))
        try:
            return decode(reply["value"])
        except Exception as error:
            raise CandidateError(f"malformed value: {describe(error)}") from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tests call."""
        try:
            request = {"args": encode(args), "kwargs": encode(kwargs)}
        except NotPlain as error:
            raise UnusableTest(f"an argument cannot be sent: {error}") from None
        value = self.ask(request)
        self.answered += 1
        return value


def run_tester(requests: int, replies: int, reply_bytes: int) -> None:
    """Run the tests against the answer's process and write the verdict for the supervisor."""
    job, verdicts = json.loads(sys.stdin.buffer.readline()), os.dup(1)
    silence()
    peer = Peer(requests, replies, reply_bytes)
    if peer.line() != {"ready": True}:
        raise SystemExit("the answer's process did not start")
    send(verdicts, {"ready": True})
    verdict, reason = judge(peer, job)
    if peer.gone:
        verdict, reason = ("gone", "") if str(peer.gone) == "eof" else ("failed", f"the program sent {peer.gone}")
    send(verdicts, {"verdict": verdict, "reason": reason})


def stub(prompt: str) -> str:
    """The problem's own imports and helper functions, which its tests may call; the function to write is empty."""
    return f"{prompt.rstrip()}\n    pass\n" if prompt else ""


def judge(peer: Peer, job: dict[str, str]) -> tuple[str, str]:
    """Return ``passed``, ``failed`` or ``broken`` (the tests themselves are unusable) and why."""
    module = ModuleType("tests")
    sys.modules["tests"] = module
    try:
        exec(compile(stub(job["prompt"]), "prompt", "exec"), module.__dict__)
        module.__dict__[job["entry_point"]] = peer
        exec(compile(job["test"], "tests", "exec"), module.__dict__)
        check = module.__dict__["check"]
    except BaseException as error:
        return "broken", describe(error)
    try:
        peer.ask({key: job[key] for key in ("source", "prompt", "entry_point", "reader")})
        check(peer)
    except UnusableTest as error:
        return "broken", describe(error)
    except BaseException as error:
        return "failed", describe(error)
    return ("passed", "") if peer.answered else ("broken", "the tests never called the function")


class Discard(io.RawIOBase):
    """A stream that takes everything and keeps nothing: there is no null device in the sandbox."""

    def writable(self) -> bool:
        """True: anything can be written."""
        return True

    def write(self, data: Any) -> int:
        """Forget ``data``."""
        return len(data)


def silence() -> None:
    """Standard input is at its end, what is printed goes nowhere, and the environment is empty."""
    for descriptor in (0, 1, 2):
        ends = os.pipe()
        os.dup2(ends[descriptor > 0], descriptor)
        for end in ends:
            os.close(end)
    nowhere = io.TextIOWrapper(io.BufferedWriter(Discard()), write_through=True)
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        setattr(sys, name, nowhere)
    os.environ.clear()


def limit(cpu_s: float, memory_bytes: int) -> None:
    """Hard limits, inherited and never to be raised again: CPU, memory, file size, descriptors, core dumps."""
    seconds = math.ceil(cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for what, value in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        try:
            resource.setrlimit(what, (value, value))
        except (ValueError, OSError):
            if sys.platform != "darwin":  # macOS refuses RLIMIT_AS; the supervisor watches resident memory there
                raise


def main(arguments: list[str]) -> None:
    """Entry point; see the module docstring for the arguments."""
    role, cpu_s, memory_bytes, reply_bytes = arguments[0], float(arguments[1]), int(arguments[2]), int(arguments[3])
    limit(cpu_s, memory_bytes)
    if role == "candidate":
        run_candidate(reply_bytes)
    else:
        run_tester(int(arguments[4]), int(arguments[5]), reply_bytes)


if __name__ == "__main__":
    main(sys.argv[1:])
