"""What ``harness worker`` runs: worker processes for a scheduler, started again when they or it go away."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from harness.cluster.address import Address
from harness.cluster.certificates import certificates
from harness.core.errors import HarnessError
from harness.core.progress import note

if TYPE_CHECKING:
    from distributed import Nanny

AGAIN_S = 2.0
"""Seconds until the next try to join."""
LOOK_S = 5.0
"""Seconds between two looks at the process."""
ALONE_S = 45.0
"""Seconds without a process after which everything is started anew."""


def serve(address: Address, *, processes: int, threads: int | None, name: str | None, insecure: bool = False) -> None:
    """Work for a scheduler until interrupted.

    Args:
        address: of the scheduler.
        processes: workers, each with models of its own.
        threads: CPU threads of each; the cores by ``processes`` when None.
        name: what records call this machine; its host name when None.
        insecure: join a scheduler elsewhere without certificates.

    Raises:
        HarnessError: no scheduler's address, one elsewhere without certificates, or certificates that are not there.
    """
    if address.workers is not None:
        raise HarnessError(f"{address.text} names no scheduler", "Give the address that `dask scheduler` shows.")
    if not (address.encrypted or address.loopback or insecure):
        raise HarnessError(
            f"{address.text} is another machine and not encrypted: whoever reaches its port can run programs here",
            "Use tls:// with certificates, or --insecure on a network where everyone may.",
        )
    certificates(address, "worker")
    own = threads or max(1, (os.cpu_count() or 1) // processes)
    names = [name or socket.gethostname()] if processes == 1 else [f"{name or socket.gethostname()}-{i + 1}" for i in range(processes)]
    asyncio.run(_all(address, names, own))


async def _all(address: Address, names: list[str], threads: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    tasks = [asyncio.create_task(_one(address, name, threads, ended)) for name in names]
    await asyncio.wait({asyncio.create_task(ended.wait()), *tasks}, return_when=asyncio.FIRST_COMPLETED)
    ended.set()
    await asyncio.gather(*tasks)


async def _one(address: Address, name: str, threads: int, ended: asyncio.Event) -> None:
    """One worker process, joined again after it or the scheduler was gone."""
    from distributed import Nanny

    from harness.cluster.seat import as_worker

    waiting = False
    while not ended.is_set():
        nanny = None
        try:
            nanny = await Nanny(
                address.text,
                nthreads=1,
                name=name,
                security=certificates(address, "worker"),
                **as_worker(threads),
            )
            note(f"worker {name} works for {address.text}")
            waiting = False
            await _works(nanny, ended)
        except (OSError, TimeoutError, asyncio.TimeoutError, RuntimeError):
            pass
        finally:
            if nanny is not None:
                await nanny.close(timeout=5)
        if not ended.is_set():
            if not waiting:
                note(f"worker {name} waits for {address.text}")
            waiting = True
            await asyncio.sleep(AGAIN_S)


async def _works(nanny: Nanny, ended: asyncio.Event) -> None:
    """Until the nanny ends, is asked to, or has had no process for a while: where one was killed, starting the next may fail too."""
    over = {asyncio.create_task(nanny.finished()), asyncio.create_task(ended.wait())}
    seen = time.monotonic()
    while time.monotonic() - seen < ALONE_S:
        done, _ = await asyncio.wait(over, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        if done:
            break
        if nanny.process is not None and nanny.process.is_alive():
            seen = time.monotonic()
    for task in over:
        task.cancel()
