"""A served session: 8 clients at once on four domains, over a training round and a SIGTERM, then the second turn of a long conversation.

    python tests/benchmarks/served.py --models smollm2 --prompts 50 --tokens 32

Every answer is compared with plain decoding of the same prompt; times are of this machine, which should do nothing else.
"""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import common
from openai import OpenAI

from harness import Session, api
from harness.serve.decoding_thread import Learning, Worker
from harness.serve.server import Server

CLIENTS = 8
SENTENCE = "The ferry leaves the harbour at dawn and comes back with the evening tide. "


def connected(server: Server) -> OpenAI:
    """A client of a server; making one takes tens of milliseconds, so it is made before a clock starts."""
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=3600)


def ask(client: OpenAI, model: str, messages: Any, tokens: int, **extra: Any) -> tuple[str, Any, float]:
    """A streamed answer: its text, its usage, and seconds to its first token as the client sees them."""
    began, first, text, usage = time.perf_counter(), 0.0, "", None
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, stream=True, stream_options={"include_usage": True}, extra_body=extra
    )
    for chunk in stream:
        first = first or time.perf_counter() - began
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    return text, usage, first


def main(argv: list[str] | None = None) -> None:
    """Run the session and print what came of it."""
    parser = common.parser(__doc__, models="smollm2", prompts=50, tokens=32, domains=list(common.DATASETS))
    parser.add_argument("--long", type=int, default=1000, help="about how many tokens the long conversation begins with")
    parser.add_argument("--learn-minutes", type=float, default=5.0, help="longest training round")
    args = parser.parse_args(argv)

    prompts = [
        sample.prompt for sample in sorted(common.samples(args, "train"), key=lambda sample: hashlib.sha256(sample.id.encode()).digest())
    ]
    with tempfile.TemporaryDirectory() as folder, Session.from_config(models=args.models, folder=folder) as session:
        session.warm_up()
        server = Server(Worker(session, most_waiting=args.prompts, learning=Learning(minutes=args.learn_minutes, quiet_s=0.0)))
        print(f"overhead per token: {overhead(server, prompts[:8], args.tokens):+.1%}", flush=True)
        answers = served(server, prompts, args.tokens)
    wrong = [i for i, (prompt, text) in enumerate(zip(prompts, answers, strict=True)) if text != plain(session, prompt, args.tokens)]
    rounds = [f"round {r['round']} {'accepted' if r['accepted'] else 'rejected'}" for r in server.worker.rounds]
    print(f"{len(answers)} answers, {len(wrong)} differ from plain decoding {wrong}; {', '.join(rounds) or 'no round'}")
    with tempfile.TemporaryDirectory() as folder, Session.from_config(pair=session.pair, folder=folder) as session:
        long_conversation(Server(Worker(session)), SENTENCE * (args.long // 15), args.tokens)


def plain(session: Session, prompt: Any, tokens: int) -> str:
    """The target's own answer."""
    return api.generate(session.pair, prompt, drafter=None, max_tokens=tokens).text


def decoding(server: Server, work: Any) -> Any:
    """Run ``work`` in a thread and decode here until it is done."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        while not running.done():
            server.worker.turn(0.01)
        return running.result()


def overhead(server: Server, prompts: list[str], tokens: int) -> float:
    """How much longer a token takes through the server than in Python, the same prompts and settings."""
    session = server.worker.session
    other = Server(Worker(session))
    shares = []
    with other.listening(), connected(other) as client:
        for prompt in prompts:
            began = time.perf_counter()
            own = api.generate(session.pair, prompt, k=session.k, max_tokens=tokens)
            direct = (time.perf_counter() - began) / own.emitted

            def work(prompt: str = prompt) -> tuple[Any, float]:
                start = time.perf_counter()
                usage = ask(client, session.pair.name, [{"role": "user", "content": prompt}], tokens, drafter="generic", reuse=False)[1]
                return usage, time.perf_counter() - start

            usage, seconds = decoding(other, work)
            shares.append(seconds / usage.completion_tokens / direct - 1)
    return statistics.median(shares)


def served(server: Server, prompts: list[str], tokens: int) -> list[str]:
    """Answers to all prompts: half of them, most others beside a training round, and the last ones wait when a SIGTERM comes."""
    worker, half = server.worker, len(prompts) // 2
    late = max(half, len(prompts) - CLIENTS)
    asked: list[Future[tuple[str, Any, float]]] = []
    model = worker.session.pair.name
    with ThreadPoolExecutor(CLIENTS) as pool, connected(server) as client:

        def send(numbers: range) -> None:
            messages = [[{"role": "user", "content": prompts[i]}] for i in numbers]
            asked.extend(pool.submit(ask, client, model, m, tokens, user=str(i % CLIENTS)) for i, m in zip(numbers, messages, strict=True))

        def all_are_in() -> bool:
            return sum(one.done() for one in asked) + (worker.job is not None) + len(worker.queue) >= len(prompts)

        def clients() -> None:
            send(range(half))
            wait(asked)
            until(lambda: worker.progress is not None or worker.rounds != [] or not worker.session.due)
            send(range(half, late))
            wait(asked)
            until(lambda: worker.progress is None)
            send(range(late, len(prompts)))
            until(all_are_in)
            os.kill(os.getpid(), signal.SIGTERM)

        asking = threading.Thread(target=clients)
        asking.start()
        server.serve()
        asking.join()
        return [one.result()[0] for one in asked]


def until(condition: Callable[[], bool]) -> None:
    """Wait for the server's thread."""
    while not condition():
        time.sleep(0.02)


def long_conversation(server: Server, text: str, tokens: int) -> None:
    """Two turns: the second reads only what is new."""

    def talk(client: OpenAI) -> list[tuple[Any, float]]:
        messages: list[dict[str, str]] = [{"role": "user", "content": f"{text}\nWhen does the ferry leave?"}]
        turns = []
        for _ in range(2):
            answer, usage, first = ask(client, server.worker.session.pair.name, messages, tokens)
            turns.append((usage, first))
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And when does it come back?"}]
        return turns

    with server.listening(), connected(server) as client:
        (one, first), (two, second) = decoding(server, lambda: talk(client))
    reused = two.prompt_tokens_details.cached_tokens
    print(f"first token of turn 1, {one.prompt_tokens} tokens, after {first:.2f} s")
    print(f"first token of turn 2, {two.prompt_tokens} tokens of which {reused} were kept, after {second:.2f} s")


if __name__ == "__main__":
    main()
