"""The public decoding calls: ``generate`` and ``stream``."""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.limits import MAX_TOKENS, TOP_K, check, draft_length, ended, room
from harness.core.protocols import LoadedPair
from harness.core.records import Finish, Generation, Loop, Rule
from harness.decode.cached import CachedModel
from harness.decode.drafters import Drafter
from harness.decode.fast import fast_steps
from harness.decode.kept import TARGET, KeptCaches
from harness.decode.length import Costs, LengthPolicy, make_policy
from harness.decode.logprobs import Logprobs
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_drafter import ParallelDrafter
from harness.decode.plain import plain_steps
from harness.decode.positions import Details
from harness.decode.sampling import Sampling
from harness.decode.speculative import Step, speculative_steps
from harness.decode.translated import DraftModel, TranslatedDrafter
from harness.models.blas import mx
from harness.models.forward import PrunedHead
from harness.models.pair_config import pair_k


def stream(
    pair: LoadedPair,
    prompt: str | list[dict] | Sequence[int],
    *,
    drafter: str | Drafter | None = "generic",
    k: int | str | LengthPolicy | None = None,
    rule: Rule = "match",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    lenience: float = 1.0,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    detailed: bool | int = False,
    loop: Loop = "own",
    options: DrafterOptions | None = None,
    costs: Costs | None = None,
    profile: bool = False,
    logprobs: int | None = None,
    caches: KeptCaches | None = None,
    ignore_eos: bool = False,
) -> Iterator[Step]:
    """Decode ``prompt`` and yield one :class:`~harness.decode.speculative.Step` per target pass.

    Arguments are those of :func:`generate`.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    k = _length(pair, k)
    check(max_tokens=max_tokens, seed=seed, lenience=lenience)
    _check(rule, lenience, sampling, loop, k, bool(detailed) or logprobs is not None)
    ids = pair.encode(prompt)
    max_tokens = room(pair.context_tokens, len(ids), max_tokens)
    eos = frozenset[int]() if ignore_eos else pair.eos_token_ids
    common: dict[str, Any] = {"max_tokens": max_tokens, "eos": eos, "sampling": sampling, "seed": seed}
    if loop == "mlx-lm":
        draft = None if drafter is None else _full_vocabulary(resolve_drafter(pair, drafter, options))
        return fast_steps(pair.target, draft, ids, k=k if isinstance(k, int) else 0, **common)
    target = caches.open(TARGET, pair.target, ids) if caches else CachedModel(pair.target)
    common |= {"profile": profile, "logprobs": None if logprobs is None else Logprobs(logprobs)}
    if drafter is None:
        steps = plain_steps(target, ids, **common)
        return _keeping(caches, steps, target, None, ids) if caches else steps
    chosen = resolve_drafter(pair, drafter, options)
    draft = found if isinstance(found := getattr(chosen, "draft", chosen), DraftModel) else None
    if draft is not None:
        draft.caches = caches
    if k == "auto" and costs is None:
        from harness.decode.calibrate import calibrate

        costs = calibrate(pair, chosen).costs
    policy = make_policy(k, costs) if isinstance(k, int | str) else k
    details = Details(TOP_K if detailed is True else detailed) if detailed else None
    if isinstance(draft, ModelDrafter):
        target = draft.beside(target, ids)
    steps = speculative_steps(target, chosen, ids, policy=policy, rule=rule, lenience=lenience, details=details, **common)
    return _keeping(caches, steps, target, draft, ids) if caches else steps


def generate(
    pair: LoadedPair,
    prompt: str | list[dict] | Sequence[int],
    *,
    on_step: Callable[[Step], None] | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> Generation:
    """Decode one answer and return it with its raw counts and times.

    Args:
        pair: from :func:`harness.load_pair`.
        prompt: a string (chat template applied), a list of chat messages, or token ids.
        on_step: called after every round, e.g. to print as it goes; the time it takes counts in none of the answer's.
        stop: once set, the answer ends after the round under way, with ``finish`` ``stopped``.
        **settings: keyword arguments, all optional:
            ``drafter`` None (plain decoding), a name of :data:`harness.core.drafter_kinds.DRAFTERS` (``generic`` by default) or an object;
            ``k`` draft length, an int (the pair's own by default), ``dynamic``, ``auto`` or a policy object;
            ``rule`` ``match`` (default) or ``rejection``; ``temperature`` (default 0), ``top_p``, ``top_k``, ``min_p``;
            ``lenience`` above 1 is lossy and needs the rejection rule; ``max_tokens`` (default 256); ``seed`` (default 0);
            ``detailed`` True records :class:`~harness.core.records.Position` entries, a number
            that many target probabilities in each; ``loop`` ``own`` or ``mlx-lm``; ``options`` a
            :class:`DrafterOptions`; ``costs`` measured c and v for ``auto``;
            ``profile`` True records where the rounds' time goes (this project's loop only); ``logprobs`` a number puts the
            target's log-probabilities into each step, with that many of the most likely tokens; ``caches`` a
            :class:`~harness.decode.kept.KeptCaches` from which prompts that begin alike are read on; ``ignore_eos`` True goes
            on to ``max_tokens`` past end-of-sequence tokens, for load tests.

    Returns:
        A frozen :class:`~harness.core.records.Generation`. Greedy tokens equal plain decoding's.

    Raises:
        HarnessError: bad settings, a prompt longer than the context, a drafter the pair does not have.
    """
    ids = pair.encode(prompt)
    rounds = stream(pair, ids, **settings)
    steps: list[Step] = []
    ttft_s, start = 0.0, time.perf_counter()
    for step in rounds:
        if not steps:
            ttft_s = time.perf_counter() - start
        steps.append(step)
        if on_step:
            called = time.perf_counter()
            on_step(step)
            start += time.perf_counter() - called  # the caller's time is not the answer's
        if stop is not None and stop.is_set():
            break
    wall_s = time.perf_counter() - start
    rounds.close()  # type: ignore[attr-defined]  # caches are kept now, not when the generator is collected
    mx.synchronize()  # plain decoding may have one pass in flight after an end-of-sequence token
    drafter, k = settings.get("drafter", "generic"), _length(pair, settings.get("k"))
    emitted = sum(len(step.tokens) for step in steps)
    finish: Finish = "stopped" if stop is not None and stop.is_set() else ended(pair.context_tokens, len(ids), emitted)
    return _collect(pair, steps, ttft_s, wall_s, len(ids), drafter, k, settings, finish)


def _keeping(caches: KeptCaches, steps: Iterator[Step], target: CachedModel, draft: DraftModel | None, prompt: list[int]) -> Iterator[Step]:
    """The same steps; what target and draft have read is kept where they end, also when nobody asks for the rest."""
    context = list(prompt)
    for step in steps:
        context += step.tokens
        try:
            yield step
        except GeneratorExit:
            break
    caches.keep(TARGET, target, context[: min(target.offset, len(context) - 1)])
    if draft is not None:
        draft.keep(context)


def _collect(
    pair: LoadedPair,
    steps: list[Step],
    ttft_s: float,
    wall_s: float,
    prompt_tokens: int,
    drafter: Any,
    k: Any,
    settings: dict,
    finish: Finish,
) -> Generation:
    tokens = tuple(token for step in steps for token in step.tokens)
    plain = drafter is None
    draft_times, verify_times = _times([s.draft_s for s in steps]), _times([s.verify_s for s in steps])
    positions = tuple(p for step in steps for p in step.positions)
    profiles = [step.profile for step in steps if step.profile is not None]
    return Generation(
        tokens=tokens,
        text=pair.decode(tokens),
        finish="eos" if tokens[-1] in pair.eos_token_ids and not settings.get("ignore_eos") else finish,
        prompt_tokens=prompt_tokens,
        rounds=len(steps),
        drafted=sum(s.drafted for s in steps),
        accepted=sum(s.accepted for s in steps),
        rejected=sum(s.rejected for s in steps),
        accept_lengths=tuple(s.accepted for s in steps),
        draft_lengths=tuple(s.drafted for s in steps),
        prefill_s=_total(_times([s.prefill_s for s in steps])),
        ttft_s=ttft_s,
        draft_s=_total(draft_times),
        verify_s=_total(verify_times),
        wall_s=wall_s,
        drafter=None if plain else drafter if isinstance(drafter, str) else drafter.name,
        k=None if plain else k if isinstance(k, int | str) else type(k).__name__,
        lossy=settings.get("lenience", 1.0) > 1,
        positions=positions if settings.get("detailed") else None,
        profile=functools.reduce(operator.add, profiles) if profiles else None,
        sources=None if settings.get("loop") == "mlx-lm" else tuple(s.source for s in steps),
        draft_times_s=draft_times,
        verify_times_s=verify_times,
    )


def _times(times: list[float | None]) -> tuple[float, ...] | None:
    """Seconds per round; None unless every round has them."""
    known = [t for t in times if t is not None]
    return tuple(known) if len(known) == len(times) else None


def _total(times: tuple[float, ...] | None) -> float | None:
    return None if times is None else sum(times)


def _length(pair: LoadedPair, k: int | str | LengthPolicy | None) -> int | str | LengthPolicy:
    """What decides how far to draft: a policy object, or a number or name within its limits; the pair's own number for None."""
    if k is None:
        return pair_k(pair)
    return k if hasattr(k, "max_k") else draft_length(k)  # type: ignore[return-value]


def _check(rule: str, lenience: float, sampling: Sampling, loop: str, k: Any, detailed: bool) -> None:
    if rule not in ("match", "rejection"):
        raise HarnessError(f"unknown rule {rule!r}: {did_you_mean(str(rule), ['match', 'rejection'])}")
    if loop not in ("own", "mlx-lm"):
        raise HarnessError(f"unknown loop {loop!r}: {did_you_mean(str(loop), ['own', 'mlx-lm'])}")
    if lenience > 1 and (rule != "rejection" or sampling.greedy):
        raise HarnessError("lenience acts on the rejection rule only", "Add rule='rejection' and a temperature above 0.")
    if loop == "mlx-lm" and (not isinstance(k, int) or rule != "match" or detailed):
        raise HarnessError("mlx-lm's loop takes an integer k and rule match, and gives counts only", "Use loop='own' for anything else.")


def _full_vocabulary(drafter: Drafter) -> Any:
    if isinstance(drafter, TranslatedDrafter):
        raise HarnessError("mlx-lm's loop needs a draft with the target's tokenizer", "Use loop='own' for a draft that is translated.")
    if not isinstance(drafter, ModelDrafter) or isinstance(drafter, ParallelDrafter):
        raise HarnessError(f"mlx-lm's loop cannot use drafter {drafter.name!r}", "It takes a draft model: use 'generic' or 'early_exit'.")
    if isinstance(drafter.model, PrunedHead) and not drafter.model.own_head:
        return drafter.model.inner_model
    if drafter.token_map is not None:
        raise HarnessError("mlx-lm's loop needs a draft with the target's whole vocabulary", "Use loop='own' for a pruned draft.")
    return drafter.model
