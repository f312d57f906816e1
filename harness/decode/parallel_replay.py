"""Replay of parallel drafts: what masks propose after every start along a known answer, in few batched passes.

One pass over the answer gives the first proposals, and the keys and values that the masks see. The groups of masks of many starts are
then rows of one batch: each row stands behind its own start and sees the answer up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.core.records import Trajectory
from harness.decode.drafters import Proposal, Request
from harness.decode.forced import NOISE, score_rows
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_drafter import ParallelDrafter, asked_for
from harness.decode.sampling import Sampling
from harness.models.blas import mx
from harness.models.forward import ForcedHead, draft_ids, forced_head
from harness.models.opened import hidden_states

PREFIX_BYTES = 32 * 2**20
"""Most memory for what the groups of one batch see of the answer in one layer; at least one group is run."""


class Starts:
    """Keys and values of one layer along an answer, as groups of masks behind some of its tokens see them.

    Args:
        keys, values: (1, heads, n, dim) of the whole answer.
        starts: (B,) int32: how many tokens each group sees; its first mask has that position.
    """

    def __init__(self, keys: mx.array, values: mx.array, starts: mx.array) -> None:
        self._known = (keys, values)
        self.offset = starts

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add the masks' own (B, heads, m, dim) behind the answer's."""
        known, said = (mx.broadcast_to(a, (len(keys), *a.shape[1:])) for a in self._known)
        return mx.concatenate([known, keys], axis=2), mx.concatenate([said, values], axis=2)

    def make_mask(self, n: int, window_size: int | None = None, return_array: bool = False) -> mx.array:
        """(B, 1, n, tokens + n) bool: the answer up to the start, and of the masks those up to one's own."""
        tokens = self._known[0].shape[2]
        seen = mx.arange(tokens)[None] < self.offset[:, None]  # (B, tokens)
        seen = mx.broadcast_to(seen[:, None, None], (len(self.offset), 1, n, tokens))
        places = mx.arange(n)
        own = mx.broadcast_to(places[:, None] >= places[None], (len(self.offset), 1, n, n))
        return mx.concatenate([seen, own], axis=-1)


@dataclass(frozen=True)
class Along:
    """What a draft makes of n tokens."""

    known: Sequence[tuple[mx.array, mx.array]]
    """Keys and values (1, heads, n, dim) of every layer."""
    hidden: mx.array
    """(n, dim) normed states."""

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.known)

    def behind(self, starts: mx.array) -> list[Starts]:
        """Per layer what groups of masks see that stand behind the first ``starts`` (B,) tokens."""
        return [Starts(keys, values, starts) for keys, values in self.known]


def read_along(model: Any, tokens: Sequence[int]) -> Along:
    """One pass of a draft over ``tokens``."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    hidden = hidden_states(model, mx.array([tokens], dtype=mx.int32), cache)[0]
    mx.eval(hidden, [c.state for c in cache])
    return Along([c.keys_and_values() for c in cache], hidden)


@dataclass(frozen=True, kw_only=True)
class ParallelPass:
    """What a parallel draft says after each of the n starts along one answer. K proposals a start; row i begins behind i tokens."""

    match: np.ndarray
    """(n, K) bool: proposal j equals answer token i + j."""
    gap: np.ndarray
    """(n, K) float32: top-1 minus top-2 logit."""
    favourite: np.ndarray
    """(n, K) int32: target ids."""
    confidence: np.ndarray
    """(n, K) float32: their probability."""
    logq: np.ndarray | None = None
    """(n, K) float32: log-probability of answer token i + j, -inf beyond the end; for temperature above 0."""

    @property
    def runs(self) -> np.ndarray:
        """(n,) int: leading proposals that equal the answer."""
        found: np.ndarray = np.cumprod(self.match, axis=1).sum(axis=1)
        return found

    @property
    def most(self) -> int:
        """Most tokens of a round."""
        return self.match.shape[1]

    def stands(self, logprobs: np.ndarray) -> np.ndarray:
        """(n, K): chance that answer token i + j stands where it is drafted from start i; ``logprobs`` (n,) are the target's."""
        assert self.logq is not None
        return np.minimum(1.0, np.exp(self.logq.astype(np.float64) - windows(logprobs, self.most, beyond=0.0)))

    def near_ties(self) -> int:
        """As :meth:`harness.decode.replay.ForcedPass.near_ties`."""
        return int((self.gap < NOISE).sum())

    def along(self, drafter: ModelDrafter, trajectory: Trajectory) -> AlongParallel:
        """The drafter beside the answer."""
        return AlongParallel(drafter, trajectory, self)


def windows(values: np.ndarray, k: int, *, beyond: float) -> np.ndarray:
    """(n, k) view of ``values`` (n,): what stands at i + j in row i, ``beyond`` behind the end."""
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([values, np.full(k - 1, beyond)]), k)


def parallel_passes(
    drafter: ParallelDrafter,
    trajectories: Sequence[Trajectory],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ParallelPass]:
    """What a parallel draft proposes after every token of each answer.

    Args:
        drafter: the draft.
        trajectories: what the target produced.
        sampling: temperature and filters of the target's run, to get ``logq``; None or greedy for match only.
        progress: called with the number of trajectories finished.
    """
    found = []
    for done, t in enumerate(trajectories, start=1):
        found.append(_pass(drafter, t, sampling))
        mx.clear_cache()
        if progress:
            progress(done)
    return found


def _pass(drafter: ParallelDrafter, t: Trajectory, sampling: Sampling | None) -> ParallelPass:
    model, answer, prompt = drafter.model, list(t.tokens), len(t.prompt_tokens)
    head = forced_head(model, drafter.token_map, t.prompt_tokens, answer)
    along = read_along(model, [*t.prompt_tokens, *answer[:-1]])
    batch = max(1, PREFIX_BYTES // max(1, along.known[0][0].nbytes))
    lookup, k, n = draft_ids(head.token_map), drafter.at_once, len(answer)
    blocks = []
    for first in range(0, n, batch):
        starts = mx.arange(first, min(first + batch, n), dtype=mx.int32)
        rows = [along.hidden[prompt - 1 + first :][: len(starts), None]]  # (B, 1, dim)
        if k > 1:
            with drafter.gate.of(k - 1):
                tokens = mx.zeros((len(starts), k - 1), dtype=mx.int32)
                rows.append(hidden_states(model, tokens, along.behind(starts + prompt)))
        blocks.append(_score(head, mx.concatenate(rows, axis=1), first, answer, lookup, sampling))
    return _joined(blocks)


def _score(
    head: ForcedHead, hidden: mx.array, first: int, answer: list[int], lookup: dict[int, int] | None, sampling: Sampling | None
) -> ParallelPass:
    """Judge the states (B, K, dim) of the starts from ``first`` on: the head knows at each what stands in the context there."""
    b, k, _ = hidden.shape
    padded = [*answer, *[-1] * k]
    wanted = [padded[i + j] for i in range(first, first + b) for j in range(k)]
    ids = wanted if lookup is None else [lookup.get(x, -1) for x in wanted]
    places = mx.repeat(mx.arange(first, first + b, dtype=mx.int32), k)
    rows = score_rows(head, hidden.reshape(b * k, -1), places, ids, sampling)
    gap = np.where(np.array(wanted) < 0, np.inf, rows.gap)  # beyond the end nothing is compared
    match, gap, favourite, confidence = (part.reshape(b, k) for part in (rows.match, gap, rows.favourite, rows.confidence))
    logq = None if rows.logq is None else rows.logq.reshape(b, k)
    return ParallelPass(match=match, gap=gap, favourite=favourite, confidence=confidence, logq=logq)


def _joined(blocks: Sequence[ParallelPass]) -> ParallelPass:
    parts: dict[str, Any] = {name: [getattr(block, name) for block in blocks] for name in ParallelPass.__dataclass_fields__}
    whole: dict[str, Any] = {name: None if found[0] is None else np.concatenate(found) for name, found in parts.items()}
    return ParallelPass(**whole)


class AlongParallel:
    """A parallel draft beside a known answer: it runs only behind a token that the answer has not.

    Args:
        draft: the drafter.
        trajectory: the answer.
        known: what it says along it.
    """

    def __init__(self, draft: ModelDrafter, trajectory: Trajectory, known: ParallelPass) -> None:
        self.name, self.at_once = draft.name, known.most
        self._draft, self._known = draft, known
        self._prompt, self._answer = list(trajectory.prompt_tokens), list(trajectory.tokens)
        self._reads = False

    def begin(self, prompt: list[int]) -> None:
        """Start the answer; the model reads the prompt when it is first needed."""
        self._reads = False

    def propose(self, context: list[int], request: Request) -> Proposal | None:
        """As :meth:`harness.decode.model_drafter.ModelDrafter.propose`, greedy."""
        if request.k == 0:
            return None
        start = len(context) - len(self._prompt)
        ahead = context[len(context) - request.guesses :]
        if start >= len(self._answer) or self._answer[start - request.guesses : start] != ahead:
            return self._behind(context, request)
        k = min(request.k, self.at_once)
        tokens = self._known.favourite[start, :k].tolist()
        confidences: tuple[float, ...] = ()
        if request.keep_going is not None:
            confidences = asked_for(self._known.confidence[start, :k].tolist(), request)
            tokens = tokens[: len(confidences)]
        return Proposal(tokens=mx.array(tokens, dtype=mx.int32), confidences=confidences)

    def _behind(self, context: list[int], request: Request) -> Proposal | None:
        """What the model drafts after a token that the answer has not, or after the answer's end."""
        if not self._reads:
            self._draft.begin(self._prompt)
            self._reads = True
        return self._draft.propose(context, request)
