"""Training prompts for distilling drafts, built from templates so that no evaluation prompt is needed.

Every prompt is drawn from a seeded generator. A longer list with the same seed starts with the shorter one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from harness.core.errors import HarnessError, did_you_mean
from harness.datasets import bank_chat, bank_code, bank_structured

GENERATORS: dict[str, Callable[[random.Random], str]] = {
    "chat": bank_chat.draw,
    "code": bank_code.draw,
    "structured": bank_structured.draw,
}
"""One prompt generator per domain."""

_TRIES_PER_PROMPT = 200


def prompts(domain: str, n: int, seed: int = 0) -> list[str]:
    """Return ``n`` distinct training prompts of ``domain``, the same ones for the same seed on every platform.

    Raises:
        HarnessError: unknown domain, negative ``n``, or more prompts asked for than the templates can make.
    """
    if domain not in GENERATORS:
        known = did_you_mean(domain, list(GENERATORS))
        raise HarnessError(f"no training prompts for domain {domain!r}: {known}", "Choose one of the known domains.")
    if n < 0:
        raise HarnessError(f"cannot make {n} prompts", "Ask for 0 or more.")
    rng = random.Random(f"{domain}/{seed}")
    found: dict[str, None] = {}
    for _ in range(n * _TRIES_PER_PROMPT):
        if len(found) == n:
            break
        found[GENERATORS[domain](rng)] = None
    if len(found) < n:
        raise HarnessError(f"the {domain} templates gave only {len(found)} distinct prompts of {n}", "Ask for fewer.")
    return list(found)
