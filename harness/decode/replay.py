"""Replay: acceptance of every drafter, sample and K from stored target trajectories, without running the target.

Greedy: while tokens are accepted the draft sees the true prefix, so one teacher-forced pass tells at which positions its favourite
equals the target's token, and that fixes the counts for every K. Sampling under the rejection rule: a token t drawn by the target
stands with probability min(1, q(t)/p(t)), independently along the trajectory, so expectations follow by dynamic programming.
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
from harness.core.records import Trajectory
from harness.decode.drafters import Drafter, FreeDrafter, HybridDrafter
from harness.decode.forced import HEAD_ROWS, ForcedPass, score_rows
from harness.decode.length import Costs, make_policy
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_drafter import ParallelDrafter
from harness.decode.parallel_replay import ParallelPass, parallel_passes
from harness.decode.passes import Passes
from harness.decode.sampling import Sampling
from harness.decode.simulate import RoundCounts, expected_counts, simulate_free, simulate_policy, simulate_runs
from harness.models.blas import mx
from harness.models.forward import draft_ids, forced_head
from harness.models.opened import hidden_states, open_model

BATCH_TOKENS = 2048
"""Padded tokens per teacher-forced batch."""
Pass = ForcedPass | ParallelPass


@dataclass(frozen=True, kw_only=True)
class ReplayRow(Rates):
    """One line of the replay table. Under sampling the counts are expectations and the per-round lists are empty."""

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
    """Who proposed, per round; None where only one source can, and under sampling."""
    near_ties: int = 0
    """Positions where the draft's top two logits are closer than kernel noise, so that a flip against decoding is possible."""


def forced_passes(
    model: Any,
    token_map: mx.array | None,
    trajectories: Sequence[Trajectory],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ForcedPass]:
    """Run the draft once over each trajectory, batched by length; the output head runs on output positions only.

    Args:
        model: the draft.
        token_map: (draft vocab,) target ids of a pruned draft; None is the identity.
        trajectories: what the target produced.
        sampling: temperature and filters of the target's run, to get ``logq``; None or greedy for match only.
        progress: called with the number of trajectories finished.

    Returns:
        One :class:`ForcedPass` per trajectory, in order.
    """
    found = variant_passes(model, token_map, trajectories, lambda tokens: [hidden_states(model, tokens)], sampling, progress)
    return [forced for (forced,) in found]


def model_passes(
    drafter: ModelDrafter,
    trajectories: Sequence[Trajectory],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
    known: Passes[Pass] | None = None,
) -> Sequence[Pass]:
    """What a model drafter says along each answer; arguments as for :func:`forced_passes`, ``known`` as for :func:`replay`."""

    def run(lacking: Sequence[Trajectory]) -> Sequence[Pass]:
        if isinstance(drafter, ParallelDrafter):
            return parallel_passes(drafter, lacking, sampling, progress)
        return forced_passes(drafter.model, drafter.token_map, lacking, sampling, progress)

    read = _as_read(drafter, trajectories)
    return run(read) if known is None else known.along(read, run)


def variant_passes(
    model: Any,
    token_map: mx.array | None,
    trajectories: Sequence[Trajectory],
    states: Callable[[mx.array], Iterable[mx.array]],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[ForcedPass]]:
    """As :func:`forced_passes`, of several variants of one draft that share its output head, batch by batch.

    Args:
        model: the draft whose head it is.
        token_map: as there.
        trajectories: as there.
        states: gives each variant's normed hidden states (batch, width, dim) of tokens (batch, width), one after the other.
        sampling: as there.
        progress: as there.

    Returns:
        Per trajectory, in order, one :class:`ForcedPass` per variant.
    """
    lookup = draft_ids(token_map)
    out: list[list[ForcedPass]] = [[] for _ in trajectories]
    whole = not hasattr(model, "hidden_states") and open_model(model) is None  # its states are logits
    lengths = [len(t.prompt_tokens) + len(t.tokens) for t in trajectories]
    for batch in length_batches(lengths, HEAD_ROWS if whole else BATCH_TOKENS):
        rows = [[*trajectories[i].prompt_tokens, *trajectories[i].tokens[:-1]] for i in batch]
        width = max(map(len, rows))
        padded = mx.array([row + [0] * (width - len(row)) for row in rows], dtype=mx.int32)
        heads = [forced_head(model, token_map, trajectories[i].prompt_tokens, trajectories[i].tokens) for i in batch]
        lookups = [lookup if head.token_map is token_map else draft_ids(head.token_map) for head in heads]
        for hidden in states(padded):  # padding on the right is invisible to causal attention
            for b, i in enumerate(batch):
                t = trajectories[i]
                first = len(t.prompt_tokens) - 1
                ids = list(t.tokens) if (known := lookups[b]) is None else [known.get(x, -1) for x in t.tokens]
                own = hidden[b, first : first + len(ids)]
                out[i].append(score_rows(heads[b], own, mx.arange(len(ids), dtype=mx.int32), ids, sampling))
            del hidden
        if progress:
            progress(sum(map(bool, out)))
        mx.clear_cache()
    return out


def length_batches(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Group indices of similar length, about ``tokens`` padded ones each, so that padding stays small."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


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


def replay_row(name: str, t: Trajectory, forced: Pass, k: int) -> ReplayRow:
    """Counts of one drafter on one trajectory at draft length ``k``."""
    ties = forced.near_ties()
    if forced.logq is None:
        return row_of(name, t, k, simulate_runs(forced.runs, min(k, forced.most), t.max_tokens), ties)
    return expected_row(name, t, min(k, forced.most), forced.stands(target_logprobs(t)), ties, k)


def target_logprobs(t: Trajectory) -> np.ndarray:
    """(n,) log p of the answer's tokens.

    Raises:
        HarnessError: they were not kept.
    """
    if t.logprobs is None:
        raise HarnessError(
            f"trajectory {t.sample_id} has no log-probabilities", "Collect it again: sampled replay needs log p of every token."
        )
    return np.asarray(t.logprobs)


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
        known: what the drafters' one draft said in earlier calls with the same sampling; used and filled in.

    Returns:
        One row per (drafter, sample, K).

    Raises:
        HarnessError: an unknown drafter, one that is no model under sampling, ``dynamic`` or ``auto`` under sampling, or sampled
            trajectories without log-probabilities.
    """
    greedy = sampling is None or sampling.greedy
    trajectories = [_within_context(t, pair.context_tokens) for t in trajectories]
    fixed, policies = [k for k in ks if isinstance(k, int)], [k for k in ks if isinstance(k, str)]
    rows: list[ReplayRow] = []
    for item in drafters:
        drafter = resolve_drafter(pair, item, options)
        name = item if isinstance(item, str) else item.name
        if not greedy and (policies or not isinstance(drafter, ModelDrafter)):
            raise HarnessError(f"replay of {name} under sampling", "Decode those cells, or replay greedy trajectories.")
        if isinstance(reading := getattr(drafter, "draft", drafter), Replays):
            rows += reading.replayed(name, drafter, trajectories, ks, sampling, costs, progress)
            continue
        played: Sequence[int | str] = policies
        if fixed and isinstance(drafter, ModelDrafter):
            passes = model_passes(drafter, trajectories, sampling, progress, known)
            rows += [replay_row(name, t, forced, k) for t, forced in zip(trajectories, passes, strict=True) for k in fixed]
        elif isinstance(drafter, FreeDrafter) or (isinstance(drafter, HybridDrafter) and isinstance(drafter.draft, ModelDrafter)):
            rows += _replay_greedy(name, drafter, trajectories, fixed, progress, known) if fixed else []
        else:
            played = ks
        rows += _replay_policies(name, drafter, trajectories, played, costs, progress, known) if played else []
    return rows


def _replay_policies(
    name: str,
    drafter: Drafter,
    trajectories: Sequence[Trajectory],
    ks: Sequence[int | str],
    costs: Costs | None,
    progress: Callable[[int], None] | None,
    known: Passes[Pass] | None,
) -> list[ReplayRow]:
    """Counts of lengths, and of sources, that are chosen while decoding. What a draft model says along the answer comes from one pass."""
    model = getattr(drafter, "draft", drafter)
    if not isinstance(model, ModelDrafter) or not (drafter is model or hasattr(drafter, "with_draft")):
        return [
            row_of(name, t, k, simulate_policy(drafter, t, make_policy(k, costs))) for t in _counted(trajectories, progress) for k in ks
        ]
    rows = []
    passes = model_passes(model, trajectories, known=known)
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


def _replay_greedy(
    name: str,
    drafter: FreeDrafter | HybridDrafter,
    trajectories: Sequence[Trajectory],
    ks: Sequence[int],
    progress: Callable[[int], None] | None,
    known: Passes[Pass] | None,
) -> list[ReplayRow]:
    """Fixed lengths of a drafter that is no model alone."""
    if isinstance(drafter, FreeDrafter):
        return [row_of(name, t, k, simulate_free(drafter, t, k)) for t in trajectories for k in ks]
    assert isinstance(drafter.draft, ModelDrafter)
    passes = model_passes(drafter.draft, trajectories, progress=progress, known=known)
    return [
        row_of(name, t, k, simulate_free(drafter.first, t, k, forced.runs, forced.most), forced.near_ties())
        for t, forced in zip(trajectories, passes, strict=True)
        for k in ks
    ]
