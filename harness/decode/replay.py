"""Replay: acceptance of every drafter, sample and K from stored target trajectories, without running the target.

Greedy: while tokens are accepted the draft sees the true prefix, so one teacher-forced pass tells at which positions its favourite
equals the target's token, and that fixes the counts for every K. Sampling under the rejection rule: a token t drawn by the target
stands with probability min(1, q(t)/p(t)), independently along the trajectory, so expectations follow by dynamic programming.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.core.counts import Rates
from harness.core.errors import HarnessError
from harness.core.limits import room
from harness.core.protocols import LoadedPair
from harness.core.records import Trajectory
from harness.decode.drafters import Drafter, FreeDrafter, HybridDrafter, ModelDrafter
from harness.decode.length import Costs, make_policy
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.sampling import Sampling, log_softmax, processed_logprobs
from harness.decode.simulate import AlongAnswer, RoundCounts, expected_counts, simulate_free, simulate_match, simulate_policy
from harness.models.blas import mx
from harness.models.forward import ForcedHead, draft_ids, forced_head
from harness.models.opened import hidden_states, open_model

BATCH_TOKENS = 2048
"""Padded tokens per teacher-forced batch."""
MOST_DRAFTED = 2**31
"""No bound of replay's own: the policy decides."""
HEAD_ROWS = 256
"""Rows per call of the output head: 256 x 152k logits are 150 MB."""


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


@dataclass(frozen=True, kw_only=True)
class ForcedPass:
    """What one teacher-forced pass of a draft over one trajectory gives."""

    match: np.ndarray
    """(n,) bool: the draft's favourite equals the target's token."""
    gap: np.ndarray
    """(n,) float32: top-1 minus top-2 draft logit."""
    favourite: np.ndarray
    """(n,) int32: the draft's favourite, as the target's id."""
    confidence: np.ndarray
    """(n,) float32: its probability under the draft."""
    logq: np.ndarray | None = None
    """(n,) float32: processed draft log-probability of the target's token, for temperature above 0."""

    def near_ties(self, noise: float = 1e-3) -> int:
        """Positions where another kernel may flip the favourite: those whose gap is below ``noise``."""
        return int((self.gap < noise).sum())


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
                out[i].append(_score(heads[b], hidden[b, first : first + len(t.tokens)], t, lookups[b], sampling))
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


def _score(head: ForcedHead, hidden: mx.array, t: Trajectory, lookup: dict[int, int] | None, sampling: Sampling | None) -> ForcedPass:
    ids = [lookup.get(x, -1) for x in t.tokens] if lookup is not None else list(t.tokens)
    found: list[list[np.ndarray]] = [[] for _ in range(5)]
    for start in range(0, len(ids), HEAD_ROWS):
        logits = head.logits(hidden[start : start + HEAD_ROWS], start)
        wanted = mx.array(ids[start : start + HEAD_ROWS], dtype=mx.int32)
        wanted = mx.where(wanted < logits.shape[-1], wanted, -1)  # a token that the draft lacks
        best = mx.argmax(logits, axis=-1)
        top2 = -mx.partition(-logits, kth=1, axis=-1)[:, :2]
        confidence = mx.exp(mx.max(log_softmax(logits), axis=-1))
        ids_of = best if head.token_map is None else head.token_map[best]
        parts = [best == wanted, (top2[:, 0] - top2[:, 1]).astype(mx.float32), ids_of.astype(mx.int32), confidence]
        if sampling is not None and not sampling.greedy:
            logq = processed_logprobs(logits, sampling)
            picked = mx.take_along_axis(logq, mx.maximum(wanted, 0)[:, None], axis=-1)[:, 0]
            parts.append(mx.where(wanted >= 0, picked, -mx.inf))
        mx.eval(parts)
        for store, part in zip(found, parts, strict=False):
            store.append(np.array(part))
    match, gap, favourite, confidence_, *logq = [np.concatenate(parts) for parts in found if parts]
    return ForcedPass(match=match, gap=gap, favourite=favourite, confidence=confidence_, logq=logq[0] if logq else None)


def replay_model(
    name: str,
    model: Any,
    token_map: mx.array | None,
    trajectories: Sequence[Trajectory],
    ks: Iterable[int],
    *,
    sampling: Sampling | None = None,
    noise: float = 1e-3,
    progress: Callable[[int], None] | None = None,
) -> list[ReplayRow]:
    """Replay one draft model over all trajectories and K. See :func:`replay`."""
    passes = forced_passes(model, token_map, trajectories, sampling, progress)
    ks = list(ks)
    return [replay_row(name, t, forced, k, noise) for t, forced in zip(trajectories, passes, strict=True) for k in ks]


def replay_row(name: str, t: Trajectory, forced: ForcedPass, k: int, noise: float = 1e-3) -> ReplayRow:
    """Counts of one drafter on one trajectory at draft length ``k``; gaps below ``noise`` count as near-ties."""
    ties = forced.near_ties(noise)
    if forced.logq is None:
        return _row_of(name, t, k, simulate_match(forced.match, k, t.max_tokens), ties)
    if t.logprobs is None:
        raise HarnessError(
            f"trajectory {t.sample_id} has no log-probabilities", "Collect it again: sampled replay needs log p of every token."
        )
    stand = np.minimum(1.0, np.exp(forced.logq.astype(np.float64) - t.logprobs))
    expected = dataclasses.asdict(expected_counts(stand, k, t.max_tokens)) | {"emitted": len(t.tokens)}
    return ReplayRow(sample_id=t.sample_id, domain=t.domain, drafter=name, k=k, near_ties=ties, **expected)


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


def _row_of(name: str, t: Trajectory, k: int | str, counts: RoundCounts, near_ties: int = 0) -> ReplayRow:
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
        played: Sequence[int | str] = policies
        if fixed and isinstance(drafter, ModelDrafter):
            read = _as_read(drafter, trajectories)
            rows += replay_model(name, drafter.model, drafter.token_map, read, fixed, sampling=sampling, progress=progress)
        elif isinstance(drafter, FreeDrafter) or (isinstance(drafter, HybridDrafter) and isinstance(drafter.draft, ModelDrafter)):
            rows += _replay_greedy(name, drafter, trajectories, fixed, progress) if fixed else []
        else:
            played = ks
        rows += _replay_policies(name, drafter, trajectories, played, costs, progress) if played else []
    return rows


def _replay_policies(
    name: str,
    drafter: Drafter,
    trajectories: Sequence[Trajectory],
    ks: Sequence[int | str],
    costs: Costs | None,
    progress: Callable[[int], None] | None,
) -> list[ReplayRow]:
    """Counts of lengths, and of sources, that are chosen while decoding. What a draft model says along the answer comes from one pass."""
    model = getattr(drafter, "draft", drafter)
    if not isinstance(model, ModelDrafter) or not (drafter is model or hasattr(drafter, "with_draft")):
        return [
            _row_of(name, t, k, simulate_policy(drafter, t, make_policy(k, costs))) for t in _counted(trajectories, progress) for k in ks
        ]
    rows = []
    passes = forced_passes(model.model, model.token_map, _as_read(model, trajectories))
    for t, forced in zip(_counted(trajectories, progress), passes, strict=True):
        along = AlongAnswer(model, t, forced.match, forced.favourite, forced.confidence)
        chosen: Any = drafter.with_draft(along) if hasattr(drafter, "with_draft") else along
        rows += [_row_of(name, t, k, simulate_policy(chosen, t, make_policy(k, costs)), forced.near_ties()) for k in ks]
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
) -> list[ReplayRow]:
    """Fixed lengths of a drafter that is no model alone."""
    if isinstance(drafter, FreeDrafter):
        return [_row_of(name, t, k, simulate_free(drafter, t, k)) for t in trajectories for k in ks]
    draft = drafter.draft
    assert isinstance(draft, ModelDrafter)
    passes = forced_passes(draft.model, draft.token_map, _as_read(draft, trajectories), progress=progress)
    return [
        _row_of(name, t, k, simulate_free(drafter.first, t, k, forced.match), forced.near_ties())
        for t, forced in zip(trajectories, passes, strict=True)
        for k in ks
    ]
