"""What the demo does with one prompt: the answer with its draft, the same without, and training when it is due."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import api
from harness.core.counts import Counts, total
from harness.core.errors import HarnessError, did_you_mean
from harness.core.limits import LENGTH, Limit, draft_length
from harness.core.protocols import LoadedPair
from harness.decode.pieces import TextPieces
from harness.session.session_config import ADAPTIVE

if TYPE_CHECKING:
    from harness.core.records import Generation
    from harness.session.session import Session

MAX_K, MAX_TOKENS = int(LENGTH.high), 2048
WARM_UP_TOKENS = 8
PLAIN = "none"
"""Name of plain decoding on the page."""
Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    """What the page asks for."""

    prompt: str
    drafter: str | None = ADAPTIVE
    """A name of :meth:`harness.session.session.Session.drafters`; None is plain decoding."""
    k: int | str
    """Draft length; the session's where the page names none."""
    max_tokens: int = 256
    compare: bool = False
    """Decode without a draft afterwards, to compare."""

    @classmethod
    def from_json(cls, body: dict[str, Any], session: Session) -> AnswerRequest:
        """Check what came over the wire.

        Raises:
            HarnessError: a missing or wrong field.
        """
        if unknown := body.keys() - {f.name for f in dataclasses.fields(cls)}:
            raise HarnessError(f"unknown field {min(unknown)!r}")
        config = session.config
        values = {"drafter": session.drafter, "k": session.k, "max_tokens": config.max_tokens, "compare": False, **body}
        prompt, drafter, k = values.get("prompt"), values["drafter"], values["k"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise HarnessError("the prompt is empty", "Write something.")
        known = [*session.drafters(), PLAIN]
        if drafter is not None and drafter not in known:
            raise HarnessError(f"no drafter {drafter!r}: {did_you_mean(str(drafter), known)}")
        if isinstance(k, str):
            draft_length(k)
        else:
            Limit(1, MAX_K, whole=True).check("k", k)
        Limit(1, MAX_TOKENS, whole=True).check("max_tokens", values["max_tokens"])
        if not isinstance(values["compare"], bool):
            raise HarnessError(f"compare is {values['compare']!r}", "Give true or false.")
        return cls(**{**values, "drafter": None if drafter == PLAIN else drafter})


def warm_up(session: Session) -> None:
    """Decode a few tokens with and without a draft, so that the first answer's times are not those of a cold start."""
    drafter = session.stats().drafter
    for name in {None, "generic" if session.learner is not None else drafter}:
        api.generate(session.pair, "Hello", drafter=name, max_tokens=WARM_UP_TOKENS)


def answer(session: Session, request: AnswerRequest, stop: threading.Event, send: Send) -> None:
    """Answer a request and send events: ``tokens`` and ``done`` per side, ``compared``, ``training``, ``trained``, ``stats``.

    Raises:
        HarnessError: as :meth:`harness.session.session.Session.generate`.
    """
    common: dict[str, Any] = {"max_tokens": request.max_tokens, "stop": stop}
    drafted = _Side("draft", session.pair, send)
    result = session.generate(request.prompt, drafter=request.drafter, k=request.k, train=False, on_step=drafted.show, **common)
    drafted.done(result)
    if request.compare and result.drafter is not None and not stop.is_set():
        plain = _Side("plain", session.pair, send)
        config = session.config
        sampling = {"temperature": config.temperature, "seed": config.seed}
        alone = api.generate(session.pair, request.prompt, drafter=None, on_step=plain.show, **sampling, **common)
        plain.done(alone)
        if not stop.is_set():
            _compare(result, alone, config.temperature == 0, send)
    _train_if_due(session, stop, send)
    send({"type": "stats", "stats": dataclasses.asdict(session.stats()), "drafters": session.drafters()})


def _compare(result: Generation, alone: Generation, greedy: bool, send: Send) -> None:
    """Times per token, because sampled answers differ in length."""
    speedup = (alone.wall_s / alone.emitted) / (result.wall_s / result.emitted)
    send({"type": "compared", "speedup": speedup, "equal": result.tokens == alone.tokens if greedy else None})


def _train_if_due(session: Session, stop: threading.Event, send: Send) -> None:
    stats = session.stats()
    if stop.is_set() or not (stats.due and session.config.train_automatically):
        return
    send({"type": "training", "cases": stats.pending})
    record = session.train_if_due(progress=lambda p: send({"type": "progress", "step": p.step, "total": p.total, "loss": p.loss}))
    if record is not None:
        change = {d: [record.before[d], record.after[d]] for d in record.before}
        send({"type": "trained", "round": record.round, "accepted": record.accepted, "change": change, "train_s": record.train_s})


class _Side:
    """Sends one answer as it grows."""

    def __init__(self, name: str, pair: LoadedPair, send: Send) -> None:
        self.name, self.pair, self.send = name, pair, send
        self.pieces = TextPieces(pair.decode)
        self.began = time.perf_counter()
        self.counts = Counts()

    def show(self, step: Any) -> None:
        """Send what one target pass emitted: text, whether the draft proposed it, and what was rejected in its place."""
        wrong = {p.target_token: p.draft_token for p in step.positions if not p.agrees}
        rows = []
        for i, token in enumerate(step.tokens):
            drafted = i < step.accepted
            instead = self.pair.decode([wrong[token]]) if not drafted and token in wrong else None
            rows.append([self.pieces.add(token), drafted, instead])
        own = Counts(rounds=1, drafted=step.drafted, accepted=step.accepted, rejected=step.rejected, emitted=len(step.tokens))
        self.counts = total([self.counts, own])
        self.send({"type": "tokens", "side": self.name, "pieces": rows, **self._numbers()})

    def done(self, result: Generation) -> None:
        """Send the final counts, with the exact times."""
        self.send(
            {
                "type": "done",
                "side": self.name,
                "rest": self.pieces.rest(),
                "finish": result.finish,
                "drafter": result.drafter,
                "wall_s": result.wall_s,
                "ttft_s": result.ttft_s,
                "route_s": result.route_s,
                "swap_s": result.swap_s,
                **self._numbers(result.wall_s),
            }
        )

    def _numbers(self, wall_s: float | None = None) -> dict[str, Any]:
        c = self.counts
        seconds = time.perf_counter() - self.began if wall_s is None else wall_s
        return {
            **dataclasses.asdict(c),
            "rate": c.rate,
            "tau": c.tau,
            "tokens_per_s": c.emitted / seconds if seconds else None,
        }
