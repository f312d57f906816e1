"""What a run recommends: which drafter and draft length to use, what comes next, what would decide an open question. Rows in, facts out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core import stats
from harness.core.stats import Estimate
from harness.results.speedup import speedup, value
from harness.results.summary import ALL, CellRow, PromptRow

Verdict = Literal["faster", "unclear", "target", "predicted", "nothing"]
"""The best drafter is shown to be faster; is not shown to be; every drafter is slower; only replay ran; no drafter ran."""
ALPHA = 0.05
"""Error of the claim that the best drafter is faster than the target alone, over all that were tried (Holm)."""
SAME = 0.02
"""Two speeds this close are as good as each other: no more prompts are asked for."""

Prompts = Mapping[str, PromptRow]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to decode, and how fast it was."""

    drafter: str | None
    """None is the target alone."""
    adapter: str | None = None
    around: str | None = None
    """The drafter that the adapter, or what the router picks, runs in; None is that draft alone."""
    k: int | str | None = None
    rule: str = "match"
    temperature: float = 0.0
    loop: str = "own"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the drafter, such as ``layers``."""
    name: str = "the target alone"
    """In a sentence."""
    speedup: Estimate | None = None
    """Measured over the target alone."""
    predicted: float | None = None
    """Speedup that acceptance and calibrated costs promise."""
    domains: Mapping[str, float] = field(default_factory=dict)
    """Speedup by domain, where there are several: measured, or predicted where nothing was timed."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What one thing adds to another, on the prompts that both ran."""

    over: str
    """Name of the other."""
    speedup: float
    """Speedup over the target alone less the other's."""
    ratio: Estimate
    """Time of the other over the time of this one."""


@dataclass(frozen=True, kw_only=True)
class OpenQuestion:
    """What these prompts cannot tell."""

    first: str
    second: str
    """The two whose order is open."""
    prompts: int
    """Prompts that were compared."""
    more: int | None
    """About how many more like these would show a difference as large as the one seen; None where too few ran to say."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to use, and why."""

    verdict: Verdict
    use: Choice
    """What to use: the target alone unless something is shown, or predicted where nothing was timed, to be faster."""
    best: Choice | None
    """The fastest drafter, shown to be faster or not."""
    next_best: Choice | None
    lead: Estimate | None
    """Time of the next best over the time of the best."""
    tried: int
    """Ways of drafting that were compared."""
    scope: str
    """The domain it is about, or ``all``."""
    better_on: Mapping[str, Choice]
    """Domains on which another drafter is shown to be faster than the best."""
    adapters: Gain | None
    """Each domain's own adapter over the plain draft."""
    router: Gain | None
    """The router over the plain draft."""
    untimed: Choice | None
    """A replayed cell that is predicted to beat the best, which was timed."""
    question: OpenQuestion | None
    command: str
    """The command line that does it."""


def recommend(rows: Sequence[CellRow], models: str) -> Recommendation:
    """What the rows of a run recommend.

    Args:
        rows: from :func:`harness.results.summary.summarise`, cells that repeat the plain draft left out.
        models: the pair, as ``--models`` takes it.
    """
    ranked = ranked_rows(rows)
    if not ranked:
        return _without(models)
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    timed, temperature, scope = first.speed is not None, first.temperature, first.domain
    compared = [r for r in _compared(rows) if r.temperature == temperature]
    verdict = _verdict(first, ranked)
    best = choice(first, rows)
    use = best if verdict in ("faster", "predicted") else Choice(drafter=None, temperature=temperature)
    lead = versus(times([first]), times([second])) if second and verdict == "faster" else None
    return Recommendation(
        verdict=verdict, use=use, best=best, next_best=choice(second, rows) if second else None, lead=lead, tried=len(ranked), scope=scope,
        better_on=_better_on(first, compared) if timed else {}, adapters=_adapters(compared) if timed else None,
        router=_router(compared, scope) if timed else None, untimed=_untimed(first, rows) if timed else None,
        question=_question(verdict, first, second, lead, len(ranked)), command=command(use, models),
    )  # fmt: skip


def ranked_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows of what can be used, best first: by the clock where anything was timed, else by prediction; pooled where any is.

    What is shown to be faster than the target alone comes before what is not, and before that what has too few prompts.
    """
    compared = _compared(rows)
    temperature = min((r.temperature for r in compared), default=0.0)
    compared = [r for r in compared if r.temperature == temperature]
    scope = ALL if any(r.domain == ALL for r in compared) else next((r.domain for r in compared), ALL)
    rows = [r for r in compared if r.domain == scope]
    most = max((r.speed.n for r in rows if r.speed), default=0)
    shown = {id(r) for r in _shown(rows)}
    return sorted(rows, key=lambda r: (r.speed is None or 2 * r.speed.n >= most, id(r) in shown, _speed(r)), reverse=True)


def _shown(rows: Sequence[CellRow]) -> list[CellRow]:
    """Rows that are shown to be faster than the target alone, corrected for how many were tried."""
    corrected = stats.corrected([row.speed for row in rows])
    pairs = [(row, e) for row, e in zip(rows, corrected, strict=True) if e is not None and e.p is not None and e.p < ALPHA]
    return [row for row, e in pairs if e.value > 1 and e.excludes(1.0)]


def _compared(rows: Sequence[CellRow]) -> list[CellRow]:
    """Lossless drafters, the cells of adapter studies apart: the timed ones, or those with a prediction where none was timed."""
    drafted = [r for r in rows if r.drafter is not None and not r.lossy and not {"rank", "round"} & set(r.settings)]
    timed = [r for r in drafted if r.clocked and r.speed]
    return timed or [r for r in drafted if r.predicted]


def _without(models: str) -> Recommendation:
    target = Choice(drafter=None)
    return Recommendation(
        verdict="nothing", use=target, best=None, next_best=None, lead=None, tried=0, scope=ALL, better_on={}, adapters=None, router=None,
        untimed=None, question=None, command=command(target, models),
    )  # fmt: skip


def _speed(row: CellRow) -> float:
    return row.speed.value if row.speed else row.predicted or 0.0


def _verdict(best: CellRow, ranked: Sequence[CellRow]) -> Verdict:
    if best.speed is None:
        return "predicted" if _speed(best) > 1 else "target"
    if best.speed.value <= 1 and best.speed.excludes(1.0):
        return "target"
    return "faster" if any(row is best for row in _shown(ranked)) else "unclear"


def choice(row: CellRow, rows: Sequence[CellRow]) -> Choice:
    """A row as something to use; its speed on every domain from the other ``rows`` of the cell."""
    own = [r for r in rows if r.cell == row.cell and r.domain != ALL and row.domain == ALL]
    domains = {r.domain: _speed(r) for r in own if bool(r.speed) == bool(row.speed)}
    around = row.settings.get("around")
    return Choice(
        drafter=row.drafter, adapter=row.adapter, k=row.k, rule=row.rule if row.temperature else "match",
        temperature=row.temperature, loop=row.loop,
        around=None if around is None else str(around),
        options={n: value for n, value in row.settings.items() if n not in ("adapter_domain", "installed", "around")},
        name=row.label + ("" if row.k is None else f" with K = {row.k}"), speedup=row.speed, predicted=row.predicted, domains=domains,
    )  # fmt: skip


def times(rows: Iterable[CellRow]) -> Prompts:
    """The timed prompts of rows, by sample, as :func:`versus` takes them."""
    return {prompt.sample_id: prompt for row in rows for prompt in row.prompts if prompt.pair is not None}


def versus(a: Prompts, b: Prompts) -> Estimate | None:
    """Time per token of ``b`` over that of ``a``, on the prompts of both: above 1 where ``a`` is faster."""
    return speedup([(*theirs[2:], *ours[2:]) for s in a if s in b and (ours := a[s].pair) and (theirs := b[s].pair)])


def _better_on(best: CellRow, compared: Sequence[CellRow]) -> dict[str, Choice]:
    found = {}
    for domain in dict.fromkeys(r.domain for r in compared if r.domain != ALL):
        here = [r for r in compared if r.domain == domain]
        own = next((r for r in here if r.cell == best.cell), None)
        fastest = max(here, key=_speed)
        ahead = versus(times([fastest]), times([own])) if own and fastest is not own else None
        if ahead and ahead.p is not None and ahead.value > 1 and ahead.p * (len(here) - 1) < ALPHA:
            found[domain] = choice(fastest, here)
    return found


def _adapters(timed: Sequence[CellRow]) -> Gain | None:
    """All domains' own adapters together against the plain draft at the same K."""
    home: dict[Any, list[CellRow]] = {}
    for row in timed:
        alone = row.drafter == "adapter" and not {"around", "installed"} & set(row.settings)
        if alone and row.domain != ALL and row.settings.get("adapter_domain", row.domain) == row.domain:
            home.setdefault(row.k, []).append(row)
    return _best_gain({k: times(rows) for k, rows in home.items()}, timed)


def _router(timed: Sequence[CellRow], scope: str) -> Gain | None:
    routed = {r.k: times([r]) for r in timed if r.drafter == "router" and r.domain == scope and "around" not in r.settings}
    return _best_gain(routed, timed)


def _best_gain(cells: Mapping[Any, Prompts], timed: Sequence[CellRow]) -> Gain | None:
    """The fastest of ``cells`` (by K) against the plain draft at its K."""
    gains = []
    for k, prompts in cells.items():
        like = [r for r in timed if r.drafter == "generic" and r.domain != ALL and r.loop == "own" and not r.settings]
        plain = times(r for r in like if r.k == k)
        shared = [s for s in prompts if s in plain]
        ratio = versus(prompts, plain)
        if ratio is not None:
            ours, theirs = (value(p for s in shared if (p := side[s].pair)) for side in (prompts, plain))
            gains.append((ours, Gain(over=f"the plain draft with K = {k}", speedup=ours - theirs, ratio=ratio)))
    return max(gains, key=lambda gain: gain[0])[1] if gains else None


def _untimed(best: CellRow, rows: Sequence[CellRow]) -> Choice | None:
    """The replayed cell with the best prediction, where it is clearly above what the best one reached and was promised."""
    alike = [r for r in rows if r.domain == best.domain and r.temperature == best.temperature and not {"rank", "round"} & set(r.settings)]
    timed = {_way(r) for r in alike if r.method == "decode"}
    replayed = [r for r in alike if r.method == "replay" and r.predicted and _way(r) not in timed]
    top = max(replayed, key=lambda r: r.predicted or 0.0, default=None)
    reached = max(_speed(best), best.predicted or 0.0)
    return choice(top, rows) if top and (top.predicted or 0.0) > reached * (1 + SAME) else None


def _way(row: CellRow) -> tuple[Any, ...]:
    """What tells a way of drafting from another, timed or replayed."""
    return row.drafter, row.adapter, row.k, row.loop, tuple(sorted(row.settings.items()))


def _question(verdict: Verdict, first: CellRow, second: CellRow | None, lead: Estimate | None, tried: int) -> OpenQuestion | None:
    if verdict == "unclear":
        assert first.speed is not None
        return _open(choice(first, []).name, "the target alone", first.speed, tried)
    if verdict == "faster" and second and lead and not lead.excludes(1.0) and _difference(lead) > SAME:
        return _open(choice(first, []).name, choice(second, []).name, lead, 1)
    return None


def _open(first: str, second: str, estimate: Estimate, tests: int) -> OpenQuestion:
    more = None
    if estimate.error is not None:
        more = max(1, stats.prompts_needed(estimate, max(SAME, _difference(estimate)), tests) - estimate.n)
    return OpenQuestion(first=first, second=second, prompts=estimate.n, more=more)


def _difference(ratio: Estimate) -> float:
    """How far a ratio of times is from 1, in either direction."""
    return max(ratio.value, 1 / ratio.value) - 1


def command(use: Choice, models: str) -> str:
    """The command line that decodes as recommended."""
    parts = ["harness generate PROMPT --models", shlex.quote(models)]
    if use.options:
        return " ".join([*parts, "--settings settings.yaml"])
    if use.drafter is None:
        parts.append("--drafter none")
    elif use.drafter not in ("router", "adapter"):
        parts.append(f"--drafter {shlex.quote(use.drafter)}")
    else:
        parts += [f"--drafter {shlex.quote(use.around)}"] if use.around else []
        parts.append("--route" if use.drafter == "router" else f"--adapter {shlex.quote(str(use.adapter))}")
    parts += [] if use.k is None else [f"-k {use.k}"]
    parts += [] if use.rule == "match" else [f"--rule {use.rule}"]
    parts += [f"--temperature {use.temperature:g}"] if use.temperature else []
    parts += ["--loop mlx-lm"] if use.loop == "mlx-lm" else []
    return " ".join(parts)
