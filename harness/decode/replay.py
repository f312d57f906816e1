"""Replay: acceptance of every drafter, sample and K from stored target trajectories, without running the target.

Greedy: while tokens are accepted the draft sees the true prefix, so one teacher-forced pass tells at which positions its favourite
equals the target's token, and that fixes the counts for every K. Sampling: a token t drawn by the target stands with probability
min(1, q(t)/p(t)) under the rejection rule and q(t) under the other, independently along the trajectory. So expectations follow by dynamic
programming, and with a seed one decoding is drawn (:mod:`harness.decode.drawn`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from harness.core.counts import Rates
from harness.core.errors import HarnessError
from harness.core.limits import room
from harness.core.protocols import LoadedPair
from harness.core.records import Rule, Trajectory
from harness.decode.drafters import Drafter, FreeDrafter, HybridDrafter
from harness.decode.drawn import drawn_parallel, drawn_passes, rule_logprobs
from harness.decode.forced import ForcedPass, forced_passes
from harness.decode.length import Costs, make_policy
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_drafter import ParallelDrafter
from harness.decode.parallel_replay import ParallelPass, parallel_passes
from harness.decode.passes import Passes
from harness.decode.sampling import Draws, Sampling
from harness.decode.simulate import RoundCounts, expected_counts, simulate_free, simulate_policy, simulate_runs
from harness.decode.translated import TranslatedDrafter
from harness.models.blas import mx

Pass = ForcedPass | ParallelPass


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How proposals are drawn, and by what."""

    draws: Draws
    target: Any = None
    """The target's model, where also what did not stand is asked for."""


@dataclass(frozen=True, kw_only=True)
class ReplayRow(Rates):
    """One line of the replay table. Expectations, of sampled answers without a seed, have no per-round lists."""

    sample_id: str
    domain: str
    drafter: str
    k: int | str
    rounds: float
    drafted: float
    accepted: float
    rejected: float
    emitted: int
    accept_lengths: tuple[int, ...] = ()
    draft_lengths: tuple[int, ...] = ()
    sources: tuple[str, ...] | None = None
    """Who proposed, per round; None where only one source can, and of expectations."""
    near_ties: int = 0
    """Positions where the draft's top two logits are closer than kernel noise, so that a flip against decoding is possible."""


def model_passes(
    drafter: ModelDrafter,
    trajectories: Sequence[Trajectory],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    known: Passes[Pass] | None = None,
    drawing: Drawing | None = None,
) -> Sequence[Pass]:
    """What a model drafter says along each answer.

    Args:
        drafter: a draft.
        trajectories: what the target produced.
        sampling: as for :func:`harness.decode.forced.forced_passes`.
        progress: called with the number of trajectories finished.
        known: as for :func:`replay`.
        drawing: draw one decoding's proposals, which need no ``sampling`` beside it; None for the draft's favourites.
    """
    read = _as_read(drafter, trajectories)
    whole = dict(zip(read, trajectories, strict=True)) if drawing else {}

    def run(lacking: Sequence[Trajectory]) -> Sequence[Pass]:
        if isinstance(drafter, ParallelDrafter):
            own = parallel_passes(drafter, lacking, drawing.draws.sampling if drawing else sampling, progress)
            return own if drawing is None else [drawn_parallel(p, t, drawing.draws) for p, t in zip(own, lacking, strict=True)]
        if drawing is not None:
            return drawn_passes(drafter, lacking, [whole[t] for t in lacking], drawing.draws, drawing.target, progress)
        return forced_passes(drafter.model, drafter.token_map, lacking, sampling, progress)

    if known is None:
        return run(read)
    return known.along(read, run, sampling if drawing is None else (drawing.draws, drawing.target is not None))


def replay_model(
    name: str,
    model: Any,
    token_map: mx.array | None,
    trajectories: Sequence[Trajectory],
    ks: Iterable[int],
    *,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ReplayRow]:
    """Replay one draft model over all trajectories and K. See :func:`replay`."""
    passes = forced_passes(model, token_map, trajectories, sampling, progress)
    ks = list(ks)
    return [replay_row(name, t, forced, k) for t, forced in zip(trajectories, passes, strict=True) for k in ks]


def replay_row(name: str, t: Trajectory, forced: Pass, k: int, rule: Rule = "rejection") -> ReplayRow:
    """Counts of one drafter on one trajectory at draft length ``k``; expectations by ``rule`` where the pass has probabilities."""
    ties = forced.near_ties()
    if forced.logq is None:
        return row_of(name, t, k, simulate_runs(forced.runs, min(k, forced.most), t.max_tokens), ties)
    return expected_row(name, t, min(k, forced.most), forced.stands(rule_logprobs(t, rule)), ties, k)


def expected_row(name: str, t: Trajectory, k: int, stand: np.ndarray, near_ties: int, asked: int | None = None) -> ReplayRow:
    """A line of the table from the probabilities that tokens stand, as :func:`harness.decode.simulate.expected_counts` takes them.

    ``k`` is the longest draft that is made, ``asked`` the one that was asked for where that is more.
    """
    expected = dataclasses.asdict(expected_counts(stand, k, t.max_tokens)) | {"emitted": len(t.tokens)}
    return ReplayRow(sample_id=t.sample_id, domain=t.domain, drafter=name, k=asked or k, near_ties=near_ties, **expected)


@runtime_checkable
class Replays(Protocol):
    """A draft whose proposals follow from more than the tokens before them: it brings its own replay."""

    def replayed(
        self,
        name: str,
        drafter: Drafter,
        trajectories: Sequence[Trajectory],
        ks: Sequence[int | str],
        sampling: Sampling | None,
        costs: Costs | None,
        progress: Callable[[int], None] | None,
    ) -> list[ReplayRow]:
        """Rows of ``drafter``, which is this draft or one around it; arguments as :func:`replay`'s."""


def _as_read(drafter: ModelDrafter, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """The trajectories behind as much of their prompts as the drafter reads."""
    if drafter.window is None:
        return trajectories
    return [dataclasses.replace(t, prompt_tokens=t.prompt_tokens[-drafter.window :]) for t in trajectories]


def _within_context(t: Trajectory, context_tokens: int) -> Trajectory:
    """What decoding would have made of the trajectory in a context of that many tokens."""
    n = room(context_tokens, len(t.prompt_tokens), t.max_tokens)
    if n == t.max_tokens:
        return t
    lists = {name: getattr(t, name) for name in ("tokens", "logprobs", "top_tokens", "top_logprobs")}
    cut: dict[str, Any] = {name: None if values is None else values[:n] for name, values in lists.items()}
    return dataclasses.replace(t, max_tokens=n, finish=t.finish if len(t.tokens) <= n else "context", **cut)


def row_of(name: str, t: Trajectory, k: int | str, counts: RoundCounts, near_ties: int = 0) -> ReplayRow:
    """A line of the table from simulated rounds."""
    return ReplayRow(sample_id=t.sample_id, domain=t.domain, drafter=name, k=k, near_ties=near_ties, **dataclasses.asdict(counts))


def replay(
    pair: LoadedPair,
    trajectories: Sequence[Trajectory],
    drafters: Sequence[str | Drafter],
    ks: Sequence[int | str],
    *,
    sampling: Sampling | None = None,
    costs: Costs | None = None,
    options: DrafterOptions | None = None,
    progress: Callable[[int], None] | None = None,
    known: Passes[Pass] | None = None,
    rule: Rule = "rejection",
    seed: int | None = None,
) -> list[ReplayRow]:
    """Acceptance of every drafter x sample x K from stored target trajectories, one draft pass per (drafter, sample).

    Args:
        pair: a loaded :class:`harness.models.pair.Pair`.
        trajectories: from :func:`harness.answers.collect.collect` or from baseline generations.
        drafters: names or objects, as for :func:`harness.decode.generation.generate`.
        ks: draft lengths; ``dynamic`` and ``auto`` run the draft along the answer, round by round, as the loop does.
        sampling: temperature and filters the trajectories were drawn with; None is greedy.
        costs: measured c and v, for ``auto``.
        options: settings of the drafters.
        progress: called with the number of trajectories finished per drafter.
        known: what the drafters' one draft said in earlier calls; used and filled in.
        rule: what lets a drafted token stand, under sampling.
        seed: under sampling, draw one decoding of each answer with it, whose counts have the distribution of decoding's. None gives
            expectations instead, which need fixed lengths of a draft model.

    Returns:
        One row per (drafter, sample, K).

    Raises:
        HarnessError: an unknown drafter, one that cannot be followed under sampling, or sampled trajectories without log-probabilities.
    """
    greedy = sampling is None or sampling.greedy
    draws = None if sampling is None or sampling.greedy or seed is None else Draws(sampling=sampling, rule=rule, seed=seed)
    trajectories = [_within_context(t, pair.context_tokens) for t in trajectories]
    fixed, policies = [k for k in ks if isinstance(k, int)], [k for k in ks if isinstance(k, str)]
    rows: list[ReplayRow] = []
    for item in drafters:
        drafter = resolve_drafter(pair, item, options)
        name = item if isinstance(item, str) else item.name
        simple = isinstance(drafter, FreeDrafter | ModelDrafter)
        simple = simple or (isinstance(drafter, HybridDrafter) and isinstance(drafter.draft, ModelDrafter))
        played: Sequence[int | str] = policies if simple else ks
        if not greedy and not (_can_draw(drafter, policies=bool(played)) if draws else isinstance(drafter, ModelDrafter) and not policies):
            raise HarnessError(f"replay of {name} under sampling", "Decode those cells, or replay greedy trajectories.")
        if isinstance(reading := getattr(drafter, "draft", drafter), Replays):
            rows += reading.replayed(name, drafter, trajectories, ks, sampling, costs, progress)
            continue
        how: dict[str, Any] = {"progress": progress, "known": known}
        if fixed and isinstance(drafter, ModelDrafter):
            passes = model_passes(drafter, trajectories, sampling, drawing=Drawing(draws=draws) if draws else None, **how)
            rows += [replay_row(name, t, forced, k, rule) for t, forced in zip(trajectories, passes, strict=True) for k in fixed]
        elif fixed and isinstance(drafter, FreeDrafter | HybridDrafter) and simple:
            rows += _replay_fixed(name, drafter, trajectories, fixed, drawing=Drawing(draws=draws) if draws else None, **how)
        if played:
            drawing = Drawing(draws=draws, target=pair.target) if draws else None
            rows += _replay_policies(name, drafter, trajectories, played, costs, drawing=drawing, **how)
    return rows


def _can_draw(drafter: Drafter, *, policies: bool) -> bool:
    """Whether one decoding of a sampled answer can be drawn, with lengths or sources that are chosen on the way or without."""
    model = getattr(drafter, "draft", drafter)
    if model is None or isinstance(model, FreeDrafter | TranslatedDrafter):
        return True  # what it proposes follows from the text
    return isinstance(model, ModelDrafter) and not isinstance(model, Replays) and not (policies and isinstance(model, ParallelDrafter))


def _replay_policies(
    name: str,
    drafter: Drafter,
    trajectories: Sequence[Trajectory],
    ks: Sequence[int | str],
    costs: Costs | None,
    *,
    progress: Callable[[int], None] | None,
    known: Passes[Pass] | None,
    drawing: Drawing | None,
) -> list[ReplayRow]:
    """Counts of lengths, and of sources, that are chosen while decoding. What a draft model says along the answer comes from one pass."""
    model = getattr(drafter, "draft", drafter)
    if not isinstance(model, ModelDrafter) or not (drafter is model or hasattr(drafter, "with_draft")):
        return [
            row_of(name, t, k, simulate_policy(drafter, t, make_policy(k, costs))) for t in _counted(trajectories, progress) for k in ks
        ]
    rows = []
    passes = model_passes(model, trajectories, known=known, drawing=drawing)
    for t, forced in zip(_counted(trajectories, progress), passes, strict=True):
        along = forced.along(model, t)
        chosen: Any = drafter.with_draft(along) if hasattr(drafter, "with_draft") else along
        rows += [row_of(name, t, k, simulate_policy(chosen, t, make_policy(k, costs)), forced.near_ties()) for k in ks]
    return rows


def _counted(trajectories: Sequence[Trajectory], progress: Callable[[int], None] | None) -> Iterator[Trajectory]:
    for done, trajectory in enumerate(trajectories, start=1):
        yield trajectory
        if progress:
            progress(done)


def _replay_fixed(
    name: str,
    drafter: FreeDrafter | HybridDrafter,
    trajectories: Sequence[Trajectory],
    ks: Sequence[int],
    *,
    progress: Callable[[int], None] | None,
    known: Passes[Pass] | None,
    drawing: Drawing | None,
) -> list[ReplayRow]:
    """Fixed lengths of a drafter that is no model alone."""
    if isinstance(drafter, FreeDrafter):
        return [row_of(name, t, k, simulate_free(drafter, t, k)) for t in trajectories for k in ks]
    assert isinstance(drafter.draft, ModelDrafter)
    passes = model_passes(drafter.draft, trajectories, progress=progress, known=known, drawing=drawing)
    return [
        row_of(name, t, k, simulate_free(drafter.first, t, k, forced.runs, forced.most), forced.near_ties())
        for t, forced in zip(trajectories, passes, strict=True)
        for k in ks
    ]
