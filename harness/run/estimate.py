"""How long a suite will take: from the step times that earlier runs of the pair measured on this machine. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from harness.core import machine
from harness.core.errors import HarnessError
from harness.core.files import read_json, typed, write_atomic
from harness.core.paths import cache_dir
from harness.run.trained import VALIDATION_PROMPTS
from harness.suite.chains import needed_chains

if TYPE_CHECKING:
    from harness.core.records import Record
    from harness.suite.experiments import Cell
    from harness.suite.suite import Suite

REPLAY_SHARE = 1 / 30
"""What replaying a drafter costs, as a share of decoding a cell: one pass gives every length."""
POLICY_SHARE = 1 / 15
"""The same of a cell whose length is chosen while decoding."""
BATCH_SHARE = 1 / 5
"""An answer's cost in a batch as a share of decoding it alone."""
TRAIN_PASSES = 9
"""Draft passes over an example in one round: three epochs, forward and backward."""
DEFAULT_PROMPTS = 50
"""Prompts of a domain that names no limit and whose dataset is not on this machine yet."""

_Positive = Annotated[float, Field(gt=0)]


class Speed(TypedDict):
    """What :func:`remember` keeps."""

    processor: str
    prompt_tokens: _Positive
    """Mean length of the prompts."""
    prompt_token_s: _Positive
    step_s: _Positive
    """Seconds per emitted token of target-only decoding."""
    c: _Positive
    """The draft's relative cost."""


def remember(pair: str, records: Sequence[Record], c: float | None) -> None:
    """Keep a run's mean times per prompt token and per emitted token of target-only decoding, and the draft's relative cost."""
    plain = [r for r in records if r.drafter is None and r.method == "decode" and r.wall_s is not None and r.prefill_s is not None]
    emitted = sum(r.emitted for r in plain)
    if not emitted:
        return
    prefill = sum(r.prefill_s or 0.0 for r in plain)
    facts = {
        "processor": machine.machine_facts()["processor"],
        "prompt_tokens": sum(r.prompt_tokens for r in plain) / len(plain),
        "prompt_token_s": prefill / sum(r.prompt_tokens for r in plain),
        "step_s": (sum(r.wall_s or 0.0 for r in plain) - prefill) / emitted,
        "c": c if c is not None else 0.3,
    }
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next plan its estimate, not this run its report
        write_atomic(cache_dir() / "speeds" / f"{pair}.json", json.dumps(facts))


def read_speed(pair: str) -> dict[str, Any] | None:
    """What :func:`remember` kept for this pair on this processor; None when there is nothing usable."""
    path = cache_dir() / "speeds" / f"{pair}.json"
    try:
        facts: dict[str, Any] = dict(typed(Speed, read_json(path), str(path)))
    except HarnessError:
        return None
    return facts if facts["processor"] == machine.machine_facts()["processor"] else None


def count_prompts(suite: Suite) -> dict[str, int | None]:
    """How many prompts every domain has, split and limit applied; the limit, or None, where the dataset is not on this machine."""
    from harness.datasets import load_samples

    counts: dict[str, int | None] = {}
    for domain, spec in suite.domains.items():
        counts[domain] = spec.limit
        with contextlib.suppress(HarnessError):
            counts[domain] = len(load_samples(spec, domain=domain, seed=suite.seed, offline=True))
    return counts


def estimate_s(
    suite: Suite, cells: Sequence[Cell], speed: dict[str, Any], counts: Mapping[str, int | None] | None = None
) -> dict[str, float]:
    """Seconds of decoding, of replay, and of training with its answers; decoding as if drafting brought nothing."""
    prefill, step = speed["prompt_tokens"] * speed["prompt_token_s"], speed["step_s"]
    answer = prefill + suite.max_tokens * step
    prompts = {domain: (counts or {}).get(domain) or spec.limit or DEFAULT_PROMPTS for domain, spec in suite.domains.items()}
    clocked = {domain: n if suite.clocked is None else min(n, suite.clocked) for domain, n in prompts.items()}
    timed = sum(clocked[c.domain] * (prefill + _clock_tokens(suite, c) * step) for c in cells if c.timed) * suite.repeats
    policies = [c for c in cells if suite.clocked is not None and isinstance(c.k, str) and not c.temperature]
    counted = [c for c in cells if c.drafter and not isinstance(c.k, str) and (not c.timed or suite.clocked is not None)]
    # one pass for all lengths
    passes = {(c.domain, c.drafter, c.around, c.adapter_domain, c.installed, c.rank, c.round, c.layers) for c in counted}
    chains = needed_chains(cells, list(suite.domains))
    collected = {chain.samples + VALIDATION_PROMPTS for chain in chains}
    routed = {cell.recipe.router_samples for cell in cells if cell.recipe is not None}
    answers = len(suite.domains) * (max(collected, default=0) + max(routed, default=0))
    example = (speed["prompt_tokens"] + suite.max_tokens) * speed["prompt_token_s"] * speed["c"]
    rounds = sum(done * chain.samples for chain, done in chains.items())
    return {
        "answers": 0.0 if suite.clocked is None else sum(prompts.values()) * answer * BATCH_SHARE,
        "decoding": timed,
        "replay": answer * REPLAY_SHARE * sum(prompts[domain] for domain, *_ in passes)
        + answer * POLICY_SHARE * sum(prompts[c.domain] for c in policies),
        "training": answers * answer * BATCH_SHARE + rounds * example * TRAIN_PASSES,
    }


def _clock_tokens(suite: Suite, cell: Cell) -> int:
    """Longest answer of a cell with a clock."""
    if suite.clocked is None or suite.clock_tokens is None or cell.lossy:
        return suite.max_tokens
    return min(suite.clock_tokens, suite.max_tokens)


def describe_time(suite: Suite, cells: Sequence[Cell], pair: str, counts: Mapping[str, int | None] | None = None) -> str:
    """One line for the plan."""
    speed = read_speed(pair)
    if speed is None:
        return "time: no run has measured this pair on this machine yet; a run with --limit 1 does"
    parts = {name: seconds for name, seconds in estimate_s(suite, cells, speed, counts).items() if seconds >= 1}
    text = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts.items())
    return f"time: about {_duration(sum(parts.values()))} ({text}) at {1000 * speed['step_s']:.0f} ms per target step"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
