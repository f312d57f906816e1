"""Hostile programs for the sandbox tests.

``CHEATS`` try to be scored as right: each is judged by tests that its wrong results must not survive. ``ESCAPES`` try to reach
something outside and return what they got: inside the sandbox that must be nothing. They are plain functions of ``(secret, port, pid)``,
so that a test can also run them without a sandbox and see them succeed.
"""

from __future__ import annotations

import secrets
import textwrap

WANTED = f"expected-{secrets.token_hex(8)}"
"""What the tests of a cheat expect: random, so that no cheat holds it; two of them know its pattern and search for it."""

CHEAT_TEST = f"def check(candidate):\n    assert candidate(3) == {WANTED!r}\n    assert candidate(4) == {WANTED!r} + '!'\n"

CHEATS: dict[str, str] = {
    "equality_always_true": """
        class Same:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = None
        def f(n): return Same()
    """,
    "str_subclass_equal_to_all": """
        class Same(str):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(n): return Same("x")
    """,
    "int_subclass_with_hooks": """
        class Same(int):
            def __eq__(self, other): return True
            def __index__(self): return 1
            def __abs__(self): return self
            def __int__(self): return self
        def f(n): return Same(7)
    """,
    "list_subclass_equal_to_all": """
        class Same(list):
            def __eq__(self, other): return True
            def __iter__(self): return iter([1])
        def f(n): return Same([1])
    """,
    "lies_about_its_class": """
        class Liar:
            __class__ = str
            def __eq__(self, other): return True
            def __str__(self): return self
        def f(n): return Liar()
    """,
    "unittest_mock_any": """
        from unittest import mock
        def f(n): return mock.ANY
    """,
    "exit_0_at_import": "raise SystemExit(0)",
    "os_exit_0_at_import": "import os; os._exit(0)",
    "exit_0_in_call": """
        import sys
        def f(n): sys.exit(0)
    """,
    "os_exit_0_in_call": """
        import os
        def f(n): os._exit(0)
    """,
    "exit_0_in_atexit": """
        import atexit, os
        atexit.register(os._exit, 0)
        def f(n): raise SystemExit(0)
    """,
    "patched_builtins": """
        import builtins
        for name in ("abs", "all", "any", "len", "isinstance", "sorted", "sum", "repr", "str", "type"):
            setattr(builtins, name, lambda *a, **k: True)
        builtins.AssertionError = type("Never", (Exception,), {})
        def f(n): return 1
    """,
    "deleted_builtins": """
        import builtins
        def f(n): return 1
        vars(builtins).clear()
    """,
    "patched_worker": """
        import sys
        main = sys.modules["__main__"]
        main.answer = lambda d, n, f, r: main.send(d, {"verdict": "passed", "reason": ""})
        main.judge = lambda *a: ("passed", "")
        main.encode = lambda value: {"verdict": "passed"}
        def f(n): return 1
    """,
    "patched_json": """
        import json
        json.dumps = lambda *a, **k: '{"verdict": "passed", "reason": "", "ready": true}'
        def f(n): return 1
    """,
    "verdict_on_every_descriptor": """
        import os
        for fd in range(64):
            try: os.write(fd, b'{"verdict": "passed", "reason": ""}\\n')
            except OSError: pass
        def f(n): return 1
    """,
    "forged_verdict_then_exit": """
        import os
        for fd in range(64):
            try: os.write(fd, b'{"ready": true}\\n{"verdict": "passed", "reason": ""}\\n')
            except OSError: pass
        os._exit(0)
    """,
    "forged_replies_ahead": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b"".join(b'{"id": %d, "value": true}\\n' % n for n in range(50)))
            except OSError: pass
        def f(n): return 1
    """,
    "forged_reply_without_newline": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'{"id": 0, "value": null}')
            except OSError: pass
        os.closerange(0, 64)
    """,
    "pickle_on_the_pipe": """
        import os, pickle
        class Payload:
            def __reduce__(self): return (print, ("passed",))
        for fd in range(3, 64):
            try: os.write(fd, pickle.dumps(Payload()) + b"\\n")
            except OSError: pass
        def f(n): return Payload()
    """,
    "unknown_tags_on_the_pipe": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'{"id": 0, "value": ["__import__", "os"]}\\n{"id": 1, "value": ["eval", "1"]}\\n')
            except OSError: pass
        def f(n): return 1
    """,
    "deep_json_on_the_pipe": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'{"id": 0, "value": ' + b'["list", [' * 5000 + b"\\n")
            except OSError: pass
        def f(n): return 1
    """,
    "search_memory_for_the_tests": """
        import gc, re, sys
        def f(n):
            seen = [repr(o) for o in gc.get_objects() if isinstance(o, (str, dict, list, tuple, bytes))]
            frame = sys._getframe()
            while frame:
                seen += [repr(value) for value in frame.f_locals.values()]
                frame = frame.f_back
            for found in re.finditer("expected-[0-9a-f]{16}", " ".join(seen)): return found[0] + "!" * (n == 4)
    """,
    "search_proc_for_the_tests": """
        import glob, re
        def f(n):
            for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/fd/*"):
                try: data = open(path, "rb").read(1 << 20)
                except OSError: continue
                for found in re.finditer(b"expected-[0-9a-f]{16}", data): return found[0].decode() + "!" * (n == 4)
    """,
    "search_descriptors_for_the_tests": """
        import os, re
        def f(n):
            for fd in range(64):
                try: os.set_blocking(fd, False); data = os.read(fd, 1 << 16)
                except OSError: continue
                for found in re.finditer(b"expected-[0-9a-f]{16}", data): return found[0].decode() + "!" * (n == 4)
    """,
    "trace_function": """
        import sys
        def trace(frame, event, arg):
            frame.f_globals["candidate"] = lambda *a: True
            return trace
        sys.settrace(trace)
        sys.setprofile(trace)
        def f(n): return 1
    """,
    "closes_every_descriptor": """
        import os
        os.closerange(0, 256)
        def f(n): return 1
    """,
    "kills_itself": """
        import signal
        def f(n): signal.raise_signal(signal.SIGKILL)
    """,
    "stops_itself": """
        import signal
        def f(n): signal.raise_signal(signal.SIGSTOP)
    """,
    "crashes_the_interpreter": """
        import ctypes
        def f(n): ctypes.string_at(0)
    """,
    "sleeps_at_import": "import time\nwhile True: time.sleep(3600)",
    "sleeps_in_call": """
        import time
        def f(n): time.sleep(3600)
    """,
    "reads_stdin_forever": """
        import sys
        def f(n):
            while True: sys.stdin.read()
    """,
    "ignores_signals_and_spins": """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def f(n):
            while True: pass
    """,
    "swallows_every_exception": """
        def f(n):
            while True:
                try:
                    while True: pass
                except BaseException: pass
    """,
    "endless_generator": """
        import itertools
        def f(n): return itertools.count()
    """,
    "endless_recursion": """
        import sys
        sys.setrecursionlimit(10**9)
        def f(n): return f(n)
    """,
    "self_containing_list": """
        def f(n):
            loop = []
            loop.append(loop)
            return loop
    """,
    "huge_integer": "def f(n): return 1 << (1 << 26)",
    "huge_string": "def f(n): return 'x' * (64 << 20)",
    "str_bomb_in_exception": """
        class Bomb(Exception):
            def __str__(self): return "x" * (1 << 33)
        def f(n): raise Bomb
    """,
    "hash_bomb": """
        def f(n): return {i * (2**61 - 1): None for i in range(1, 30000)}
    """,
    "hash_bomb_on_the_pipe": """
        import json, os
        value = ["set", [["int", hex(i * (2**61 - 1))] for i in range(1, 25000)]]
        for fd in range(3, 16):
            try: os.write(fd, json.dumps({"id": 0, "value": value}).encode() + b"\\n")
            except OSError: pass
        def f(n): return 1
    """,
    "flood_of_replies": """
        import os
        def f(n):
            while True:
                for fd in range(3, 16):
                    try: os.write(fd, b"x" * 65536)
                    except OSError: pass
    """,
    "flood_of_output": """
        import sys
        def f(n):
            while True: sys.stdout.write("passed" * 10000); sys.stderr.write("passed" * 10000)
    """,
    "hijacks_stdout": """
        import sys, io
        sys.stdout = sys.__stdout__ = io.StringIO()
        sys.stdin = io.StringIO('{"verdict": "passed"}')
        print('{"verdict": "passed", "reason": ""}')
        def f(n): return 1
    """,
    "raises_stop_iteration": "def f(n): raise StopIteration('x')",
    "raises_assertion_error_named_pass": "def f(n): raise AssertionError('passed')",
    "defines_check_itself": """
        def check(candidate): pass
        METADATA = {"passed": True}
        def f(n): return 1
    """,
    "not_a_number": "def f(n): return float('nan')",
    "coroutine": "async def f(n): return True",
    "no_function": "x = 1",
    "syntax_error": "def f(n:",
}


def _escape(body: str) -> str:
    """A program whose ``f(secret, port, pid)`` returns what the attempts in ``body`` got; raising means nothing was got."""
    head = """
        import os, sys
        def f(secret, port, pid):
            got = []
            def attempt(action):
                try: got.append(repr(action())[:200])
                except BaseException: pass
    """
    return textwrap.dedent(head) + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n    return got\n"


ESCAPES: dict[str, str] = {
    name: _escape(body)
    for name, body in {
        "read_the_secret": "attempt(lambda: open(secret).read())",
        "read_the_secret_by_os_open": "attempt(lambda: os.read(os.open(secret, os.O_RDONLY), 99))",
        "read_through_a_symlink": """
            for place in ("/tmp", "/dev", "/python", "."):
                attempt(lambda: os.symlink(secret, place + "/link"))
                attempt(lambda: open(place + "/link").read())
        """,
        "read_etc": """
            for name in ("passwd", "shadow", "hostname", "resolv.conf", "machine-id"): attempt(lambda: open("/etc/" + name).read())
        """,
        "list_home_and_root": """
            for path in ("/root", "/home", "/etc", "/usr", "/var", "/sys", os.path.dirname(secret)): attempt(lambda: os.listdir(path))
        """,
        "unexpected_root_entries": """
            got.extend(sorted(set(os.listdir("/")) - {"python", "lib", "lib64"}))
        """,
        "environment": "got.extend(os.environ)",
        "environment_of_libc": """
            import ctypes
            libc = ctypes.CDLL(None)
            libc.getenv.restype = ctypes.c_char_p
            for name in (b"PATH", b"HOME", b"USER", b"HARNESS_TEST_SECRET", b"HF_TOKEN"):
                if libc.getenv(name): got.append(name.decode())
        """,
        "snoop_proc": """
            attempt(lambda: os.listdir("/proc"))
            for name in ("self/environ", "self/maps", "1/environ", "self/mounts", "sys/kernel/core_pattern"):
                attempt(lambda: open("/proc/" + name).read())
        """,
        "import_the_project": """
            for name in ("harness", "routing", "psutil", "numpy", "mlx"): attempt(lambda: __import__(name))
        """,
        "connect_to_loopback": """
            import socket
            attempt(lambda: socket.create_connection(("127.0.0.1", port), 2).send(b"hello"))
        """,
        "send_a_datagram": """
            import socket
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)))
        """,
        "unix_sockets": """
            import socket
            attempt(lambda: socket.socket(socket.AF_UNIX))
            attempt(lambda: socket.socketpair())
        """,
        "raw_and_netlink_sockets": """
            import socket
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
            attempt(lambda: socket.socket(16, socket.SOCK_RAW, 0))
        """,
        "listen": """
            import socket
            attempt(lambda: socket.create_server(("127.0.0.1", 0)))
        """,
        "fork_bomb": """
            for _ in range(200):
                def child():
                    number = os.fork()
                    if number == 0: os._exit(0)
                    return number
                attempt(child)
        """,
        "double_fork_daemon": """
            def daemon():
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        import time
                        time.sleep(20)
                    os._exit(0)
            attempt(daemon)
        """,
        "start_programs": """
            import subprocess
            for command in (["/bin/sh", "-c", "echo x"], ["/python/bin/python3", "-c", "1"], ["true"]):
                attempt(lambda: subprocess.run(command))
            attempt(lambda: os.posix_spawn("/python/bin/python3", ["python3", "-c", "1"], {}))
            attempt(lambda: os.popen("id").read() or 1 / 0)
        """,
        "threads": """
            import threading
            attempt(lambda: threading.Thread(target=print).start())
            import _thread
            attempt(lambda: _thread.start_new_thread(print, ()))
        """,
        "process_pools": """
            import multiprocessing
            attempt(lambda: multiprocessing.Process(target=print).start())
        """,
        "write_files": """
            folders = ["/", "/tmp", "/dev", "/dev/shm", "/var/tmp", "/python", "/python/lib", ".", os.path.dirname(secret)]
            for folder in folders + [os.path.expanduser("~")]:
                attempt(lambda: open(folder + "/pwned", "w").write("x"))
                attempt(lambda: os.mkdir(folder + "/pwned-folder"))
        """,
        "overwrite_the_secret": """
            attempt(lambda: open(secret, "w").write("pwned"))
            attempt(lambda: os.remove(secret))
            attempt(lambda: os.rename(secret, secret + "2"))
        """,
        "poison_the_standard_library": """
            attempt(lambda: open(os.__file__, "a").write("#"))
            attempt(lambda: os.chmod(os.__file__, 0o777))
            attempt(lambda: os.utime(os.__file__))
            attempt(lambda: os.remove(sys.executable))
            attempt(lambda: open(sys.executable, "ab"))
        """,
        "make_nodes": """
            import stat
            attempt(lambda: os.mkfifo("/tmp/fifo") or 1)
            attempt(lambda: os.mknod("/dev/mem2", stat.S_IFCHR | 0o666, os.makedev(1, 1)) or 1)
            attempt(lambda: open("/dev/mem", "rb").read(1))
            attempt(lambda: open("/dev/tty", "rb").read(1))
        """,
        "become_someone_else": """
            attempt(lambda: os.setuid(0))
            attempt(lambda: os.setgroups([0]))
            if 0 in os.getresuid() or 0 in os.getresgid(): got.append("root")
        """,
        "chroot_and_mount": """
            import ctypes
            attempt(lambda: os.chroot("/python"))
            libc = ctypes.CDLL(None)
            if libc.mount(b"none", b"/python", b"tmpfs", 0, None) == 0: got.append("mount")
            if libc.umount2(b"/python", 2) == 0: got.append("umount")
            if libc.unshare(0x10000000) == 0: got.append("unshare")
        """,
        "raw_system_calls": """
            import ctypes, platform
            libc = ctypes.CDLL(None)
            calls = {"x86_64": (56, 57, 58, 101, 41, 272, 319, 321, 425, 435), "aarch64": (220, 117, 198, 97, 279, 280, 425, 435)}
            for number in calls[os.uname().machine]:
                result = libc.syscall(number, 0, 0, 0, 0, 0)
                if result == 0 and number in (56, 57, 58, 220, 435) : os._exit(0)
                if result >= 0: got.append(number)
        """,
        "kill_the_parent": """
            import signal
            for victim in (pid, os.getppid(), 1, -1):
                try: os.kill(victim, signal.SIGKILL)
                except OSError: pass
        """,
        "trace_the_parent": """
            import ctypes
            libc = ctypes.CDLL(None)
            for victim in (os.getppid(), 1, pid):
                if libc.ptrace(16, victim, 0, 0) == 0: got.append(victim)
        """,
        "raise_the_limits": """
            import resource
            for what in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
                attempt(lambda: resource.setrlimit(what, (-1, -1)) or what)
        """,
        "allocate_memory": """
            attempt(lambda: len(bytearray(1 << 30)))
            hold = []
            def grow():
                while len(hold) < 64: hold.append(bytearray(1 << 24))
                return len(hold)
            attempt(grow)
        """,
        "memory_outside_the_limit": """
            import ctypes, mmap
            attempt(lambda: os.memfd_create("x"))
            attempt(lambda: len(mmap.mmap(-1, 1 << 30)))
            libc = ctypes.CDLL(None)
            segment = libc.shmget(0, 1 << 20, 0o1600)
            if segment >= 0: libc.shmctl(segment, 0, None); got.append("shm")
        """,
        "shared_memory": """
            from multiprocessing import shared_memory
            def shared():
                block = shared_memory.SharedMemory(create=True, size=4096)
                block.unlink()
                return block.name
            attempt(shared)
        """,
        "many_descriptors": "attempt(lambda: [os.open('/dev/null', 0) for _ in range(5000)] and 'many')",
        "reach_other_processes": """
            import stat
            attempt(lambda: os.sched_getparam(pid))
            attempt(lambda: os.getpgid(pid))
            for fd in range(3, 256):
                attempt(lambda: fd if stat.S_ISDIR(os.fstat(fd).st_mode) or stat.S_ISREG(os.fstat(fd).st_mode) else 1 / 0)
        """,
        "kernel_interfaces": """
            for path in ("/proc/kcore", "/dev/kmsg", "/dev/mem", "/sys/fs/cgroup/cgroup.procs", "/run/docker.sock"):
                attempt(lambda: open(path, "rb").read(1))
            attempt(lambda: os.listdir("/sys"))
        """,
        "change_modes_owners_times": """
            devices = ["/dev", "/dev/null", "/dev/zero", "/dev/urandom"]
            for place in ["/", "/tmp", "/python", sys.executable, os.__file__, secret, *devices, *range(64)]:
                attempt(lambda: os.chmod(place, 0) or place)
                attempt(lambda: os.chown(place, 0, 0) or place)
                attempt(lambda: os.utime(place, (0, 0)) or place)
                attempt(lambda: os.setxattr(place, "user.x", b"x") or place)
                attempt(lambda: os.removexattr(place, "security.selinux") or place)
                attempt(lambda: os.truncate(place, 0) or place)
                attempt(lambda: os.chmod(place, 0, follow_symlinks=False) or place)
                attempt(lambda: os.chown(place, 0, 0, follow_symlinks=False) or place)
        """,
        "change_modes_by_number": """
            import ctypes
            libc = ctypes.CDLL(None)
            numbers = {"x86_64": (90, 92, 94, 132, 235, 133, 83, 88), "aarch64": (452,)}[os.uname().machine]
            for path in (b"/dev/null", b"/dev/zero", b"/python/bin/python3", b"/", secret.encode()):
                for number in numbers:
                    if libc.syscall(number, path, 0, 0, 0) == 0: got.append((number, path))
                for number in (452, 463, 53, 54, 88, 268, 260, 280):
                    if libc.syscall(number, -100, path, 0, 0, 0) == 0: got.append((number, path))
        """,
        "open_to_write": """
            for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/python/bin/python3", os.__file__, secret):
                for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
                    attempt(lambda: os.open(path, flags))
            attempt(lambda: os.open("/python", getattr(os, "O_TMPFILE", 0) | os.O_RDWR))
        """,
        "flush_disks": """
            handle = os.open(os.__file__, os.O_RDONLY)
            attempt(lambda: os.fsync(handle) or "fsync")
            attempt(lambda: os.fdatasync(handle) or "fdatasync")
            attempt(lambda: os.posix_fadvise(handle, 0, 0, 4) or "fadvise")
            attempt(lambda: os.sendfile(1, handle, 0, 9))
            attempt(lambda: os.splice(handle, 1, 9))
        """,
        "lock_and_lease_host_files": """
            import fcntl
            handle = os.open(os.__file__, os.O_RDONLY)
            attempt(lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) or "flock")
            attempt(lambda: fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB) or "lockf")
            attempt(lambda: fcntl.fcntl(handle, 1024, 0) or "lease")
            attempt(lambda: fcntl.fcntl(handle, 1026, 1) or "notify")
            attempt(lambda: fcntl.fcntl(handle, fcntl.F_SETFL, 0o20000) or "async")
        """,
        "slow_itself_down": """
            attempt(lambda: os.nice(5))
            attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, 19) or "priority")
            attempt(lambda: os.sched_setaffinity(0, {0}) or "affinity")
            attempt(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)) or "idle")
        """,
        "send_signals": """
            import signal
            for victim in (os.getpid(), os.getppid(), 1, 0, -1, pid):
                attempt(lambda: os.kill(victim, 0) or victim)
                attempt(lambda: os.kill(victim, signal.SIGCONT) or victim)
                attempt(lambda: os.killpg(victim, signal.SIGCONT) or victim)
            attempt(lambda: os.pidfd_open(os.getpid()))
        """,
        "limits_of_others": """
            import resource
            for victim in (1, os.getppid() or 1, pid):
                attempt(lambda: resource.prlimit(victim, resource.RLIMIT_CPU))
                attempt(lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (1, 1)))
        """,
        "set_the_clock": """
            import time
            attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0) or "clock")
            attempt(lambda: time.clock_settime_ns(time.CLOCK_REALTIME, 0) or "clock")
            attempt(lambda: os.umask(0))
            attempt(lambda: os.chdir("/python") or "chdir")
            attempt(lambda: os.setsid() or "session")
            attempt(lambda: os.setpgid(0, 0) or "group")
            import socket
            attempt(lambda: socket.sethostname("x") or "name")
        """,
        "kernel_objects": """
            import select
            attempt(lambda: select.epoll())
            attempt(lambda: os.eventfd(0))
            attempt(lambda: os.memfd_create("x"))
            attempt(lambda: os.copy_file_range(3, 4, 9))
            attempt(lambda: os.getxattr("/", "x") or "x")
            attempt(lambda: os.statvfs("/"))
        """,
        "host_name": "got.extend([] if os.uname().nodename == 'sandbox' else [os.uname().nodename])",
        "terminal": """
            import fcntl, termios
            for fd in range(0, 16):
                attempt(lambda: fcntl.ioctl(fd, termios.TIOCSTI, b"x"))
                attempt(lambda: os.ttyname(fd))
        """,
    }.items()
}
