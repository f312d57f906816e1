"""Options of the commands that answer: how to sample, where to stop, what was said before."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ConfigDict
from typing_extensions import TypedDict

from harness.decode.stop_words import StopWords

TopPOption = Annotated[float | None, typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens with this mass.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", metavar="N", help="Sample from this many likeliest tokens.")]
MinPOption = Annotated[
    float | None, typer.Option("--min-p", metavar="P", help="Leave out tokens less likely than this part of the likeliest one.")
]
LenienceOption = Annotated[
    float | None, typer.Option("--lenience", metavar="L", help="Above 1: accept more drafted tokens. Lossy; needs --rule rejection.")
]
StopOption = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text; repeatable.")]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")]
MessagesOption = Annotated[
    Path | None, typer.Option("--messages", metavar="FILE", help="Conversation so far: a JSON list of messages with role and content.")
]


class Message(TypedDict):
    """One message of a conversation."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    role: Literal["system", "user", "assistant"]
    content: str


def read_messages(path: Path, system: str | None = None) -> list[dict[str, str]]:
    """The messages of a JSON file, a list of them or an object that holds it as ``messages``.

    Args:
        path: the file.
        system: a system message from elsewhere, which they then may not have.

    Raises:
        HarnessError: no such file, no JSON, or no list of messages with a role and a text; names the place. Or two system messages.
    """
    from harness.core.errors import HarnessError
    from harness.core.files import read_text, reading, typed

    advice = 'Write it as [{"role": "user", "content": "..."}]; roles are system, user and assistant.'
    text = read_text(path, advice=advice)
    with reading(path, advice=advice):
        data = json.loads(text)
    found = typed(list[Message], data.get("messages") if isinstance(data, dict) else data, str(path), advice=advice)
    if not found:
        raise HarnessError(f"{path} holds no messages", advice)
    if system is not None and any(message["role"] == "system" for message in found):
        raise HarnessError(f"{path} has a system message, and so does --system", "Keep one of them.")
    return [{"role": message["role"], "content": message["content"]} for message in found]


def conversation(prompt: str | None, system: str | None, messages: Path | None) -> str | list[dict[str, str]]:
    """What to answer: a prompt, or the messages so far with the prompt as the last one.

    Raises:
        HarnessError: nothing to answer, or as :func:`read_messages`.
    """
    from harness.core.errors import HarnessError

    if prompt is not None and not prompt.strip():
        raise HarnessError("the prompt is empty", "Write the prompt in quotes after `harness generate`.")
    before = read_messages(messages, system) if messages else []
    turns = [*before, *([{"role": "user", "content": prompt}] if prompt is not None else [])]
    if not turns or turns[-1]["role"] != "user":
        raise HarnessError("there is nothing to answer", "Give a prompt, or --messages with a user's message at the end.")
    if system is None and not before:
        return turns[0]["content"]
    return [*([] if system is None else [{"role": "system", "content": system}]), *turns]


class Shown:
    """The text of an answer as it grows, up to the first stop word.

    Args:
        decode: token ids to text.
        words: texts that end the answer.

        stop: set once a stop word was found, so that the answer ends after the round under way; a new event when None.

    Attributes:
        text: what was shown so far.
    """

    def __init__(self, decode: Any, words: Sequence[str] = (), stop: threading.Event | None = None) -> None:
        from harness.decode.pieces import TextPieces

        self._pieces, self._words = TextPieces(decode), StopWords(words)
        self.stop = stop or threading.Event()
        self.text = ""

    def add(self, token: int) -> str:
        """What this token adds to the text that is shown."""
        return self._passed(self._pieces.add(token))

    def rest(self) -> str:
        """What is left at the end."""
        left = self._passed(self._pieces.rest())
        held = self._words.rest()
        self.text += held
        return left + held

    def _passed(self, piece: str) -> str:
        text = self._words.add(piece)
        self.text += text
        if self._words.found is not None:
            self.stop.set()
        return text
