"""``--shards``: the same command line in several processes that share a target. Only the first of them reads, prints and writes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.models.shards import Shards

ShardsOption = Annotated[
    int, typer.Option("--shards", metavar="N", min=1, help="Split the target over N processes, a device each.", show_default=False)
]
ShardsBackendOption = Annotated[
    str | None,
    typer.Option(
        "--shards-backend",
        metavar="NAME",
        help="What they talk through: ring, nccl, jaccl or mpi; nccl on CUDA, else ring.",
        show_default=False,
    ),
]
LAUNCHER = "import sys; from mlx._distributed_utils.launch import main; sys.exit(main())"
"""What the script ``mlx.launch`` runs."""
_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")
"""Set in every process that a launcher started."""
_FAILED = 2


@contextmanager
def sharded(parts: int, backend: str | None) -> Iterator[Shards | None]:
    """Run the block once, with the other processes at hand; None where one process does it all.

    A command line that no launcher started is started again, in ``parts`` processes of this machine; there the block does not run here,
    nor in any but the first of them.

    Raises:
        HarnessError: a back end that is not there, or another number of processes.
        typer.Exit: the processes have ended, with the exit code of the first; or this is one of the others, and the first has ended.
    """
    if parts == 1:
        yield None
        return
    from harness.models.shards import Shards, check_backend, default_backend

    backend = backend or default_backend()
    if not any(name in os.environ for name in _RANKS):
        check_backend(backend)
        raise typer.Exit(launch(parts, backend, sys.argv[1:]))
    with Shards.join(parts, backend) as shards:
        if shards.leads:
            yield shards
            return
        from harness.decode.rewind import rewindable
        from harness.models.following import follow

        follow(shards, rewindable)
    raise typer.Exit


def launch(parts: int, backend: str, arguments: list[str]) -> int:
    """Run a command line in ``parts`` processes of this machine under mlx.launch; the exit code of the first.

    Ctrl-C reaches the first process alone, which ends the run as it would without others.
    """
    threads = max(1, (os.cpu_count() or 1) // parts)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "code")
        options = ["--backend", backend, "-n", str(parts), "--starting-port", str(free_ports(parts))]
        options += [] if "OMP_NUM_THREADS" in os.environ else ["--env", f"OMP_NUM_THREADS={threads}"]
        command = [sys.executable, "-c", LAUNCHER, *options, "--", sys.executable, "-m", "harness.cli.shards", str(code), *arguments]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # the launcher spins on a standard input that has ended
                process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
        return int(code.read_text(encoding="ascii")) if code.exists() else _FAILED


def one_of_several() -> None:
    """What each process of :func:`launch` runs: the command line, its exit code left in a file by the first."""
    from harness.cli import main

    file, *arguments = sys.argv[1:]
    first = any(os.environ.get(name) == "0" for name in _RANKS)
    signal.signal(signal.SIGINT, signal.default_int_handler if first else signal.SIG_IGN)
    try:
        main(arguments)
    except SystemExit as end:
        if first:
            Path(file).write_text(str(end.code or 0), encoding="ascii")
        raise


def free_ports(n: int) -> int:
    """The first of ``n`` ports in a row that nobody listens on, below those that systems give to outgoing connections."""
    while True:
        start = random.randrange(10000, 32000)
        if all(map(_is_free, range(start, start + n))):
            return start


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


if __name__ == "__main__":
    one_of_several()
