"""Prompts and outcomes for the routing tests: three domains with dataset wrappers, drafters that are good at one of them."""

from __future__ import annotations

import numpy as np

from routing.outcomes import Arm

DOMAINS = ("code", "math", "chat")
ARMS = (Arm("generic", 4), Arm("code", 4), Arm("math", 4), Arm("chat", 4))
WRAPPERS = {
    "code": "Complete the following Python function. Reply with one code block.\n\n```python\n{}\n```",
    "math": "Solve the problem step by step. End with one line: The answer is a number.\n\n{}",
    "chat": "{}",
}
_PARTS = {
    "code": (
        ["def parse_{}(text):", "def sort_{}(items):", "class {}Queue:", "def merge_{}(a, b):"],
        ["dates", "names", "prices", "paths", "rows"],
    ),
    "math": (
        ["Tom buys {} for $4 each and pays with $50. How much is left?", "Each box holds 12 {}. How many fit in 7 boxes?"],
        ["apples", "pencils", "tickets", "cups", "stamps", "shirts", "books"],
    ),
    "chat": (
        ["Tell me a short story about {}.", "What is the history of {}?", "Please write an email about {}.", "I want advice on {}."],
        ["rivers", "opera", "gardens", "trains", "winter", "bread"],
    ),
}


def make_prompts(n: int, seed: int = 0, wrapped: bool = True) -> tuple[list[str], list[str]]:
    """``n`` distinct prompts and their domains."""
    rng = np.random.default_rng(seed)
    prompts, domains = [], []
    for i in range(n):
        domain = DOMAINS[i % 3]
        frames, words = _PARTS[domain]
        text = f"{rng.choice(frames).format(rng.choice(words))} Note {i}."
        prompts.append(WRAPPERS[domain].format(text) if wrapped else text)
        domains.append(domain)
    return prompts, domains


def make_rewards(domains: list[str], seed: int = 0, noise: float = 0.15) -> np.ndarray:
    """(n, 4) tau: the adapter of the prompt's domain gains most, the others lose a little against generic."""
    rng = np.random.default_rng(seed)
    base = 2.2 + 0.3 * rng.standard_normal((len(domains), 1))
    gain = np.array([[0.0, *(0.5 if d == a else -0.25 for a in DOMAINS)] for d in domains])
    return base + gain + noise * rng.standard_normal((len(domains), 4))


def make_rows(n: int = 6, ks: tuple[int, ...] = (2, 4), timed: bool = True) -> list[dict]:
    """Records of ``n`` samples, three drafters and plain decoding, with exact counts a test can recompute."""
    rows: list[dict] = []
    shared = {"schema_version": 1, "rule": "match", "temperature": 0.0, "lossy": False, "method": "decode", "loop": "own"}
    for i in range(n):
        sample = shared | {"sample_id": f"s/{i}", "domain": DOMAINS[i % 3], "prompt": f"prompt {i}"}
        none = {"rounds": 60, "drafted": 0, "accepted": 0, "emitted": 60}
        rows.append(sample | none | {"drafter": None, "k": None, "wall_s": 6.0 if timed else None})
        for j, drafter in enumerate(("generic", "code", "math")):
            for k in ks:
                rounds = 20 + i + j
                counts = {"rounds": rounds, "drafted": rounds * k, "accepted": 60 - rounds, "emitted": 60}
                rows.append(sample | counts | {"drafter": drafter, "k": k, "wall_s": 2.0 + j if timed else None})
    return rows
