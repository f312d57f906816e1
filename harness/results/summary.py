"""From raw records to one row per cell: pooled counts, intervals, positions, latencies, predicted speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from harness.core import stats
from harness.core.cell import BOTH, FIELDS, CellId
from harness.core.counts import COUNTS, Counts, columns, total
from harness.core.records import Divergence, Profile, Record
from harness.core.round_sources import model_steps
from harness.core.stats import Estimate
from harness.results.groups import Groups, OneKind, grouped
from harness.results.robust import Graded, Timing, shares
from harness.results.speedup import Baselines, Pair, baselines, pair_of, speedup, value
from harness.results.work import Work, work_of

ALL = "all"
"""Domain of the rows that pool every domain."""

Calibration = Mapping[str, Mapping[str, Any]]
"""Drafter label to ``{"c": float, "v": [v(1), v(2), ...]}``."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Scores of a cell's answers."""

    metric: str
    """``pass@1``, ``exact_match`` or ``agreement``."""
    score: Estimate | None
    """Mean over the scored answers, and its interval over them."""
    scored: int
    unscored: int
    cut: int
    """Scored answers that ended at the token limit."""

    @property
    def mean(self) -> float | None:
        """Mean over the scored answers."""
        return None if self.score is None else self.score.value


@dataclass(frozen=True, kw_only=True)
class PromptRow(Counts):
    """One prompt in a cell, its seeds together."""

    sample_id: str
    domain: str
    pair: Pair | None
    """Over the answers that a speedup compares; None where there is none."""

    @property
    def speedup(self) -> float | None:
        """Time per token of the target alone over that of the cell."""
        return None if self.pair is None else value([self.pair])


@dataclass(frozen=True, kw_only=True)
class CellRow(CellId):
    """One cell over the prompts of one domain, or of all domains. None is missing, never 0."""

    cell: CellId
    """The cell over all domains."""
    n: int
    """Prompts that the counts are from."""
    clocked: int
    """Prompts that the clocks are from; equal to ``n`` where every prompt was decoded, 0 where none was."""
    counts: Counts
    """Summed over the prompts."""
    rate: Estimate | None
    """accepted / drafted, pooled."""
    rate_per_prompt: float | None
    """Mean over prompts of accepted / drafted; prompts without a drafted token are left out."""
    alpha: Estimate | None
    """accepted / (accepted + rounds ended by a rejection)."""
    tau: Estimate | None
    """Emitted tokens per target pass."""
    tok_s: float | None
    """Emitted tokens per second of wall time, prompt processing included."""
    speedup: Estimate | None
    """Baseline wall time / cell wall time, paired per prompt. Greedy: over prompts whose outputs have equal length. Sampling:
    ratio of the times per token."""
    unpaired: int
    """Prompts that the speedup leaves out."""
    robust: Estimate | None
    """Speedup over all prompts of ``n``: what their rounds and prompts take by the run's median times, the target alone over this cell.
    The interval covers the spread of the prompts and of the clocks. None where a shape of round was never timed."""
    sources: Mapping[str, float]
    """Share of the emitted tokens by who proposed them; what the target added itself is left out. Empty where the loop cannot tell."""
    compared: int
    """Outputs compared with the baseline's."""
    divergences: tuple[tuple[str, Divergence], ...]
    """(sample id, first difference)."""
    marginal: tuple[float, ...]
    """Acceptance at position j = 1, 2, ...: rounds that accepted j or more / rounds that drafted j or more."""
    conditional: tuple[float | None, ...]
    """The same divided by the rounds that drafted j or more and accepted j - 1 or more."""
    reached: tuple[int, ...]
    """Rounds that drafted j or more."""
    ttft_s: tuple[float, ...] | None
    """Time to first token: 50th, 90th and 99th percentile."""
    token_s: tuple[float, ...] | None
    """Wall time after the first round's start per emitted token, per answer: the same percentiles."""
    total_s: tuple[float, ...] | None
    """Wall time per answer: the same percentiles."""
    route_s: float | None
    """Median seconds to embed a prompt and choose; None where nothing is routed."""
    swap_s: float | None
    """Median seconds to put the chosen adapter in place."""
    predicted: float | None
    """Speedup that the acceptance and the calibrated step costs promise."""
    efficiency: float | None
    """Measured / predicted speedup."""
    quality: Quality | None
    profile: Mapping[str, float] | None
    """Seconds over all answers: ``prefill_s``, the parts of the rounds and ``other_s``; None where not every answer was profiled."""
    prompts: Sequence[PromptRow] = ()
    """What the sums are made of."""

    @property
    def speed(self) -> Estimate | None:
        """What to go by: the robust speedup where the run's rounds have times, else the ratio of the wall times."""
        return self.robust or self.speedup

    @property
    def label(self) -> str:
        """Drafter with its adapter and further settings."""
        apart = ("adapter_domain", "installed", "around")
        own = ", ".join(f"{name} {value}" for name, value in sorted(self.settings.items()) if name not in apart)
        around = f"{self.settings['around']} + " if "around" in self.settings else ""
        adapter = f" {self.adapter or self.settings.get('adapter_domain', '')}" if self.drafter == "adapter" else ""
        loop = " (mlx-lm loop)" if self.loop == "mlx-lm" and self.drafter else ""
        return around + (self.drafter or "target only") + adapter + (f" ({own})" if own else "") + loop + (" LOSSY" if self.lossy else "")


def summarise(
    records: Sequence[Record] | Groups, calibration: Calibration | None = None, *, pooled: bool = True, machine: str | None = None
) -> list[CellRow]:
    """One row per cell and domain, in order of first appearance; with several domains also one row per cell over all of them.

    Args:
        records: raw records of one run.
        calibration: measured costs per drafter label, for the predicted speedup.
        pooled: add the rows over all domains.
        machine: kind of machine whose clocks count, where a cluster has several; counts are of all. None where there is one machine.
    """
    groups = grouped(records)
    clocked = groups if machine is None else OneKind(groups, machine)
    alone = [cell for cell in groups.cells if cell.drafter is None and cell.method == "decode"]
    base, timing = baselines(clocked.of(alone)), Timing(clocked)
    domains = list(dict.fromkeys(cell.domain for cell in groups.cells))
    rows: dict[str, list[CellRow]] = {domain: [] for domain in (*domains, ALL)}
    for key, cells in row_cells(groups).items():
        everything = groups.of(cells)
        own = {domain: [r for r in everything if r.domain == domain] for domain in dict.fromkeys(cell.domain for cell in cells)}
        if pooled and len(own) > 1:
            own[ALL] = [record for group in own.values() for record in group]
        for domain, group in own.items():
            rows[domain].append(_row(key, group, domain, base, calibration or {}, timing, machine))
    return [row for found in rows.values() for row in found]


def row_cells(groups: Groups) -> dict[CellId, list[CellId]]:
    """:attr:`CellRow.cell` of every row to the cells of its records, in order of first appearance.

    Where counts come from many prompts, which the target answered in batches, and clocks from few of them, a row is of both.
    """
    merged = any(cell.method == "answer" for cell in groups.cells)
    found: dict[CellId, list[CellId]] = {}
    for cell in groups.cells:
        found.setdefault(dataclasses.replace(cell, domain=ALL, method=BOTH if merged else cell.method), []).append(cell)
    return found


def _by_prompt(records: Sequence[Record]) -> list[list[Record]]:
    prompts: dict[str, list[Record]] = {}
    for record in records:
        prompts.setdefault(record.sample_id, []).append(record)
    return list(prompts.values())


def _row(
    cell: CellId,
    everything: Sequence[Record],
    domain: str,
    base: Baselines,
    calibration: Calibration,
    timing: Timing,
    machine: str | None,
) -> CellRow:
    """One row: counts from all prompts (replayed, or the target's answers) where there are such, clocks from those decoded."""
    decoded = [r for r in everything if r.method == "decode"]
    clocks = [r for r in decoded if machine in (None, r.machine)]
    counted = {r.sample_id for r in everything if r.method != "decode"}
    group = [r for r in everything if r.method != "decode" or r.sample_id not in counted]
    first = group[0]
    prompts = _by_prompt(group)
    drafts = first.drafter is not None
    totals = [total(p) for p in prompts]
    walls = [r.wall_s for r in clocks]
    timed = bool(walls) and all(w is not None for w in walls)
    paired = {p[0].sample_id: pair_of(p, base) for p in _by_prompt(clocks)}
    pairs = [pair for pair in paired.values() if pair is not None] if drafts and timed else []
    work = work_of(group)
    wall, speeds = speedup(pairs), (_robust_pairs(work, timing) if drafts else None) or paired
    predicted = _predicted(work, calibration)
    marginal, conditional, reached = positions(group)
    rates = [one.rate for one in totals if one.rate is not None]
    return CellRow(
        **{name: getattr(cell, name) for name in FIELDS} | {"domain": domain, "method": BOTH if counted and clocks else first.method},
        cell=cell, n=len(prompts),
        clocked=len(_by_prompt(clocks)), counts=total(totals),
        rate=stats.ratio(*columns(totals, "rate"), most=1.0) if drafts else None,
        rate_per_prompt=float(np.mean(rates)) if drafts and rates else None,
        alpha=stats.ratio(*columns(totals, "alpha"), most=1.0) if drafts else None,
        tau=stats.ratio(*columns(totals, "tau"), least=1.0, most=1.0 + longest_draft(group)),
        tok_s=sum(r.emitted for r in clocks) / sum(w for w in walls if w is not None) if timed else None,
        speedup=wall, unpaired=len(paired) - len(pairs) if drafts and timed else 0,
        robust=timing.speedup(work) if drafts else None, sources=shares(group),
        compared=sum(r.compared for r in decoded),
        divergences=tuple((r.sample_id, r.divergence) for r in decoded if r.divergence is not None),
        marginal=marginal, conditional=conditional, reached=reached, ttft_s=_percentiles([r.ttft_s for r in clocks]),
        token_s=_percentiles([_per_token(r) for r in clocks]), total_s=_percentiles(walls),
        route_s=_median([r.route_s for r in clocks]), swap_s=_median([r.swap_s for r in clocks]), predicted=predicted,
        efficiency=wall.value / predicted if wall and predicted else None,
        quality=_quality(timing.answers(group) or _graded(everything)), profile=_profile(clocks),
        prompts=Prompts([p[0].sample_id for p in prompts], [p[0].domain for p in prompts], totals, [speeds.get(s) for s in work.samples]),
    )  # fmt: skip


def _graded(everything: Sequence[Record]) -> list[Graded]:
    """What a cell's quality is of: the target's whole answers where it gave them in batches, else every record."""
    return [(r.score, r.finish) for r in [r for r in everything if r.method == "answer"] or everything]


class Prompts(Sequence[PromptRow]):
    """The prompts of a row, held as numbers: a run of a million records has as many.

    Args:
        samples: (n,) their ids.
        domains: (n,)
        totals: (n,) their counts.
        pairs: (n,) :attr:`PromptRow.pair` of each.
    """

    def __init__(self, samples: Sequence[str], domains: Sequence[str], totals: Sequence[Counts], pairs: Sequence[Pair | None]) -> None:
        self._samples, self._domains = list(samples), list(domains)
        self._counts = np.array([[getattr(one, name) for name in COUNTS] for one in totals], float).reshape(-1, len(COUNTS))
        self._whole = all(isinstance(getattr(one, name), int) for one in totals[:1] for name in COUNTS)
        self._pairs = np.array([(np.nan,) * 4 if pair is None else pair for pair in pairs], float).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        pair, counts = self._pairs[i].tolist(), self._counts[i].tolist()
        return PromptRow(
            sample_id=self._samples[i], domain=self._domains[i], pair=None if np.isnan(pair[0]) else tuple(pair),
            **dict(zip(COUNTS, map(int, counts) if self._whole else counts, strict=True)),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self._samples))


def _robust_pairs(work: Work, timing: Timing) -> dict[str, Pair | None] | None:
    """What the rounds of every prompt take by the run's medians; None where a shape of round was never timed."""
    found = timing.seconds(work)
    if found is None:
        return None
    columns_ = zip(work.samples, found[0].tolist(), work.emitted.tolist(), found[1].tolist(), strict=True)
    return {sample: (base, tokens, cell, tokens) for sample, base, tokens, cell in columns_}


def longest_draft(group: Sequence[Record]) -> int:
    """Tokens that a round can draft: K, or the most seen where the length is chosen while decoding."""
    k = group[0].k
    return k if isinstance(k, int) else max((d for r in group for d in r.draft_lengths), default=0)


def corrected_speedups(rows: Sequence[CellRow]) -> list[Estimate | None]:
    """Speedups of rows with p-values and detectable differences corrected for how many of them have one."""
    return stats.corrected([row.speed for row in rows])


def positions(group: Sequence[Record]) -> tuple[tuple[float, ...], tuple[float | None, ...], tuple[int, ...]]:
    """Acceptance by draft position, marginal and conditional, and the rounds that drafted so far; empty without lengths per round."""
    accepted = np.fromiter(chain.from_iterable(r.accept_lengths for r in group), np.int16)
    drafted = np.fromiter(chain.from_iterable(r.draft_lengths for r in group), np.int16)
    if not len(accepted) or len(accepted) != len(drafted):
        return (), (), ()
    marginal, conditional, counts = [], [], []
    for j in range(1, int(drafted.max(initial=0)) + 1):
        reached = drafted >= j
        hits = np.sum(accepted >= j)
        tried = np.sum(reached & (accepted >= j - 1))
        marginal.append(float(hits / np.sum(reached)))
        conditional.append(float(hits / tried) if tried else None)
        counts.append(int(np.sum(reached)))
    return tuple(marginal), tuple(conditional), tuple(counts)


def _predicted(work: Work, calibration: Calibration) -> float | None:
    """Emitted tokens over the calibrated cost of every round, in target steps: tau / (K c + v(K + 1)) when a model drafts K in every round.

    Tokens that were copied or remembered cost their verification alone.
    """
    costs = calibration.get(work.label)
    if costs is None or not work.shapes or max(drafted for _, drafted in work.shapes) >= len(costs["v"]):
        return None
    once, c, v = costs.get("once", 0.0), costs["c"], costs["v"]
    rounds = [v[drafted] + (once + steps * c if (steps := model_steps(source, drafted)) else 0.0) for source, drafted in work.shapes]
    return float(work.emitted.sum() / work.by_prompt(rounds).sum())


def _per_token(record: Record) -> float | None:
    if record.wall_s is None or record.ttft_s is None or record.emitted < 2:
        return None
    return (record.wall_s - record.ttft_s) / (record.emitted - 1)


def _percentiles(values: Sequence[float | None]) -> tuple[float, ...] | None:
    known = [v for v in values if v is not None]
    return stats.percentiles(known) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


PROFILE_PARTS = tuple(part.name for part in dataclasses.fields(Profile))
"""Parts of a round in a profile."""


def _profile(group: Sequence[Record]) -> Mapping[str, float] | None:
    parts = [r.profile for r in group if r.profile]
    if not parts or len(parts) < len(group):
        return None
    rounds = {name: sum(getattr(part, name) for part in parts) for name in PROFILE_PARTS}
    prefill = sum(r.prefill_s or 0.0 for r in group)
    wall = sum(r.wall_s or 0.0 for r in group)
    return {"prefill_s": prefill, **rounds, "other_s": max(0.0, wall - prefill - sum(rounds.values()))}


def _quality(answers: Sequence[Graded]) -> Quality | None:
    known = [(score, finish) for score, finish in answers if score]
    if not known or len({score.metric for score, _ in known}) > 1:
        return None
    scored = [(score.value, finish) for score, finish in known if score.value is not None]
    score = stats.ratio([value for value, _ in scored], [1.0] * len(scored), most=1.0)
    cut = sum(finish in ("length", "context") for _, finish in scored)
    return Quality(metric=known[0][0].metric, score=score, scored=len(scored), unscored=len(known) - len(scored), cut=cut)
