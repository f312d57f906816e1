"""The addresses of the server."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from harness.core.errors import HarnessError
from harness.serve.api_errors import ApiError
from harness.serve.guard import Guard, read_body, refusal
from harness.serve.queue import Done, Round, Shown, Waiting
from harness.serve.replies import Reply
from harness.serve.wire import parse

if TYPE_CHECKING:
    from harness.serve.decoding_thread import Worker

PAGE = Path(__file__).parent / "page.html"
MAX_BODY_BYTES = 4 * 2**20
T = TypeVar("T")


def make_app(worker: Worker, *, hosts: Collection[str] | None, key: str | None, page: bool) -> Any:
    """The ASGI application around a worker; ``hosts`` and ``key`` as for :class:`~harness.serve.guard.Guard`."""
    calls = Calls(worker, key or "")
    routes = [
        Route("/v1/chat/completions", calls.chat, methods=["POST"]),
        Route("/v1/completions", calls.completion, methods=["POST"]),
        Route("/v1/models", calls.models),
        Route("/v1/models/{name:path}", calls.model),
        Route("/v1/session", calls.session),
        Route("/health", calls.health),
        Route("/metrics", calls.metrics),
    ]
    if page:
        routes.append(Route("/", calls.page))
    kinds: tuple[Any, ...] = (404, 405, ApiError, HarnessError, Exception)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, _refuse))
    return Guard(app, hosts=hosts, key=key, count=worker.metrics.request)


async def _refuse(_request: Request, error: Exception) -> Response:
    return refusal(error)


class Calls:
    """What each address does.

    Args:
        worker: whose queue and session.
        key: what the page has to send.
    """

    def __init__(self, worker: Worker, key: str) -> None:
        self.worker, self._key = worker, key
        self._since = int(time.time())

    async def chat(self, request: Request) -> Response:
        """A message after a conversation."""
        return await self._answer(request, chat=True)

    async def completion(self, request: Request) -> Response:
        """Text after a text."""
        return await self._answer(request, chat=False)

    async def models(self, _request: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The same by its name."""
        self._known(request.path_params["name"])
        return JSONResponse(self._model())

    async def session(self, _request: Request) -> Response:
        """Where the session stands, and what it could draft with."""
        return JSONResponse(self.worker.state())

    async def health(self, _request: Request) -> Response:
        """Whether requests are taken."""
        status = self.worker.status()
        return JSONResponse({"status": status}, 503 if status == "draining" else 200)

    async def metrics(self, _request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(self.worker.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, _request: Request) -> Response:
        """The page that shows drafting."""
        nonce = secrets.token_urlsafe(12)
        text = PAGE.read_text(encoding="utf-8").replace("__NONCE__", nonce).replace("__KEY__", self._key)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(text, headers={"content-security-policy": policy})

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        ask = parse(await read_body(request, MAX_BODY_BYTES), chat=chat)
        if ask.model is not None:
            self._known(ask.model)
        job = Waiting(ask, _client(request, ask.user), asyncio.get_running_loop())
        self.worker.queue.put(job)
        reply = Reply(ask, self.worker.session.pair.name)
        events = aiter(job)
        if not ask.stream:
            shown, done = await self._attended(request, job, _collect(events))
            return JSONResponse(reply.whole(shown, done))
        first = await self._attended(request, job, anext(events))  # what is refused is refused before the stream begins
        return StreamingResponse(_stream(job, reply, first, events), media_type="text/event-stream")

    async def _attended(self, request: Request, job: Waiting, work: Awaitable[T]) -> T:
        """What ``work`` gives; the job ends early when the client goes."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            job.stop.set()
            self.worker.queue.drop(job)

        watching = asyncio.ensure_future(watch())
        try:
            return await work
        finally:
            watching.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([watching])

    def _model(self) -> dict[str, Any]:
        return {"id": self.worker.session.pair.name, "object": "model", "created": self._since, "owned_by": "harness"}

    def _known(self, name: str) -> None:
        own = self.worker.session.pair.name
        if name != own:
            raise ApiError(404, f"There is no model {name!r:.100}. This server has {own!r}.", param="model", code="model_not_found")


async def _collect(events: AsyncIterator[Round | Done]) -> tuple[list[Shown], Done]:
    """A whole answer."""
    shown: list[Shown] = []
    async for event in events:
        if isinstance(event, Done):
            return shown, event
        shown += event.shown
    raise AssertionError("an answer without an end")


async def _stream(job: Waiting, reply: Reply, first: Round | Done, events: AsyncIterator[Round | Done]) -> AsyncIterator[bytes]:
    try:
        event: Round | Done = first
        while not isinstance(event, Done):
            if data := reply.chunk(event):
                yield data
            event = await anext(events)
        yield reply.ending(event)
    except ApiError as error:
        yield reply.failure(error)
    finally:
        job.stop.set()


def _client(request: Request, user: str) -> str:
    """Who takes turns with others: a program on a machine, and whom it asks for where it says so."""
    host = request.client.host if request.client else ""
    return "\n".join((host, request.headers.get("user-agent", ""), user))
