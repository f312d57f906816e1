"""Who is let in: by the name the client calls this server, the page it comes from, and its key. Everything else is one refusal."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from harness.core.errors import HarnessError
from harness.serve.api_errors import ApiError, fault

READ_S = 15.0
"""Seconds in which a request must have come, and the longest pause of a client that reads an answer."""
OPEN = ("/health",)
"""Paths that need no key."""
HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Guard:
    """ASGI middleware around the whole server.

    Args:
        app: what answers.
        hosts: values of the Host header that mean this server; None takes all, for a server whose key protects it.
        key: what clients must send; None asks for none.
        count: told path and status of every response.
    """

    def __init__(self, app: Any, *, hosts: Collection[str] | None, key: str | None, count: Callable[[str, int], None]) -> None:
        self.app, self.hosts, self.key, self.count = app, hosts, key, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def patient(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
                self.count(scope["path"] if message["status"] not in (404, 405) else "other", message["status"])
            with anyio.fail_after(READ_S):  # a client that does not read
                await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, patient)
        except (TimeoutError, ClientDisconnect):
            return
        except Exception as error:
            if not started:
                await refusal(error)(scope, receive, patient)

    def _check(self, scope: Any) -> None:
        """Raise an ApiError for a client that is not let in."""
        found = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None and (len(found) != 1 or found[0].lower() not in self.hosts):
            advice = "Use the address that the server printed, or start it with --allow-host."
            raise ApiError(403, f"This server is not called {found[0] if found else ''!r:.100}. {advice}", code="wrong_host")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if (origin is not None and not self._own(origin, found)) or (site == "cross-site"):
            raise ApiError(403, "Pages of other sites may not ask this server.", code="wrong_origin")
        if self.key is None or scope["path"] in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scope["path"] == "/":
            scheme, given = "bearer", parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            raise ApiError(401, "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.", code="invalid_api_key")

    def _own(self, origin: str, host: list[str]) -> bool:
        """Whether a page of this server is asking."""
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return place in self.hosts if self.hosts is not None else [place] == host


def refusal(error: Exception) -> Response:
    """What a client hears of an error, in the API's form."""
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{error.detail}. See docs/serving.md for what there is.", code="not_found")
    elif isinstance(error, HarnessError):
        error = ApiError.of(error)
    elif not isinstance(error, ApiError):
        error = fault(error)
    # What is left of a request that was not read whole is no next request.
    headers = {"connection": "close"} if error.status in (408, 413) else {}
    headers |= {"retry-after": "5"} if error.status in (429, 503) else {}
    return JSONResponse(error.body(), error.status, headers)


async def read_body(request: Any, most: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is too large or too slow; what is too large is read on and thrown away for a while, so that the client hears of it.
    """
    too_large = ApiError(413, f"The request has more than {most} bytes. Send less.", code="request_too_large")
    if "expect" in request.headers and int(request.headers.get("content-length", "0")) > most:
        raise too_large
    body, size = bytearray(), 0
    with anyio.move_on_after(READ_S) as clock:
        async for part in request.stream():
            size += len(part)
            if size <= most:
                body += part
    if size > most:
        raise too_large
    if clock.cancelled_caught:
        raise ApiError(408, f"The request did not come within {READ_S:g} seconds.", code="request_timeout")
    return bytes(body)
