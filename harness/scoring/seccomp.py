"""The system-call filter of the Linux sandbox: a classic BPF program as bytes, in the form ``bwrap --seccomp`` reads.

It is the second wall behind the namespaces, and it is a list of what is allowed: memory, reading files that are there, the clock, signals
to itself, leaving. Every other call, of today's kernel or tomorrow's, answers "no such call" (ENOSYS), which C libraries take as an old
kernel and work around. So nothing can be started, sent, mounted, traced, written to disk or changed in its mode, owner, times or limits.
"""

from __future__ import annotations

import struct

_EPERM, _ENOSYS = 1, 38
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine name to the kernel's architecture number; only these are supported."""

# name: (x86_64, aarch64); None where the architecture has no such call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # memory
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    # files that are there, pipes
    "open": (2, None), "openat": (257, 56), "close": (3, 57), "close_range": (436, 436), "read": (0, 63), "readv": (19, 65),
    "pread64": (17, 67), "preadv": (295, 69), "write": (1, 64), "writev": (20, 66), "lseek": (8, 62), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "fcntl": (72, 25), "ioctl": (16, 29), "stat": (4, None),
    "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    # time and waiting
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "alarm": (37, None), "getitimer": (36, 102),
    "setitimer": (38, 103), "pause": (34, None), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "futex": (202, 98), "sched_yield": (24, 124),
    # signals to itself; kill is not among them
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "tgkill": (234, 131),
    # what it is, its own limits, start and end; wait4 is for bwrap, which watches from inside
    "arch_prctl": (158, None), "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293), "getrandom": (318, 278),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getpgid": (121, 155), "getpgrp": (111, None), "getsid": (124, 156),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165),
    "getrlimit": (97, 163), "prlimit64": (302, 261), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "execve": (59, 221),
    "wait4": (61, 260), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

ONLY: dict[str, tuple[int, tuple[int, ...]]] = {
    "fcntl": (1, (0, 1, 2, 3, 1030)),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: no locks, leases, owners
    "ioctl": (1, (0x5401, 0x802C542A, 0x5413, 0x5450, 0x5451)),  # is it a terminal, how large, close on exec
    "madvise": (2, (0, 1, 2, 3, 4, 8, 14, 15, 16)),  # advice about its own pages that changes nothing outside
    "prlimit64": (0, (0,)),  # its own limits
}
"""Call -> (argument, the values it may have)."""

_WRITES = 0o3 | 0o100 | 0o1000 | 0o20000 | 0o1000000
WITHOUT: dict[str, tuple[int, int]] = {"open": (1, _WRITES), "openat": (2, _WRITES)}
"""Call -> (argument, bits it may not have): opened for writing, creating, truncating, with signals, without access time."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _rule(name: str) -> list[bytes]:
    """What to answer to the call ``name``: arguments are compared by their lower 32 bits, all that the kernel reads of them."""
    allow, refuse = _instruction(_RETURN, _ALLOW), _instruction(_RETURN, _ERRNO | _EPERM)
    if name in ONLY:
        argument, values = ONLY[name]
        tests = [_instruction(_JUMP_EQUAL, value, if_true=len(values) - i) for i, value in enumerate(values)]
        return [_instruction(_LOAD, 16 + 8 * argument), *tests, refuse, allow]
    if name in WITHOUT:
        argument, bits = WITHOUT[name]
        return [_instruction(_LOAD, 16 + 8 * argument), _instruction(_JUMP_ANY_BIT, bits, if_false=1), refuse, allow]
    return [allow]


def filter_program(machine: str) -> bytes:
    """Return the BPF program for ``machine`` (``platform.machine()``): 8 bytes an instruction.

    Raises:
        KeyError: the architecture has no table here.
    """
    program = [
        _instruction(_LOAD, 4),  # architecture
        _instruction(_JUMP_EQUAL, AUDIT_ARCHITECTURES[machine], if_true=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),  # call number
    ]
    for name, numbers in ALLOWED.items():
        number = numbers[list(AUDIT_ARCHITECTURES).index(machine)]
        if number is not None:
            rule = _rule(name)
            program += [_instruction(_JUMP_EQUAL, number, if_false=len(rule)), *rule]
    return b"".join([*program, _instruction(_RETURN, _ERRNO | _ENOSYS)])
