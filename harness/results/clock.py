"""What a round costs in a run, from the clocks of all its rounds: medians by shape, which a few disturbed rounds cannot move.

A round's shape is who proposed and how many tokens. Verification depends on the number of tokens alone, so every drafter's rounds
count; drafting depends on the drafter too, and where several sources took turns on the tokens that its model proposed.
"""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterable, Mapping

import numpy as np

from harness.core.records import Record
from harness.core.round_sources import MODEL
from harness.results.work import Array, Work, cost_label, drafting, work_of

ENOUGH = 12
"""Rounds of one shape whose median is taken for a cost that decoding goes by."""

Kind = tuple[str, ...]
"""What is timed: a step of the target alone, verifying, drafting by a label's source, a label's prompt token, and so on."""
PLAIN: Kind = ("plain",)
VERIFY: Kind = ("verify",)


class Clock:
    """Seconds of the rounds that were decoded with a clock, by shape.

    Args:
        records: decoded records; those without times per round are left out.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._seconds: dict[Kind, dict[int, tuple[array[float], array[int]]]] = {}  # and the fold that each of them is of
        self._tables: dict[Kind, dict[int, tuple[float, int]]] = {}
        self._left_out: int | None = None
        for record in records:
            self.add(record)

    def add(self, record: Record, fold: int = 0) -> None:
        """Take in one more record, as one of a fold that :meth:`without` can leave out again."""
        if record.method != "decode" or record.loop != "own" or record.verify_times_s is None:
            return
        label = cost_label(record.drafter, record.settings)
        draft_times = record.draft_times_s or (0.0,) * record.rounds
        sources = record.sources or ("draft",) * record.rounds
        first = 1 if record.rounds > 1 else 0  # the first round of an answer warms up
        shapes = zip(record.draft_lengths, sources, draft_times, record.verify_times_s, strict=True)
        for drafted, source, draft_s, verify_s in list(shapes)[first:]:
            self._note(fold, VERIFY if record.drafter else PLAIN, verify_s, drafted)
            if record.drafter:
                proposer, steps = drafting(source, drafted)
                self._note(fold, ("draft", label, proposer), draft_s, steps)
        if record.prefill_s is not None:
            self._note(fold, ("prefill", label), record.prefill_s / record.read_tokens)
            inside = record.prefill_s + (record.route_s or 0.0) + (record.swap_s or 0.0) + sum(record.verify_times_s) + sum(draft_times)
            self._note(fold, ("host", label), max(0.0, (record.wall_s or inside) - inside) / record.rounds)
        for name in ("route_s", "swap_s"):
            if (seconds := getattr(record, name)) is not None:
                self._note(fold, (name, label), seconds)

    def without(self, fold: int) -> Clock:
        """The same without the records of one fold; it shares what is known so far."""
        other = Clock()
        other._seconds, other._left_out = self._seconds, fold
        return other

    def _note(self, fold: int, kind: Kind, seconds: float, drafted: int = 0) -> None:
        known = self._seconds.setdefault(kind, {}).setdefault(drafted, (array("d"), array("B")))
        known[0].append(seconds)
        known[1].append(fold)
        self._tables.pop(kind, None)

    def _medians(self, kind: Kind) -> dict[int, tuple[float, int]]:
        """Median seconds of a kind by tokens drafted, shortest first, and how many there are; empty where there is nothing of it."""
        if kind not in self._tables:
            table: dict[int, tuple[float, int]] = {}
            for drafted, (seconds, folds) in sorted(self._seconds.get(kind, {}).items()):
                values = np.array(seconds)
                values = values if self._left_out is None else values[np.array(folds) != self._left_out]
                if len(values):
                    table[drafted] = (float(np.median(values)), len(values))
            self._tables[kind] = table
        return self._tables[kind]

    def _table(self, kind: Kind) -> dict[int, float]:
        return {drafted: seconds for drafted, (seconds, _) in self._medians(kind).items()}

    def _single(self, kind: Kind) -> float | None:
        """The median of a kind that does not depend on what was drafted."""
        return self._table(kind).get(0)

    def _often(self, kind: Kind) -> dict[int, float]:
        """As :meth:`_table`, of the lengths with :data:`ENOUGH` rounds."""
        return {n: seconds for n, (seconds, count) in self._medians(kind).items() if count >= ENOUGH}

    def seconds(self, record: Record) -> float | None:
        """What the rounds of a record, its prompt and its routing take; None where a shape of it was never timed."""
        found = self.cell_s(work_of([record]))
        return None if found is None else float(found[0])

    def cell_s(self, work: Work) -> Array | None:
        """(n,) what the rounds of a cell's answers, their prompts and their routing take, by prompt; None where a shape was never timed.

        The target alone takes a plain step per token.
        """
        if not work.label:
            return self.target_s(work)
        prefill = self._single(("prefill", work.label))
        if self._single(PLAIN) is None or prefill is None:
            return None
        host, route, swap = (self._single((name, work.label)) or 0.0 for name in ("host", "route_s", "swap_s"))
        verified = self._table(VERIFY)
        shape_s = [self._round_s(work.label, source, drafted, verified) for source, drafted in work.shapes]
        if not shape_s or None in shape_s:
            return None
        rounds_s = work.by_prompt([s for s in shape_s if s is not None])
        return prefill * work.prompt_tokens + host * work.rounds + (route + swap) * work.answers + rounds_s

    def _round_s(self, label: str, source: str, drafted: int, verified: Mapping[int, float]) -> float | None:
        """What a round of a shape takes."""
        verify = _on_line(drafted, verified)
        proposer, steps = drafting(source, drafted)
        draft = _on_line(steps, self._table(("draft", label, proposer))) if drafted else 0.0
        return None if verify is None or draft is None else verify + draft

    def target_s(self, work: Work) -> Array | None:
        """(n,) what the target alone takes for the prompts and tokens of a cell's answers, by prompt."""
        plain, prefill = self._single(PLAIN), self._single(("prefill", ""))
        if plain is None or prefill is None:
            return None
        return prefill * work.prompt_tokens + (plain + (self._single(("host", "")) or 0.0)) * work.emitted

    def costs(self, label: str, c: float, v: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
        """Calibrated costs in target steps, with what the run's own rounds say where there are :data:`ENOUGH` of a shape."""
        plain = self._often(PLAIN).get(0)
        if plain is None:
            return c, v
        verified = {n: seconds / plain for n, seconds in self._often(VERIFY).items() if 0 < n < len(v)}
        per_token = [seconds / n for n, seconds in self._often(("draft", label, MODEL)).items() if 0 < n < len(v)]
        level = statistics.median(cost / v[n] for n, cost in verified.items()) if verified else 1.0
        learned = (v[0], *(verified.get(n, v[n] * level) for n in range(1, len(v))))
        return (statistics.median(per_token) / plain if per_token else c), learned


def _on_line(n: int, known: Mapping[int, float]) -> float | None:
    """The seconds of a draft of ``n`` tokens; between and beyond the lengths that occurred, on a line."""
    if n in known or not known:
        return known.get(n)
    at = list(known)
    if n <= at[-1] or len(at) == 1:
        return float(np.interp(n, at, list(known.values())))
    slope = max(0.0, (known[at[-1]] - known[at[0]]) / (at[-1] - at[0]))
    return known[at[-1]] + slope * (n - at[-1])
