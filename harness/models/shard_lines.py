"""Connections from the first process of a split target to the others, over which it says what to run.

They wait for it asleep, as they could not inside a sum of mlx's ring, and see that it has ended when the connection ends.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.core.errors import HarnessError

WAIT_S = 60.0
"""How long the processes look for each other."""
_HEAD = struct.Struct(">II")
_SECRET = 4
"""Numbers that tell one of the processes from a stranger."""


def first_address() -> str:
    """Where the first process can be reached, as its launcher told all of them."""
    if "MLX_HOSTFILE" in os.environ:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))
        return str(hosts[0][0]).rpartition(":")[0]
    for name in ("NCCL_HOST_IP", "MLX_JACCL_COORDINATOR"):
        if name in os.environ:
            return os.environ[name].partition(":")[0]
    return "127.0.0.1"


class Lines:
    """The connections of one process: of the first to every other, of another to the first.

    Args:
        first: this is the first process.
        parts: how many processes there are.
        shared: adds up a few numbers over all processes.

    Raises:
        HarnessError: the processes do not reach each other.
    """

    def __init__(self, first: bool, parts: int, shared: Callable[[Sequence[int]], list[int]]) -> None:
        try:
            self._sockets = _accepted(parts, shared) if first else [_connected(shared)]
        except OSError as error:
            raise HarnessError(
                f"the processes of the target do not reach each other at {first_address()}: {error}", "Open the ports between the machines."
            ) from None
        self._files = [line.makefile("rb") for line in self._sockets]

    def send(self, kind: int, numbers: Sequence[int]) -> None:
        """Tell every other process something."""
        message = _HEAD.pack(kind, len(numbers)) + array("i", numbers).tobytes()
        for line in self._sockets:
            line.sendall(message)

    def receive(self) -> tuple[int, list[int]] | None:
        """What the first process says; None once it has ended."""
        head = self._files[0].read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        kind, n = _HEAD.unpack(head)
        numbers = array("i", self._files[0].read(n * array("i").itemsize))
        return kind, numbers.tolist()

    def close(self) -> None:
        """Let the others go."""
        for file in self._files:
            file.close()
        for line in self._sockets:
            line.close()


def _accepted(parts: int, shared: Callable[[Sequence[int]], list[int]]) -> list[socket.socket]:
    secret = [secrets.randbits(31) for _ in range(_SECRET)]
    found: list[socket.socket] = []
    with socket.create_server((first_address(), 0)) as server:
        shared([server.getsockname()[1], *secret])
        end = time.monotonic() + WAIT_S
        while len(found) < parts - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            line, _ = server.accept()
            line.settimeout(WAIT_S)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if line.recv(4 * _SECRET, socket.MSG_WAITALL) == array("i", secret).tobytes():
                line.settimeout(None)
                found.append(line)
            else:
                line.close()
    return found


def _connected(shared: Callable[[Sequence[int]], list[int]]) -> socket.socket:
    port, *secret = shared([0] * (1 + _SECRET))
    line = socket.create_connection((first_address(), port), timeout=WAIT_S)
    line.settimeout(None)
    line.sendall(array("i", secret).tobytes())
    return line
