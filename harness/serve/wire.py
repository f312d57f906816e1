"""What requests may say: the OpenAI API's fields that this server follows exactly; it refuses those it would have to ignore."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.core.files import parse_json
from harness.core.limits import SEED, TOP_K, check, draft_length
from harness.serve.api_errors import ApiError

MOST_STOP_WORDS, MOST_STOP_CHARS = 16, 500
IGNORED = {
    "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key", "reasoning_effort",
    "verbosity",
}  # fmt: skip
"""Fields that change nothing here."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
}
"""Fields that would change the answer, and the values with which they do not; null is always one."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    type: Literal["text", "input_text"]
    text: str


class _Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _no_tools(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and (data.get("tool_calls") or data.get("function_call")):
            raise ValueError("tools are not supported")
        return data

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _StreamOptions(_Wire):
    """What comes with a stream. Counts come once, at its end, whatever ``continuous_usage_stats`` of load clients says."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


class _Request(_Wire):
    """Fields of both kinds of requests. Those from ``top_k`` on are not OpenAI's; ``ignore_eos`` is what load clients send."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool = False
    drafter: str | None = None
    k: int | str | None = None
    draft_details: bool = False
    reuse: bool = True

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_followed(cls, data: dict[str, Any]) -> dict[str, Any]:
        for name, allowed in NEUTRAL.items():
            value = data.get(name)
            # True equals 1 in Python, and is no number here.
            if value is not None and not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                raise ApiError(400, f"{name} {value!r:.60} is not supported. Leave it out.", param=name, code="unsupported_value")
        return {name: value for name, value in data.items() if name not in IGNORED and name not in NEUTRAL and value is not None}


class _ChatRequest(_Request):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_K)] | None = None


class _CompletionRequest(_Request):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=TOP_K)] | None = None


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, checked."""

    chat: bool
    """The prompt is a conversation, and the answer a message."""
    prompt: list[dict[str, str]] | list[int] | str
    """Messages; for a completion text or token ids, to which no chat template is applied."""
    model: str | None
    max_tokens: int | None
    """None takes the session's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of decoding that the request names."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many of the most likely tokens come with the log-probability of each; None gives none."""
    drafter: str | None = ""
    """Another drafter than the session's; None is plain decoding."""
    stream: bool = False
    usage: bool = True
    """Send counts at the end of a stream."""
    details: bool = False
    """Say which tokens the draft proposed."""
    reuse: bool = True
    """Go on from what was read for earlier prompts."""
    user: str = ""
    """Who is asking, in the client's words."""


def parse(body: bytes, *, chat: bool) -> Ask:
    """Check a request.

    Raises:
        ApiError: it is no JSON object, has an unknown or unsupported field, or a wrong value.
        HarnessError: a setting out of its range.
    """
    data = parse_json(body, "the request", advice="Send a JSON object.")
    kind = _ChatRequest if chat else _CompletionRequest
    try:
        request: Any = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"][:3])) or "the request"
        reasons = {"extra_forbidden": "is unknown", "missing": "is missing"}
        reason = reasons.get(first["type"], f"is wrong: {first['msg'].removeprefix('Value error, ')}")
        raise ApiError(400, f"{name} {reason}.", param=str(first["loc"][0]) if first["loc"] else None, code="invalid_value") from None
    prompt = [message.plain() for message in request.messages] if chat else _prompt(request.prompt)
    logprobs = request.logprobs
    if chat:
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs. Set it to true.", param="top_logprobs")
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
    limit = getattr(request, "max_completion_tokens", None)
    limit = request.max_tokens if limit is None else limit
    return Ask(
        chat=chat,
        prompt=prompt,
        model=request.model,
        max_tokens=limit,
        settings=_settings(request, limit),
        stop=_stop(request.stop),
        logprobs=logprobs,
        drafter=None if request.drafter == "none" else request.drafter or "",
        stream=bool(request.stream),
        usage=request.stream_options is not None and request.stream_options.include_usage,
        details=request.draft_details,
        reuse=request.reuse,
        user=request.user or "",
    )


def _settings(request: _Request, max_tokens: int | None) -> dict[str, Any]:
    """What the request sets; seeds of any size are folded into the range of the generators."""
    given = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    given = {name: value for name, value in given.items() if value is not None}
    check(**given, **({} if max_tokens is None else {"max_tokens": max_tokens}))
    if request.k is not None:
        given["k"] = draft_length(request.k)
    if request.ignore_eos:
        given["ignore_eos"] = True
    given["seed"] = secrets.randbelow(int(SEED.high)) if request.seed is None else request.seed % (int(SEED.high) + 1)
    return given


def _prompt(prompt: Any) -> str | list[int]:
    """The one prompt of a completion."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise ApiError(400, "A request has one prompt here. Send the others in requests of their own.", param="prompt")
        prompt = prompt[0]
    if not prompt:
        raise ApiError(400, "The prompt is empty. Give at least one token.", param="prompt")
    found: str | list[int] = prompt
    return found


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    words = [stop] if isinstance(stop, str) else stop or []
    if len(words) > MOST_STOP_WORDS or not all(0 < len(word) <= MOST_STOP_CHARS for word in words):
        message = f"stop takes up to {MOST_STOP_WORDS} texts of 1 to {MOST_STOP_CHARS} characters."
        raise ApiError(400, message, param="stop", code="invalid_value")
    return tuple(words)
