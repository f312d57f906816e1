"""What a round costs in a run, from the clocks of all its rounds: medians by shape, which a few disturbed rounds cannot move.

A round's shape is who proposed and how many tokens. Verification depends on the number of tokens alone, so every drafter's rounds
count; drafting depends on the drafter too, and where several sources took turns on the tokens that its model proposed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from harness.core.records import Record
from harness.core.round_sources import expanded

ENOUGH = 12
"""Rounds of one shape whose median is taken for a cost that decoding goes by."""
LOOKED_UP = {"copy": "lookup"}
"""Sources that cost the same."""
MODEL = "draft"
"""The source that runs a model, whose steps count where it took turns with others."""

Kind = tuple[str, ...]
"""What is timed: a step of the target alone, verifying, drafting by a label's source, a label's prompt token, and so on."""
PLAIN: Kind = ("plain",)
VERIFY: Kind = ("verify",)


def cost_label(drafter: str | None, settings: Mapping[str, Any]) -> str:
    """Whose drafting costs the same: ``generic``, ``early_exit (layers 4)``, ``adapter (around hybrid)``; empty for the target alone."""
    own = ", ".join(f"{name} {settings[name]}" for name in ("layers", "around") if settings.get(name))
    return f"{drafter} ({own})" if own else drafter or ""


class Clock:
    """Seconds of the rounds that were decoded with a clock, by shape.

    Args:
        records: decoded records; those without times per round are left out.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._seconds: dict[Kind, dict[int, list[float]]] = {}
        self._tables: dict[Kind, dict[int, float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in one more record."""
        if record.method != "decode" or record.loop != "own" or record.verify_times_s is None:
            return
        label = cost_label(record.drafter, record.settings)
        drafting = record.draft_times_s or (0.0,) * record.rounds
        sources = record.sources or ("draft",) * record.rounds
        first = 1 if record.rounds > 1 else 0  # the first round of an answer warms up
        shapes = zip(record.draft_lengths, sources, drafting, record.verify_times_s, strict=True)
        for drafted, source, draft_s, verify_s in list(shapes)[first:]:
            self._note(VERIFY if record.drafter else PLAIN, verify_s, drafted)
            if record.drafter:
                proposer, steps = _drafting(source, drafted)
                self._note(("draft", label, proposer), draft_s, steps)
        if record.prefill_s is not None:
            self._note(("prefill", label), record.prefill_s / _read(record))
            inside = record.prefill_s + (record.route_s or 0.0) + (record.swap_s or 0.0) + sum(record.verify_times_s) + sum(drafting)
            self._note(("host", label), max(0.0, (record.wall_s or inside) - inside) / record.rounds)
        for name in ("route_s", "swap_s"):
            if (seconds := getattr(record, name)) is not None:
                self._note((name, label), seconds)

    def _note(self, kind: Kind, seconds: float, drafted: int = 0) -> None:
        self._seconds.setdefault(kind, {}).setdefault(drafted, []).append(seconds)
        self._tables.pop(kind, None)

    def _table(self, kind: Kind) -> dict[int, float]:
        """Median seconds of a kind by tokens drafted, shortest first; empty where there is nothing of it."""
        if kind not in self._tables:
            known = self._seconds.get(kind, {})
            self._tables[kind] = {drafted: statistics.median(known[drafted]) for drafted in sorted(known)}
        return self._tables[kind]

    def _single(self, kind: Kind) -> float | None:
        """The median of a kind that does not depend on what was drafted."""
        return self._table(kind).get(0)

    def _often(self, kind: Kind) -> dict[int, float]:
        """As :meth:`_table`, of the lengths with :data:`ENOUGH` rounds."""
        return {n: seconds for n, seconds in self._table(kind).items() if len(self._seconds[kind][n]) >= ENOUGH}

    def seconds(self, record: Record) -> float | None:
        """What the rounds of a record, its prompt and its routing take; None where a shape of it was never timed.

        The target alone takes a plain step per token.
        """
        if record.drafter is None:
            return self.plain_seconds(record)
        label = cost_label(record.drafter, record.settings)
        prefill = self._single(("prefill", label))
        if self._single(PLAIN) is None or prefill is None:
            return None
        host, route, swap = (self._single((name, label)) or 0.0 for name in ("host", "route_s", "swap_s"))
        total = prefill * _read(record) + record.rounds * host + route + swap
        sources = record.sources or ("draft",) * len(record.draft_lengths)
        for (source, drafted), n in Counter(zip(sources, record.draft_lengths, strict=True)).items():
            verify = _on_line(drafted, self._table(VERIFY))
            proposer, steps = _drafting(source, drafted)
            draft = _on_line(steps, self._table(("draft", label, proposer))) if drafted else 0.0
            if verify is None or draft is None:
                return None
            total += n * (verify + draft)
        return total

    def plain_seconds(self, record: Record) -> float | None:
        """What the target alone takes for a record's prompt and tokens."""
        plain, prefill = self._single(PLAIN), self._single(("prefill", ""))
        if plain is None or prefill is None:
            return None
        return prefill * _read(record) + record.emitted * (plain + (self._single(("host", "")) or 0.0))

    def costs(self, label: str, c: float, v: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
        """Calibrated costs in target steps, with what the run's own rounds say where there are :data:`ENOUGH` of a shape."""
        plain = self._often(PLAIN).get(0)
        if plain is None:
            return c, v
        verified = {n: seconds / plain for n, seconds in self._often(VERIFY).items() if 0 < n < len(v)}
        per_token = [seconds / n for n, seconds in self._often(("draft", label, "draft")).items() if 0 < n < len(v)]
        level = statistics.median(cost / v[n] for n, cost in verified.items()) if verified else 1.0
        learned = (v[0], *(verified.get(n, v[n] * level) for n in range(1, len(v))))
        return (statistics.median(per_token) / plain if per_token else c), learned


def model_steps(source: str, drafted: int) -> int:
    """How many of a round's drafted tokens a model proposed."""
    return expanded(source, drafted).count(MODEL)


def _read(record: Record) -> int:
    """Tokens of the prompt that the target read for this answer."""
    return record.prompt_tokens - record.reused_tokens


def _drafting(source: str, drafted: int) -> tuple[str, int]:
    """Whose time a round's drafting takes, and how many tokens of it."""
    own = expanded(source, drafted)
    steps = model_steps(source, drafted)
    return (MODEL, steps) if steps else (LOOKED_UP.get(own[0], own[0]) if own else source, drafted)


def _on_line(n: int, known: Mapping[int, float]) -> float | None:
    """The seconds of a draft of ``n`` tokens; between and beyond the lengths that occurred, on a line."""
    if n in known or not known:
        return known.get(n)
    at = list(known)
    if n <= at[-1] or len(at) == 1:
        return float(np.interp(n, at, list(known.values())))
    slope = max(0.0, (known[at[-1]] - known[at[0]]) / (at[-1] - at[0]))
    return known[at[-1]] + slope * (n - at[-1])
