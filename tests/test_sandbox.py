"""The sandbox must contain every hostile program, never be fooled about a verdict, and never blame an answer for the machine."""

from __future__ import annotations

import contextlib
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

from harness.core.records import Sample
from harness.scoring import execute, inside_box, sandbox, seccomp, warning
from harness.scoring.box import Box, Limits, interpreter
from harness.scoring.execute import Outcome, Program, run_in
from harness.scoring.sandbox import find_box, run_program, sandbox_status
from tests.hostile import CHEAT_TEST, CHEATS, ESCAPES, WANTED
from tests.humaneval_problems import problems

TIGHT = Limits(cpu_s=1, idle_s=1.0, memory_bytes=256 * 2**20)
IDENTITY_TEST = "def check(candidate):\n    assert candidate(3) == 3\n"
IDENTITY = Program(source="def f(n): return n", entry_point="f", test=IDENTITY_TEST)

needs_sandbox = pytest.mark.skipif(not sandbox_status().available, reason=f"no sandbox here: {sandbox_status().reason}")


def program(source: str, test: str = CHEAT_TEST) -> Program:
    """A program whose function is ``f``."""
    return Program(source=textwrap.dedent(source), entry_point="f", test=test)


def canonical(problem: dict[str, str]) -> Program:
    """A problem with its own solution, a completion of the prompt."""
    return Program(source=problem["canonical_solution"], **{key: problem[key] for key in ("prompt", "entry_point", "test")})


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


def state_of_this_machine() -> list[tuple[str, int, int, int, int]]:
    """Mode and owner of what an escape might reach, and when Python's files were changed."""
    found = [(path, os.stat(path)) for path in ("/dev/null", "/dev/zero", "/dev/urandom", "/tmp", "/", os.__file__, interpreter())]
    return [(path, s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns if path.endswith(("os.py", interpreter())) else 0) for path, s in found]


def escape(name: str, box: Box, folder: Path) -> tuple[Outcome, list[str], str]:
    """Run an escape; return the outcome, what reached the network and what the folder holds afterwards. Devices must be as before."""
    secret = folder / "secret.txt"
    before = state_of_this_machine()
    secret.write_text("top-secret")
    with listener() as (port, reached):
        test = f"def check(candidate):\n    got = candidate({str(secret)!r}, {port}, {os.getpid()})\n    assert got == [], got\n"
        outcome = run_in(box, program(ESCAPES[name], test), TIGHT)
    assert state_of_this_machine() == before
    left = ",".join(f"{path.name}={path.read_text()}" for path in sorted(folder.iterdir()))
    return outcome, reached, left


def test_there_are_enough_hostile_programs() -> None:
    """The promise is a number; keep it true."""
    assert len(CHEATS) + len(ESCAPES) >= 100


@needs_sandbox
def test_a_right_answer_passes_the_tests_of_the_cheats() -> None:
    """Otherwise every cheat would fail for the wrong reason."""
    source = f"def f(n): return {WANTED!r} + '!' * (n == 4)"
    assert run_program(program(source), limits=TIGHT) == Outcome(status="passed", reason="", sandbox=sandbox_status().kind)


REASONS = {
    "verdict_on_every_descriptor": "answers no request",
    "pickle_on_the_pipe": "malformed reply",
    "hash_bomb_on_the_pipe": "the tests ran out of CPU time",
    "sleeps_in_call": "waited for more than 1 s",
    "ignores_signals_and_spins": "was killed",
    "huge_string": "a result of more than",
    "flood_of_replies": "more output than allowed",
}
"""Cheats that meet a limit, and what is said of each: a failure can be understood."""


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_is_scored_as_right(name: str) -> None:
    """A wrong answer fails, whatever it does to the process it runs in."""
    outcome = run_program(program(CHEATS[name]), limits=TIGHT)
    assert outcome.status == "failed"
    assert REASONS.get(name, "") in outcome.reason


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
    before = set(psutil.Process().children(recursive=True))
    run_program(program(CHEATS["sleeps_in_call"]), limits=TIGHT)
    deadline = time.monotonic() + 5
    while (left := set(psutil.Process().children(recursive=True)) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


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
        run_program(Program(source=source, entry_point="f", test="def check(c): c(1)"), limits=Limits(cpu_s=60))
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
@pytest.mark.parametrize(
    "source",
    [
        "def f(n):\n    while True: pass",
        "import time\ndef f(n):\n    while True:\n        time.sleep(0.05)\n        sum(range(300000))",
        "import os\ndef f(n):\n    while True:\n        try: os.sync()\n        except OSError: pass",
        "import os\ndef f(n):\n    while True:\n        try: os.fsync(os.open(os.__file__, 0))\n        except OSError: pass",
        "import time\ndef f(n):\n    end = time.time() + 9\n    while time.time() < end: list(map(str, range(1000)))\n    return 3",
    ],
    ids=["busy", "naps", "sync", "fsync", "late"],
)
def test_what_outlives_the_wall_clock_has_failed(source: str) -> None:
    """Whatever it does meanwhile, and whichever other clock it keeps from running out: wrong, not unscored."""
    started = time.monotonic()
    outcome = run_program(program(source, IDENTITY_TEST), limits=Limits(cpu_s=60, idle_s=60, wall_s=2.0))
    assert (outcome.status, outcome.reason) == ("failed", "no verdict in 2 s")
    assert time.monotonic() - started < 30


@pytest.mark.skipif(sys.platform != "linux", reason="Linux shows a process that waits for its child as in disk sleep")
def test_disk_sleep_does_not_stop_the_clock(tmp_path: Path) -> None:
    """A process in uninterruptible sleep, here one whose child opens a pipe that no one writes to, fails like any other."""
    os.mkfifo(tmp_path / "pipe")
    opened = f"[(os.POSIX_SPAWN_OPEN, 0, {str(tmp_path / 'pipe')!r}, os.O_RDONLY, 0)]"
    source = f"import os\ndef f(n): os.posix_spawn('/bin/true', ['true'], {{}}, file_actions={opened})"
    outcome = run_in(Box(kind="none"), program(source, IDENTITY_TEST), Limits(idle_s=1.0, wall_s=2.5))
    assert (outcome.status, outcome.reason) == ("failed", "no verdict in 2.5 s")


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
def test_a_sandbox_that_does_not_start_in_time_is_unscored(tmp_path: Path) -> None:
    """The clock also runs while nothing of the answer has run; then the machine is at fault."""
    stuck = tmp_path / "bwrap"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    outcome = run_in(Box(kind="sandbox-exec", program=str(stuck)), IDENTITY, Limits(wall_s=1.0))
    assert (outcome.status, outcome.reason) == ("unscored", "the sandbox did not start in time")


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
def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way around: a code answer is unscored, and whoever starts a run with one is told why and what to do."""
    samples = [Sample(id="a", domain="code", prompt="", reference={"prompt": "def f(n):", "test": IDENTITY_TEST, "entry_point": "f"})]
    assert warning([]) == ""
    assert bool(warning(samples)) != sandbox_status().available
    find_box.cache_clear()
    monkeypatch.setattr(sandbox, "_boxes", lambda: [])
    assert not sandbox_status().available
    assert "nstall" in warning(samples) or sys.platform != "linux"
    assert warning([Sample(id="b", domain="math", prompt="", reference={"answer": "3"})]) == ""
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
    stub = Program(source=inside_box.stub(problem["prompt"]), entry_point=problem["entry_point"], test=problem["test"])
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
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(inside_box.DECODERS)),
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
    back = inside_box.decode(json.loads(json.dumps(inside_box.encode(value))))
    assert back == value
    assert _types(back) == _types(value)


@given(JSON)
def test_any_json_decodes_to_plain_values_or_an_ordinary_error(value: Any) -> None:
    """Whatever arrives on the pipe, no other type of object comes out, and no exception escapes the tests' handler."""
    try:
        back = inside_box.decode(json.loads(json.dumps(value)))
    except Exception:
        return
    assert set(_types(back)) <= {kind.__name__ for kind in PLAIN_TYPES} | {"Decimal", "Fraction"}


@given(st.text(max_size=300))
def test_reasons_are_one_short_printable_line(text: str) -> None:
    """The text of an exception is the answer's; it must not carry control characters into reports."""
    line = inside_box.describe(ValueError(text))
    assert len(line) <= 200
    assert line.isprintable()


ALLOW, REFUSE, NO_SUCH_CALL = 0x7FFF0000, 0x00050001, 0x00050026


def run_filter(code: bytes, architecture: int, number: int, arguments: dict[int, int]) -> int:
    """Interpret the filter for one system call."""
    memory = {0: number, 4: architecture} | {16 + 8 * i: arguments.get(i, 0) for i in range(6)}
    steps = list(struct.iter_unpack("=HBBI", code))
    at, register = 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        if operation == 0x20:
            register = memory[value]
        elif operation == 0x06:
            return value
        else:
            at += if_true if (register == value if operation == 0x15 else register & value) else if_false


FORBIDDEN = set(re.findall(r"\w+", """
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat setxattr lsetxattr fsetxattr
    setxattrat removexattr mknod mknodat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
    truncate ftruncate creat openat2 fallocate sync syncfs fsync fdatasync sync_file_range msync fadvise64 flock swapon quotactl acct
    mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr unshare setns fork vfork clone
    clone3 execveat kill tkill pidfd_send_signal pidfd_open pidfd_getfd rt_sigqueueinfo rt_tgsigqueueinfo ptrace process_vm_readv
    process_vm_writev process_madvise kcmp bpf perf_event_open userfaultfd seccomp landlock_create_ruleset socket socketpair connect
    bind sendto io_uring_setup io_uring_enter io_uring_register io_setup keyctl add_key request_key personality setrlimit setpriority
    ioprio_set sched_setscheduler sched_setattr sched_setaffinity nice setuid setgid setreuid setresuid setgroups setfsuid setsid
    setpgid capset prctl settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname reboot kexec_load kexec_file_load
    init_module finit_module delete_module syslog iopl ioperm modify_ldt shmget shmat semget msgget mq_open memfd_create memfd_secret
    mlock mlockall mbind set_mempolicy migrate_pages move_pages splice tee vmsplice sendfile copy_file_range inotify_init1
    fanotify_init epoll_create1 eventfd2 signalfd4 timerfd_create timer_create name_to_handle_at open_by_handle_at statfs
    lookup_dcookie uselib vhangup umask chdir fchdir
"""))  # fmt: skip
"""Calls that no solution needs, by family; the filter answers all of them, and any it has never heard of, with ENOSYS."""


@pytest.mark.parametrize("machine", seccomp.AUDIT_ARCHITECTURES)
def test_the_filter_allows_its_list_and_nothing_else(machine: str) -> None:
    """Run the BPF program for every call number: allowed, refused for its arguments, unknown, killed for a foreign architecture."""
    code, architecture = seccomp.filter_program(machine), seccomp.AUDIT_ARCHITECTURES[machine]
    column = list(seccomp.AUDIT_ARCHITECTURES).index(machine)
    names = {numbers[column]: name for name, numbers in seccomp.ALLOWED.items()}
    for number in range(1000):
        name = names.get(number)
        argument, good, bad = 0, [5], []
        if name in seccomp.ONLY:
            argument, good = seccomp.ONLY[name]
            bad = [value for value in range(2000) if value not in good]
        elif name in seccomp.WITHOUT:
            argument, bits = seccomp.WITHOUT[name]
            good, bad = [0, 0o2000000, 0o200000], [1, 2, 0o102, 0o1101, bits]
        for values, wanted in ((good, ALLOW), (bad, REFUSE)):
            for value in values:
                assert run_filter(code, architecture, number, {argument: value}) == (NO_SUCH_CALL if name is None else wanted)
    assert run_filter(code, architecture, 0x40000000 + 57, {}) == NO_SUCH_CALL
    assert run_filter(code, architecture ^ 1, 0, {}) == 0x80000000
    assert not FORBIDDEN & seccomp.ALLOWED.keys()


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_call_numbers_match_the_kernel_headers(header: str, column: int) -> None:
    """A wrong number would allow the wrong call."""
    if not Path(header).is_file():
        pytest.skip(f"no {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    numbers = {name: int(number) for name, number in found}
    numbers.setdefault("newfstatat", numbers.get("fstatat", -1))
    ours = {name: pair[column] for name, pair in seccomp.ALLOWED.items() if pair[column] is not None}
    assert ours == {name: numbers[name] for name in ours}


@needs_sandbox
@pytest.mark.skipif(sys.platform != "linux", reason="system-call filters are Linux's")
def test_the_kernel_refuses_every_other_call() -> None:
    """Not the table but the sandbox: each call number that is not allowed is tried inside, with harmless arguments."""
    column = list(seccomp.AUDIT_ARCHITECTURES).index(platform.machine())
    probes = {335, 336} if column == 0 else set()  # the kernel's own, which no filter sees: SIGILL when a program calls them
    tried = sorted(set(range(500)) - probes - {numbers[column] for numbers in seccomp.ALLOWED.values()})
    source = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def f(numbers): return [n for n in numbers if (libc.syscall(n, -1, 0, 0, 0, 0, 0), ctypes.get_errno()) != (-1, 38)]
    """
    outcome = run_program(program(source, f"def check(f):\n    got = f({tried})\n    assert got == [], got\n"), limits=TIGHT)
    assert (outcome.status, outcome.reason) == ("passed", "")


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

    before = set(psutil.Process().children(recursive=True))
    monkeypatch.setattr(execute._Supervisor, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_program(program(CHEATS["sleeps_in_call"]), limits=TIGHT)
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=5)
    assert alive == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
