"""Measure what a draft step and a block verification cost on this machine: c and v(1..K+1), and whether v has risen since."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from harness.core.protocols import LoadedPair
from harness.decode.cached import CachedModel
from harness.decode.drafters import Drafter, Request
from harness.decode.length import AUTO_MAX_K, Costs, expected_tokens, predicted_speedup
from harness.decode.translated import DraftModel
from harness.models.blas import mx
from harness.models.opened import vocabulary_rows

CONTEXT_TOKENS = 128
"""Cache length the steps are timed at."""
CHECKED_BLOCK = 5
"""Tokens of the pass that :func:`verification_cost` times."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Step times of one pair on this machine."""

    target_step_s: float
    """Median time of a one-token target pass."""
    draft_step_s: float | None
    """Median time of a one-token draft pass with its argmax, or what one more token adds to the one pass of a drafter that proposes all
    of them at once; None where drafting needs no model."""
    block_s: tuple[float, ...]
    """Median time of a target pass over 1, 2, ... tokens; beyond ``DENSE_BLOCK`` some sizes are interpolated."""
    spread: float
    """Largest (p90 - p10) / median over all timed passes: above 0.2 the machine was busy."""
    context_tokens: int = CONTEXT_TOKENS
    draft_once_s: float = 0.0
    """Median time of such a pass, less what its tokens add; 0 for other drafters."""

    @property
    def costs(self) -> Costs:
        """c and v in target steps."""
        c = (self.draft_step_s or 0.0) / self.target_step_s
        v = tuple(max(t / self.target_step_s, 1.0) for t in self.block_s)
        return Costs(c=c, v=v, once=self.draft_once_s / self.target_step_s)

    def predict(self, alpha: float) -> dict[int, float]:
        """Predicted speedup per K for per-token acceptance ``alpha``."""
        costs = self.costs
        return {k: predicted_speedup(expected_tokens(alpha, k), k, costs) for k in range(1, costs.max_k + 1)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with c, v and once spelled out."""
        return {**dataclasses.asdict(self), "c": self.costs.c, "v": list(self.costs.v), "once": self.costs.once}


DENSE_BLOCK = 9
"""Every block size up to this is timed; above it about every fourth, where the cost grows evenly."""


def block_sizes(max_k: int) -> list[int]:
    """Block sizes that are timed for drafts of up to ``max_k`` tokens."""
    largest = max_k + 1
    return sorted({*range(1, min(largest, DENSE_BLOCK) + 1), *range(DENSE_BLOCK + 4, largest, 4), largest})


def calibrate(pair: LoadedPair, drafter: Drafter | None = None, *, max_k: int = AUTO_MAX_K, repeats: int = 5) -> Calibration:
    """Time the pair's steps, interleaved so that drift hits all of them alike.

    Args:
        pair: a loaded pair.
        drafter: whose draft step to time; None and what proposes without a model cost nothing, of any other one proposed token is timed.
        max_k: blocks of up to ``max_k`` + 1 tokens are timed.
        repeats: timed passes per block size after one warm-up.
    """
    length = max(1, min(CONTEXT_TOKENS, pair.context_tokens - max_k - 2))
    target = _prefilled(pair.target, length)
    draft = getattr(drafter, "draft", drafter)
    jobs: dict[object, Callable[[], None]] = {m: _block(target, m) for m in block_sizes(max_k)}
    at_once = min(getattr(draft, "at_once", 1), max_k)
    if at_once > 1 and draft is not None:
        context = _context(pair.target, length)
        jobs |= {"draft": _proposal(draft, context), "all": _proposal(draft, context, at_once)}
    elif (step := getattr(draft, "timed_step", None)) is not None:
        jobs["draft"] = step(_context(pair.target, length))
    elif isinstance(draft, DraftModel):
        jobs["draft"] = _block(_prefilled(draft.model, length), 1)
    elif drafter is not None and not getattr(drafter, "free", False):
        jobs["draft"] = _proposal(drafter, _context(pair.target, length))
    times = interleaved(jobs, repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    step, once = median.get("draft"), 0.0
    if at_once > 1:
        step = max(0.0, median["all"] - median["draft"]) / (at_once - 1)
        once = max(0.0, median["draft"] - step)
    return Calibration(
        target_step_s=median[1],
        draft_step_s=step,
        draft_once_s=once,
        block_s=tuple(np.interp(range(1, max_k + 2), block_sizes(max_k), [median[m] for m in block_sizes(max_k)]).tolist()),
        spread=max(_spread(values) for values in times.values()),
        context_tokens=length,
    )


def verification_cost(model: Any, repeats: int = 5) -> float:
    """v(5) of a model as it is now, in a fraction of a calibration's time: what shows that verification has become slower."""
    target = _prefilled(model)
    times = interleaved({m: _block(target, m) for m in (1, CHECKED_BLOCK)}, repeats)
    return statistics.median(times[CHECKED_BLOCK]) / statistics.median(times[1])


def interleaved(jobs: Mapping[T, Callable[[], None]], repeats: int) -> dict[T, list[float]]:
    """Seconds of each job, ``repeats`` times in turns after one warm-up."""
    times: dict[T, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def _prefilled(model: Any, length: int = CONTEXT_TOKENS) -> CachedModel:
    cached = CachedModel(model)
    cached.prefill(_context(model, length))
    return cached


def _context(model: Any, length: int) -> list[int]:
    return [(token % 1000 + 100) % vocabulary_rows(model) for token in range(length)]


def _proposal(drafter: Drafter, context: list[int], k: int = 1) -> Callable[[], None]:
    """Propose ``k`` tokens after ``context``, with any kind of drafter."""
    drafter.begin(context)

    def run() -> None:
        if (proposal := drafter.propose(context, Request(k=k))) is not None:
            mx.eval(proposal.tokens)

    return run


def _block(model: CachedModel, m: int) -> Callable[[], None]:
    tokens, length = mx.arange(100, 100 + m, dtype=mx.int32) % vocabulary_rows(model.model), model.offset

    def run() -> None:
        model.mark()
        mx.eval(mx.argmax(model.forward(tokens), axis=-1))
        model.trim_to(length)

    return run


def _spread(values: list[float]) -> float:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return (high - low) / statistics.median(ordered)
