"""A pair as a worker finds it: the name it loads it by, and the hashes it must then have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import HarnessError
from harness.core.lock import wait_for_lock
from harness.core.paths import cache_dir
from harness.models.head_config import read_head_config

if TYPE_CHECKING:
    from harness.core.protocols import LoadedPair

LOADING = "loading.lock"
"""In the locks of the cache: held by the worker that loads."""


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """A pair by name and content. Every machine finds or fetches the models itself."""

    models: str
    """As ``--models`` takes it."""
    offline: bool = False
    """Use only what is in that machine's cache."""
    target_hash: str
    draft_hash: str | None = None
    """None: the draft is not needed."""
    draft_vocab: str | None = None
    draft_context: int | None = None
    """What the draft reads of a long prompt, where that is not the pair's own."""
    head: str | None = None
    """SHA-256 of the pair's head, where it has one."""


def spec_of(pair: LoadedPair, models: str, *, offline: bool = False, draft_context: int | None = None) -> PairSpec:
    """A pair that is open here, for workers that load it by the name ``models``."""
    facts = {} if pair.draft is None else {"draft_hash": pair.draft.hash, "draft_vocab": pair.draft.vocab_hash}
    folder = getattr(pair, "head_folder", None)
    head = None if folder is None else read_head_config(folder).sha256
    return PairSpec(models=models, offline=offline, target_hash=pair.target_hash, draft_context=draft_context, head=head, **facts)


def load_spec(spec: PairSpec) -> Any:
    """Load the pair on this machine, after those of its workers that are loading one: each then sees the room that is left.

    Raises:
        HarnessError: it is not found here, takes more memory than is free, or its weights are others than the client's.
    """
    from harness.models.pair import load_pair

    with wait_for_lock(cache_dir() / "locks" / LOADING):
        check_room(spec)
        pair = load_pair(spec.models, offline=spec.offline, draft=spec.draft_hash is not None, draft_context=spec.draft_context)
    found = spec_of(pair, spec.models)
    for name in ("target_hash", "draft_hash", "draft_vocab", "head"):
        here, there = getattr(found, name), getattr(spec, name)
        if here != there:
            raise HarnessError(
                f"{name.replace('_', ' ')} of {spec.models!r} is {str(here)[:16]} there and {str(there)[:16]} here",
                "Put the same model files on both machines.",
            )
    return pair


def check_room(spec: PairSpec, processes: int = 1) -> None:
    """Refuse models that do not fit into this machine's free memory, once for each of its processes that will load them.

    Raises:
        HarnessError: they do not.
    """
    import psutil

    from harness.models.blas import mx
    from harness.models.fetching import show_progress
    from harness.models.naming import find_pair
    from harness.models.size import loaded_bytes
    from harness.models.weights import locate

    if mx.default_device() != mx.cpu:  # a device says itself when it is full
        return
    named = find_pair(spec.models)
    wanted = [named.config.target, *([named.config.draft] if spec.draft_hash and named.config.draft else [])]
    with show_progress(None) as report:
        folders = [locate(model, named.base, offline=spec.offline, progress=report) for model in wanted]
    need = sum(loaded_bytes(folder.path, named.config.dtype) for folder in folders if folder is not None)
    free = psutil.virtual_memory().available
    if need * processes > free:
        times = f"{processes} times " if processes > 1 else ""
        raise HarnessError(
            f"the models of {spec.models!r} take {times}{need / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free",
            "Start fewer workers on that machine, or use a smaller pair.",
        )
