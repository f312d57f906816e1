"""What the settings of decoding may be, said once: calls, command line, suites, sessions and the server all ask here. Imports no mlx."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from harness.core.errors import HarnessError


@dataclass(frozen=True)
class Limit:
    """The numbers one setting may be."""

    low: float
    high: float
    whole: bool = False
    """True: an integer."""
    zero: str = ""
    """What 0 stands for, where it may be given although ``low`` is above it."""

    def words(self) -> str:
        """The rule as advice."""
        kind = "a whole number" if self.whole else "a number"
        return (f"0 ({self.zero}) or " if self.zero else "") + f"{kind} from {self.low:,g} to {self.high:,.12g}"

    def check(self, name: str, value: Any) -> Any:
        """Return ``value`` as an int or a float.

        Raises:
            HarnessError: another type, not finite, or out of range.
        """
        kind: Any = numbers.Integral if self.whole else numbers.Real
        number: Any = value if isinstance(value, kind) and not isinstance(value, bool) else math.nan
        if not (self.low <= number <= self.high or (self.zero and number == 0)):
            raise HarnessError(f"{name} is {value!r:.100}", f"Use {self.words()}.")
        return int(number) if self.whole else float(number)


TOP_K = 20
"""Target probabilities kept per token, where nothing else is asked for."""
MAX_TOKENS = 256
"""Longest answer, likewise."""
BATCH = 32
"""Prompts answered together, likewise."""
LOOKUP_NGRAM = 3
"""Longest suffix that prompt lookup searches, likewise."""
COUNT = Limit(1, 2**31 - 1, whole=True)
"""Something of which there is at least one."""
SEED = Limit(0, 2**32 - 1, whole=True)
"""What the generators of mlx, numpy, torch and scikit-learn all take."""
TEMPERATURE = Limit(0.001, 100, zero="greedy")
"""Below it, logits divided by the temperature leave the range of half precision."""
LENIENCE = Limit(1, 1000)
LENGTH = Limit(1, 64, whole=True, zero="decode plainly")
"""A draft length."""


def joined_seed(one: int, other: int) -> int:
    """One seed that changes with either of two; a seed of 0 changes nothing."""
    return (one + other) % (int(SEED.high) + 1)


LIMITS = {
    "seed": SEED,
    "temperature": TEMPERATURE,
    "top_p": Limit(1e-6, 1),
    "top_k": Limit(0, 2**31 - 1, whole=True),
    "min_p": Limit(0, 1),
    "lenience": LENIENCE,
    "max_tokens": COUNT,
    "k": LENGTH,
}
"""Settings of one answer, by name."""
LENGTH_NAMES = ("dynamic", "auto")
"""Draft lengths that are no number."""


def check(**settings: Any) -> None:
    """Check settings by their names in :data:`LIMITS`.

    Raises:
        HarnessError: the first that is wrong, by name.
    """
    for name, value in settings.items():
        LIMITS[name].check(name, value)


def draft_length(k: Any) -> int | str:
    """A draft length as calls take it.

    Raises:
        HarnessError: no number in range, and no name of :data:`LENGTH_NAMES`.
    """
    if isinstance(k, str) and k in LENGTH_NAMES:
        return k
    if isinstance(k, str):
        raise HarnessError(f"k is {k!r:.100}", f"Use {LENGTH.words()}, {' or '.join(LENGTH_NAMES)}.")
    return int(LENGTH.check("k", k))


def written_length(text: str | None) -> int | str | None:
    """A draft length as a command line gives it; None where it gives none.

    Raises:
        HarnessError: as :func:`draft_length`.
    """
    if text is None:
        return None
    return draft_length(int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text)


def sampling_problem(*, rule: str, temperature: float, top_p: float, top_k: int, min_p: float, lenience: float) -> str | None:
    """What in the settings of sampling contradicts itself; None where nothing does."""
    if rule == "rejection" and temperature == 0:
        return "rule rejection needs a temperature above 0"
    if (top_p, top_k, min_p) != (1, 0, 0) and temperature == 0:
        return "top_p, top_k and min_p need a temperature above 0"
    if lenience > 1 and rule != "rejection":
        return "lenience needs rule rejection and a temperature above 0"
    return None


def room(context_tokens: int, prompt_tokens: int, max_tokens: int) -> int:
    """How many tokens an answer may have: ``max_tokens``, or fewer where the context ends.

    Raises:
        HarnessError: the prompt leaves no room.
    """
    left = context_tokens - prompt_tokens
    if left < 1:
        raise HarnessError(
            f"the prompt has {prompt_tokens} tokens, the model's context {context_tokens}", "Shorten the prompt by at least one token."
        )
    return min(max_tokens, left)


def ended(context_tokens: int, prompt_tokens: int, emitted: int) -> Literal["length", "context"]:
    """Why an answer ended that its model did not end: at its limit, or with a full context."""
    return "context" if prompt_tokens + emitted >= context_tokens else "length"


def _warm(value: float) -> float:
    if 0 < value < TEMPERATURE.low:
        raise ValueError(f"use {TEMPERATURE.words()}")
    return value


Temperature = Annotated[float, Field(ge=0, le=TEMPERATURE.high), AfterValidator(_warm)]
"""A temperature in a file."""
WarmTemperature = Annotated[float, Field(gt=0, le=TEMPERATURE.high), AfterValidator(_warm)]
"""A temperature in a file that has to sample."""
TopP = Annotated[float, Field(ge=LIMITS["top_p"].low, le=1)]
"""Mass of the tokens to sample from, in a file; 1 keeps all."""
TopK = Annotated[int, Field(ge=0, le=int(LIMITS["top_k"].high))]
"""How many tokens to sample from, in a file; 0 keeps all."""
MinP = Annotated[float, Field(ge=0, le=1)]
"""Least part of the likeliest token's probability, in a file."""
Lenience = Annotated[float, Field(ge=LENIENCE.low, le=LENIENCE.high)]
"""Lenience in a file; 1 changes nothing."""
DraftLength = Annotated[int, Field(ge=1, le=int(LENGTH.high))]
"""A draft length in a file."""
DraftContext = Annotated[int, Field(ge=1, le=int(COUNT.high))]
"""Tokens of a prompt that a draft reads, in a file."""
