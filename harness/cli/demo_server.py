"""The demo's web server: one page, one answer at a time, tokens sent as they come.

It listens on 127.0.0.1 only. Every request must name this host (against DNS rebinding) and carry the token of this start, as part of
the page's address or, for all calls that do something, in a header that other sites cannot send. Models run on the thread that calls
:meth:`DemoServer.serve`; the threads of requests only pass messages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import queue
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from harness.cli.demo_answers import AnswerRequest, answer
from harness.core.errors import HarnessError
from harness.core.files import parse_json, reason

if TYPE_CHECKING:
    from harness.session.session import Session

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "demo.html"
MAX_BODY_BYTES = 200_000
TOKEN_HEADER = "X-Demo-Token"
READ_S = 15.0
"""Seconds in which a request must have come; also the longest pause of a client that reads an answer."""
WAKE_S = 0.5
"""Seconds after which the waiting main thread looks around: a Ctrl-C that arrives while it is about to wait does not end the wait."""


class Job:
    """One answer on its way: the worker puts events, the request's thread takes them."""

    def __init__(self, request: AnswerRequest) -> None:
        self.request = request
        self.stop = threading.Event()
        self.events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (event := self.events.get()) is not None:
            yield event


class DemoServer(ThreadingHTTPServer):
    """Serves the page and its calls for one session.

    Args:
        session: what answers.
        port: TCP port; 0 takes a free one.

    Raises:
        HarnessError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.job: Job | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._busy = threading.Lock()
        try:
            super().__init__((HOST, port), DemoHandler)
        except (OSError, OverflowError) as error:
            raise HarnessError(f"port {port} cannot be opened: {reason(error)}", "Choose another with --port, or 0 for any.") from error

    @property
    def url(self) -> str:
        """Address of the page, token included."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    @property
    def hosts(self) -> tuple[str, str]:
        """Values of the Host header that mean this server."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def serve(self) -> None:
        """Answer until :meth:`stop` or Ctrl-C; decoding runs on the calling thread."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            while (job := self._next()) is not None:
                self._work(job)
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def stop(self) -> None:
        """End :meth:`serve` after the answer under way, which is cut short."""
        if self.job is not None:
            self.job.stop.set()
        self._jobs.put(None)

    def submit(self, request: AnswerRequest) -> Job | None:
        """Queue an answer; None while another one runs."""
        if not self._busy.acquire(blocking=False):
            return None
        self.job = Job(request)
        self._jobs.put(self.job)
        return self.job

    def state(self) -> dict[str, Any]:
        """What the page shows beside the answer."""
        session = self.session
        return {
            "pair": session.pair.name,
            "drafter": session.drafter,
            "drafters": session.drafters(),
            "k": session.k,
            "max_tokens": session.config.max_tokens,
            "stats": dataclasses.asdict(session.stats()),
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or never came to the point, is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _next(self) -> Job | None:
        """Wait for a job, or None for the end."""
        while True:
            try:
                return self._jobs.get(timeout=WAKE_S)
            except queue.Empty:
                continue

    def _work(self, job: Job) -> None:
        try:
            answer(self.session, job.request, job.stop, job.events.put)
        except HarnessError as error:
            job.events.put({"type": "error", "error": error.problem, "advice": error.advice})
        except Exception as error:
            job.events.put({"type": "error", "error": f"this is a fault of the harness: {error!r}", "advice": "Please report it."})
        finally:
            self.job = None
            self._busy.release()
            job.events.put(None)


class DemoHandler(BaseHTTPRequestHandler):
    """One request."""

    server: DemoServer
    server_version, sys_version = "harness-demo", ""
    timeout = READ_S

    def setup(self) -> None:
        """Give the whole request its time, however slowly it drips."""
        super().setup()
        self._clock = threading.Timer(READ_S, self._too_slow)
        self._clock.daemon = True
        self._clock.start()

    def finish(self) -> None:
        """End the request's clock with the request."""
        self._clock.cancel()
        super().finish()

    def do_GET(self) -> None:
        """The page (token in its address) and the session's state (token in a header)."""
        try:
            url = urlsplit(self.path)
        except ValueError:
            self._json(400, {"error": "no such address"})
            return
        given = parse_qs(url.query).get("token", [""])[0] if url.path == "/" else self.headers.get(TOKEN_HEADER, "")
        if not self._allowed(given):
            return
        if url.path == "/":
            self._page()
        elif url.path == "/state":
            self._json(200, self.server.state())
        else:
            self._json(404, {"error": "no such page"})

    def do_POST(self) -> None:
        """``/generate`` streams an answer, ``/stop`` ends the one under way."""
        if not self._allowed(self.headers.get(TOKEN_HEADER, "")):
            return
        try:
            body = self._body()
            if self.path == "/generate":
                self._generate(AnswerRequest.from_json(body, self.server.session))
            elif self.path == "/stop":
                job = self.server.job
                if job is not None:
                    job.stop.set()
                self._json(200, {"stopped": job is not None})
            else:
                self._json(404, {"error": "no such page"})
        except HarnessError as error:
            self._json(400, {"error": error.problem, "advice": error.advice})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the token stands in their line."""

    # --- parts ---

    def _too_slow(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _allowed(self, token: str) -> bool:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._json(403, {"error": "wrong host"})
            return False
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._json(403, {"error": "wrong token", "advice": "Open the address that `harness demo` printed."})
            return False
        return True

    def _body(self) -> Any:
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths[0]) or int(lengths[0]) > MAX_BODY_BYTES:
            raise HarnessError("the request has no usable length", f"Send at most {MAX_BODY_BYTES} bytes.")
        return parse_json(self.rfile.read(int(lengths[0])) or b"{}", "the request", advice="Send an object.")

    def _generate(self, request: AnswerRequest) -> None:
        job = self.server.submit(request)
        if job is None:
            self._json(409, {"error": "an answer is being written", "advice": "Wait until it ends, or stop it."})
            return
        self._head(200, "text/event-stream; charset=utf-8")
        try:
            for event in job:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        except OSError:  # the page was closed: nobody reads the rest
            job.stop.set()

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(12)
        text = PAGE.read_text(encoding="utf-8").replace("__NONCE__", nonce).replace("__TOKEN__", self.server.token)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, text.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, extra: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(data)), **(extra or {})})
        self.wfile.write(data)

    def _head(self, status: int, kind: str, extra: dict[str, str] | None = None) -> None:
        self._clock.cancel()
        self.send_response(status)
        common = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**common, **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
