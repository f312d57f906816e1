"""What the counts and times of every record satisfy, whichever loop made it: checked when a record is written and whenever one is read."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.records import Record
from harness.core.round_sources import tokens_of

TIMES = ("prefill_s", "ttft_s", "draft_s", "verify_s", "route_s", "swap_s", "wall_s")
_AT_LEAST = {"prompt_tokens": 1, "rounds": 1, "emitted": 1, "drafted": 0, "accepted": 0, "rejected": 0, "temperature": 0}


def broken(record: Record) -> str | None:
    """The first rule that a record breaks, in words that begin with the field; None where all hold."""
    return next(_broken(record), None)


def _broken(r: Record) -> Iterator[str]:
    """Later rules rely on the earlier ones: the caller takes the first."""
    for name, least in _AT_LEAST.items():
        if getattr(r, name) < least:
            yield f"{name} is {getattr(r, name)}, below {least}"
    if r.reused_tokens >= r.prompt_tokens:
        yield f"reused_tokens is {r.reused_tokens} of {r.prompt_tokens} prompt tokens, and the last is always read"
    for name in TIMES:
        if (getattr(r, name) or 0) < 0:
            yield f"{name} is {getattr(r, name)}, below 0"
    yield from _rounds(r)
    yield from _outcome(r)


def _rounds(r: Record) -> Iterator[str]:
    for name, total in (("accept_lengths", r.accepted), ("draft_lengths", r.drafted)):
        values = getattr(r, name)
        if len(values) != r.rounds:
            yield f"{name} has {len(values)} entries for {r.rounds} rounds"
        if sum(values) != total:
            yield f"{name} adds up to {sum(values)}, not to {total}"
    for i, (accepted, drafted) in enumerate(zip(r.accept_lengths, r.draft_lengths, strict=True)):
        if not 0 <= accepted <= drafted:
            yield f"accept_lengths[{i}] is {accepted} of {drafted} drafted"
    valid = r.k is None if r.drafter is None else r.k in ("dynamic", "auto") or (isinstance(r.k, int) and r.k > 0)
    if not valid:
        yield f"k is {r.k!r} with drafter {r.drafter!r}"
    if r.drafter is None and r.drafted:
        yield f"drafted is {r.drafted} without a drafter"
    if isinstance(r.k, int) and max(r.draft_lengths) > r.k:
        yield f"draft_lengths has {max(r.draft_lengths)}, more than k = {r.k}"
    # Every round emits its accepted tokens and one of the target's own; only the last one can end inside its draft.
    inside = r.rounds + r.accepted - r.emitted
    if inside not in ((0, 1) if r.finish == "eos" or r.loop == "mlx-lm" else (0,)) or (inside and not r.accept_lengths[-1]):
        yield f"emitted is {r.emitted} after {r.rounds} rounds with {r.accepted} accepted tokens"
    cut = [a < d for a, d in zip(r.accept_lengths, r.draft_lengths, strict=True)]
    rejected = sum(cut) - (inside and cut[-1])
    if r.rejected != rejected:
        yield f"rejected is {r.rejected}, the rounds give {rejected}"


def _outcome(r: Record) -> Iterator[str]:
    """Tokens, score, comparison and divergence."""
    if r.tokens is not None and (len(r.tokens) != r.emitted or min(r.tokens) < 0):
        yield f"tokens has {len(r.tokens)} ids for {r.emitted} emitted tokens, or one below 0"
    if r.method == "replay" and any(getattr(r, name) is not None for name in (*TIMES, "tokens")):
        yield "method is replay, but there are times or tokens"
    if r.method == "answer" and (r.drafter is not None or r.tokens is None or any(getattr(r, name) is not None for name in TIMES)):
        yield "method is answer, but there is a drafter, a time or no token"
    if r.sources is not None and len(r.sources) != r.rounds:
        yield f"sources has {len(r.sources)} entries for {r.rounds} rounds"
    for i, (source, drafted) in enumerate(zip(r.sources or (), r.draft_lengths, strict=False)):
        if (proposed := tokens_of(source)) not in (None, drafted):
            yield f"sources[{i}] names {proposed} tokens of {drafted} drafted"
    if r.compared and (r.drafter is None or r.temperature > 0 or r.lossy or r.method != "decode"):
        yield "compared is true for an answer that need not equal the baseline's"
    if r.score and (r.score.status == "unscored") != (r.score.value is None):
        yield f"score has status {r.score.status} and value {r.score.value}"
    for name, total in (("draft_times_s", r.draft_s), ("verify_times_s", r.verify_s)):
        times = getattr(r, name)
        if times is not None and (len(times) != r.rounds or total is None or abs(sum(times) - total) > 1e-6 * (len(times) + 1)):
            yield f"{name} does not add up to {name.replace('times_', '')} over {r.rounds} rounds"
    if r.divergence is not None and not (r.compared and 0 <= r.divergence.position <= r.emitted and r.divergence.gap >= 0):
        yield f"divergence is at {r.divergence.position} of {r.emitted} tokens with gap {r.divergence.gap}, compared is {r.compared}"
