"""Regression gate: compare a run with a stored reference, exactly where counts are deterministic, else by paired intervals.

It fails closed. What the reference has and the run has not is a failure, and so is the reverse; what so few prompts cannot decide is
undecided, which is no pass; a reference with an impossible value is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.core import stats
from harness.core.cell import CellId, from_key
from harness.core.counts import COUNTS, columns, total
from harness.core.drafter_kinds import find_kind
from harness.core.errors import HarnessError
from harness.core.stats import Estimate
from harness.results import speedup
from harness.results.reference import HARDWARE, Answer, Prompt, Reference, make_reference

RATE_TOLERANCE = 0.01
"""A fall of the acceptance rate up to this is not reported, where counts are not deterministic."""
TAU_TOLERANCE = 0.02
"""A fall of the tokens per target pass up to this part is not reported, where counts are not deterministic."""
SPEED_TOLERANCE = 0.10
"""A fall of the speedup up to this part is not reported."""
SCORE_TOLERANCE = 0.02
"""A fall of the mean score up to this is not reported, where answers differ."""
ALPHA = 0.05
"""Family-wise chance of a false alarm over all interval comparisons of one check."""

What = Literal["cell", "counts", "rate", "tau", "outputs", "score", "speedup", "spot check"]
Outcome = Literal["same", "improved", "no regression", "undecided", "changed", "regression", "missing"]
PASSED = ("same", "improved", "no regression")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of one cell."""

    cell: str
    """Settings of the cell in words."""
    what: What
    """What was compared."""
    outcome: Outcome
    """``changed``, ``regression`` and ``missing`` are regressions; ``undecided`` is no pass."""
    detail: str
    """Numbers behind the outcome."""
    change: Estimate | None = None
    """Run against reference, paired by prompt, where an interval decided."""
    prompts_needed: int | None = None
    """About how many prompts would decide what is undecided."""

    @property
    def failed(self) -> bool:
        """True for a regression."""
        return self.outcome not in (*PASSED, "undecided")

    @property
    def undecided(self) -> bool:
        """True where the prompts are too few to tell."""
        return self.outcome == "undecided"


@dataclass(frozen=True)
class _Pair:
    """One cell in the run and in the reference, over the same prompts."""

    name: CellId
    new: dict[str, Answer]
    old: dict[str, Answer]
    prompts: dict[str, Prompt]
    """Of the reference."""
    same_machine: bool
    """Whether both ran on the same hardware, so that kernels round alike."""
    float32: bool
    """Whether the target computes in float32; what counts as a near-tie is a bound on float32's rounding."""
    candidate: bool
    """Whether what drafts may be another on purpose."""

    def verdict(self, what: What, outcome: Outcome, detail: str, **numbers: Any) -> Verdict:
        """A verdict on this cell."""
        return Verdict(cell=str(self.name), what=what, outcome=outcome, detail=detail, **numbers)

    def where(self, differs: Callable[[Answer, Answer], bool]) -> list[str]:
        """Prompts of which the two answers differ in some way."""
        return [s for s in self.old if differs(self.new[s], self.old[s])]

    @property
    def sides(self) -> tuple[list[Answer], list[Answer]]:
        """The answers in the run and in the reference, prompt by prompt."""
        return [self.new[s] for s in self.old], list(self.old.values())

    @property
    def greedy(self) -> bool:
        """Whether the same target gives the same answers."""
        return self.name.temperature == 0 and not self.name.lossy

    def target_is_certain(self, sample: str) -> bool | None:
        """Whether the target's answer must be the reference's; None where nothing says."""
        ties = self.prompts[sample].ties
        return True if self.same_machine and self.float32 else None if ties is None or not self.float32 else ties == 0

    def allowed(self, sample: str) -> float | None:
        """By how many rounds counts may differ: one for each near-tie of the draft, infinity where the target's own answer may differ, None
        where nothing says.
        """
        if self.name.temperature or self.name.k == "auto" or not self.float32 or (self.candidate and drafts_by_model(self.name.drafter)):
            return None
        if self.same_machine:
            return 0
        new, old = self.new[sample], self.old[sample]
        if self.name.drafter is None or new.output != old.output:
            certain = self.target_is_certain(sample)
            return None if certain is None else 0 if certain else float("inf")
        if old.near_ties is None:
            return None
        kind = find_kind(self.name.drafter)
        reach = (
            old.longest + 1 if kind is not None and (kind.free or kind.needs_parallel or kind.needs_head) else 1
        )  # they depend on where rounds begin
        return old.near_ties * reach


@dataclass(frozen=True)
class _Interval:
    """A comparison by an interval, not judged yet."""

    pair: _Pair
    what: What
    estimate: Estimate | None
    tolerance: float


def check(folder: Path, reference: Reference, *, any_machine: bool = False, candidate: bool = False) -> list[Verdict]:
    """Compare a run with a reference.

    Args:
        folder: the run folder.
        reference: from :func:`~harness.results.reference.read_reference` or :func:`~harness.results.reference.make_reference`.
        any_machine: the reference may be from other hardware: no times, and what near-ties can change is not compared exactly there.
        candidate: the run's draft, memory or adapters are others on purpose: what they propose is judged by paired differences.

    Raises:
        HarnessError: the two cannot be compared; names the field that differs.
    """
    return judge(make_reference(folder), reference, any_machine=any_machine, candidate=candidate)


def judge(run: Reference, reference: Reference, *, any_machine: bool = False, candidate: bool = False) -> list[Verdict]:
    """As :func:`check`, of a run that was read already."""
    _comparable(run, reference, any_machine, candidate)
    same_machine = all(run.machine.get(name) == reference.machine.get(name) for name in HARDWARE)
    float32 = run.models.get("dtype") == "float32"
    verdicts: list[Verdict] = list(_spot_checks(run, reference))
    pending: list[_Interval] = []
    for key in {**reference.cells, **run.cells}:
        new, old, name = run.cells.get(key), reference.cells.get(key), from_key(key)
        if new is None or old is None:
            detail = f"the {'run' if new is None else 'reference'} has no such cell"
            verdicts.append(Verdict(cell=str(name), what="cell", outcome="missing", detail=detail))
        elif alone := sorted({*new} ^ {*old}):
            detail = f"{len(alone)} prompts are in one of the two only, first {alone[0]}"
            verdicts.append(Verdict(cell=str(name), what="cell", outcome="missing", detail=detail))
        else:
            pair = _Pair(name, new, old, reference.prompts, same_machine, float32, candidate)
            for part in (_counts, _outputs, _scores) if any_machine else (_counts, _outputs, _scores, _speedups):
                for found in part(pair):
                    pending.append(found) if isinstance(found, _Interval) else verdicts.append(found)
    return verdicts + _judge(pending)


def _counts(pair: _Pair) -> Iterator[Verdict | _Interval]:
    different = pair.where(lambda new, old: new.counts != old.counts)
    n = f"{len(pair.old)} prompt{'s' if len(pair.old) != 1 else ''}"
    if not different:
        yield pair.verdict("counts", "same", f"equal on {n}")
        return
    limits = {s: pair.allowed(s) for s in different}
    wrong = [s for s, limit in limits.items() if limit is not None and _distance(pair.new[s], pair.old[s]) > limit]
    rates = [_pooled(list(cell.values())) for cell in (pair.old, pair.new)]
    if wrong:
        new, old = pair.new[wrong[0]], pair.old[wrong[0]]
        first = next(count for count in COUNTS if getattr(new, count) != getattr(old, count))
        detail = f"{len(wrong)} of {n} differ, first {wrong[0]}: {first} {getattr(old, first):g} -> {getattr(new, first):g}"
        yield pair.verdict("counts", "changed", f"{detail}; rate {rates[0]} -> {rates[1]}")
    elif 2 * sum(limit == float("inf") for limit in limits.values()) > len(pair.old):
        yield pair.verdict("counts", "undecided", f"the target's own near-ties leave less than half of {n} to compare")
    elif None not in limits.values():
        yield pair.verdict("counts", "same", f"equal on {n} but {len(different)}, which near-ties explain; rate {rates[0]} -> {rates[1]}")
    elif pair.name.drafter is not None:
        yield from _acceptance(pair)


def _distance(new: Answer, old: Answer) -> float:
    """How many flips of a draft's favourite it takes at least to get from one answer's counts to the other's.

    A flip moves the rounds and the accepted tokens by at most one and the drafted tokens by at most ``longest``; which rounds end by a
    rejection may change all along the answer.
    """
    if new.counts == old.counts or new.emitted != old.emitted:
        return 0.0 if new.counts == old.counts else float("inf")
    rounds, accepted = abs(new.rounds - old.rounds), abs(new.accepted - old.accepted)
    return max(1.0, rounds, accepted, abs(new.drafted - old.drafted) / max(1, old.longest))


def _pooled(answers: Sequence[Answer]) -> str:
    rate = total(answers).rate
    return "–" if rate is None else f"{rate:.3f}"


def _acceptance(pair: _Pair) -> Iterator[Verdict | _Interval]:
    """Rate and tau together tell all that the counts do."""
    drafted = [total(cell.values()).drafted for cell in (pair.old, pair.new)]
    if drafted[0] and not drafted[1]:
        yield pair.verdict("rate", "missing", f"nothing was drafted; {drafted[0]:g} tokens were in the reference")
        return
    if drafted[1] and not drafted[0]:
        yield pair.verdict("rate", "undecided", f"nothing was drafted in the reference; {drafted[1]:g} tokens were in the run")
        return
    yield _Interval(pair, "rate", stats.difference(*(columns(side, "rate") for side in pair.sides)), RATE_TOLERANCE)
    yield _Interval(pair, "tau", stats.relative(*(columns(side, "tau") for side in pair.sides)), TAU_TOLERANCE)


def _outputs(pair: _Pair) -> Iterator[Verdict]:
    """Lossless greedy answers are the target's, here and in the reference."""
    if not pair.greedy or pair.name.method == "replay":
        return
    bugs = [s for s in pair.new if pair.new[s].bugs]
    different = pair.where(lambda new, old: new.output != old.output)
    certain = {s: pair.target_is_certain(s) for s in different}
    wrong = [s for s in different if certain[s]]
    open_ = [s for s in different if certain[s] is None]
    if bugs:
        detail = f"{len(bugs)} of {len(pair.new)} answers are not the target's, without a near-tie, first {bugs[0]}"
        yield pair.verdict("outputs", "regression", detail)
    elif wrong:
        detail = f"{len(wrong)} of {len(pair.new)} answers differ from the reference's, first {wrong[0]}"
        yield pair.verdict("outputs", "changed", detail)
    elif open_:
        detail = (
            f"{len(open_)} of {len(pair.new)} answers differ from the reference's, first {open_[0]}; nothing tells a near-tie from a fault"
        )
        yield pair.verdict("outputs", "undecided", detail)
    elif different:
        detail = f"equal on {len(pair.new)} prompts but {len(different)}, where the target has near-ties"
        yield pair.verdict("outputs", "same", detail)
    else:
        yield pair.verdict("outputs", "same", f"equal on {len(pair.new)} prompts")


def _scores(pair: _Pair) -> Iterator[Verdict | _Interval]:
    """Equal answers have equal scores; others are compared by their mean."""
    if all(answer.score is None for answer in (*pair.new.values(), *pair.old.values())):
        return
    lost = pair.where(lambda new, old: (new.score is None) != (old.score is None))
    if lost:
        where = "run" if pair.new[lost[0]].score is None else "reference"
        yield pair.verdict(
            "score", "missing", f"{len(lost)} of {len(pair.old)} prompts have a score in one only, first {lost[0]} in no {where}"
        )
        return
    lower = pair.where(lambda new, old: (new.score or 0) < (old.score or 0))
    same_answer = [s for s in lower if pair.new[s].output is not None and pair.new[s].output == pair.old[s].output]
    if same_answer:
        detail = f"{len(same_answer)} of {len(pair.old)} equal answers have a lower score, first {same_answer[0]}"
        yield pair.verdict("score", "regression", detail)
    elif lower:
        sides = [([answer[s].score for s in pair.old], [1.0] * len(pair.old)) for answer in (pair.new, pair.old)]
        yield _Interval(pair, "score", stats.difference((sides[0][0], sides[0][1]), (sides[1][0], sides[1][1])), SCORE_TOLERANCE)  # type: ignore[arg-type]
    else:
        yield pair.verdict("score", "same", f"none of {len(pair.old)} prompts has a lower score")


def _speedups(pair: _Pair) -> Iterator[Verdict | _Interval]:
    """Times count only on one machine, as a ratio within each run."""
    if all(answer.pair is None for side in pair.sides for answer in side):
        return
    lost = pair.where(lambda new, old: (new.pair is None) != (old.pair is None))
    if lost:
        yield pair.verdict("speedup", "missing", f"{len(lost)} answers have times in one of the two only, first {lost[0]}")
    else:
        new, old = ([answer.pair for answer in side if answer.pair is not None] for side in pair.sides)
        yield _Interval(pair, "speedup", speedup.change(new, old), SPEED_TOLERANCE)


def _spot_checks(run: Reference, reference: Reference) -> Iterator[Verdict]:
    """Replayed counts equal decoded ones, for every drafter that the reference has checked."""
    for drafter in {**reference.spot_checks, **run.spot_checks}:
        problem = run.spot_checks.get(drafter, "no answer was decoded")
        outcome: Outcome = "missing" if drafter not in run.spot_checks else "regression" if problem else "same"
        yield Verdict(cell=drafter, what="spot check", outcome=outcome, detail=problem or "decoding gives the replayed counts")


def _judge(pending: Sequence[_Interval]) -> list[Verdict]:
    """Judge all interval comparisons of a check together: Holm's p-values, detectable differences at the level of its first step."""
    estimates = stats.corrected([comparison.estimate for comparison in pending])
    tests = sum(e is not None and e.p is not None for e in estimates)
    return [_outcome(comparison, e, tests) for comparison, e in zip(pending, estimates, strict=True)]


def _outcome(comparison: _Interval, e: Estimate | None, tests: int) -> Verdict:
    what, tolerance = comparison.what, comparison.tolerance
    if e is None or e.p is None or e.null is None or e.detectable is None:
        n = e.n if e else 0
        return comparison.pair.verdict(what, "undecided", f"too few prompts to compare ({n}); at least {stats.MIN_PROMPTS} are needed")
    kind = f"{what} ratio" if e.null else f"{what} difference"
    text = f"{kind} {e.signed()}, n = {e.n}, adjusted p = {e.p:.2g}, tolerance {tolerance:g}, detectable {e.detectable:.3f}"
    if e.p < ALPHA and e.value < e.null - tolerance:
        return comparison.pair.verdict(what, "regression", text, change=e)
    if e.p < ALPHA and e.value > e.null:
        return comparison.pair.verdict(what, "improved", text, change=e)
    if e.detectable <= tolerance:
        return comparison.pair.verdict(what, "no regression", text, change=e)
    needed = stats.prompts_needed(e, tolerance, tests)
    return comparison.pair.verdict(what, "undecided", f"{text}; about {needed} prompts would decide", change=e, prompts_needed=needed)


def drafts_by_model(drafter: str | None) -> bool:
    """Whether another draft, memory or adapter can change what it proposes."""
    kind = find_kind(drafter)
    return drafter is not None and (kind is None or kind.needs_draft or kind.needs_head or kind.remembers)


def _comparable(run: Reference, reference: Reference, any_machine: bool, candidate: bool) -> None:
    same = ("questions_hash",) if candidate else ("suite_hash", "pair")
    models = ("target", "dtype") if candidate else ("target", "draft", "draft_vocab", "draft_context", "head", "memory", "dtype")
    pairs: list[tuple[str, object, object]] = [(name, getattr(run, name), getattr(reference, name)) for name in same]
    pairs += [(f"models.{name}", run.models.get(name), reference.models.get(name)) for name in models]
    if not any_machine:
        pairs += [(f"machine.{name}", run.machine.get(name), reference.machine.get(name)) for name in HARDWARE]
    both = [sample for sample in reference.prompts if sample in run.prompts]
    pairs += [(f"prompts.{sample}", run.prompts[sample].hash, reference.prompts[sample].hash) for sample in both]
    for field, new, old in pairs:
        if new != old:
            problem = f"cannot compare: {field} is {new!r} in the run, {old!r} in the reference"
            raise HarnessError(problem, next(advice for start, advice in _ADVICE.items() if field.startswith(start)))


_ADVICE = {
    "machine.": "Use a reference made on this machine (--update writes one), or --any-machine to compare what no machine decides.",
    "prompts.": "The prompt, its chat template or its reference answer changed: restore it, or write a new reference with --update.",
    "models.draft": "Judge a new draft with --candidate, or write a new reference with --update.",
    "models.head": "Judge a new head with --candidate, or write a new reference with --update.",
    "models.memory": "Judge a new memory with --candidate, or write a new reference with --update.",
    "": "Compare with a reference of the same suite and models, or write a new one with --update.",
}
"""Start of a field to what to do where it differs."""
