"""How long a suite will take: from the step times that earlier runs of the pair measured on this machine. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from harness.adapt.adapters.names import shipped as shipped_adapters
from harness.adapt.training_config import load_training_config
from harness.core import machine
from harness.core.errors import HarnessError
from harness.core.files import read_json, typed, write_atomic
from harness.core.paths import cache_dir
from harness.run.context import FREE, draft_of
from harness.run.trained import VALIDATION_PROMPTS
from harness.suite.chains import needed_chains

if TYPE_CHECKING:
    from harness.core.records import Record
    from harness.suite.cells import Cell
    from harness.suite.suite import Suite

BATCH_SHARE = 1 / 9
"""An answer's cost in a batch as a share of decoding it alone."""
READ_SHARE = 0.6
"""Cost of a token that the draft reads along a known answer, as a share of one in a prompt read alone."""
POLICY_STEPS = {"auto": 0.05, "dynamic": 0.4}
"""Draft steps per token of an answer where lengths are chosen while decoding: behind tokens that the answer has not."""
UPDATE_PASSES = 3
"""Draft passes over an example in an epoch: forward, and backward as much as two."""
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
    suite: Suite,
    cells: Sequence[Cell],
    speed: dict[str, Any],
    counts: Mapping[str, int | None] | None = None,
    shipped: Collection[str] = (),
) -> dict[str, float]:
    """Seconds of decoding, of replay, and of training with its answers; decoding as if drafting brought nothing."""
    prefill, step = speed["prompt_tokens"] * speed["prompt_token_s"], speed["step_s"]
    answer = prefill + suite.max_tokens * step
    prompts = {domain: (counts or {}).get(domain) or spec.limit or DEFAULT_PROMPTS for domain, spec in suite.domains.items()}
    clocked = {domain: n if suite.clocked is None else min(n, suite.clocked) for domain, n in prompts.items()}
    timed = sum(clocked[c.domain] * (prefill + _clock_tokens(suite, c) * step) for c in cells if c.timed) * suite.repeats
    alone = {(c.domain, c.temperature) for c in cells if c.drafter is None and (c.temperature == 0 or suite.clocked is not None)}
    counted = [c for c in cells if c.replayable and (c.domain, c.temperature) in alone]
    replayed = [c for c in counted if suite.clocked is not None or not (c.timed or isinstance(c.k, str))]
    passes = {(c.domain, *own) for c in replayed if (own := _reads(c)) is not None}  # one for all lengths
    doubted = {(c.domain, c.temperature, draft_of(c)) for c in replayed if _asks_target(c)}
    policies = sum(prompts[c.domain] * POLICY_STEPS[c.k] for c in replayed if isinstance(c.k, str) and draft_of(c) != FREE)
    target_read = (speed["prompt_tokens"] + suite.max_tokens) * speed["prompt_token_s"]
    read = target_read * speed["c"] * READ_SHARE
    answers, passes_in_training = _training(suite, cells, shipped)
    return {
        "answers": 0.0 if suite.clocked is None else sum(prompts[domain] for domain, _ in alone) * answer * BATCH_SHARE,
        "decoding": timed,
        "replay": sum(prompts[domain] for domain, *_ in passes) * read
        + sum(prompts[domain] for domain, *_ in doubted) * target_read
        + policies * suite.max_tokens * speed["c"] * step,
        "training": answers * answer * BATCH_SHARE + passes_in_training * read,
    }


def _training(suite: Suite, cells: Sequence[Cell], shipped: Collection[str]) -> tuple[int, int]:
    """Answers that training asks the target for, and draft passes over answers: updates, looking for mistakes, a router's outcomes."""
    domains = len(suite.domains)
    chains = {chain: rounds for chain, rounds in needed_chains(cells, list(suite.domains), shipped).items() if not chain.shipped}
    adapters = max((chain.samples + VALIDATION_PROMPTS for chain in chains), default=0)
    router = max((cell.recipe.router_samples for cell in cells if cell.recipe is not None), default=0)
    epochs = {chain: load_training_config(chain.training).optim.epochs for chain in chains}
    updates = sum(rounds * chain.samples * (UPDATE_PASSES * epochs[chain] + 1) for chain, rounds in chains.items())
    return domains * (adapters + router), updates + domains * router * (1 + domains)


def _reads(cell: Cell) -> tuple[Any, ...] | None:
    """The draft that a replay of the cell runs along the answers, and how; None where it runs no model, or those of other cells."""
    own = draft_of(cell)
    if own == FREE or cell.drafter == "router":
        return None
    drawn = (cell.temperature, cell.rule, _chooses(cell)) if cell.temperature else ()
    adapted = cell.drafter == "adapter" and cell.round != 0
    return (own, *drawn, *((cell.adapter_domain, cell.installed, cell.rank, cell.round or 1) if adapted else ()))


def _asks_target(cell: Cell) -> bool:
    """Whether a replay of the cell asks the target what a draft's token is drawn from that did not stand."""
    return bool(cell.temperature) and cell.rule == "rejection" and _chooses(cell) and draft_of(cell) != FREE


def _chooses(cell: Cell) -> bool:
    """Whether lengths or sources are chosen while decoding."""
    return isinstance(cell.k, str) or cell.outer == "cascade"


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
    parts = {name: seconds for name, seconds in estimate_s(suite, cells, speed, counts, shipped_adapters(pair)).items() if seconds >= 1}
    text = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts.items())
    return f"time: about {_duration(sum(parts.values()))} ({text}) at {1000 * speed['step_s']:.0f} ms per target step"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
