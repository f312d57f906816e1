"""Acceptance of a session's drafter against the plain draft, on held-out prompts, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness import api
from harness.answers.collect import collect
from harness.core.counts import MEASURES, columns, span
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedPair
from harness.core.records import Sample, Trajectory
from harness.core.stats import Estimate, difference, ratio
from harness.datasets import load_samples
from harness.models.cache_key import answers_folder
from harness.models.pair_config import pair_k

if TYPE_CHECKING:
    from harness.decode.replay import ReplayRow
    from harness.session.session_config import SessionConfig
    from harness.session.session_state import SessionStats

BATCH = 16
"""Prompts the target answers together."""
Columns = tuple[list[float], list[float]]
"""Numerators and denominators, one of each per prompt."""
ALL = "all"
"""Name of the row over all domains."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure, of the plain draft and of the current drafter. None where nothing was drafted."""

    generic: Estimate | None
    """The plain draft."""
    current: Estimate | None
    """The session's drafter."""
    change: Estimate | None
    """Current minus generic, paired by prompt."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One domain, or ``all``."""

    domain: str
    drafter: str
    """Current drafter."""
    k: int
    """Draft length of the replay."""
    prompts: int
    rate: Comparison
    """Accepted / drafted."""
    alpha: Comparison
    """Accepted / (accepted + rounds ended by a rejection)."""
    tau: Comparison
    """Tokens per target pass."""


class Answering(Protocol):
    """What evaluation asks of a session."""

    pair: LoadedPair
    config: SessionConfig
    offline: bool

    @property
    def k(self) -> int | str:
        """Its draft length."""

    def stats(self) -> SessionStats:
        """Its drafter and counts."""

    def route(self, prompt: Any) -> Any:
        """The router's choice for a prompt."""


def evaluate(session: Answering, samples: Sequence[Sample | str] | None) -> list[EvaluationRow]:
    """See :meth:`harness.session.session.Session.evaluate`."""
    drafter = session.stats().drafter
    pair, config = session.pair, session.config
    if drafter is None or pair.draft is None:
        raise HarnessError("there is no draft to evaluate", "Choose a drafter, and a pair that has a draft.")
    chosen = _samples(session, samples)
    k = session.k if isinstance(session.k, int) else pair_k(pair)
    trajectories = list(collect(pair, chosen, max_tokens=config.evaluation_tokens, batch=BATCH, out=answers_folder(pair)))
    generic = {row.sample_id: row for row in api.replay(pair, trajectories, ["generic"], [k])}
    if drafter == "generic":
        current = generic
    elif drafter == "router":
        current = _routed(session, chosen, trajectories, k)
    else:
        current = {row.sample_id: row for row in api.replay(pair, trajectories, [drafter], [k])}
    domains = sorted({s.domain for s in chosen})
    groups = {d: [s.id for s in chosen if s.domain == d] for d in domains} | {ALL: [s.id for s in chosen]}
    return [
        EvaluationRow(domain=d, drafter=drafter, k=k, prompts=len(ids), **_measures([generic[i] for i in ids], [current[i] for i in ids]))
        for d, ids in groups.items()
    ]


def _samples(session: Answering, samples: Sequence[Sample | str] | None) -> list[Sample]:
    if samples is None:
        specs = session.config.evaluation
        return [s for d, spec in specs.items() for s in load_samples(spec, domain=d, seed=session.config.seed, offline=session.offline)]
    given = [
        s if isinstance(s, Sample) else Sample(id=f"prompt/{i}", domain=session.config.domain, prompt=s)
        for i, s in enumerate(samples, start=1)
    ]
    if not given:
        raise HarnessError("there are no prompts to evaluate on", "Give some, or fill `evaluation` in the session file.")
    return given


def _routed(session: Answering, samples: Sequence[Sample], trajectories: Sequence[Trajectory], k: int) -> dict[str, ReplayRow]:
    """Rows of the drafter the router chooses for each prompt."""
    arms = {s.id: session.route(s.asked).drafter for s in samples}
    if "plain" in arms.values():
        raise HarnessError("the router chose plain decoding, which drafts nothing", "Evaluate single drafters, or decode to compare times.")
    rows = {}
    for arm in sorted(set(arms.values())):
        own = [t for t in trajectories if arms[t.sample_id] == arm]
        rows.update({row.sample_id: row for row in api.replay(session.pair, own, [arm], [k])})
    return rows


def _measures(generic: Sequence[ReplayRow], current: Sequence[ReplayRow]) -> dict[str, Comparison]:
    return {measure: _compare(columns(generic, measure), columns(current, measure), span(measure)) for measure in MEASURES}


def _compare(generic: Columns, current: Columns, most: float) -> Comparison:
    return Comparison(generic=ratio(*generic), current=ratio(*current), change=difference(current, generic, most=most))
