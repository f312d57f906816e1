"""Target-only decoding: the baseline every speedup is measured against."""

from __future__ import annotations

import time
from collections.abc import Iterator

from harness.decode.cached import CachedModel
from harness.decode.logprobs import Logprobs
from harness.decode.sampling import Sampling, processed_logprobs, sample
from harness.decode.speculative import Step
from harness.decode.timing import Laps, NoLaps
from harness.models.blas import mx


def plain_steps(
    target: CachedModel,
    prompt: list[int],
    *,
    max_tokens: int,
    eos: frozenset[int],
    sampling: Sampling,
    seed: int = 0,
    logprobs: Logprobs | None = None,
    profile: bool = False,
) -> Iterator[Step]:
    """Yield one :class:`Step` per token. The next pass is queued before the current token is read, as mlx-lm does."""
    start = time.perf_counter()
    key = mx.random.key(seed)
    target.prefill(prompt[target.offset : -1])
    target.mark()  # one pass too many may be under way at the end
    prefill_s = time.perf_counter() - start

    def advance(token: mx.array, key: mx.array | None) -> tuple[mx.array, tuple[mx.array, ...]]:
        logits = target.forward(token)
        token = mx.argmax(logits, axis=-1) if sampling.greedy else sample(processed_logprobs(logits, sampling), key)
        watched = logprobs.arrays(logits) if logprobs else ()
        mx.async_eval(token, *watched)
        return token.astype(mx.int32), watched

    keys = iter(lambda: None, 0) if sampling.greedy else _keys(key)
    laps = Laps() if profile else NoLaps()
    start = time.perf_counter()
    laps.start()
    token, watched = advance(mx.array(prompt[-1:], dtype=mx.int32), next(keys))
    for i in range(max_tokens):
        following = advance(token, next(keys)) if i + 1 < max_tokens else None
        laps.end("verify_s", token)
        value = int(token.item())
        now = time.perf_counter()
        laps.end("sync_s")
        yield Step(
            tokens=(value,),
            drafted=0,
            accepted=0,
            rejected=False,
            draft_s=None,
            verify_s=now - start,
            prefill_s=prefill_s,
            profile=laps.take(),
            logprobs=logprobs.read(watched, (value,)) if logprobs else (),
        )
        if value in eos or following is None:
            break
        start, prefill_s, (token, watched) = time.perf_counter(), 0.0, following
        laps.start()


def _keys(key: mx.array) -> Iterator[mx.array]:
    while True:
        key, step_key = mx.random.split(key)
        yield step_key
