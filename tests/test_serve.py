"""The server: the OpenAI client works against it, answers are those of plain decoding, and what is wrong is refused in the API's form."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import forks
import httpx
import openai
import pytest
from openai import OpenAI
from serving import PROMPTS, install_adapter, session_file
from tiny import tiny_pair

from harness import api
from harness.core.errors import HarnessError
from harness.serve.api_errors import ApiError
from harness.serve.app import MAX_BODY_BYTES, PAGE
from harness.serve.decoding_thread import Learning, Worker
from harness.serve.guard import Guard
from harness.serve.queue import Done, FairQueue, Waiting
from harness.serve.replies import usage
from harness.serve.server import Server
from harness.serve.wire import parse
from harness.session.session import Session

KEY = "a key of this test"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny pair and its folder."""
    folder = tmp_path_factory.mktemp("serve")
    return folder, tiny_pair(folder, noise=0.3, max_position_embeddings=1024)


@pytest.fixture
def session(home: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session on the tiny pair with an adapter to choose, in a cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    install_adapter(home[1], "poems")
    with Session.from_config(session_file(home[0]), pair=home[1]) as opened:
        yield opened
    api.adapter_bank(home[1]).activate(None)


@pytest.fixture
def server(session: Session) -> Iterator[Server]:
    """A server that takes requests; :func:`together` decodes on the thread of the test, as mlx wants it."""
    running = Server(Worker(session, most_waiting=12), page=True)
    with running.listening():
        yield running


def together(server: Server, *clients: Callable[[], Any]) -> list[Any]:
    """Run the clients in threads of their own and decode here until all have ended; return their results."""
    with ThreadPoolExecutor(max(1, len(clients))) as pool:
        running = [pool.submit(client) for client in clients]
        while not all(client.done() for client in running):
            server.worker.turn(0.01)
    return [client.result() for client in running]


HTTP = httpx.Client(verify=False, timeout=120, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""For requests that are not the OpenAI client's."""


def client(server: Server, **options: Any) -> OpenAI:
    """The OpenAI client, unchanged."""
    return OpenAI(base_url=f"{server.url}/v1", api_key=options.pop("key", "none"), max_retries=0, timeout=300, **options)


def ask(server: Server, text: str = "hello", **settings: Any) -> Any:
    """A chat completion; the chunks of one that is streamed."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 12, "seed": 0, **settings}
    with client(server) as c:
        answer = c.chat.completions.create(**body)
        return list(answer) if settings.get("stream") else answer


def text_of(chunks: list[Any]) -> tuple[str, Any, list[Any]]:
    """Text, finish reason and chunks of a stream."""
    choices = [c.choices[0] for c in chunks if c.choices]
    return "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason, chunks


def post(server: Server, content: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    """A request of any content."""
    named = {"content-type": "application/json", **headers}
    return HTTP.post(server.url + path, content=content, headers=named)


def refusal(response: httpx.Response) -> str:
    """The message of a response that refuses in the API's form."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert response.status_code >= 400
    assert "fault of the harness" not in error["message"]
    return str(error["message"])


# --- answers ---


@pytest.mark.parametrize("drafter", [None, "generic", "poems", "lookup", "none"])
def test_chat_is_plain_decoding(server: Server, drafter: str | None) -> None:
    """Whole and streamed, with any drafter: the text is the target's own, and usage holds the counts of the same call in Python."""
    pair, extra = server.worker.session.pair, {} if drafter is None else {"extra_body": {"drafter": drafter, "k": 2}}
    ((whole, streamed),) = together(
        server,
        lambda: (
            ask(server, PROMPTS[0], **extra),
            text_of(ask(server, PROMPTS[0], stream=True, stream_options={"include_usage": True}, **extra)),
        ),
    )
    plain = api.generate(pair, PROMPTS[0], drafter=None, max_tokens=12)
    text, finish, chunks = streamed
    assert whole.choices[0].message.content == text == plain.text
    assert whole.choices[0].finish_reason == finish == ("stop" if plain.finish == "eos" else "length")
    own = api.generate(
        pair, PROMPTS[0], drafter=None if drafter == "none" else drafter or "generic", k=3 if drafter is None else 2, max_tokens=12
    )
    for found in (whole.usage, chunks[-1].usage):
        assert (found.prompt_tokens, found.completion_tokens) == (own.prompt_tokens, own.emitted)
        said = found.speculation
        assert (said["drafted"], said["accepted"], said["tau"]) == (own.drafted, own.accepted, own.emitted / own.rounds)
        assert sum(source["accepted"] for source in said["sources"].values()) == own.accepted
        assert said["drafter"] == own.drafter
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "the second request had the same prompt"


def test_a_round_that_several_sources_drafted_counts_for_each(session: Session) -> None:
    """No source is called ``memory:3,draft:1``: its tokens are those of the memory and of the draft."""
    plain = api.generate(session.pair, PROMPTS[0], drafter=None, max_tokens=3)
    mixed = {"sources": ("memory:3,draft:1", "", "draft"), "draft_lengths": (4, 0, 2), "accept_lengths": (3, 0, 1)}
    said = usage(Done(generation=dataclasses.replace(plain, **mixed), tokens=3, finish="length", reused=0, queue_s=0.0))  # type: ignore[arg-type]
    assert said["speculation"]["sources"] == {
        "memory": {"rounds": 1, "drafted": 3, "accepted": 3},
        "draft": {"rounds": 2, "drafted": 3, "accepted": 1},
    }


def test_completions_and_models(server: Server) -> None:
    """A completion takes text or ids without a chat template; the one model is listed, others are not found."""
    pair = server.worker.session.pair
    ids = list(pair.tokenizer.encode("once upon"))

    def calls() -> tuple[Any, ...]:
        with client(server) as c:
            make = c.completions.create
            answers = [make(model="tiny", prompt=prompt, max_tokens=9) for prompt in ("once upon", [ids], ids)]
            chunks = list(make(model="tiny", prompt="once upon", max_tokens=9, stream=True, logprobs=2))
            with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
                make(model="gpt-9", prompt="x")
            return answers, chunks, [m.id for m in c.models.list()], c.models.retrieve("tiny").id

    ((answers, chunks, names, name),) = together(server, calls)
    plain = api.generate(pair, ids, drafter=None, max_tokens=9)
    assert {a.choices[0].text for a in answers} == {plain.text}
    assert "".join(c.choices[0].text for c in chunks) == plain.text
    assert sum(len(c.choices[0].logprobs.tokens) for c in chunks if c.choices[0].logprobs) == sum(
        t not in pair.eos_token_ids for t in plain.tokens
    )
    assert names == [name] == ["tiny"]


def test_logprobs_are_those_of_plain_decoding(server: Server) -> None:
    """Every token has one, drafted or not, and they do not depend on the drafter."""
    drafted, plain = together(
        server, *(lambda d=d: ask(server, logprobs=True, top_logprobs=3, extra_body={"drafter": d}) for d in ("generic", "none"))
    )
    rows = [choice.choices[0].logprobs.content for choice in (drafted, plain)]
    assert [one.token for one in rows[0]] == [one.token for one in rows[1]]
    assert [one.logprob for one in rows[0]] == pytest.approx([one.logprob for one in rows[1]], abs=1e-4)
    assert all(len(one.top_logprobs) == 3 and max(t.logprob for t in one.top_logprobs) >= one.logprob for one in rows[0])


def test_stop_words_end_an_answer_before_themselves(server: Server) -> None:
    """Whole and streamed; the stop word and what follows is not shown, the tokens up to it are counted."""
    pair = server.worker.session.pair
    plain = api.generate(pair, PROMPTS[1], drafter=None, max_tokens=40).text
    words = ["never said", plain[7:10]]
    expected = plain[: plain.index(plain[7:10])]
    ((whole, (text, finish, _)),) = together(
        server,
        lambda: (
            ask(server, PROMPTS[1], stop=words, max_tokens=40),
            text_of(ask(server, PROMPTS[1], stop=words, max_tokens=40, stream=True)),
        ),
    )
    assert whole.choices[0].message.content == text == expected
    assert whole.choices[0].finish_reason == finish == "stop"
    assert whole.usage.completion_tokens <= 40


def test_answers_of_one_length_for_load_clients(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they send with synthetic prompts: the end of a sequence ends no answer, and the counts at the end say so."""
    pair = server.worker.session.pair
    plain = api.generate(pair, PROMPTS[0], drafter=None, max_tokens=24, ignore_eos=True)
    monkeypatch.setattr(pair, "eos_token_ids", frozenset(plain.tokens[5:6]))
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "max_tokens": 24}
    bodies = [{"stop": None, "ignore_eos": on} for on in (False, True)]
    (answers,) = together(server, lambda: [text_of(ask(server, PROMPTS[0], extra_body=body, **options)) for body in bodies])
    (ended, finish, _), (text, end, chunks) = answers
    assert text.startswith(ended)
    assert len(ended) < len(text)
    assert finish == "stop"
    assert (text, end, chunks[-1].usage.completion_tokens) == (plain.text, "length", 24)


def test_sampling_follows_the_request(server: Server) -> None:
    """Temperature, filters and seed are those of the call in Python; without a seed two answers differ."""
    settings = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "extra_body": {"top_k": 50, "drafter": "generic", "k": 3}}
    ((one, again, other, another),) = together(
        server,
        lambda: (
            [ask(server, **settings, max_tokens=20), ask(server, **settings, max_tokens=20)]
            + [ask(server, temperature=1.0, seed=None, max_tokens=20) for _ in range(2)]
        ),
    )
    own = api.generate(server.worker.session.pair, "hello", k=3, temperature=1.0, top_p=0.9, top_k=50, seed=7, max_tokens=20)
    texts = [a.choices[0].message.content for a in (one, again, other, another)]
    assert texts[0] == texts[1] == own.text
    assert texts[2] != texts[3]


def test_eight_clients_at_once(server: Server) -> None:
    """Three turns each, streamed: every answer is that of plain decoding, and every later turn goes on from the one before."""
    pair = server.worker.session.pair

    def talk(n: int) -> tuple[list[dict[str, str]], list[int]]:
        messages: list[dict[str, str]] = []
        reused = []
        for turn in range(3):
            messages.append({"role": "user", "content": f"{PROMPTS[n]}, {turn}"})
            text, _, chunks = text_of(
                ask(server, messages=messages, stream=True, stream_options={"include_usage": True}, extra_body={"user": str(n)})
            )
            messages.append({"role": "assistant", "content": text})
            reused.append(chunks[-1].usage.prompt_tokens_details.cached_tokens)
        return messages, reused

    for messages, reused in together(server, *(lambda n=n: talk(n) for n in range(8))):
        for turn in range(3):
            plain = api.generate(pair, messages[: 2 * turn + 1], drafter=None, max_tokens=12)
            assert messages[2 * turn + 1]["content"] == plain.text
            assert turn == 0 or reused[turn] >= len(pair.encode(messages[: 2 * turn - 1])) - 2


# --- who is answered, and when ---


def test_clients_take_turns() -> None:
    """Who asked for much does not keep the others waiting; the queue has an end, and closes."""
    queue = FairQueue(5)
    jobs = [Waiting(parse(b'{"prompt": "x"}', chat=False), name, None) for name in "aaabc"]  # type: ignore[arg-type]
    for job in jobs:
        queue.put(job)
    with pytest.raises(ApiError, match="5 requests wait") as caught:
        queue.put(jobs[0])
    assert caught.value.status == 429
    assert [queue.take(0) for _ in range(6)] == [jobs[0], jobs[3], jobs[4], jobs[1], jobs[2], None]
    queue.close()
    with pytest.raises(ApiError, match="ending"):
        queue.put(jobs[0])


def test_a_full_queue_and_a_client_that_leaves(server: Server) -> None:
    """Beyond the queue's end clients hear 429; a stream that nobody reads any more ends, and a job of nobody is not begun."""
    worker = server.worker

    def leaving() -> None:
        with (
            client(server) as c,
            c.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "on and on"}], max_tokens=900, stream=True
            ) as stream,
        ):
            next(iter(stream))

    together(server, leaving)
    assert 0 < worker.session.stats().tokens < 900
    with ThreadPoolExecutor(13) as pool:
        waiting = [pool.submit(post, server, b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}') for _ in range(13)]
        while len(worker.queue) < 12 or not any(w.done() for w in waiting):
            time.sleep(0.01)
        while not all(w.done() for w in waiting):
            worker.turn(0.01)
    statuses = sorted(w.result().status_code for w in waiting)
    assert statuses == [200] * 12 + [429]
    before = worker.session.stats().generations
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        body = b'{"messages": [{"role": "user", "content": "x"}]}'
        gone.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: %d\r\n\r\n" % (server.port, len(body)) + body
        )
        wait_until(lambda: len(worker.queue) == 1)
    wait_until(lambda: len(worker.queue) == 0)
    assert worker.session.stats().generations == before


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_learns_when_it_is_quiet(session: Session) -> None:
    """Failures of served answers become a round; requests are answered while it runs, and the new adapter drafts afterwards."""
    server = Server(Worker(session, learning=Learning(quiet_s=3600)))
    worker, pair = server.worker, session.pair
    with server.listening():
        together(server, lambda: [ask(server, prompt) for prompt in PROMPTS])
        assert session.due
        assert session.stats().rounds == 0, "it was never quiet"
        worker.learning.quiet_s = 0.0
        during: list[Any] = []

        def meanwhile() -> None:
            wait_until(lambda: worker.progress is not None or worker.rounds != [])
            during.append(ask(server, PROMPTS[20], extra_body={"drafter": "generic"}))
            wait_until(lambda: worker.rounds != [])

        together(server, meanwhile)
        after = together(server, lambda: ask(server, PROMPTS[0]))[0]
        metrics = HTTP.get(f"{server.url}/metrics").text
    assert during[0].choices[0].message.content == api.generate(pair, PROMPTS[20], drafter=None, max_tokens=12).text
    (row,) = worker.rounds
    assert row["accepted"], "the tiny draft learns this easily"
    assert after.usage.speculation["drafter"] == "session"
    assert after.choices[0].message.content == api.generate(pair, PROMPTS[0], drafter=None, max_tokens=12).text
    assert 'harness_training_rounds_total{verdict="accepted"} 1.0' in metrics


def test_learning_keeps_to_its_time(session: Session) -> None:
    """A round that takes longer ends with what it has, no other begins in the same hour; an ended server leaves the round undone."""
    session.learner.tracker.min_failure_cases = 14
    for prompt in PROMPTS:
        session.generate(prompt)
    worker = Worker(session, learning=Learning(minutes=1e-9, quiet_s=0.0))
    worker.turn(0)
    assert session.stats().rounds == 1
    assert session.learner.records[0].steps <= 1
    assert worker.learning.left_s(time.monotonic()) < 0
    for prompt in PROMPTS[:16]:
        session.generate(prompt + "!")
    worker.turn(0)
    assert session.stats().rounds == 1
    ending = Worker(session, learning=Learning(quiet_s=0.0))
    threading.Timer(0.2, ending.drain).start()
    while not ending.draining:
        ending.turn(0.01)
    assert session.stats().refusal is None
    assert ending.queue.take(0) is None


def test_without_learning_nothing_is_kept(server: Server) -> None:
    """What strangers ask is not written down unless the server was told to learn."""
    together(server, lambda: ask(server, PROMPTS[0]))
    stats = server.worker.session.stats()
    assert (stats.generations, stats.failures, stats.pending) == (1, 0, 0)
    written = [p.name for p in server.worker.session.folder.iterdir() if PROMPTS[0].encode() in p.read_bytes()]
    assert written == []


# --- what is refused ---

USER = {"role": "user", "content": "x"}
WRONG: list[tuple[Any, str]] = [
    ({}, "messages is missing"),
    ({"messages": []}, "messages is wrong"),
    ({"messages": "x"}, "messages is wrong"),
    ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}, "tools are not supported"),
    ({"messages": [USER], "n": 2}, "n 2 is not supported"),
    ({"messages": [USER], "n": True}, "n True is not supported"),
    ({"messages": [USER], "tools": [{"type": "function"}]}, "tools .* is not supported"),
    ({"messages": [USER], "logit_bias": {"5": 1}}, "logit_bias"),
    ({"messages": [USER], "presence_penalty": 0.5}, "presence_penalty 0.5 is not supported"),
    ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [USER], "temperature": -1}, "Temperature is -1"),
    ({"messages": [USER], "temperature": "hot"}, "temperature is wrong"),
    ({"messages": [USER], "temperature": 1e-9}, "Temperature is 1e-09"),
    ({"messages": [USER], "top_p": 0}, "Top_p is 0"),
    ({"messages": [USER], "max_tokens": 0}, "Max_tokens is 0"),
    ({"messages": [USER], "max_tokens": True}, "max_tokens is wrong"),
    ({"messages": [USER], "max_tokens": 1.5}, "max_tokens is wrong"),
    ({"messages": [USER], "seed": "x"}, "seed is wrong"),
    ({"messages": [USER], "stop": ["a"] * 17}, "stop takes up to"),
    ({"messages": [USER], "stop": ""}, "stop takes up to"),
    ({"messages": [USER], "top_logprobs": 3}, "top_logprobs needs logprobs"),
    ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs is wrong"),
    ({"messages": [USER], "stream": "yes"}, "stream is wrong"),
    ({"messages": [USER], "temprature": 1}, "temprature is unknown"),
    ({"messages": [USER], "model": "other"}, "no model 'other'"),
    ({"messages": [USER], "drafter": "poem"}, "did you mean 'poems'"),
    ({"messages": [USER], "drafter": "router"}, "[Nn]o router"),
    ({"messages": [USER], "k": 65}, "K is 65"),
    ({"messages": [USER], "k": "fast"}, "K is 'fast'"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "the context"),
    (["x"], "holds a list"),
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"\xff", "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogates not allowed"),
    (b'{"temperature": 1e999}', "not a number"),
    (b'{"seed": 123456789012345678901234567890}', "more than 64 bits"),
]


def test_wrong_requests_are_answered_in_form(server: Server) -> None:
    """Each is told what is wrong with it; nothing is decoded, and the next request works."""

    def calls() -> list[tuple[Any, str]]:
        answers = [(body, wrong, post(server, body if isinstance(body, bytes) else json.dumps(body))) for body, wrong in WRONG]
        return [(body, found) for body, wrong, response in answers if not re.search(wrong, found := refusal(response)[:400])]

    def others() -> list[int]:
        completions = [
            {"prompt": []},
            {"prompt": ["a", "b"]},
            {"prompt": [10**9]},
            {"prompt": "x", "echo": True},
            {"prompt": "x", "logprobs": 99},
        ]
        answers = [post(server, json.dumps(body), "/v1/completions") for body in completions]
        answers += [
            HTTP.get(f"{server.url}/v1/nothing"),
            HTTP.get(f"{server.url}/v1/completions"),
            HTTP.delete(f"{server.url}/v1/models"),
        ]
        return [response.status_code for response in answers if refusal(response)]

    wrong, statuses = together(server, calls, others)
    assert wrong == []
    assert statuses == [400] * 5 + [404, 405, 405]
    assert server.worker.session.stats().generations == 0
    assert together(server, lambda: ask(server, max_tokens=2))[0].choices[0].finish_reason


def test_a_body_of_100_megabytes(server: Server) -> None:
    """It is refused whether its length is announced or not, without being held in memory."""

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 2**20

    announced = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    announced.request("POST", "/v1/chat/completions", body=b"x" * (100 * 2**20))
    response = announced.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "request_too_large")
    announced.close()
    streamed = post(server, pieces())
    assert str(MAX_BODY_BYTES) in refusal(streamed)
    assert streamed.status_code == 413
    assert HTTP.get(f"{server.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1:1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": ""}, 401),
        ({"authorization": KEY}, 401),
    ],
)
def test_strangers_are_refused(session: Session, headers: dict[str, str], status: int) -> None:
    """Another name of this machine, a page of another site, or no key: nothing runs and nothing is told."""
    with (server := Server(Worker(session), key=KEY, page=True)).listening():
        sent = {"authorization": f"Bearer {KEY}", **headers}
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/v1/session")):
            response = HTTP.request(method, server.url + path, headers=sent, content=b"{}" if method == "POST" else None)
            assert response.status_code == status
            refusal(response)
        assert len(server.worker.queue) == 0


def test_keys_pages_and_names(session: Session) -> None:
    """With its key everything works; the page's address carries it; beyond this machine a key is needed."""
    with (server := Server(Worker(session), key=KEY, names=["box.local"], page=True)).listening():
        own = {"authorization": f"Bearer {KEY}"}
        for more in ({}, {"host": "box.local"}, {"origin": server.url}):
            assert HTTP.get(f"{server.url}/v1/models", headers={**own, **more}).status_code == 200
        assert HTTP.get(f"{server.url}/health").status_code == 200
        assert HTTP.get(f"{server.url}/", params={"key": KEY}).status_code == 200
        assert HTTP.get(f"{server.url}/").status_code == 401
        with client(server, key=KEY) as known, client(server) as stranger:
            assert known.models.list().data[0].id == "tiny"
            with pytest.raises(openai.AuthenticationError):
                stranger.models.list()
        with pytest.raises(HarnessError, match="cannot be opened"):
            Server(Worker(session), port=server.port)
    with pytest.raises(HarnessError, match="no API key is set"):
        Server(Worker(session), host="0.0.0.0")


MALFORMED = [
    b"", b"\n\n", b"\0", b"\xff\xfe\n\n", b"x" * 70_000, b"GET", b"GET \n\n", b"GET /\n\n", b"GET / x y\n\n", b"GET / HTTP/9\n\n",
    b"GET / HTTP/1.x\n\n", b"GET / HTTP/\xb2.1\n\n", b"GET / HTTP/2.0\n\n", b"\x16\x03\x01\x02\x00\x01\x00", b"G\0T / HTTP/1.1\n\n",
    b"GET http://[ HTTP/1.1\n%H\n", b"GET /%ff%00 HTTP/1.1\n%H\n", b"GET /\xff\xfe HTTP/1.1\n%H\n", b"PUT / HTTP/1.1\n%H\n",
    b"GET /" + b"a" * 66_000 + b" HTTP/1.1\n\n", b"%G\n", b"%GHost: evil\n\n", b"%G%HHost: %N\n\n", b"%GHost\n\n", b"%G: x\n\n",
    b"%GA: " + b"a" * 70_000 + b"\n\n", b"%P%H%L\xb2\n\n{}", b"%P%H%L-1\n\n{}", b"%P%H%L+2\n\n{}", b"%P%H%L2, 3\n\n{}",
    b"%P%H%L2\n%L3\n\n{}", b"%P%H%L" + b"9" * 5000 + b"\n\n{}", b"%P%H%L999999999\n\n{}", b"%P%H%L5\n\n{}", b"%P%H%L2\n\n[]",
    b"%P%HTransfer-Encoding: chunked\n\nz\n{}\n0\n\n", b"%P%HTransfer-Encoding: gzip\n\n{}", b"%P%HExpect: 200-ok\n%L2\n\n{}",
    b"%P%H%L0\n\n",
]  # fmt: skip
"""Requests to send as they are, after :func:`raw` has written out the letters with a percent sign."""


def raw(server: Server, data: bytes, close: bool) -> bytes:
    """Send bytes as they are and read what comes until the server closes; ``close`` ends the own side first."""
    host = b"127.0.0.1:%d" % server.port
    lines = {b"%G": b"GET /v1/models HTTP/1.1\n", b"%P": b"POST /v1/completions HTTP/1.1\n", b"%H": b"Host: %N\n", b"%N": host}
    for letter, meaning in {**lines, b"%L": b"Content-Length: ", b"\n": b"\r\n"}.items():
        data = data.replace(letter, meaning)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        return answer


def test_what_is_no_request_is_refused_or_closed(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever bytes come, the answer is an error in the API's form or a quiet close, nothing is decoded, and the server goes on."""
    monkeypatch.setattr("harness.serve.guard.READ_S", 0.5)
    wrong = []
    with ThreadPoolExecutor(16) as pool:
        sent = [(data, pool.submit(raw, server, data, close)) for data in MALFORMED for close in (True, False)]
    for data, answer in sent:
        head, _, body = answer.result().partition(b"\r\n\r\n")
        if head and not (re.match(rb"HTTP/1\.1 [45]\d\d ", head) and body.startswith(b'{"error":')):
            wrong.append((data[:80], head[:200]))
    assert wrong == []
    assert server.worker.session.stats().generations == 0
    assert HTTP.get(f"{server.url}/health").status_code == 200
    assert capfd.readouterr().err == ""


def test_slow_clients_cost_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head and a body have a time to come as a whole, and hear that it is over."""
    monkeypatch.setattr("harness.serve.guard.READ_S", 0.5)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: %d\r\n\r\n"
    for begun, endless in ((b"", b"G"), (head % (server.port, 1000), b" ")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
            slow.sendall(begun)
            answer = b""
            slow.settimeout(0.05)
            end = time.monotonic() + 60
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < end and b"request_timeout" not in answer:
                    slow.sendall(endless)
                    with contextlib.suppress(TimeoutError):
                        answer += slow.recv(65_536)
            assert b" 408 " in answer.partition(b"\r\n")[0]
            assert b'"request_timeout"' in answer
    assert HTTP.get(f"{server.url}/health").status_code == 200


def test_who_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that takes no more data ends after a while, whatever still waits to be sent."""
    monkeypatch.setattr("harness.serve.guard.READ_S", 0.05)
    sent: list[Any] = []

    async def talking(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": b"on and on", "more_body": True})

    async def deaf(message: Any) -> None:
        sent.append(message["type"])
        await asyncio.sleep(60 if len(sent) > 3 else 0)

    guard = Guard(talking, hosts=None, key=None, count=lambda *_: None)
    asyncio.run(guard({"type": "http", "path": "/", "headers": []}, None, deaf))
    assert len(sent) == 4


# --- the page and the commands ---


class References(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]


def test_the_page_asks_nobody_else(session: Session) -> None:
    """Self-contained: no address of another host in it, and a policy that forbids what might slip in."""
    key = "k" * 32
    with (server := Server(Worker(session), key=key, page=True)).listening():
        response = HTTP.get(f"{server.url}/", params={"key": key})
    text, policy = response.text, response.headers["content-security-policy"]
    parser = References()
    parser.feed(text)
    assert parser.found == ["data:,"]
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    assert policy.startswith("default-src 'none'")
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
    assert nonce
    assert f'<script nonce="{nonce.group(1)}">' in text
    assert f'const KEY = "{key}"' in text
    assert "__" not in re.sub(r"[\w-]{16,}", "", text), "every placeholder is filled"
    assert "innerHTML" not in PAGE.read_text(encoding="utf-8"), "answers are text, never markup"


def test_the_page_is_told_what_was_drafted(server: Server) -> None:
    """Its pieces join to the answer, with the draft's part marked and what was rejected named; the session's state is there."""
    pair = server.worker.session.pair
    body = {"messages": [{"role": "user", "content": PROMPTS[1]}], "max_tokens": 16, "stream": True, "draft_details": True, "reuse": False}
    (response,) = together(server, lambda: post(server, json.dumps(body)))
    events = [json.loads(part.removeprefix("data: ")) for part in response.text.split("\n\n")[:-2]]
    rows = [piece for e in events if e["choices"] for piece in e["choices"][0].get("speculation", {"pieces": []})["pieces"]]
    own = api.generate(pair, PROMPTS[1], k=3, max_tokens=16, detailed=True)
    assert "".join(text for text, _, _ in rows) == own.text
    assert sum(drafted for _, drafted, _ in rows) == own.accepted
    assert [instead for _, _, instead in rows if instead is not None] == [
        pair.decode([p.draft_token]) for p in own.positions if not p.agrees
    ]
    state = HTTP.get(f"{server.url}/v1/session").json()
    assert (state["pair"], state["stats"]["generations"], state["training"]) == ("tiny", 1, None)


@pytest.mark.parametrize(("command", "ending"), [("serve", signal.SIGTERM), ("demo", signal.SIGINT)])
def test_a_signal_drains_the_server(home: tuple[Path, Any], tmp_path: Path, command: str, ending: signal.Signals) -> None:
    """The real program: what was asked before the signal is answered whole, what comes later is told so, and it ends with success."""
    path = session_file(home[0], name=command)
    options = ["--session", str(path), "--offline"] if command == "serve" else [str(path), "--no-browser"]
    with forks.started(forks.command, [command, *options, "--port", "0"], tmp_path / "cache") as running:
        wait_until(lambda: "\n" in running.said().partition("http://")[2])
        line = running.said().partition("http://")[2].partition("\n")[0]
        url = "http://" + re.findall(r"[\w.:]+", line)[0]
        key = line.partition("key=")[2].strip()
        own = {"authorization": f"Bearer {key}"} if key else {}
        if command == "demo":
            assert "token by token" in HTTP.get(f"{url}/", params={"key": key}, timeout=60).text
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "stream": True}
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(HTTP.post, f"{url}/v1/chat/completions", json=body, headers=own) for _ in range(3)]
            wait_until(lambda: HTTP.get(f"{url}/v1/session", headers=own, timeout=60).json()["waiting"] == 2)
            os.kill(running.process.pid, ending)
            answers = [one.result() for one in asked]
        assert [re.findall('"finish_reason":"(?:stop|length)"', a.text)[0] and a.text[-14:] for a in answers] == ["data: [DONE]\n\n"] * 3
        assert running.ends(300)
        assert running.process.exitcode == 0, running.said()
        assert running.said().endswith("ended\n")
