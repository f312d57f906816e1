"""The system-call filter of the Linux sandbox: a classic BPF program as bytes, in the form ``bwrap --seccomp`` reads.

It is the second wall behind the namespaces. It forbids new processes and threads (so a fork bomb or a daemon cannot start, and the CPU
and memory limits of one process are the limits of the whole tree), sockets, kernel memory that no limit counts, and the calls that
kernel exploits start from. Everything else stays allowed, so that a new Python release does not break it.
"""

from __future__ import annotations

import struct

_EPERM = 1
_ALLOW, _KILL, _DENY = 0x7FFF0000, 0x80000000, 0x00050000 | _EPERM
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32_BIT = 0x40000000

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine name to the kernel's architecture number; only these are supported."""

# name: (x86_64, aarch64); None where the architecture has no such call.
DENIED: dict[str, tuple[int | None, int]] = {
    # processes and threads
    "clone": (56, 220),
    "clone3": (435, 435),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # network
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # memory that RLIMIT_AS does not count
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # namespaces, mounts, keys, kernel interfaces
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "syslog": (103, 116),
}
DENIED_X86_64_ONLY = {"fork": 57, "vfork": 58, "iopl": 172, "ioperm": 173, "modify_ldt": 154}
"""Calls that aarch64 does not have."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def filter_program(machine: str) -> bytes:
    """Return the BPF program for ``machine`` (``platform.machine()``): 8 bytes an instruction.

    Raises:
        KeyError: the architecture has no table here.
    """
    architecture = AUDIT_ARCHITECTURES[machine]
    x86 = machine == "x86_64"
    numbers = [pair[0] if x86 else pair[1] for pair in DENIED.values()] + (list(DENIED_X86_64_ONLY.values()) if x86 else [])
    denied = [number for number in numbers if number is not None]
    program = [
        _instruction(_LOAD, 4),  # architecture
        _instruction(_JUMP_EQUAL, architecture, if_true=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),  # call number
    ]
    if x86:
        program += [_instruction(_JUMP_GREATER_EQUAL, _X32_BIT, if_false=1), _instruction(_RETURN, _KILL)]
    for index, number in enumerate(denied):
        program.append(_instruction(_JUMP_EQUAL, number, if_true=len(denied) - index))
    program += [_instruction(_RETURN, _ALLOW), _instruction(_RETURN, _DENY)]
    return b"".join(program)
