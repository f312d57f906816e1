"""Training prompts that the target writes itself, sampled from the user turn of its chat template (Magpie, arXiv 2406.08464)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from harness.adapt.training_config import SynthConfig
from harness.answers.collect import default_decoder
from harness.answers.rollout import Decoder
from harness.core.errors import HarnessError
from harness.core.progress import note
from harness.core.protocols import LoadedPair
from harness.core.records import Sample
from harness.datasets.splits import leaks, near_duplicates, normalise

SOURCE = "synthetic"
"""``Sample.source`` of prompts made here."""
_MARK = "@@user-turn@@"
SYSTEM = {
    "code": "You help a programmer who asks for short Python functions.",
    "math": "You help a pupil who asks word problems with numbers.",
    "chat": "You help a person with everyday questions.",
    "structured": "You turn text into JSON, tables and lists on request.",
}
"""System turn that steers the prompts towards a domain."""


def synthesise(
    pair: LoadedPair,
    count: int,
    *,
    domain: str,
    config: SynthConfig,
    known: Sequence[Sample] = (),
    evaluation: Sequence[Sample] = (),
    seed: int = 0,
    decoder: Decoder | None = None,
    rows: int = 128,
) -> list[Sample]:
    """Let the target write ``count`` new user turns.

    Sampling stops at twelve times the work that would be needed if every sample were usable; fewer prompts may come back.

    Args:
        pair: loaded pair with a chat template.
        count: prompts wanted.
        domain: domain of the samples.
        config: sampling and filters.
        known: training prompts that must not be repeated.
        evaluation: prompts that must not leak; near-duplicates of them are dropped.
        seed: makes the prompts repeatable.
        decoder: how a batch is decoded; as in :func:`harness.answers.collect.collect` by default.
        rows: most prompts sampled together.

    Raises:
        HarnessError: the tokenizer has no chat template, or the template hides the user turn.
    """
    if count < 1:
        return []
    prefix = user_turn_prefix(pair, SYSTEM.get(domain))
    decode = decoder or default_decoder(pair)
    samples: list[Sample] = []
    rows = min(rows, 2 * count)  # about half of them are usable
    for batch in range(-(-count // rows) * 12):
        rollouts = decode(
            [prefix] * rows,
            max_tokens=config.max_prompt_tokens,
            temperature=config.temperature,
            top_k=1,
            seed=_batch_seed(seed, domain, batch),
        )
        ended = [r.tokens for r in rollouts if r.tokens and r.tokens[-1] in pair.eos_token_ids]
        texts = [pair.decode(tokens).strip() for tokens in ended]
        fresh = [_sample(text, domain) for text in texts if len(text.split()) >= config.min_words]
        samples = _distinct([*known, *samples], fresh, samples, config.similarity, evaluation)
        if len(samples) >= count:
            break
        note(f"  {len(samples)} of {count} prompts")
    return samples[:count]


def user_turn_prefix(pair: LoadedPair, system: str | None) -> list[int]:
    """Return the ids of the chat template up to where the user's text begins."""
    if not pair.tokenizer.has_chat_template:
        raise HarnessError(f"{pair.name!r} has no chat template to sample prompts from", "Give more training prompts instead.")
    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": _MARK}]
    text = pair.render(messages, add_generation_prompt=False)
    prefix, mark, _ = text.partition(_MARK)
    if not mark or not prefix:
        raise HarnessError(f"the chat template of {pair.name!r} hides the user turn", "Give more training prompts instead.")
    return list(pair.tokenizer.encode(prefix, add_special_tokens=False))


def _distinct(
    taken: Sequence[Sample], fresh: Sequence[Sample], samples: Sequence[Sample], similarity: float, evaluation: Sequence[Sample]
) -> list[Sample]:
    """Return ``samples`` and those of ``fresh`` that repeat nothing taken, each other or an evaluation prompt."""
    everything = [*taken, *fresh]
    dropped = {j for _, j in near_duplicates([s.prompt for s in everything], similarity) if j >= len(taken)}
    kept = [s for j, s in enumerate(everything) if j >= len(taken) and j not in dropped]
    leaking = {train for train, _ in leaks(kept, evaluation)} if evaluation else set()
    while leaking:
        kept = [s for s in kept if s.id not in leaking]
        leaking = {train for train, _ in leaks(kept, evaluation)}
    return [*samples, *kept]


def _sample(text: str, domain: str) -> Sample:
    digest = hashlib.sha256(normalise(text).encode()).hexdigest()[:12]
    return Sample(id=f"{SOURCE}/{domain}/{digest}", domain=domain, prompt=text, source=SOURCE, split="train")


def _batch_seed(seed: int, domain: str, batch: int) -> int:
    return int(hashlib.sha256(f"{seed}|{domain}|{batch}".encode()).hexdigest()[:8], 16)
