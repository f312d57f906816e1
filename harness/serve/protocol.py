"""HTTP as uvicorn speaks it, with a time for every request and refusals in the API's form."""

from __future__ import annotations

import asyncio
import contextlib
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from harness.serve import guard
from harness.serve.api_errors import ApiError


class PromptProtocol(H11Protocol):
    """Ends connections whose request does not come; what is no HTTP is answered as the API answers."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._wait(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a whole head has come."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._wait(False)

    def on_response_complete(self) -> None:
        """Give the next request its time."""
        super().on_response_complete()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, "This is no HTTP request. Speak HTTP/1.1, without TLS.", code="invalid_http"))

    def _wait(self, again: bool = True) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.loop.call_later(guard.READ_S, self._too_slow) if again else None

    def _too_slow(self) -> None:
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self._refuse(ApiError(408, f"The request did not come within {guard.READ_S:g} seconds.", code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        body = json.dumps(error.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is on its way already
            for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
