"""What a large evaluation costs on N machines: a simulation from measured times, and the table of docs/scale.md that it makes.

Run it to print the table. Measured numbers are those of docs/log.md; what is assumed says so.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

PROMPTS, DRAFTERS, TOKENS = 1_000_000, 20, 96
"""Prompts, ways of drafting that are replayed along their answers, and the tokens of an answer."""
ADAPTED = 4
"""Of the drafters those whose adapters have to be trained before."""
CHAINS, CHAIN_TOKENS = 12, 3_000_000
"""Chains of training, each a sequence, and the tokens of one: a million, three times."""
BATCH = 512
"""Answers per task."""
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
    """Answers, then replays of each batch, chains of training from the start, one scheduler and one writer."""
    rng = np.random.default_rng(seed)
    batches = PROMPTS // BATCH
    answer_s, replay_s, chain_s = BATCH * TOKENS / kind.answer_tokens_s, BATCH * kind.replay_s, CHAIN_TOKENS / kind.train_tokens_s
    speed = np.where(np.arange(machines) < round(SLOW * machines), SLOWER, 1.0)
    free = [(0.0, i) for i in range(machines)]
    dispatched = 0.0

    def run(seconds: float, factor: float, ready: float = 0.0) -> float:
        nonlocal dispatched
        dispatched += SCHEDULER_S
        at, machine = heapq.heappop(free)
        end = max(at, ready, dispatched) + seconds * factor * speed[machine]
        heapq.heappush(free, (end, machine))
        return float(end)

    draws = iter(np.exp(rng.normal(0, SPREAD, CHAINS + batches * (1 + DRAFTERS))).tolist())
    trained = max(run(chain_s, next(draws)) for _ in range(CHAINS))
    answered = [run(answer_s, next(draws)) for _ in range(batches)]
    plain = [run(replay_s, next(draws), ready) for _ in range(DRAFTERS - ADAPTED) for ready in answered]
    adapted = [run(replay_s, next(draws), max(ready, trained)) for _ in range(ADAPTED) for ready in answered]
    ends = np.sort(np.array([*answered, *plain, *adapted]))
    written = np.arange(len(ends)) * (BATCH * WRITER_S)
    wall_s = float((ends - written).max() + written[-1] + BATCH * WRITER_S)
    busy_s = CHAINS * chain_s + batches * (answer_s + DRAFTERS * replay_s)
    floors = {
        "machines": busy_s / machines,
        "the writer": len(ends) * BATCH * WRITER_S,
        "the scheduler": len(ends) * SCHEDULER_S,
        "a chain of training": chain_s,
    }
    limit = max(floors, key=lambda name: floors[name])
    return Outcome(wall_s=wall_s, busy_s=busy_s, limit=limit)


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
