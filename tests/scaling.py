"""What a large evaluation costs on N machines: a simulation from measured times, and the table of docs/scale.md that it makes.

Run it to print the table. Measured numbers are those of docs/log.md; what is assumed says so.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

PROMPTS, DRAFTERS, TOKENS = 1_000_000, 20, 96
"""Prompts, ways of drafting that are replayed along their answers, and the tokens of an answer."""
CHAINS, CHAIN_TOKENS = 12, 3_000_000
"""Chains of training, each a sequence, and the tokens of one: a million, three times."""
ANSWERS, REPLAYED = 32, 512
"""Prompts that a task answers, and answers that a task replays with one drafter."""
SCHEDULER_S = 0.001
"""Seconds that a scheduler takes per task, which Dask's documentation gives as its order."""
WRITER_S = 1e-4
"""Seconds that the one writer takes per record: checks, JSON, checksum."""
SPREAD = 0.15
"""Standard deviation of the logarithm of a task's time; assumed."""
SLOW, SLOWER = 0.05, 2.0
"""Share of the machines that are slow, and how many times as long they take; assumed."""
COUNTS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of machine, for smollm2."""

    name: str
    answer_tokens_s: float
    """Tokens per second that the target answers with in batches."""
    replay_s: float
    """Seconds to replay one answer with one drafter, ``auto`` included."""
    train_tokens_s: float
    """Tokens per second of training."""
    price_h: float
    """Dollars per hour; assumed."""


CPU = Kind(name="2 CPU cores", answer_tokens_s=150, replay_s=63 / 90 / 5, train_tokens_s=750, price_h=0.10)
"""Answers in torch float32; 90 answers replayed with five drafters in 63 s; training on two cores."""
GPU = Kind(name="1 H100", answer_tokens_s=24_000, replay_s=63 / 90 / 5 * 750 / 198_000, train_tokens_s=198_000, price_h=3.00)
"""Answers of three processes; replay assumed to be as many times as fast as training is."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How long a job takes."""

    wall_s: float
    busy_s: float
    """What one machine would take that never waits."""
    limit: str
    """What it waits for in the end."""


def simulate(kind: Kind, machines: int, seed: int = 0) -> Outcome:
    """As a run goes: chains of training, then answers, then replays; one scheduler, and one writer beside the work."""
    rng = np.random.default_rng(seed)
    speed = np.where(np.arange(machines) < round(SLOW * machines), SLOWER, 1.0)
    stages = {
        "train": (CHAINS, CHAIN_TOKENS / kind.train_tokens_s, 0),
        "answer": (PROMPTS // ANSWERS, ANSWERS * TOKENS / kind.answer_tokens_s, ANSWERS),
        "replay": (DRAFTERS * PROMPTS // REPLAYED, REPLAYED * kind.replay_s, REPLAYED),
    }
    now = 0.0
    for tasks, seconds, records in stages.values():
        began, free, ends = now, [(now, i) for i in range(machines)], []
        for number, factor in enumerate(np.exp(rng.normal(0, SPREAD, tasks)).tolist()):
            at, machine = heapq.heappop(free)
            ends.append(max(at, began + number * SCHEDULER_S) + seconds * factor * float(speed[machine]))
            heapq.heappush(free, (ends[-1], machine))
        for end in sorted(ends):
            now = max(now, end) + records * WRITER_S
    busy_s = sum(tasks * seconds for tasks, seconds, _ in stages.values())
    written = sum(tasks * records for tasks, _, records in stages.values())
    floors = {
        "machines": busy_s / machines,
        "the writer": written * WRITER_S,
        "the scheduler": sum(tasks for tasks, *_ in stages.values()) * SCHEDULER_S,
        "a chain of training": stages["train"][1],
    }
    limit = max(floors, key=lambda name: floors[name])
    return Outcome(wall_s=now, busy_s=busy_s, limit=limit)


def table() -> str:
    """The table of docs/scale.md."""
    lines = [
        "| machines | of | time | machine hours | dollars | of the ideal | more machines would wait for |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (CPU, GPU):
        for machines in COUNTS:
            found = simulate(kind, machines)
            hours = machines * found.wall_s / 3600
            share = found.busy_s / machines / found.wall_s
            waits = "nothing" if found.limit == "machines" else found.limit
            cost = f"{hours:,.0f} | {hours * kind.price_h:,.0f}"
            lines.append(f"| {machines:,} | {kind.name} | {_time(found.wall_s)} | {cost} | {share:.0%} | {waits} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} hours" if hours >= 2 else f"{seconds / 60:.0f} minutes"


if __name__ == "__main__":
    print(table())
