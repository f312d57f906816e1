"""What is asked in one row of a prompt file: a text, OpenAI messages, a ShareGPT conversation, or a server's log line around them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import parse_json
from harness.core.records import Sample
from harness.core.text import printable
from harness.datasets.splits import GROUP_KEY

TEXT_CHARACTERS = 2**20
"""A prompt longer than this fits no context."""
MOST_TURNS = 1000
"""Messages of one conversation."""
KEYS = ("prompt", "messages", "conversations", "conversation")
"""Where a prompt stands by itself, the first that is there."""
AROUND = ("body", "request")
"""Keys of log lines and batch files under which a request stands."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
_TOOLS = ("tool", "function", "observation", "function_call", "tool_call")

Message = tuple[str, str]
"""Role (``system``, ``user`` or ``assistant``) and text."""


@dataclass(frozen=True)
class Asked:
    """One row."""

    messages: tuple[Message, ...]
    """Ends with a user turn; a text alone is one user turn."""
    tools: bool = False
    """Calls of tools or their results were left out."""

    def turns(self) -> list[tuple[Message, ...]]:
        """The conversation up to every user turn."""
        return [self.messages[: i + 1] for i, (role, _) in enumerate(self.messages) if role == "user"]


def read_asked(row: Mapping[str, Any], column: str | None = None) -> Asked:
    """What a row asks.

    Args:
        row: one object of a file.
        column: key of the prompt; None looks for :data:`KEYS`, also under :data:`AROUND`.

    Raises:
        ValueError: nothing is asked; says what is wrong.
    """
    holders = [row, *(row[key] for key in AROUND if isinstance(row.get(key), Mapping))]
    found = next(((holder, key) for holder in holders for key in ((column,) if column else KEYS) if key in holder), None)
    if found is None:
        has = f" (it has {', '.join(map(str, row))})" if row else ""
        raise ValueError(f"the key {column or 'prompt'!r} is missing{has}")
    holder, key = found
    asked = _from(holder[key], key)
    return Asked(asked.messages, tools=asked.tools or any(holder.get(name) for name in ("tools", "functions")))


def _from(value: Any, key: str) -> Asked:
    value = _unpacked(value) if key != "prompt" else value
    if isinstance(value, list):
        asked = _conversation(value, key)
    elif isinstance(value, str) and value.strip():
        asked = Asked((("user", value),))
    else:
        raise ValueError(f"{key!r} must be non-empty text" + ("" if key == "prompt" else " or a list of messages"))
    if sum(len(text) for _, text in asked.messages) > TEXT_CHARACTERS:
        raise ValueError(f"{key!r} has more than {TEXT_CHARACTERS} characters")
    return asked


def _unpacked(value: Any) -> Any:
    """The messages that a cell of a table holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(HarnessError):
            items = parse_json(f'{{"items": {value}}}', "")["items"]
            if items and all(isinstance(item, dict) for item in items):
                return items
    return value


def _conversation(items: Sequence[Any], key: str) -> Asked:
    """Messages up to the last user turn; neighbours of one role become one."""
    if len(items) > MOST_TURNS:
        raise ValueError(f"{key!r} has more than {MOST_TURNS} messages")
    messages: list[Message] = []
    tools = False
    for number, item in enumerate(items, start=1):
        if not isinstance(item, Mapping):
            raise ValueError(f"message {number} of {key!r} is no object with a role and a content")
        role, content = str(item.get("role", item.get("from"))), item.get("content", item.get("value"))
        role = _ROLES.get(role, role)
        if role in _TOOLS or (role == "assistant" and content is None):
            tools = True
            continue
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {number} of {key!r} has the role {printable(role, 40)!r}; use system, user or assistant")
        text = _text(content, f"message {number} of {key!r}")
        if messages and messages[-1][0] == role:
            messages[-1] = (role, f"{messages[-1][1]}\n\n{text}")
        else:
            messages.append((role, text))
    while messages and messages[-1][0] != "user":
        messages.pop()
    if not messages:
        raise ValueError(f"{key!r} has no user turn")
    return Asked(tuple(messages), tools)


def _text(content: Any, where: str) -> str:
    """Text of a message: as it is, or joined from parts."""
    texts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text") else part
        if not isinstance(text, str):
            raise ValueError(f"{where} must hold text, and text alone")
        texts.append(text)
    if not any(text.strip() for text in texts):
        raise ValueError(f"{where} is empty")
    return "\n".join(texts)


def turn_id(own: str, turn: int) -> str:
    """Id of one of several turns, counted from 0, of the conversation ``own``."""
    return f"{own}#{turn + 1}"


def place_of(sample: Sample) -> tuple[str, int] | None:
    """Conversation and turn of a sample that is one of several turns; None for any other."""
    own, _, turn = sample.id.rpartition("#")
    grouped = own and (sample.reference or {}).get(GROUP_KEY) == own
    return (own, int(turn)) if grouped and turn.isdecimal() else None
