"""What a head that reads its target proposes at every place of a known answer, step by step, in few passes.

The first proposal of every round follows from one pass over the answer. The later ones read the head's own states, so each place has a
chain of its own: the next steps of all of them are one pass in which a place sees the answer up to itself, and its own chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.core.records import Trajectory
from harness.decode.forced import NOISE, score_rows
from harness.decode.sampling import Sampling
from harness.models.blas import mx
from harness.models.forward import ForcedHead, PrunedHead, draft_ids, forced_head

ROWS = 128
"""Places whose chains are followed together."""


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Rounds that start at each of the n places of an answer."""

    match: np.ndarray
    """(n, steps) bool: the proposal is the answer's token, if those before it were."""
    near_ties: int
    """Proposals so close to another one that other kernels may prefer that."""
    logq: np.ndarray | None
    """(n, steps) float32: processed log-probability of the answer's token, for temperature above 0."""

    @property
    def runs(self) -> np.ndarray:
        """(n,) how many proposals of a round agree, up to ``steps``."""
        found: np.ndarray = self.match.cumprod(axis=1).sum(axis=1)
        return found


class _Chain:
    """A cache of one block: the answer's keys and values, then those of each step of the chains."""

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        self.keys, self.values = keys, values
        self.offset = 0
        """Position of the first row that is fed next."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add a step (1, heads, rows, dim)."""
        self.keys, self.values = mx.concatenate([self.keys, keys], axis=2), mx.concatenate([self.values, values], axis=2)
        return self.keys, self.values


def shifted(states: mx.array) -> mx.array:
    """What stands before each token (..., n, width): the state of the one before, zeros before the first."""
    return mx.concatenate([mx.zeros_like(states[..., :1, :]), states[..., :-1, :]], axis=-2)


def chains(
    head: PrunedHead,
    tokens: mx.array,
    states: mx.array,
    trajectories: Sequence[Trajectory],
    steps: int,
    sampling: Sampling | None,
) -> list[Chains]:
    """Follow the chains of a batch of answers.

    Args:
        head: what drafts.
        tokens: (B, W) of prompts and answers.
        states: (B, W, places x width) of the target after each token.
        trajectories: the B answers.
        steps: longest round.
        sampling: temperature and filters, to get ``logq``; None or greedy for match only.
    """
    from mlx_lm.models.cache import make_prompt_cache

    inner = head.inner_model
    cache = make_prompt_cache(inner)
    hidden = inner(tokens, inner.fused(shifted(states)), cache=cache)
    mx.eval(hidden, [c.state for c in cache])
    found = []
    for b, t in enumerate(trajectories):
        forced = forced_head(head, head.token_map, t.prompt_tokens, t.tokens)
        known = [tuple(part[b : b + 1, :, : tokens.shape[1]] for part in (c.keys, c.values)) for c in cache]
        found.append(_follow(inner, forced, hidden[b], known, t, min(steps, len(t.tokens)), sampling))
    return found


def _follow(
    inner: Any,
    forced: ForcedHead,
    hidden: mx.array,
    known: Sequence[tuple[mx.array, mx.array]],
    t: Trajectory,
    steps: int,
    sampling: Sampling | None,
) -> Chains:
    """The chains of one answer; ``hidden`` (W, dim) and ``known`` keys and values (1, heads, W, dim) are those of the pass over it."""
    n, first, lookup = len(t.tokens), len(t.prompt_tokens) - 1, draft_ids(forced.token_map)
    ids = list(t.tokens) if lookup is None else [lookup.get(x, -1) for x in t.tokens]
    sampled = sampling is not None and not sampling.greedy
    match, near = np.zeros((n, steps), dtype=bool), 0
    logq = np.full((n, steps), -np.inf, dtype=np.float32)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        at = first + start
        cache = [_Chain(keys[:, :, : at + rows], values[:, :, : at + rows]) for keys, values in known]
        seen = mx.arange(at + rows)[None] <= mx.arange(at, at + rows)[:, None]  # (rows, at + rows)
        h, alive = hidden[at : at + rows], np.ones(rows, dtype=bool)
        for step in range(steps):
            rows = min(rows, n - step - start)
            if rows <= 0 or not (sampled or alive.any()):
                break
            if step:  # the token that the answer has there, on the head's own states
                fed = mx.array(t.tokens[start + step - 1 : start + step - 1 + rows], dtype=mx.int32)
                own = mx.arange(rows)[None] == mx.arange(rows)[:, None]
                seen = mx.concatenate([seen[:rows], own], axis=1)
                for c in cache:
                    c.offset = at + step
                h = inner(fed[None], h[None, :rows], cache=cache, mask=seen)[0]
            places = mx.arange(start, start + rows, dtype=mx.int32)
            passed = score_rows(forced, inner.norm(h[:rows]), places, ids[start + step : start + step + rows], sampling)
            near += int(((passed.gap < NOISE) & alive[:rows]).sum())
            match[start : start + rows, step] = passed.match
            alive = alive[:rows] & passed.match
            if passed.logq is not None:
                logq[start : start + rows, step] = passed.logq
    return Chains(match=match, near_ties=near, logq=logq if sampled else None)


def stands(found: Chains, logp: np.ndarray) -> np.ndarray:
    """(n, steps) probability that the answer's token stands as the proposal of a round's step, under the rejection rule.

    Args:
        found: rounds with ``logq``.
        logp: (n,) log-probability of the answer's tokens under the target.
    """
    assert found.logq is not None
    n, steps = found.logq.shape
    places = np.minimum(np.arange(n)[:, None] + np.arange(steps), n - 1)
    chance: np.ndarray = np.minimum(1.0, np.exp(found.logq.astype(np.float64) - logp[places]))
    return chance
