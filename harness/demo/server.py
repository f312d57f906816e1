"""The demo's web server: one page, one answer at a time, tokens sent as they come.

It listens on 127.0.0.1 only. Every request must name this host (against DNS rebinding) and carry the token of this start, as part of
the page's address or, for all calls that do something, in a header that other sites cannot send. Models run on the thread that calls
:meth:`DemoServer.serve`; the threads of requests only pass messages.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import queue
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from harness.demo.answers import AnswerRequest, answer
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.session import Session

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page.html"
MAX_BODY_BYTES = 200_000
TOKEN_HEADER = "X-Demo-Token"
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

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.job: Job | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._busy = threading.Lock()
        try:
            super().__init__((HOST, port), DemoHandler)
        except OSError as error:
            raise HarnessError(f"port {port} cannot be opened: {error.strerror}", "Choose another with --port, or 0 for any.") from error

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
            "k": session.config.k,
            "max_tokens": session.config.max_tokens,
            "stats": dataclasses.asdict(session.stats()),
        }

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

    def do_GET(self) -> None:
        """The page (token in its address) and the session's state (token in a header)."""
        url = urlsplit(self.path)
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

    def _allowed(self, token: str) -> bool:
        if self.headers.get("Host") not in self.server.hosts:
            self._json(403, {"error": "wrong host"})
            return False
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._json(403, {"error": "wrong token", "advice": "Open the address that `harness demo` printed."})
            return False
        return True

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise HarnessError("the request has no usable length", f"Send at most {MAX_BODY_BYTES} bytes.")
        try:
            return json.loads(self.rfile.read(int(length)) or b"{}")
        except ValueError as error:
            raise HarnessError("the request is not JSON", "Send an object.") from error

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
        self.send_response(status)
        common = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**common, **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
