"""Answers in the words of the OpenAI API, whole or in pieces. Counts of drafting stand in ``usage.speculation``."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.core.round_sources import expanded
from harness.core.version import __version__
from harness.decode.pieces import INCOMPLETE
from harness.serve.api_errors import ApiError
from harness.serve.queue import Done, Round, Shown
from harness.serve.wire import Ask

if TYPE_CHECKING:
    from harness.core.records import Generation

END = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


class Reply:
    """Writes one answer.

    Args:
        ask: what was asked.
        model: the name the answer carries.
    """

    def __init__(self, ask: Ask, model: str) -> None:
        self.ask = ask
        self._head = {
            "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"harness-{__version__}",
        }
        self._offset = 0
        self._begun = False

    def chunk(self, round_: Round) -> bytes:
        """The event of a round; nothing where it shows nothing."""
        text = "".join(one.text for one in round_.shown)
        logprobs = self._logprobs(round_.shown)
        if not text and logprobs is None and not self.ask.details:
            return b""
        choice = self._choice(text, logprobs, None)
        if self.ask.details:
            pieces = [[one.text, one.drafted, one.instead] for one in round_.shown]
            counts = {"drafted": round_.drafted, "accepted": round_.accepted, "emitted": round_.emitted}
            choice["speculation"] = {"pieces": pieces, **counts}
        return event(self._object([choice], chunk=True))

    def ending(self, done: Done) -> bytes:
        """The events that end a stream."""
        data = event(self._object([self._choice("", None, done.finish)], chunk=True))
        if self.ask.usage:
            data += event({**self._object([], chunk=True), "usage": usage(done)})
        return data + END

    def failure(self, error: ApiError) -> bytes:
        """The events of an answer that fails on its way."""
        return event(error.body()) + END

    def whole(self, shown: Sequence[Shown], done: Done) -> dict[str, Any]:
        """The answer in one piece."""
        text, logprobs = "".join(one.text for one in shown), self._logprobs(shown)
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.ask.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": logprobs, "finish_reason": done.finish}
        return {**self._object([choice], chunk=False), "usage": usage(done)}

    def _object(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        name = "text_completion" if not self.ask.chat else "chat.completion.chunk" if chunk else "chat.completion"
        return {"object": name, **self._head, "choices": choices}

    def _choice(self, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self.ask.chat:
            said = {"delta": {} if finish else {"content": text} if self._begun else {"role": "assistant", "content": text}}
        self._begun = True
        return {"index": 0, **said, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, shown: Sequence[Shown]) -> dict[str, Any] | None:
        """Log-probabilities in the form of the endpoint; None where none were asked for."""
        tokens = [one for one in shown if one.logprob is not None]
        if self.ask.logprobs is None or not tokens:
            return None
        if self.ask.chat:
            rows = [{**_entry(one.alone, one.logprob), "top_logprobs": [_entry(*pair) for pair in one.top]} for one in tokens]
            return {"content": rows, "refusal": None}
        offsets = []
        for one in tokens:
            offsets.append(self._offset)
            self._offset += len(one.text)
        return {
            "tokens": [one.alone for one in tokens],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [dict(one.top) for one in tokens],
            "text_offset": offsets,
        }


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": None if INCOMPLETE in text else list(text.encode())}


def usage(done: Done) -> dict[str, Any]:
    """Tokens as the API counts them, and what drafting did."""
    g = done.generation
    speculation = {
        "drafter": g.drafter,
        "k": g.k,
        "rounds": g.rounds,
        "emitted": g.emitted,
        "finish": g.finish,
        "drafted": g.drafted,
        "accepted": g.accepted,
        "rate": g.rate,
        "tau": g.tau,
        "sources": _by_source(g),
        "queue_s": done.queue_s,
        "ttft_s": g.ttft_s,
        "wall_s": g.wall_s,
        "route_s": g.route_s,
        "swap_s": g.swap_s,
    }
    return {
        "prompt_tokens": g.prompt_tokens,
        "completion_tokens": done.tokens,
        "total_tokens": g.prompt_tokens + done.tokens,
        "prompt_tokens_details": {"cached_tokens": done.reused},
        "speculation": speculation,
    }


def _by_source(g: Generation) -> dict[str, dict[str, int]]:
    """Who proposed: the rounds that each took part in, and its own tokens in them."""
    found: dict[str, dict[str, int]] = {}
    for source, drafted, accepted in zip(g.sources or (), g.draft_lengths, g.accept_lengths, strict=False):
        tokens = expanded(source, drafted)
        for name in dict.fromkeys(tokens):
            counts = found.setdefault(name, {"rounds": 0, "drafted": 0, "accepted": 0})
            counts["rounds"] += 1
            counts["drafted"] += tokens.count(name)
            counts["accepted"] += tokens[:accepted].count(name)
    return found
