"""The demo page's server: what it streams, whom it answers, one answer at a time."""

from __future__ import annotations

import _thread
import contextlib
import http.client
import json
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from serving import PROMPTS, install_adapter, session_file
from tiny import tiny_pair

from harness import api
from harness.cli.demo_answers import MAX_K, warm_up
from harness.cli.demo_server import MAX_BODY_BYTES, PAGE, TOKEN_HEADER, DemoServer
from harness.core.errors import HarnessError
from harness.session.session import Session


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny pair and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, tiny_pair(folder, noise=0.1, max_position_embeddings=1024)


@pytest.fixture
def server(home: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DemoServer]:
    """A demo on a free port that takes requests; :func:`together` does its decoding on the thread of the test, as mlx wants it."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    install_adapter(home[1], "poems")
    with Session.from_config(session_file(home[0]), pair=home[1]) as session:
        running = DemoServer(session)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        running.server_close()
        thread.join(timeout=600)
        assert not thread.is_alive()
    api.adapter_bank(home[1]).activate(None)


def together(server: DemoServer, *clients: Callable[[], Any]) -> list[Any]:
    """Run the clients in threads of their own and decode here until all have ended; return their results."""
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(client) for client in clients]
        while not all(client.done() for client in running) or server.job is not None:
            with contextlib.suppress(queue.Empty):
                job = server._jobs.get(timeout=0.01)
                assert job is not None
                server._work(job)
    return [client.result() for client in running]


def ask(server: DemoServer, *arguments: Any, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One request, see :func:`send`, and what it makes the server do."""
    (result,) = together(server, lambda: send(server, *arguments, **headers))
    return result


def send(server: DemoServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One request with the token, unless ``headers`` say otherwise; a header of value ``-`` is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=600)
    sent = {TOKEN_HEADER: server.token, **{name.replace("_", "-"): value for name, value in headers.items()}}
    data = body if isinstance(body, bytes | None) else json.dumps(body)
    connection.request(method, path, body=data, headers={n: v for n, v in sent.items() if v != "-"})
    response = connection.getresponse()
    try:
        return response, response.read()
    finally:
        connection.close()


def events(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream."""
    return [json.loads(part.removeprefix("data: ")) for part in data.decode().split("\n\n") if part]


def wait_until(condition: Any) -> None:
    """Wait for another thread."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_stream_is_the_answer(server: DemoServer) -> None:
    """Texts, colours and counts of the page are those of the same generation in Python, with and without a draft."""
    pair, prompt = server.session.pair, PROMPTS[0]
    response, data = ask(server, "POST", "/generate", {"prompt": prompt, "drafter": "poems", "k": 2, "max_tokens": 16, "compare": True})
    assert response.status == 200
    assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    got = events(data)
    own = api.generate(pair, prompt, drafter="poems", k=2, max_tokens=16)
    for side, expected in (("draft", own), ("plain", api.generate(pair, prompt, drafter=None, max_tokens=16))):
        steps = [e for e in got if e["type"] == "tokens" and e["side"] == side]
        (done,) = [e for e in got if e["type"] == "done" and e["side"] == side]
        text = "".join(piece for step in steps for piece, _, _ in step["pieces"]) + done["rest"]
        assert text == expected.text
        assert len(steps) == expected.rounds
        assert [sum(drafted for _, drafted, _ in step["pieces"]) for step in steps] == list(
            expected.accept_lengths if side == "draft" else [0] * 16
        )
        assert (done["emitted"], done["drafted"]) == (expected.emitted, expected.drafted)
        assert done["tokens_per_s"] == pytest.approx(done["emitted"] / done["wall_s"])
    draft_done = next(e for e in got if e["type"] == "done")
    assert draft_done["rate"] == own.accepted / own.drafted
    assert draft_done["tau"] == own.emitted / own.rounds
    assert draft_done["drafter"] == "poems"
    assert draft_done["swap_s"] > 0
    compared = next(e for e in got if e["type"] == "compared")
    assert compared["equal"] is True
    assert compared["speedup"] > 0
    assert got[-1]["type"] == "stats"
    assert got[-1]["stats"]["generations"] == 1, "the comparison does not count as an answer of the session"


def test_rejected_proposals_are_shown(server: DemoServer) -> None:
    """Each token after a rejection carries what the draft had proposed instead."""
    detailed = api.generate(server.session.pair, PROMPTS[1], k=3, max_tokens=16, detailed=True)
    expected = [server.session.pair.decode([p.draft_token]) for p in detailed.positions if not p.agrees]
    _, data = ask(server, "POST", "/generate", {"prompt": PROMPTS[1], "max_tokens": 16})
    shown = [piece[2] for e in events(data) if e["type"] == "tokens" for piece in e["pieces"] if piece[2] is not None]
    assert shown == expected
    assert shown


def test_a_due_round_is_shown_and_used(server: DemoServer) -> None:
    """Training happens in the stream of the answer that made it due; the state then names the new adapter."""
    server.session.config = server.session.config.replace(train_automatically=True)
    server.session.learner.tracker.min_failure_cases = 14
    kinds = []
    for prompt in PROMPTS[:14]:
        _, data = ask(server, "POST", "/generate", {"prompt": prompt, "max_tokens": 12})
        kinds.append([e["type"] for e in events(data)])
    assert all("training" not in k for k in kinds[:13])
    assert kinds[13].index("training") < kinds[13].index("progress") < kinds[13].index("trained") < kinds[13].index("stats")
    state = json.loads(ask(server, "GET", "/state")[1])
    assert state["stats"]["rounds"] == 1


def test_one_answer_at_a_time_and_stop(server: DemoServer) -> None:
    """A second prompt is told to wait; Stop ends the answer early, and the next one works."""

    def interrupting() -> tuple[Any, Any]:
        wait_until(lambda: server.job is not None)
        busy = send(server, "POST", "/generate", {"prompt": "me too"})
        return busy, send(server, "POST", "/stop", {})

    def talking() -> bytes:
        return send(server, "POST", "/generate", {"prompt": PROMPTS[2], "max_tokens": 900})[1]

    talked, ((response, data), (_, stopped)) = together(server, talking, interrupting)
    assert response.status == 409
    assert "an answer is being written" in json.loads(data)["error"]
    assert json.loads(stopped) == {"stopped": True}
    done = next(e for e in events(talked) if e["type"] == "done")
    assert done["finish"] == "stopped"
    assert done["emitted"] < 900
    assert json.loads(ask(server, "POST", "/stop", {})[1]) == {"stopped": False}
    assert ask(server, "POST", "/generate", {"prompt": "me too", "max_tokens": 4})[0].status == 200


def test_tokens_arrive_while_decoding(server: DemoServer) -> None:
    """The page must not wait for the whole answer: the first event comes while the job still runs. Closing the page ends the job."""

    def leaving() -> tuple[bytes, bool]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=600)
        body = json.dumps({"prompt": PROMPTS[3], "max_tokens": 900})
        connection.request("POST", "/generate", body=body, headers={TOKEN_HEADER: server.token})
        response = connection.getresponse()
        first, running = response.readline(), server.job is not None
        response.close()
        connection.close()
        return first, running

    ((first, running),) = together(server, leaving)
    assert first.startswith(b"data: ")
    assert running
    assert 0 < server.session.stats().tokens < 900


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {}),
        ("GET", "/?token=wrong", {}),
        ("GET", "/?token={token}", {"Host": "evil.example"}),
        ("GET", "/?token={token}", {"Host": "127.0.0.1:1"}),
        ("GET", "/state", {TOKEN_HEADER: "-"}),
        ("GET", "/state?token={token}", {TOKEN_HEADER: "-"}),
        ("GET", "/state", {"Host": "evil.example"}),
        ("POST", "/generate", {TOKEN_HEADER: "-"}),
        ("POST", "/generate", {TOKEN_HEADER: "wrong"}),
        ("POST", "/generate?token={token}", {TOKEN_HEADER: "-", "Content-Type": "text/plain"}),
        ("POST", "/generate", {"Host": "evil.example"}),
        ("POST", "/stop", {TOKEN_HEADER: "-"}),
        ("POST", "/generate", {TOKEN_HEADER: "\u00e9"}),
    ],
)
def test_other_sites_are_refused(server: DemoServer, method: str, path: str, headers: dict[str, str]) -> None:
    """A page of another site can send requests here: without this start's token, or under another host name, nothing runs or leaks."""
    body = {"prompt": "hello", "max_tokens": 4} if method == "POST" else None
    response, data = ask(server, method, path.format(token=server.token), body, **headers)
    assert response.status == 403
    assert server.token.encode() not in data
    assert server.session.stats().generations == 0


def test_tokens_differ_between_starts_and_only_this_machine_is_served(server: DemoServer) -> None:
    """A token of yesterday is worthless today, and the socket is bound to the loopback address."""
    other = DemoServer(server.session)
    try:
        assert other.token != server.token
        assert len(server.token) >= 32
        assert server.server_address[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_port}/?token={server.token}"
        with pytest.raises(HarnessError, match="cannot be opened"):
            DemoServer(server.session, other.server_port)
    finally:
        other.server_close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({}, "prompt is empty"),
        ({"prompt": 3}, "prompt is empty"),
        ({"prompt": "x", "drafter": "poem"}, "did you mean 'poems'"),
        ({"prompt": "x", "k": 0}, "k is 0"),
        ({"prompt": "x", "k": MAX_K + 1}, "k is"),
        ({"prompt": "x", "k": True}, "k is True"),
        ({"prompt": "x", "max_tokens": 10**9}, "max_tokens is"),
        ({"prompt": "x", "compare": "yes"}, "compare is"),
        ({"prompt": "x", "temperature": 3}, "unknown field 'temperature'"),
        (["x"], "the request holds a list"),
        (b"{", "the request is not valid JSON"),
        (b"\xff", "the request is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "\\ud800"}', "surrogates not allowed"),
        (b'{"prompt": "x", "k": 1e999}', "not a number"),
        (b"x" * (MAX_BODY_BYTES + 1), "no usable length"),
    ],
)
def test_wrong_requests_are_answered_clearly(server: DemoServer, body: Any, message: str) -> None:
    """The page shows this message; the server goes on."""
    try:
        response, data = ask(server, "POST", "/generate", body)
    except (BrokenPipeError, ConnectionResetError):  # refused before the whole body was sent
        assert len(body) > MAX_BODY_BYTES
        return
    assert response.status == 400
    assert message in json.loads(data)["error"]
    assert server.session.stats().generations == 0


MALFORMED = [
    b"", b"\n\n", b"\0", b"\xff\xfe\n\n", b"x" * 70_000, b"GET", b"GET \n\n", b"GET /\n\n", b"GET / x y\n\n", b"GET / HTTP/9\n\n",
    b"GET / HTTP/1.x\n\n", b"GET / HTTP/\xb2.1\n\n", b"GET / HTTP/2.0\n\n", b"\x16\x03\x01\x02\x00\x01\x00", b"G\0T / HTTP/1.1\n\n",
    b"GET http://[ HTTP/1.1\n%H\n", b"GET //[x HTTP/1.1\n%H\n", b"GET /%ff%00 HTTP/1.1\n%H\n", b"GET /\xff\xfe HTTP/1.1\n%H\n",
    b"GET /?token=%ud800 HTTP/1.1\nHost: %N\n\n", b"GET /" + b"a" * 66_000 + b" HTTP/1.1\n\n", b"PUT / HTTP/1.1\n%H\n",
    b"HEAD / HTTP/1.1\n%H\n", b"\x1b[31m / HTTP/1.1\n\n", b"%G\n", b"%GHost: evil\n\n", b"%GHost: %N\n\n", b"%G%HHost: %N\n\n",
    b"%GHost\n\n",
    b"%GA: " + b"a" * 70_000 + b"\n\n", b"%G" + b"A: b\n" * 200 + b"\n", b"%G: x\n\n", b"%GHost: %N\nX-Demo-Token: \xff\n\n", b"%P%H\n",
    b"%P%H%L\xb2\n\n{}", b"%P%H%L-1\n\n{}", b"%P%H%L+2\n\n{}", b"%P%H%L2, 2\n\n{}", b"%P%H%L2\n%L3\n\n{}",
    b"%P%H%L" + b"9" * 5000 + b"\n\n{}", b"%P%H%L999999999\n\n{}", b"%P%HTransfer-Encoding: chunked\n\n2\n{}\n0\n\n",
    b"%P%H%L5\n\n{}", b"%P%H%L2\n\n{}", b"%P%H%L2\n\n[]", b"%P%H%L3\n\n\xff\xff\xff", b"%P%H%L0\n\n",
    b"%P%HExpect: 200-ok\n%L2\n\n{}",
]  # fmt: skip
"""Requests to send as they are, after :func:`raw` has written out the letters with a percent sign."""


@pytest.fixture
def impatient(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> DemoServer:
    """The server with a short time for every request."""
    monkeypatch.setattr("harness.cli.demo_server.READ_S", 1.0)
    return server


def raw(server: DemoServer, data: bytes, close: bool) -> bytes:
    """Send bytes as they are and read what comes until the server closes; ``close`` ends the own side first."""
    host, token = server.hosts[0].encode(), server.token.encode()
    lines = {b"%G": b"GET /state HTTP/1.1\n", b"%P": b"POST /generate HTTP/1.1\n", b"%H": b"Host: %N\nX-Demo-Token: " + token + b"\n"}
    for letter, meaning in {**lines, b"%N": host, b"%L": b"Content-Length: ", b"\n": b"\r\n"}.items():
        data = data.replace(letter, meaning)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        return answer


def test_malformed_requests_are_refused_or_closed(impatient: DemoServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever bytes come, the answer is a status of 4xx or 5xx or a quiet close, nothing is decoded, and the server goes on."""
    wrong = []
    for data in MALFORMED:
        for close in (True, False):
            answer = raw(impatient, data, close)
            if answer and not re.match(rb"HTTP/1\.[01] [45]\d\d |\{\"error\"|\s*<!DOCTYPE HTML", answer):
                wrong.append((data[:80], answer[:80]))
    assert wrong == []
    assert impatient.job is None
    assert ask(impatient, "GET", "/state")[0].status == 200
    assert capfd.readouterr().err == ""


def test_clients_that_drip_or_leave_cost_nothing(impatient: DemoServer, capfd: pytest.CaptureFixture[str]) -> None:
    """A request has a time to come as a whole; a client that goes before it is answered leaves no trace."""
    with socket.create_connection(("127.0.0.1", impatient.server_port), timeout=60) as slow:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 30:
                slow.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 30
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", impatient.server_port)) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.sendall(f"GET /?token={impatient.token} HTTP/1.1\r\nHost: {impatient.hosts[0]}\r\n\r\n".encode())
    assert ask(impatient, "GET", "/state")[0].status == 200
    assert capfd.readouterr().err == ""


def test_many_clients_at_once_are_all_served(server: DemoServer) -> None:
    """The system's queue of waiting connections holds a burst: none is reset."""
    with ThreadPoolExecutor(100) as pool:
        answers = [pool.submit(send, server, "GET", "/state") for _ in range(100)]
        assert [answer.result()[0].status for answer in answers] == [200] * 100


def test_what_decoding_refuses_reaches_the_page(server: DemoServer) -> None:
    """A prompt beyond the context and a missing router are events of the stream, with advice."""
    for body, message in (({"prompt": "x" * 2000}, "the context"), ({"prompt": "x", "drafter": "router"}, "no router")):
        (event,) = events(ask(server, "POST", "/generate", body)[1])
        assert event["type"] == "error"
        assert message in event["error"]
        assert event["advice"]
    assert ask(server, "POST", "/generate", {"prompt": "x", "max_tokens": 4})[0].status == 200


def test_unknown_pages(server: DemoServer) -> None:
    """No files are served."""
    for method, path in (("GET", "/../../etc/passwd"), ("GET", "/demo.html"), ("POST", "/train")):
        assert ask(server, method, path, {} if method == "POST" else None)[0].status == 404


class References(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]


def test_the_page_asks_nobody_else(server: DemoServer) -> None:
    """Self-contained: no address of another host in it, and a policy that forbids what might slip in."""
    response, data = ask(server, "GET", f"/?token={server.token}", **{TOKEN_HEADER: "-"})
    text = data.decode()
    parser = References()
    parser.feed(text)
    assert parser.found == ["data:,"]
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    policy = response.getheader("Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'")
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
    assert nonce
    assert f'<script nonce="{nonce.group(1)}">' in text
    assert server.token in text
    assert "__" not in re.sub(r"[\w-]{16,}", "", text), "every placeholder is filled"
    assert "innerHTML" not in PAGE.read_text(encoding="utf-8"), "answers are text, never markup"
    assert response.getheader("Referrer-Policy") == "no-referrer"


def test_warm_up_leaves_no_trace(home: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer's times are fair, and the session has not counted anything."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with Session.from_config(session_file(home[0]), pair=home[1]) as session:
        warm_up(session)
        assert session.stats().generations == 0
        assert session.stats().failures == 0


def test_an_interrupt_that_ends_no_system_call_ends_the_server(
    home: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come just before the main thread waits; ``interrupt_main`` is such a signal: noted, and waking nobody."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with Session.from_config(session_file(home[0]), pair=home[1]) as session:
        waiting = DemoServer(session)
        late = threading.Timer(1.0, _thread.interrupt_main)
        rescue = threading.Timer(30.0, waiting.stop)
        for timer in (late, rescue):
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            waiting.serve()
        assert rescue.is_alive(), "it ended by itself"
        rescue.cancel()


def test_the_command_serves_and_ends(home: tuple[Path, Any], tmp_path: Path) -> None:
    """The printed address works as it is, decoding runs in the real program, Ctrl-C ends it with success."""
    path = session_file(home[0], name="command")
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "demo", str(path), "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HARNESS_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("open ").strip()
        base, token = url.split("/?token=")
        with urllib.request.urlopen(url, timeout=600) as page:
            assert b"token by token" in page.read()
        body = json.dumps({"prompt": "hello", "max_tokens": 8, "compare": True}).encode()
        request = urllib.request.Request(f"{base}/generate", data=body, headers={TOKEN_HEADER: token})
        with urllib.request.urlopen(request, timeout=600) as answer:
            got = events(answer.read())
        assert [e["type"] for e in got if e["type"] != "tokens"] == ["done", "done", "compared", "stats"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert out.endswith("ended\n")
    finally:
        process.kill()
