"""The speculative loop: draft, verify, accept, rewind.

Each round feeds the target the last emitted token and K proposals in one pass; the target's cache is then cut back to the accepted
prefix, and the token the target added is fed with the next round. A cache that cannot be cut back is put back to where the round
began, and the accepted tokens are fed once more, in front of the next proposals or in a pass of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.core.errors import HarnessError
from harness.core.records import Position, Profile, Rule
from harness.decode.accept import accept_rejection, common_prefix
from harness.decode.cached import CachedModel
from harness.decode.drafters import Drafter, Proposal
from harness.decode.length import LengthPolicy, carried
from harness.decode.logprobs import Logprobs, TokenLogprob
from harness.decode.positions import Details
from harness.decode.proposing import Proposing
from harness.decode.sampling import Sampling, processed_logprobs, sample
from harness.decode.timing import Laps, NoLaps
from harness.models.blas import ints, mx


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one round emitted. The first step of an answer carries the prefill time."""

    tokens: tuple[int, ...]
    """Emitted token ids: the accepted prefix, then the target's own token."""
    drafted: int
    accepted: int
    rejected: bool
    """A rejection ended the round."""
    draft_s: float | None
    verify_s: float | None
    prefill_s: float | None = 0.0
    """Reading the prompt: the target and the drafter before the first step, a drafter that is asked later in that step. None where the
    loop cannot tell."""
    source: str = ""
    """Who proposed: a source of the drafter, several as :mod:`harness.core.round_sources` writes them; empty where nothing was drafted."""
    positions: tuple[Position, ...] = ()
    """Details per decided draft position (detailed mode)."""
    profile: Profile | None = None
    """Where the round's time went, where it was asked for."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Per emitted token, where they were asked for."""


def speculative_steps(
    target: CachedModel,
    drafter: Drafter,
    prompt: list[int],
    *,
    policy: LengthPolicy,
    max_tokens: int,
    eos: frozenset[int],
    rule: Rule = "match",
    sampling: Sampling,
    lenience: float = 1.0,
    seed: int = 0,
    details: Details | None = None,
    logprobs: Logprobs | None = None,
    profile: bool = False,
) -> Iterator[Step]:
    """Yield one :class:`Step` per target pass until ``max_tokens`` or an end-of-sequence token."""
    start = time.perf_counter()
    key = mx.random.key(seed)
    context = list(prompt)
    target.prefill(prompt[target.offset : -1])
    proposing = Proposing(drafter, policy, prompt)
    prefill_s = time.perf_counter() - start
    laps = Laps() if profile else NoLaps()
    # On a GPU the verification is queued behind the draft before the draft is read, so the device never idles between them. The CPU
    # backend runs what is queued at once, so there the draft is read first, which keeps the two times apart at no cost.
    ahead = mx.default_device() == mx.Device(mx.gpu)
    emitted, finished = 0, False
    while emitted < max_tokens and not finished:
        start = time.perf_counter()
        laps.start()
        key, draft_key, accept_key = mx.random.split(key, 3) if not sampling.greedy else (key, None, None)
        with_logq = rule == "rejection" and not sampling.greedy
        how: dict[str, Any] = {"sampling": sampling, "key": draft_key, "with_logq": with_logq, "with_logits": details is not None}
        proposal = proposing.propose(context, max_tokens - emitted - 1, **how)
        laps.end("draft_s", proposal.tokens)
        logits = _verify(target, context, proposal, policy, ahead)  # (k + 1, vocab)
        verdict = _verdict(logits, proposal, rule, sampling, lenience, accept_key)
        extra = details.arrays(logits, proposal, verdict) if details else ()
        watched = logprobs.arrays(logits) if logprobs else ()
        if ahead:
            mx.async_eval(proposal.tokens, verdict, *extra, *watched)
        laps.end("verify_s")
        draft = ints(proposal.tokens)
        if draft and not 0 <= min(draft) <= max(draft) < logits.shape[-1]:
            raise HarnessError(f"drafter {drafter.name!r} proposed token {max(draft)}", f"The target has ids 0 to {logits.shape[-1] - 1}.")
        drafted_at = time.perf_counter()
        laps.end("sync_s")
        mx.eval(verdict, *extra, *watched)
        laps.end("verify_s")
        n, own = _read(verdict, draft, rule, sampling)
        verified_at = time.perf_counter()
        laps.end("sync_s")

        tokens = [*draft[:n], own]
        stop = next((i for i, token in enumerate(tokens) if token in eos), None)
        if stop is not None:
            tokens, finished = tokens[: stop + 1], True
        accepted = min(n, len(tokens))
        context += tokens
        emitted += len(tokens)
        if not finished:
            target.trim_to(len(context) - 1)
        policy.update(drafted=len(draft), accepted=accepted, confidences=proposal.confidences, source=proposal.source)
        yield Step(
            tokens=tuple(tokens),
            drafted=len(draft),
            accepted=accepted,
            rejected=n < len(draft) and len(tokens) == n + 1,
            draft_s=drafted_at - start - proposal.begin_s,
            verify_s=verified_at - drafted_at,
            prefill_s=prefill_s + proposal.begin_s,
            source=proposal.source if draft else "",
            positions=details.positions(extra, draft, tokens, emitted - len(tokens)) if details else (),
            profile=laps.take(),
            logprobs=logprobs.read(watched, tokens) if logprobs else (),
        )
        prefill_s = 0.0


def _verify(target: CachedModel, context: list[int], proposal: Proposal, policy: LengthPolicy, ahead: bool) -> mx.array:
    """The target's logits (k + 1, vocab) after the last token and after each proposal."""
    if not carried(len(context) - 1 - target.offset, proposal.k, getattr(policy, "costs", None), flat=ahead):
        target.prefill(context[target.offset : -1])
    if proposal.k:
        target.mark()
    unseen = mx.array(context[target.offset :], dtype=mx.int32)
    return target.forward(mx.concatenate([unseen, proposal.tokens]))[-proposal.k - 1 :]


def _verdict(logits: mx.array, proposal: Proposal, rule: Rule, sampling: Sampling, lenience: float, key: mx.array | None) -> mx.array:
    """Return the target's tokens (k + 1,) under ``match``, or (accepted, added token) under ``rejection``."""
    if sampling.greedy:
        return mx.argmax(logits, axis=-1)
    logp = processed_logprobs(logits, sampling)
    if rule == "match":
        return sample(logp, key)
    return accept_rejection(logp, proposal.full_logq(logp.shape[-1]), proposal.tokens, key, lenience)


def _read(verdict: mx.array, draft: list[int], rule: Rule, sampling: Sampling) -> tuple[int, int]:
    """Return how many draft tokens stand and the token the target adds."""
    values = ints(verdict)
    if rule == "rejection" and not sampling.greedy:
        return values[0], values[1]
    n = common_prefix(draft, values)
    return n, values[n]
