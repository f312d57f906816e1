"""Fast decoding: mlx-lm's own loops, with this project's clocks and counts around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.decode.rewind import parts
from harness.decode.sampling import Sampling
from harness.decode.speculative import Step
from harness.models.blas import mx, one_stream
from harness.models.opened import vocabulary_rows


def fast_steps(
    target: Any,
    draft: LoadedDraft | None,
    prompt: list[int],
    *,
    k: int,
    max_tokens: int,
    eos: frozenset[int],
    sampling: Sampling,
    seed: int = 0,
) -> Iterator[Step]:
    """Run mlx-lm's ``generate_step`` (``draft`` None) or ``speculative_generate_step`` and yield its rounds as steps.

    mlx-lm drafts min(k, tokens left), one more than this project's loop at the very end. It does not tell drafting from
    verifying, and reads the prompt inside its first round, so those times are None.

    Raises:
        HarnessError: a cache that its loop cannot rewind, at the first step.
    """
    from mlx_lm.generate import generate_step, speculative_generate_step
    from mlx_lm.sample_utils import make_sampler

    if draft is not None:
        for role, model in (("target", target), ("draft", draft)):
            _require_rewinding(role, model, len(prompt) + max_tokens + k)
    mx.random.seed(seed)
    sampler = make_sampler(
        temp=sampling.temperature,
        top_p=sampling.top_p if sampling.top_p < 1 else 0.0,
        min_p=sampling.min_p,
        top_k=sampling.top_k if sampling.top_k < vocabulary_rows(target) else 0,
    )
    ids = mx.array(prompt, dtype=mx.uint32)
    common = {"max_tokens": max_tokens, "sampler": sampler, **one_stream()}
    if draft is None:
        plain = generate_step(ids, target, **common)
        stream: Iterator[tuple[int, bool]] = ((int(token), False) for token, _ in plain)
        k = 0
    else:
        pairs = speculative_generate_step(ids, target, draft, num_draft_tokens=k, **common)
        stream = ((int(token), bool(from_draft)) for token, _, from_draft in pairs)
    yield from _rounds(stream, k, max_tokens, eos)


def _require_rewinding(role: str, model: Any, tokens: int) -> None:
    """Refuse what mlx-lm's loop cannot rewind: recurrent states, and windows that ``tokens`` tokens outgrow."""
    from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache

    caches = make_prompt_cache(model)
    window = min((part.max_size for part in parts(caches) if hasattr(part, "max_size")), default=tokens)
    if not can_trim_prompt_cache(caches) or window < tokens:
        raise HarnessError(
            f"mlx-lm's loop cannot take rejected tokens back from the {role}'s cache"
            + (f" beyond its window of {window} tokens" if window < tokens else ""),
            "Use loop='own', which can.",
        )


def _rounds(stream: Iterator[tuple[int, bool]], k: int, max_tokens: int, eos: frozenset[int]) -> Iterator[Step]:
    """Cut a stream of (token, came from the draft) into rounds: every token of the target's own ends one."""
    emitted = 0
    tokens: list[int] = []

    def step(rejected: bool) -> Step:
        own = not from_draft
        return Step(
            tokens=tuple(tokens),
            drafted=min(k, max_tokens - emitted),
            accepted=len(tokens) - own,
            rejected=rejected,
            draft_s=None,
            verify_s=None,
            prefill_s=None,
        )

    for token, from_draft in stream:
        tokens.append(token)
        ended = token in eos or emitted + len(tokens) >= max_tokens
        if from_draft and not ended:
            continue
        yield step(rejected=not from_draft and len(tokens) - 1 < min(k, max_tokens - emitted))
        emitted, tokens = emitted + len(tokens), []
        if ended:
            return
