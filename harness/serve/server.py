"""The server: a thread that speaks HTTP around the worker's own, and the signals that end both."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType

import uvicorn

from harness.core.errors import HarnessError
from harness.core.files import reason
from harness.serve.app import make_app
from harness.serve.decoding_thread import Worker
from harness.serve.protocol import PromptProtocol

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FLUSH_S = 10
"""Seconds that answers get to reach their clients when the server ends."""


class Server:
    """Takes requests for a worker.

    Args:
        worker: what answers.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        key: what clients must send; needed beyond this machine.
        names: further values of the Host header that mean this server.
        page: serve the page that shows drafting.

    Raises:
        HarnessError: the port is taken, or the server would be open to everybody.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        names: Collection[str] = (),
        page: bool = False,
    ) -> None:
        check_open(host, key)
        self.worker = worker
        try:
            self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
        except (OSError, OverflowError) as error:
            raise HarnessError(f"port {port} of {host} cannot be opened: {reason(error)}", "Choose another, or 0 for any.") from error
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        own = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        own |= {name.lower() for given in names for name in (given, f"{given}:{self.port}")}
        hosts = own if host in LOOPBACK or names else None
        config = uvicorn.Config(
            make_app(worker, hosts=hosts, key=key, page=page),
            http=PromptProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=FLUSH_S,
        )
        self._http = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._http.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def serve(self, until: Callable[[], bool] = lambda: False) -> None:
        """Answer until SIGTERM, Ctrl-C or ``until`` says so; what waits then is answered first. A second signal cuts it short."""
        with self.listening(), self._signals():
            while not (until() or (self.worker.draining and not len(self.worker.queue))):
                self.worker.turn()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take requests; the worker's turns answer them."""
        self._thread.start()
        try:
            yield
        finally:
            self.worker.queue.close()
            self._http.should_exit = True
            self._thread.join()
            self._socket.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C end the server in order."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.worker.drain()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)


def check_open(host: str, key: str | None) -> None:
    """Refuse to answer other machines without a key.

    Raises:
        HarnessError: no key, or an empty one.
    """
    if key is not None and not key.strip():
        raise HarnessError("the API key is empty", "Give one of at least a few characters, or none.")
    if host not in LOOPBACK and key is None:
        raise HarnessError(f"{host} can be reached from other machines, and no API key is set", "Set HARNESS_API_KEY, or use 127.0.0.1.")
