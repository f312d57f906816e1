"""Known model families: which draft goes with a target, and a draft length to start from."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A group of models that share one tokenizer."""

    name: str
    """Name for people."""
    pattern: str
    """Regular expression for the model's part of a hub name; the group ``size`` is its parameter count in billions."""
    draft: str
    """Hub repository of the family's small model."""
    draft_size: float
    """Its parameters in billions. Drafting pays when the target is several times larger."""
    k: int
    """Draft length to start from."""
    note: str = ""
    """What to watch out for."""


_SIZE = r"(?P<size>\d+(?:\.\d+)?)B"

# The first match wins, so narrower patterns come first.
FAMILIES = (
    Family("Qwen2.5-Coder", rf"Qwen2\.5-Coder-{_SIZE}-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct", 0.5, 4),
    Family("Qwen2.5", rf"Qwen2\.5-{_SIZE}-Instruct", "mlx-community/Qwen2.5-0.5B-Instruct-bf16", 0.5, 4),
    Family("Qwen3", rf"Qwen3-{_SIZE}", "Qwen/Qwen3-0.6B", 0.6, 4, "Thinking text is highly predictable: try longer drafts."),
    Family(
        "Llama-3", rf"(?:Meta-)?Llama-3(?:\.\d)?-{_SIZE}-Instruct", "meta-llama/Llama-3.2-1B-Instruct", 1.0, 4, "Gated: accept the licence."
    ),
    Family("SmolLM2", r"SmolLM2-(?P<size>\d+(?:\.\d+)?)[BM]-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.135, 3),
    Family(
        "Gemma 3",
        rf"gemma-3-{_SIZE.replace('B', 'b')}-it",
        "google/gemma-3-1b-it",
        1.0,
        3,
        "Sliding windows: the context is limited to the window.",
    ),
)


@dataclass(frozen=True)
class Suggestion:
    """A draft for a target."""

    family: str
    """Family the target belongs to."""
    draft: str | None
    """Hub repository; None when the target is too small to gain from the family's draft."""
    k: int
    """Draft length to start from."""
    note: str
    """Why, or what to watch out for."""


def suggest(target: str) -> Suggestion | None:
    """Suggest a draft for a hub name such as ``Qwen/Qwen2.5-7B-Instruct``; None for families not in the table."""
    model = target.rpartition("/")[2]
    for family in FAMILIES:
        if found := re.match(family.pattern, model, re.IGNORECASE):
            millions = re.search(r"\dM-", found.group(0), re.IGNORECASE) is not None
            size = float(found.group("size")) / (1000 if millions else 1)
            if size < 2 * family.draft_size:
                return Suggestion(
                    family.name, None, family.k, "The target is too small for a draft model: use lookup, or cut a draft from it."
                )
            return Suggestion(family.name, family.draft, family.k, family.note)
    return None
