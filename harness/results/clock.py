"""What a round costs in a run, from the clocks of all its rounds: medians by shape, which a few disturbed rounds cannot move.

A round's shape is who proposed and how many tokens. Verification depends on the number of tokens alone, so every drafter's rounds
count; drafting depends on the drafter too.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from harness.core.records import Record

ENOUGH = 12
"""Rounds of one shape whose median is taken for a cost that decoding goes by."""
LOOKED_UP = {"copy": "lookup"}
"""Sources that cost the same."""


def cost_label(drafter: str | None, settings: Mapping[str, Any]) -> str:
    """Whose drafting costs the same: ``generic``, ``early_exit (layers 4)``; empty for the target alone."""
    layers = settings.get("layers")
    return f"{drafter} (layers {layers})" if layers else drafter or ""


class Clock:
    """Seconds of the rounds that were decoded with a clock, by shape.

    Args:
        records: decoded records; those without times per round are left out.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._seconds: dict[Hashable, list[float]] = {}
        self._medians: dict[Hashable, float] = {}
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
            self._note(("verify", drafted) if record.drafter else "plain", verify_s)
            if record.drafter:
                self._note(("draft", label, LOOKED_UP.get(source, source), drafted), draft_s)
        if record.prefill_s is not None:
            self._note(("prefill", label), record.prefill_s / record.prompt_tokens)
            inside = record.prefill_s + (record.route_s or 0.0) + (record.swap_s or 0.0) + sum(record.verify_times_s) + sum(drafting)
            self._note(("host", label), max(0.0, (record.wall_s or inside) - inside) / record.rounds)
        for name in ("route_s", "swap_s"):
            if (seconds := getattr(record, name)) is not None:
                self._note((name, label), seconds)

    def _note(self, key: Hashable, seconds: float) -> None:
        self._seconds.setdefault(key, []).append(seconds)
        self._medians.pop(key, None)

    def _median(self, key: Hashable) -> float | None:
        if key not in self._medians and key in self._seconds:
            self._medians[key] = statistics.median(self._seconds[key])
        return self._medians.get(key)

    def count(self, key: Hashable) -> int:
        """How many rounds of a shape there are: ``"plain"``, ``("verify", drafted)``, ``("draft", label, source, drafted)``."""
        return len(self._seconds.get(key, ()))

    @property
    def plain_s(self) -> float | None:
        """A step of the target alone."""
        return self._median("plain")

    def verify_s(self, drafted: int) -> float | None:
        """Verifying a draft of that length; between and beyond the lengths that occurred, on a line."""
        known = sorted(key[1] for key in self._seconds if isinstance(key, tuple) and key[0] == "verify")
        return _on_line(drafted, {n: self._median(("verify", n)) or 0.0 for n in known})

    def draft_s(self, label: str, source: str, drafted: int) -> float | None:
        """Drafting that many tokens."""
        source = LOOKED_UP.get(source, source)
        known = sorted(key[3] for key in self._seconds if isinstance(key, tuple) and key[:3] == ("draft", label, source))
        return _on_line(drafted, {n: self._median(("draft", label, source, n)) or 0.0 for n in known})

    def seconds(self, record: Record) -> float | None:
        """What the rounds of a record, its prompt and its routing take; None where a shape of it was never timed.

        The target alone takes a plain step per token.
        """
        label, plain = cost_label(record.drafter, record.settings), self.plain_s
        prefill = self._median(("prefill", label))
        if plain is None or prefill is None:
            return None
        total = prefill * record.prompt_tokens
        if record.drafter is None:
            return total + record.emitted * (plain + (self._median(("host", label)) or 0.0))
        total += record.rounds * (self._median(("host", label)) or 0.0) + sum(
            self._median((n, label)) or 0.0 for n in ("route_s", "swap_s")
        )
        shapes: dict[tuple[str, int], int] = {}
        for source, drafted in zip(record.sources or ("draft",) * len(record.draft_lengths), record.draft_lengths, strict=True):
            shape = (source if drafted else "", drafted)
            shapes[shape] = shapes.get(shape, 0) + 1
        for (source, drafted), n in shapes.items():
            verify, draft = self.verify_s(drafted), self.draft_s(label, source, drafted) if drafted else 0.0
            if verify is None or draft is None:
                return None
            total += n * (verify + draft)
        return total

    def plain_seconds(self, record: Record) -> float | None:
        """What the target alone takes for a record's prompt and tokens."""
        plain, prefill = self.plain_s, self._median(("prefill", ""))
        if plain is None or prefill is None:
            return None
        return prefill * record.prompt_tokens + record.emitted * (plain + (self._median(("host", "")) or 0.0))

    def costs(self, label: str, c: float, v: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
        """Calibrated costs in target steps, with what the run's own rounds say where there are :data:`ENOUGH` of a shape."""
        plain = self.plain_s
        if plain is None or self.count("plain") < ENOUGH:
            return c, v
        own = [self._median(("verify", n)) if n and self.count(("verify", n)) >= ENOUGH else None for n in range(len(v))]
        drafts = [
            (n, self._median(("draft", label, "draft", n))) for n in range(1, len(v)) if self.count(("draft", label, "draft", n)) >= ENOUGH
        ]
        per_token = [seconds / n for n, seconds in drafts if seconds is not None]
        scale = [seconds / plain / v[n] for n, seconds in enumerate(own) if seconds is not None]
        level = statistics.median(scale) if scale else 1.0
        learned = tuple(seconds / plain if seconds is not None else v[n] * (level if n else 1.0) for n, seconds in enumerate(own))
        return (statistics.median(per_token) / plain if per_token else c), learned


def _on_line(n: int, known: Mapping[int, float]) -> float | None:
    if not known:
        return None
    at = list(known)
    if n <= at[-1] or len(at) == 1:
        return float(np.interp(n, at, list(known.values())))
    slope = max(0.0, (known[at[-1]] - known[at[0]]) / (at[-1] - at[0]))
    return known[at[-1]] + slope * (n - at[-1])
