"""One job of the queue on the session: decode, cut at stop words, hand over token by token."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.core import files
from harness.core.drafter_kinds import find_kind
from harness.core.errors import HarnessError
from harness.decode.pieces import TextPieces
from harness.decode.stop_words import StopWords
from harness.serve.api_errors import ApiError, fault
from harness.serve.queue import Done, Round, Shown, Waiting

if TYPE_CHECKING:
    from harness.session.session import Session

UNTRAINED = "lookup"
"""Drafts while the draft itself is being trained."""


def answer(session: Session, job: Waiting, *, learn: bool, training: bool = False, most_prompt_tokens: int | None = None) -> Done:
    """Answer a job, putting its rounds and its end.

    Args:
        session: what answers.
        job: what to answer.
        learn: keep what the draft gets wrong.
        training: the draft is being trained: draft with what runs no draft model.
        most_prompt_tokens: refuse longer prompts; None is the context.

    Raises:
        ApiError: the prompt is too long.
        HarnessError: as :meth:`harness.session.session.Session.generate`.
    """
    ask, waited = job.ask, time.monotonic() - job.since
    prompt = ask.prompt if ask.chat else _ids(session.pair, ask.prompt)
    if most_prompt_tokens is not None and (n := len(session.pair.encode(prompt))) > most_prompt_tokens:
        raise ApiError(400, f"The prompt has {n} tokens, this server reads {most_prompt_tokens}.", code="context_length_exceeded")
    settings = {name: value for name, value in ask.settings.items() if name != "k"}
    drafter, settings = _drafter(session, ask.prompt, ask.drafter, training, settings, ask.settings.get("k"))
    if ask.max_tokens is not None:
        settings["max_tokens"] = ask.max_tokens
    if ask.logprobs is not None:
        settings["logprobs"] = ask.logprobs
    if ask.details:
        settings["detailed"] = 1
    if not ask.reuse:
        settings["caches"] = None
    writing = _Writing(session.pair, ask.stop, job)
    learn = learn and not training and "ignore_eos" not in settings  # past its end an answer says nothing that is worth learning
    generation = session.generate(prompt, drafter=drafter, train=False, learn=learn, on_step=writing.show, stop=job.stop, **settings)
    writing.end()
    ended = generation.finish == "eos" or writing.stop.found is not None
    done = Done(
        generation=generation,
        tokens=writing.tokens,
        finish="stop" if ended else "length",
        reused=session.caches.reused if ask.reuse else 0,
        queue_s=waited,
    )
    job.put(done)
    return done


def _ids(pair: Any, prompt: Any) -> list[int]:
    """Token ids of a completion's prompt, without a chat template."""
    if not isinstance(prompt, str):
        return list(prompt)
    with files.reading(f"the prompt with the tokenizer of {pair.name!r}", advice="Check the prompt, or use another model."):
        return list(pair.tokenizer.encode(prompt))


def _drafter(
    session: Session, prompt: Any, asked: str | None, training: bool, settings: dict[str, Any], k: int | str | None
) -> tuple[str | None, dict[str, Any]]:
    """Who drafts this answer, and the settings with its draft length."""
    name = session.drafter if asked == "" else asked
    if asked:
        session.config.check_drafter(session.pair.name, asked)
    if training and name is not None:
        kind = find_kind(name)
        name = name if kind is not None and not kind.needs_draft else UNTRAINED
    if name == "router" and isinstance(prompt, str):  # a completion is decoded from ids, which no router reads
        from harness.adapt.routers.routed import PLAIN

        routed = session.route(prompt)
        name, k = (None if routed.drafter == PLAIN else routed.drafter), routed.decision.arm.k if k is None else k
    return name, settings if k is None else {**settings, "k": k}


class _Writing:
    """An answer as it grows."""

    def __init__(self, pair: Any, words: tuple[str, ...], job: Waiting) -> None:
        self.pair, self.job = pair, job
        self.pieces, self.stop = TextPieces(pair.decode), StopWords(words)
        self.tokens = 0
        self._waiting: deque[tuple[int, Shown]] = deque()
        self._came, self._safe = 0, 0  # characters so far, and those of them that no stop word can take back
        self._counts = {"drafted": 0, "accepted": 0, "emitted": 0}

    def show(self, step: Any) -> None:
        """Hand over what one round emitted; a stop word ends the answer."""
        wrong = {p.target_token: p.draft_token for p in step.positions if not p.agrees} if self.job.ask.details else {}
        for i, token in enumerate(step.tokens):
            if self.stop.found is not None:
                break
            drafted = i < step.accepted
            instead = self.pair.decode([wrong[token]]) if not drafted and token in wrong else None
            watched: dict[str, Any] = {}
            if step.logprobs and token not in self.pair.eos_token_ids:
                top = tuple((self.pair.decode([one]), logprob) for one, logprob in step.logprobs[i].top)
                watched = {"alone": self.pair.decode([token]), "logprob": step.logprobs[i].logprob, "top": top}
            self._add(Shown(text=self.pieces.add(token), drafted=drafted, instead=instead, **watched))
            self.tokens += 1
        self._counts = {"drafted": step.drafted, "accepted": step.accepted, "emitted": len(step.tokens)}
        self._put(self._released())
        if self.stop.found is not None:
            self.job.stop.set()

    def end(self) -> None:
        """Hand over what waited for a stop word that did not come, and what an unfinished character leaves."""
        rest = self.pieces.rest() if self.stop.found is None else ""
        self._safe += len(self.stop.add(rest)) + len(self.stop.rest())
        shown = self._released()
        if self._waiting and (left := self._safe - self._came_before()) > 0:  # the token in whose middle the stop word begins
            _, last = self._waiting.popleft()
            shown.append(_cut(last, left))
        elif rest and self.stop.found is None:
            shown.append(Shown(text=rest, drafted=False))
        self._counts = dict.fromkeys(self._counts, 0)
        self._put(shown)

    def _add(self, shown: Shown) -> None:
        self._came += len(shown.text)
        self._waiting.append((self._came, shown))
        self._safe += len(self.stop.add(shown.text))

    def _came_before(self) -> int:
        end, shown = self._waiting[0]
        return end - len(shown.text)

    def _released(self) -> list[Shown]:
        """Tokens whose whole text is safe."""
        found = []
        while self._waiting and self._waiting[0][0] <= self._safe and (self.stop.found is None or self._waiting[0][0] > 0):
            found.append(self._waiting.popleft()[1])
        return found

    def _put(self, shown: list[Shown]) -> None:
        if shown or any(self._counts.values()):
            self.job.put(Round(shown=tuple(shown), **self._counts))


def _cut(shown: Shown, chars: int) -> Shown:
    return dataclasses.replace(shown, text=shown.text[:chars])


def run(session: Session, job: Waiting, observe: Callable[[Done], None], **how: Any) -> None:
    """Answer a job, whatever happens: its client hears of every end."""
    try:
        observe(answer(session, job, **how))
    except ApiError as error:
        job.put(error)
    except HarnessError as error:
        job.put(ApiError.of(error))
    except Exception as error:
        job.put(fault(error))
