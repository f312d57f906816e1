"""Domain shift: prompts without their dataset's wrapper, held-out domains, prompts of two domains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routing.routing_error import RoutingError

_SENTENCE_END = re.compile(r"(?<=[.!?:])(?=\s)|(?<=\n)")
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_MIN_WRAPPER_CHARS = 12

NEUTRAL_WRAPPERS: tuple[str, ...] = (
    "{task}",
    "Here is my request.\n\n{task}",
    "{task}\n\nTake your time.",
    "I have the following task for you:\n{task}",
    "{task}\nAnswer in your own way.",
    "Request:\n{task}\nEnd of request.",
)
"""Frames that say nothing about the domain."""


@dataclass(frozen=True)
class MixedPrompt:
    """Two tasks of different domains in one prompt."""

    prompt: str
    """The text."""
    rows: tuple[int, int]
    """Rows of the two tasks, in order."""
    domains: tuple[str, str]
    """Their domains."""


def wrapper_sentences(prompts: Sequence[str], min_share: float = 0.2) -> set[str]:
    """Sentences of a dataset's wrapper: those, of at least 12 characters, that stand in more than ``min_share`` of its distinct prompts."""
    distinct = list(dict.fromkeys(prompts))
    counts = Counter(s for p in distinct for s in {_plain(s) for s in _sentences(p)})
    return {s for s, n in counts.items() if len(s) >= _MIN_WRAPPER_CHARS and n >= 2 and n > min_share * len(distinct)}


def strip_templates(prompts: Sequence[str], sources: Sequence[str], min_share: float = 0.2) -> list[str]:
    """The same tasks without wrapper sentences and code fences. A prompt that is all wrapper stays as it is.

    Args:
        prompts: (n,) texts.
        sources: (n,) dataset of each; wrappers are found per dataset.
        min_share: see :func:`wrapper_sentences`.
    """
    by_source = {s: wrapper_sentences([p for p, o in zip(prompts, sources, strict=True) if o == s], min_share) for s in set(sources)}
    return [_strip(p, by_source[s]) or p for p, s in zip(prompts, sources, strict=True)]


def scramble_templates(prompts: Sequence[str], sources: Sequence[str], *, seed: int = 0, min_share: float = 0.2) -> list[str]:
    """The same tasks, their wrapper replaced by a frame drawn from one pool for every dataset: the frame no longer tells the domain."""
    rng = np.random.default_rng(seed)
    bare = strip_templates(prompts, sources, min_share)
    return [
        NEUTRAL_WRAPPERS[i].replace("{task}", t) for i, t in zip(rng.integers(len(NEUTRAL_WRAPPERS), size=len(bare)), bare, strict=True)
    ]


def held_out_domains(domains: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) rows, one fold per domain: each domain is tested by a router that never saw it."""
    labels = np.asarray(domains)
    known = np.unique(labels)
    if len(known) < 2:
        raise RoutingError("held-out domains need at least two domains", "Add samples of another domain.")
    return [(np.flatnonzero(labels != d), np.flatnonzero(labels == d)) for d in known]


def mix_domains(prompts: Sequence[str], domains: Sequence[str], n: int, *, seed: int = 0) -> list[MixedPrompt]:
    """``n`` prompts, each of two tasks from different domains. Their outcomes are new: replay them before judging a router on them."""
    labels = np.asarray(domains)
    if len(np.unique(labels)) < 2:
        raise RoutingError("mixed-domain prompts need at least two domains", "Add samples of another domain.")
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        first = int(rng.integers(len(prompts)))
        second = int(rng.choice(np.flatnonzero(labels != labels[first])))
        text = f"First task:\n{prompts[first]}\n\nSecond task:\n{prompts[second]}"
        out.append(MixedPrompt(text, (first, second), (str(labels[first]), str(labels[second]))))
    return out


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text)


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().split())


def _strip(prompt: str, wrapper: set[str]) -> str:
    kept = "".join(s for s in _sentences(prompt) if _plain(s) not in wrapper)
    return re.sub(r"\n{3,}", "\n\n", _FENCE.sub("", kept)).strip()
