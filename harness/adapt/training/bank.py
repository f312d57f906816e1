"""Adapter bank: several adapters for one draft, swapped under one of three policies, every swap timed.

Each policy builds modules from the draft's pristine layers, which are kept, so nothing drifts and leaving an adapter restores the draft
bit for bit. Key-value caches made before a swap belong to the old weights: start a new answer after it.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from harness.adapt.adapters.adapter_folder import AGAIN, CONFIG, load_into, read_info, read_lora, weights_hash
from harness.adapt.adapters.surface import attached, check_surface, embed, is_adapter, run_blocks
from harness.adapt.training_config import Policy
from harness.core import files
from harness.core.errors import HarnessError, did_you_mean
from harness.core.progress import noting
from harness.core.protocols import LoadedDraft
from harness.core.records import SCHEMA_VERSION, Trajectory
from harness.decode.cached import CachedModel
from harness.decode.forced import variant_passes
from harness.decode.model_drafter import ModelDrafter
from harness.decode.parallel_drafter import parallel_drafter
from harness.decode.replay import Pass, ReplayRow, model_passes, replay_row
from harness.models.forward import inner
from harness.models.mlx_names import mx, nn, tree_flatten, tree_unflatten
from harness.models.opened import hidden_states
from harness.models.parallel_masks import is_parallel, masked_draft

Modules = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Swap:
    """One change of adapter."""

    adapter: str | None
    """What is active afterwards; None is the plain draft."""
    policy: Policy
    """How."""
    swap_s: float
    """Seconds until the new weights were ready."""
    held_bytes: int
    """Memory of all adapter weights that the bank holds afterwards, beyond the draft's own."""
    hit: bool
    """True when nothing had to be built."""


class AdapterBank:
    """Adapters of one draft.

    Args:
        draft: :class:`harness.models.pair.Draft`; its model is changed in place and restored by ``activate(None)``.
        folders: adapter name -> folder.
        policy: ``fuse`` builds fused weights from the pristine ones at each swap and keeps one set; ``cached`` keeps fused sets within
            ``budget_bytes``, least recently used out first; ``unfused`` keeps only the small update matrices and adds them at run time.
        budget_bytes: memory for fused sets under ``cached``; the active one is always kept.

    Raises:
        HarnessError: an adapter is missing, damaged, or belongs to another draft.
    """

    def __init__(
        self,
        draft: LoadedDraft,
        folders: Mapping[str, Path],
        *,
        policy: Policy = "unfused",
        budget_bytes: int = 2_000_000_000,
    ) -> None:
        self.draft, self.policy, self.budget_bytes = draft, policy, budget_bytes
        self.infos = {name: read_info(Path(folder), draft.hash) for name, folder in folders.items()}
        self.swaps: list[Swap] = []
        self.active: str | None = None
        self._updates: dict[str, Modules] = {}
        self._built: OrderedDict[str, Modules] = OrderedDict()
        self._stamps: dict[str, tuple[str, str, str]] = {}
        self._ahead: dict[str, Path] = {}
        """Folders of the adapters that draft in parallel: they leave the draft as it is."""
        for name, folder in folders.items():
            self.put(name, Path(folder))

    @property
    def names(self) -> list[str]:
        """Adapter names."""
        return sorted(self._updates)

    def put(self, name: str, folder: Path) -> None:
        """Add an adapter, or replace the one of that name where its files changed; the plain draft is active after that.

        Raises:
            HarnessError: the adapter is missing, damaged, or belongs to another draft; the bank keeps what it had.
        """
        info = read_info(folder, self.draft.hash)
        stamp = _stamp(folder)
        if self._stamps.get(name) == stamp:
            return
        self._install(None)  # updates are built around the draft's own layers
        if is_parallel(folder):
            masked_draft(self.draft, folder)
            self._updates[name], self._ahead[name] = {}, folder
        else:
            self._updates[name] = updated_modules(self.draft.model, folder)
            self._ahead.pop(name, None)
        self._built.pop(name, None)
        self.infos[name], self._stamps[name] = info, stamp

    def activate(self, name: str | None) -> Swap:
        """Make an adapter active, None for the plain draft; the swap is recorded in ``swaps``.

        Raises:
            HarnessError: no adapter of that name.
        """
        if name is not None and name not in self._updates:
            raise HarnessError(f"no adapter {name!r}: {did_you_mean(name, self.names)}", "Train it with `harness train`.")
        began = time.perf_counter()
        hit = name == self.active or name is None or self.policy == "unfused" or name in self._built
        if name != self.active:
            self._install(name)
            self._evict()
        swap = Swap(adapter=name, policy=self.policy, swap_s=time.perf_counter() - began, held_bytes=self.held_bytes(), hit=hit)
        self.swaps.append(swap)
        return swap

    @property
    def ahead(self) -> list[str]:
        """Names of the adapters that draft in parallel."""
        return sorted(self._ahead)

    def drafter(self, name: str | None) -> ModelDrafter:
        """Return a drafter for :func:`harness.decode.generation.generate` that makes its adapter active when it is used."""
        if name in self._ahead:
            self._install(None)
            return parallel_drafter(self.draft, self._ahead[name], name)
        return AdapterDrafter(self, name)

    def states(self, tokens: mx.array, names: Sequence[str | None], depth: int) -> Iterator[mx.array]:
        """Yield normed hidden states (B, L, dim) of tokens (B, L) under each adapter, which stays active until the next.

        The first ``depth`` blocks, of :meth:`shared_blocks`, are run once for all of them.
        """
        model = self.draft.model
        below = run_blocks(model.layers[:depth], embed(model, tokens)) if depth else None
        for name in names:
            self.activate(name)
            yield hidden_states(model, tokens) if below is None else inner(model).norm(run_blocks(model.layers[depth:], below))

    def shared_blocks(self) -> int:
        """Number of blocks that no adapter of the bank changes; 0 where the draft cannot be run block by block."""
        lowest = min((int(path.split("layers.")[1].split(".")[0]) for m in self._updates.values() for path in m), default=0)
        if lowest:
            try:
                check_surface(self.draft.model)
            except HarnessError:
                return 0
        return lowest

    def held_bytes(self) -> int:
        """Memory of update matrices and fused sets."""
        updates = sum(_own_bytes(module) for modules in self._updates.values() for module in modules.values())
        return updates + sum(_set_bytes(modules) for modules in self._built.values())

    def _modules(self, name: str) -> Modules:
        if self.policy == "unfused":
            return self._updates[name]
        if name not in self._built:
            built = {path: fuse(module) for path, module in self._updates[name].items()}
            mx.eval([module.parameters() for module in built.values()])
            self._built[name] = built
        self._built.move_to_end(name)
        return self._built[name]

    def _install(self, name: str | None) -> None:
        """Put back the pristine layers, then those of the adapter."""
        pristine = {path: module.linear for path, module in self._updates[self.active].items()} if self.active is not None else {}
        modules = self._modules(name) if name is not None else {}
        for layers in (pristine, modules):
            if layers:
                self.draft.model.update_modules(tree_unflatten(list(layers.items())))
        self.active = name

    def _evict(self) -> None:
        if self.policy == "fuse":
            self._built = OrderedDict((n, m) for n, m in self._built.items() if n == self.active)
        while sum(_set_bytes(m) for m in self._built.values()) > self.budget_bytes:
            oldest = next((n for n in self._built if n != self.active), None)
            if oldest is None:
                return
            del self._built[oldest]


class AdapterDrafter(ModelDrafter):
    """The draft with one adapter of a bank.

    Args:
        bank: the bank.
        adapter: name; None is the plain draft, ``generic``.
    """

    def __init__(self, bank: AdapterBank, adapter: str | None) -> None:
        model, token_map = bank.draft.proposer
        super().__init__(model, token_map, name=adapter or "generic")
        self.bank, self.adapter = bank, adapter

    @property
    def model(self) -> Any:
        """The draft with the adapter made active: whatever asks for the model, an answer or a replay, gets this adapter."""
        if self.bank.active != self.adapter:
            self.bank.activate(self.adapter)
        return self._model


def _stamp(folder: Path) -> tuple[str, str, str]:
    """What tells one version of an adapter from another: where it lies and what its files hold."""
    return str(folder.resolve()), weights_hash(folder), files.sha256(folder / CONFIG, advice=AGAIN)


def updated_modules(model: Any, folder: Path) -> Modules:
    """Return path -> update module of an adapter, built around the model's own layers; the model is left as it was."""
    lora, weights = read_lora(folder)
    with attached(model, lora):
        load_into(model, weights, folder)
        modules = {path: module for path, module in model.named_modules() if is_adapter(module)}
        mx.eval([module.parameters() for module in modules.values()])
    for module in modules.values():
        module.eval()
    return modules


def fuse(module: Any) -> Any:
    """Return one plain layer in floating point, equal to the update module; its base stays untouched."""
    base = module.linear
    if "scales" in base and base.mode != "affine":  # those scales have no type to fuse in; bfloat16 would round the sum
        plain = nn.Linear(1, 1, bias=False)
        form = {"group_size": base.group_size, "bits": base.bits, "mode": base.mode, "dtype": module.lora_a.dtype}
        plain.weight = mx.dequantize(base.weight, base.scales, **form)
        if "bias" in base:
            plain.bias = base.bias
        module = copy.copy(module)
        module.linear = plain
    return module.fuse(dequantize=True)


def bank_passes(bank: AdapterBank, trajectories: Sequence[Trajectory], adapters: Iterable[str] | None = None) -> dict[str, Sequence[Pass]]:
    """What the plain draft (``generic``) and adapters of the bank say along each answer, every one where none are named.

    The plain draft is active afterwards.
    """
    chosen = bank.names if adapters is None else sorted(adapters)
    names = (None, *(name for name in chosen if name not in bank.ahead))
    progress = noting(len(trajectories), f"answers replayed with {len(names)} drafters")
    (model, token_map), depth = bank.draft.proposer, bank.shared_blocks()
    passes = variant_passes(model, token_map, trajectories, lambda tokens: bank.states(tokens, names, depth), progress=progress)
    bank.activate(None)
    said: dict[str, Sequence[Pass]] = {name or "generic": [own[at] for own in passes] for at, name in enumerate(names)}
    return said | {name: model_passes(bank.drafter(name), trajectories, progress=progress) for name in chosen if name in bank.ahead}


def replay_bank(
    bank: AdapterBank, trajectories: Sequence[Trajectory], ks: Iterable[int], adapters: Iterable[str] | None = None
) -> list[ReplayRow]:
    """Replay what :func:`bank_passes` reads, at every draft length."""
    said, ks = bank_passes(bank, trajectories, adapters), list(ks)
    return [replay_row(name, t, own, k) for name, found in said.items() for t, own in zip(trajectories, found, strict=True) for k in ks]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What a file of replayed rows holds."""

    rows: tuple[ReplayRow, ...]


def kept_rows(path: Path, replay: Callable[[], Sequence[ReplayRow]]) -> Sequence[ReplayRow]:
    """The rows in ``path``; those of ``replay``, which are left there, where it does not exist."""
    if path.is_file():
        kept: _Kept = files.read_stored(_Kept, path, advice="Delete it.")
        return kept.rows
    rows = tuple(replay())
    files.write_atomic(path, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(_Kept(rows=rows))}))
    return rows


@dataclass(frozen=True, kw_only=True)
class SwapRow:
    """What one policy of the adapter bank costs."""

    policy: str
    """``fuse``, ``cached`` or ``unfused``."""
    swap_s: float
    """Median seconds of a swap to another adapter, after every adapter was active once."""
    held_bytes: int
    """Memory of all adapter weights held, beyond the draft's own."""
    step_ratio: float
    """Draft step with an adapter active over the plain draft's step."""


def swap_costs(draft: LoadedDraft, folders: Mapping[str, Path], *, cycles: int = 3) -> list[SwapRow]:
    """Measure the three policies on the same adapters; the plain draft is active afterwards.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        folders: adapter name -> folder, at least one.
        cycles: times that every adapter is made active.
    """
    rows = []
    for policy in get_args(Policy):
        bank = AdapterBank(draft, folders, policy=policy)
        for name in bank.names:
            bank.activate(name)
        swaps: list[float] = []
        steps: dict[bool, list[float]] = {False: [], True: []}
        for name in bank.names * cycles:
            bank.activate(None)
            steps[False].append(_step_s(draft.model))
            swaps.append(bank.activate(name).swap_s)
            steps[True].append(_step_s(draft.model))
        ratio = statistics.median(steps[True]) / statistics.median(steps[False])
        rows.append(SwapRow(policy=policy, swap_s=statistics.median(swaps), held_bytes=bank.held_bytes(), step_ratio=ratio))
        bank.activate(None)
    return rows


def _step_s(model: Any) -> float:
    """Seconds of a one-token step after eight tokens of context; the faster of two."""
    cached = CachedModel(model)
    cached.prefill(list(range(1, 9)))
    times = []
    for token in (9, 10, 11):
        began = time.perf_counter()
        mx.eval(mx.argmax(cached.forward(mx.array([token], dtype=mx.int32)), axis=-1))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _own_bytes(module: Any) -> int:
    """Memory of an update module without its base."""
    return sum(array.nbytes for name, array in tree_flatten(module.parameters()) if not name.startswith("linear."))


def _set_bytes(modules: Modules) -> int:
    return sum(array.nbytes for module in modules.values() for _, array in tree_flatten(module.parameters()))
