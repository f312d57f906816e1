"""Making drafters for a pair: by name, with the options of those that have any."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.drafter_kinds import drafter_kind, no_parallel
from harness.core.errors import HarnessError
from harness.core.limits import COUNT, LOOKUP_NGRAM, Limit
from harness.core.paths import found_memory, found_parallel
from harness.core.protocols import LoadedDraft, LoadedPair
from harness.decode.cascade import CascadeDrafter
from harness.decode.drafters import Drafter, HybridDrafter, LookupDrafter, MemoryDrafter
from harness.decode.memory import pair_memory
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_drafter import ParallelDrafter, parallel_drafter
from harness.decode.suffix_counts import Walker
from harness.decode.translated import DraftModel, TranslatedDrafter
from harness.models.forward import EarlyExit, PrunedHead
from harness.models.opened import vocabulary_rows


@dataclass(frozen=True, kw_only=True)
class DrafterOptions:
    """Settings of the drafters that have any."""

    ngram: int = LOOKUP_NGRAM
    """Lookup: longest suffix to look up."""
    min_ngram: int = 2
    """Lookup: shortest suffix that may propose."""
    hybrid_ngram: int = 8
    """Hybrid: longest suffix to look up; a longer match is more often right."""
    hybrid_min_ngram: int = 3
    """Hybrid: shortest suffix for which lookup replaces the draft."""
    memory_ngram: int = 8
    """Memory: longest suffix to look up in the text so far."""
    memory_min_ngram: int = 2
    """Memory: shortest suffix to look up there."""
    memory_threshold: float = 0.15
    """Memory: a draft ends where the product of its tokens' shares falls below this."""
    layers: int | None = None
    """Early exit: layers of the target to keep; None takes a quarter."""
    draft: ModelDrafter | None = None
    """Stands for the pair's draft: that draft with an adapter."""
    vocab: int | tuple[int, ...] | None = None
    """Draft model: restrict the output head to these ids (see :func:`harness.models.forward.useful_vocab`), or to the first ``vocab``
    ids (byte-pair merges are ordered by frequency), and what stands in prompt and answer; None takes what the pair's file says."""

    def __post_init__(self) -> None:
        counts = ("ngram", "min_ngram", "hybrid_ngram", "hybrid_min_ngram", "memory_ngram", "memory_min_ngram", "layers")
        for name in counts if self.layers is not None else counts[:-1]:
            COUNT.check(name, getattr(self, name))
        if self.vocab is not None and (isinstance(self.vocab, int) or not self.vocab):
            COUNT.check("vocab", self.vocab)
        Limit(0, 1).check("memory_threshold", self.memory_threshold)
        for short, long in (("min_ngram", "ngram"), ("hybrid_min_ngram", "hybrid_ngram"), ("memory_min_ngram", "memory_ngram")):
            if getattr(self, short) > getattr(self, long):
                raise HarnessError(f"{short} is {getattr(self, short)}, {long} {getattr(self, long)}", f"Use a {short} of at most {long}.")


def resolve_drafter(pair: LoadedPair, drafter: str | Drafter, options: DrafterOptions | None = None) -> Drafter:
    """Turn a drafter's name into a drafter; an object that already is one passes through.

    Raises:
        HarnessError: unknown name, or the pair has no draft model.
    """
    found: Drafter = drafter_kind(drafter).create(pair, options or DrafterOptions()) if isinstance(drafter, str) else drafter
    model = getattr(found, "draft", found)
    if isinstance(model, ModelDrafter):
        model.fit(vocabulary_rows(pair.target))
    if isinstance(model, DraftModel) and (window := getattr(pair.config, "draft_context", None)) is not None:
        model.window = window
    return found


def around_draft(pair: LoadedPair, name: str, draft: ModelDrafter) -> Drafter:
    """The drafter called ``name`` around another draft than the pair's, such as one with an adapter.

    Raises:
        HarnessError: the drafter runs no draft, or the pair lacks what it needs.
    """
    if not drafter_kind(name).takes_draft:
        raise HarnessError(f"{name} runs no draft that an adapter could change", "Use it alone, or take hybrid, memory_hybrid or cascade.")
    return resolve_drafter(pair, name, DrafterOptions(draft=draft))


def lookup(pair: LoadedPair, options: DrafterOptions) -> LookupDrafter:
    """The drafter ``lookup``."""
    return LookupDrafter(options.ngram, options.min_ngram)


def early_exit(pair: LoadedPair, options: DrafterOptions) -> ModelDrafter:
    """The drafter ``early_exit``."""
    layers = options.layers or max(1, len(pair.target.layers) // 4)
    return ModelDrafter(EarlyExit(pair.target, layers), name="early_exit")


def hybrid(pair: LoadedPair, options: DrafterOptions) -> HybridDrafter:
    """The drafter ``hybrid``."""
    return HybridDrafter(LookupDrafter(options.hybrid_ngram, options.hybrid_min_ngram), generic(pair, options))


def memory(pair: LoadedPair, options: DrafterOptions) -> MemoryDrafter:
    """The drafter ``memory``.

    Raises:
        HarnessError: the pair has no memory, or one of another target.
    """
    return memory_drafter(pair_memory(pair).walker, options)


def memory_drafter(walker: Walker, options: DrafterOptions | None = None) -> MemoryDrafter:
    """The drafter ``memory`` over these counts."""
    options = options or DrafterOptions()
    return MemoryDrafter(walker, LookupDrafter(options.memory_ngram, options.memory_min_ngram), options.memory_threshold)


def memory_hybrid(pair: LoadedPair, options: DrafterOptions) -> HybridDrafter:
    """The drafter ``memory_hybrid``."""
    draft = generic(pair, options)
    return HybridDrafter(memory(pair, options), draft, name="memory_hybrid")


def cascade(pair: LoadedPair, options: DrafterOptions) -> CascadeDrafter:
    """The drafter ``cascade``, without a memory where the pair has none.

    Raises:
        HarnessError: the pair has no draft model, or a memory of another target.
    """
    draft = generic(pair, options)
    walker = pair_memory(pair).walker if found_memory(pair.name) else None
    return CascadeDrafter(LookupDrafter(options.memory_ngram, options.memory_min_ngram), walker, draft, vocabulary_rows(pair.target))


def parallel(pair: LoadedPair, options: DrafterOptions) -> ParallelDrafter:
    """The drafter ``parallel``.

    Raises:
        HarnessError: the pair has no draft model, no parallel adapter, or one of another draft.
    """
    draft = _pair_draft(pair)
    folder = found_parallel(pair.name)
    if folder is None:
        raise no_parallel(pair.name)
    return parallel_drafter(draft, folder)


def generic(pair: LoadedPair, options: DrafterOptions) -> DraftModel:
    """The drafter ``generic``, or what stands for it.

    Raises:
        HarnessError: the pair has no draft model, or ``vocab`` names no ids of it, or ids that are not its own.
    """
    if options.draft is not None:
        return options.draft
    draft = _pair_draft(pair)
    if draft.translation is not None:
        return _translated(pair, draft, options)
    if options.vocab is None or draft.token_map is not None:
        model, token_map = draft.proposer
        return ModelDrafter(model, token_map, name="generic")
    size = vocabulary_rows(draft.model)
    ids = sorted(set(range(min(options.vocab, size + 1)) if isinstance(options.vocab, int) else options.vocab))
    if len(ids) < 2 or ids[0] < 0 or ids[-1] >= size:
        raise HarnessError("the draft's output vocabulary has fewer than two ids or unknown ones", f"Give ids from 0 to {size - 1}.")
    return ModelDrafter(PrunedHead(draft.model, ids), name="generic")


def _pair_draft(pair: LoadedPair) -> LoadedDraft:
    """The pair's draft, its ids those of the target where it is not translated."""
    if pair.draft is None:
        raise HarnessError(
            f"pair {pair.name!r} has no draft model", "Use drafter='lookup' or 'early_exit', or name a draft in the pair's YAML."
        )
    pair.draft.fit(vocabulary_rows(pair.target))
    return pair.draft


def _translated(pair: LoadedPair, draft: LoadedDraft, options: DrafterOptions) -> TranslatedDrafter:
    """The draft of a pair with two tokenizers."""
    if options.vocab is not None:
        raise HarnessError("vocab names ids of the target, and the draft has a tokenizer of its own", "Leave vocab out.")
    rows, most = vocabulary_rows(pair.target), draft.context_tokens or pair.context_tokens
    return TranslatedDrafter(draft.model, draft.translation, rows=rows, context_tokens=most)
