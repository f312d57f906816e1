"""The adapters at hand: what each is, what uses it, what it was trained on, putting one in from elsewhere, taking one away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.adapt.adapters.adapter_folder import (
    METADATA,
    AdapterInfo,
    adapter_folder,
    read_info,
    read_prompts,
    weights_hash,
    weights_path,
)
from harness.adapt.adapters.names import adaptable, built_in, installed
from harness.core import journal, paths
from harness.core.errors import HarnessError, did_you_mean
from harness.core.paths import PARALLEL, cache_dir
from harness.core.protocols import LoadedPair
from harness.core.records import Sample
from harness.datasets.splits import leaks, prompt_digest

if TYPE_CHECKING:
    from harness.core.stats import Estimate

ROUNDS = "rounds.json"
"""Records of the training rounds, beside an adapter or in the folder that `harness train` works in."""
FAILURES = "failures.jsonl"
"""What the draft was wrong on in these rounds."""


@dataclass(frozen=True, kw_only=True)
class Shelved:
    """One adapter, installed or of the package."""

    pair: str
    """Pair it is installed for."""
    name: str
    """Name of its folder, by which commands know it."""
    folder: Path
    shipped: bool
    """Whether it comes with the package."""
    info: AdapterInfo
    """What its metadata says."""
    sha256: str
    """Of its weights."""
    size_bytes: int
    """All files of its folder, those of its training too."""
    gain: Estimate | None
    """Rise of the validation metric in its last kept round, with its interval; None where no record says."""
    used_by: tuple[str, ...]
    """What refers to it: the pair's router, sessions."""


def shelved(pair: str) -> list[Shelved]:
    """Adapters of a pair, by name: installed ones, and those that come with the package.

    Raises:
        HarnessError: one of them is damaged.
    """
    return [look_at(pair, name, folder) for name, folder in sorted(installed(pair).items())]


def pairs_with_adapters() -> list[str]:
    """Names of the pairs that have any adapter on this machine, or one that comes with the package."""
    roots = (cache_dir() / "adapters", paths.SHIPPED_ADAPTERS)
    return sorted({path.parent.parent.name for root in roots for path in root.glob(f"*/*/{METADATA}")})


def look_at(pair: str, name: str, folder: Path) -> Shelved:
    """All that is known of one adapter.

    Raises:
        HarnessError: its files cannot be read.
    """
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return Shelved(
        pair=pair, name=name, folder=folder, shipped=paths.SHIPPED_ADAPTERS in folder.parents, info=read_info(folder),
        sha256=weights_hash(folder), size_bytes=size, gain=_gain(folder), used_by=tuple(_users(pair, name)),
    )  # fmt: skip


def find(pair: str, name: str) -> Path:
    """Folder of an installed adapter.

    Raises:
        HarnessError: no such adapter; names the nearest.
    """
    known = installed(pair)
    if name not in known:
        raise HarnessError(f"no adapter {name!r} for pair {pair!r}: {did_you_mean(name, list(known))}", "See `harness adapters list`.")
    return known[name]


def trained_on(folder: Path) -> list[Sample]:
    """Prompts that an adapter was trained on, as far as its folder knows: those its draft was wrong on. None for one from elsewhere.

    Raises:
        HarnessError: a line of them cannot be read.
    """
    from harness.adapt.training.failures import case_from_dict

    rows = [(path, row) for path in sorted(folder.rglob(FAILURES)) for row in journal.read(path)]
    cases = [case_from_dict(row, str(path)) for path, row in rows]
    return [Sample(id=case.sample_id, domain=case.domain, prompt=case.prompt, split="train") for case in cases]


def seen_prompts(folder: Path, samples: Sequence[Sample]) -> list[str]:
    """Ids of the samples that an adapter was trained on, as far as its folder knows, or on prompts near them.

    Raises:
        HarnessError: as :func:`trained_on`.
    """
    digests, near = read_prompts(folder), {id_ for _, id_ in leaks(trained_on(folder), samples)}
    return [s.id for s in samples if s.id in near or prompt_digest(s.prompt) in digests]


def refuse_seen(name: str, folder: Path, samples: Sequence[Sample]) -> None:
    """Refuse an adapter for the prompts that it was trained on.

    Raises:
        HarnessError: names one of them.
    """
    if seen := seen_prompts(folder, samples):
        raise HarnessError(
            f"adapter {name!r} was trained on {len(seen)} of these prompts, or on near-copies, such as {seen[0]}",
            "Evaluate on the test split, or with an adapter that does not know these prompts.",
        )


def put_in(pair: LoadedPair, source: Path, name: str, *, domain: str | None = None, replace: bool = False) -> Path:
    """Install an adapter folder of this project or of PEFT for a pair's draft.

    Args:
        pair: loaded pair with a draft.
        source: the folder.
        name: what to call it here.
        domain: domain to note, for a PEFT folder, which does not say.
        replace: take the place of an adapter of that name.

    Raises:
        HarnessError: a name that is taken or means something else, a folder that is neither, options that are not understood, or
            weights that do not fit the draft.
    """
    from harness.adapt.adapters.peft import import_peft
    from harness.adapt.training.bank import updated_modules
    from harness.adapt.training.rounds import install
    from harness.models.parallel_masks import is_parallel, masked_draft

    place = free_place(pair.name, name, replace=replace)
    draft = adaptable(pair)
    if name == PARALLEL and not is_parallel(source):
        raise HarnessError(f"{source} holds no parallel adapter, and {name!r} is the drafter that runs one", "Choose another --name.")
    if not (os.path.lexists(source / METADATA) and os.path.lexists(weights_path(source))):
        part = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            import_peft(source, part, draft, name=name, domain=domain)
            return install(part, place, name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    read_info(source, draft.hash)
    if is_parallel(source):
        masked_draft(draft, source)
    else:
        updated_modules(draft.model, source)
    return install(source, place, name)


def free_place(pair: str, name: str, *, replace: bool = False) -> Path:
    """Folder for a new adapter of that name.

    Raises:
        HarnessError: the name is no usable one, or is taken.
    """
    place = adapter_folder(pair, name)
    if built_in(name) and name != PARALLEL:
        raise HarnessError(f"{name!r} is a drafter's own name", "Choose another --name.")
    if os.path.lexists(place / METADATA) and not replace:
        raise HarnessError(f"pair {pair!r} has an adapter {name!r}", "Choose another --name, or take its place with --replace.")
    return place


def take_away(folder: Path) -> None:
    """Delete an installed adapter with everything its training left in its folder; the metadata first, so that no part of it is found."""
    (folder / METADATA).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _gain(folder: Path) -> Estimate | None:
    """From the round record that names these weights' last kept round."""
    from harness.adapt.training.rounds import read_rounds

    kept = [record for place in (folder, folder / "rounds") for record in read_rounds(place / ROUNDS) if record.accepted]
    return kept[-1].gain if kept else None


def _users(pair: str, name: str) -> list[str]:
    found = []
    if name in _routed(pair):
        found.append("router")
    sessions = cache_dir() / "sessions" / pair
    found += [f"session {path.name}" for path in sorted(sessions.glob(f"{name}-*")) if path.name.rpartition("-")[0] == name]
    return found


def _routed(pair: str) -> Mapping[str, str]:
    """Adapter name -> hash of the pair's router; empty where there is none that can be read."""
    from harness.adapt.routers.routed import router_path
    from routing.persist import adapters_of
    from routing.routing_error import RoutingError

    try:
        return adapters_of(router_path(pair)) if router_path(pair).is_file() else {}
    except RoutingError:
        return {}
