"""What a draft proposed along an answer that the target sampled, drawn as decoding would have drawn it.

Under both acceptance rules every emitted token is a sample of the target, whatever was proposed. So an answer that the target sampled
alone is as likely as one of decoding, and what is left to draw is what the draft said, given the answer. Where the draft (q) proposed x
and the target (p) emitted t:

- ``match`` draws x and t apart: x is t with probability q(t), else it is drawn from q without t;
- ``rejection`` emits x with probability min(p(x), q(x)), else a draw from p - q where that is positive: so, given t, x was t and stood with
  probability min(1, q(t) / p(t)), else x was drawn from q - p where that is positive, whatever t is.

A decoding decides every place of an answer at most once, and the places are independent given the answer. So one draw for every place is
that of a decoding at any draft length, and the counts that follow have the distribution of decoding's. What was found in earlier text is
not drawn: it stands where it equals the answer, by both rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harness.core.errors import HarnessError
from harness.core.records import Rule, Trajectory
from harness.decode.forced import HEAD_ROWS, ForcedPass, forced_passes, places, score_rows
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_replay import ParallelPass, windows
from harness.decode.sampling import Draws, log_softmax, processed_logprobs
from harness.models.blas import mx
from harness.models.forward import ForcedHead, forced_head
from harness.models.opened import hidden_states


def drawn_passes(
    drafter: ModelDrafter,
    read: Sequence[Trajectory],
    whole: Sequence[Trajectory],
    draws: Draws,
    target: Any = None,
    progress: Callable[[int], None] | None = None,
) -> list[ForcedPass]:
    """One decoding's proposals along each answer.

    Args:
        drafter: a draft that says one token after the other.
        read: the answers behind as much of their prompts as the draft reads.
        whole: the answers behind their whole prompts, as the target read them.
        draws: sampling, rule and seed.
        target: the target, to draw also what did not stand; without it such a place has no favourite (-1) and no confidence (NaN),
            which fixed lengths do not ask for.
        progress: called with the number of answers finished.
    """

    def judge(i: int, head: ForcedHead, hidden: mx.array, ids: Sequence[int]) -> ForcedPass:
        own = score_rows(head, hidden, places(ids), ids, draws.sampling)
        passed = _stands(own, whole[i], draws)
        return passed if target is None else _with_tokens(passed, whole[i], draws, (head, hidden, ids), target)

    return forced_passes(drafter.model, drafter.token_map, read, progress=progress, judge=judge)


def drawn_parallel(passed: ParallelPass, t: Trajectory, draws: Draws) -> ParallelPass:
    """Which proposals of a parallel draft stood: those of one start are independent of each other, and a place is decided once."""
    chance = passed.stands(rule_logprobs(t, draws.rule))
    uniform = windows(draws.uniform(t), passed.most, beyond=1.0)
    return dataclasses.replace(passed, match=uniform < chance, gap=np.abs(uniform - chance), logq=None)


def rule_logprobs(t: Trajectory, rule: Rule) -> np.ndarray:
    """(n,) what the draft's log-probabilities of an answer's tokens are compared with: the target's, or certainty where it draws apart.

    Raises:
        HarnessError: the target's were not kept.
    """
    return np.zeros(len(t.tokens)) if rule == "match" else target_logprobs(t)


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


def _stands(own: ForcedPass, t: Trajectory, draws: Draws) -> ForcedPass:
    """Where the draft said the answer's token and it stood; other kernels may flip that where the two numbers are close."""
    chance = own.stands(rule_logprobs(t, draws.rule))
    uniform = draws.uniform(t)
    match = uniform < chance
    return ForcedPass(
        match=match,
        gap=np.abs(uniform - chance).astype(np.float32),
        favourite=np.where(match, t.tokens, -1).astype(np.int32),
        confidence=np.full(len(match), np.nan, np.float32),
        draws=draws,
    )


def _with_tokens(
    passed: ForcedPass, t: Trajectory, draws: Draws, said: tuple[ForcedHead, mx.array, Sequence[int]], target: Any
) -> ForcedPass:
    """The same with the tokens that did not stand, and the draft's probability of every token."""
    (head, hidden, ids), before = said, places(said[2])
    target_rows = _target_rows(target, t, draws) if draws.rule == "rejection" else None
    tokens, confidences = [], []
    for start in range(0, len(ids), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        logits = head.logits(hidden[rows], before[rows])  # (rows, draft vocab)
        q = mx.exp(processed_logprobs(logits, draws.sampling))
        stood = mx.array(passed.match[rows])[:, None]
        wanted = mx.array(ids[rows], dtype=mx.int32)[:, None]
        p = None if target_rows is None else _as_draft(target_rows(rows), head.token_map, q.shape[-1])
        others = mx.random.categorical(mx.log(_others(q, p, wanted)), key=draws.key(t, start))
        own = mx.where(stood, wanted, others[:, None])
        confidences.append(mx.take_along_axis(mx.exp(log_softmax(logits)), own, axis=-1)[:, 0])
        tokens.append(own[:, 0] if head.token_map is None else head.token_map[own[:, 0]])
        mx.eval(tokens[-1], confidences[-1])
    return dataclasses.replace(
        passed,
        favourite=np.concatenate([np.array(part.astype(mx.int32)) for part in tokens]),
        confidence=np.concatenate([np.array(part) for part in confidences]),
    )


def _others(q: mx.array, p: mx.array | None, wanted: mx.array) -> mx.array:
    """(rows, draft vocab) what a proposal that did not stand is drawn from, up to a factor; ``wanted`` (rows, 1) is -1 where q has it not.

    Where q has hardly anything but what stands, rounding may leave nothing: it is drawn from q then.
    """
    rest = q if p is None else mx.maximum(q - p, 0)
    rest = mx.where(mx.arange(q.shape[-1])[None] == wanted, 0.0, rest)
    return mx.where(rest.sum(axis=-1, keepdims=True) > 0, rest, q)


def _as_draft(p: mx.array, token_map: mx.array | None, size: int) -> mx.array:
    """The target's probabilities (rows, draft vocab) of the draft's ids."""
    return p[:, :size] if token_map is None else p[:, token_map]


def _target_rows(target: Any, t: Trajectory, draws: Draws) -> Callable[[slice], mx.array]:
    """Gives the target's probabilities (rows, vocab) at places of the answer, from one pass over it."""
    first = len(t.prompt_tokens) - 1
    head = forced_head(target, None, t.prompt_tokens, t.tokens)
    states = hidden_states(target, mx.array([[*t.prompt_tokens, *t.tokens[:-1]]], dtype=mx.int32))[0, first:]
    before = places(t.tokens)
    return lambda rows: mx.exp(processed_logprobs(head.logits(states[rows], before[rows]), draws.sampling))
