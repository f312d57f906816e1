"""Parallel drafting: learned masks stand for the tokens that a draft does not know yet, and one pass over them proposes them all.

A folder of kind ``parallel`` holds the masks, an embedding each, and a LoRA for the draft's linear layers that acts at the masks alone.
Masks stand behind every real token, so by causality a real position is what it is without them, and the first proposal is the draft's
own.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.protocols import LoadedDraft
from harness.models.blas import mx, nn
from harness.models.opened import open_model, refusal
from harness.models.tensors import load_arrays

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
"""Files of the folder, named as an adapter's."""
KIND: Literal["parallel"] = "parallel"
MASKS = "masks"
"""Name of the masks among the arrays; the others are ``<linear layer>.lora_a`` and ``.lora_b``."""
AGAIN = "Make it again: `harness train --parallel K`."


@dataclass(frozen=True, kw_only=True)
class MaskInfo:
    """What ``adapter_config.json`` of the folder says."""

    fine_tune_type: Literal["parallel"] = KIND
    """Kind of the folder."""
    draft_hash: str
    """Draft it was trained for."""
    masks: int
    """How many there are: a pass proposes one token more."""
    scale: float
    """Factor of the LoRA."""


class Gate:
    """How many of the last positions of a call are masks: 0 but inside :meth:`of`."""

    def __init__(self) -> None:
        self.masks = 0

    @contextmanager
    def of(self, masks: int) -> Iterator[None]:
        """Calls made inside end with ``masks`` masks; what stands there in their token ids is not read."""
        self.masks = masks
        try:
            yield
        finally:
            self.masks = 0


class _Masked:
    """An embedding that gives the masks' own vectors at the last positions."""

    def __call__(self, ids: mx.array) -> mx.array:
        found: mx.array = super().__call__(ids)  # type: ignore[misc]
        gate, masks = self._parallel  # type: ignore[attr-defined]
        if not gate.masks:
            return found
        own = mx.broadcast_to(masks[: gate.masks], (*found.shape[:-2], gate.masks, found.shape[-1]))
        return _behind(found, own.astype(found.dtype))


class _Gated:
    """A linear layer, plain or quantised, whose LoRA acts at the last positions."""

    def __call__(self, x: mx.array) -> mx.array:
        found: mx.array = super().__call__(x)  # type: ignore[misc]
        gate, a, b = self._parallel  # type: ignore[attr-defined]
        if not gate.masks:
            return found
        added = (x[..., -gate.masks :, :] @ a) @ b
        return _behind(found, found[..., -gate.masks :, :] + added.astype(found.dtype))


def _behind(found: mx.array, own: mx.array) -> mx.array:
    """``found`` (..., n, dim) with its last positions replaced by ``own`` (..., m, dim)."""
    rest = found.shape[-2] - own.shape[-2]
    return mx.concatenate([found[..., :rest, :], own], axis=-2) if rest else own


@functools.cache
def _kind(mixin: type, base: type) -> type:
    return type(f"{mixin.__name__.strip('_')}{base.__name__}", (mixin, base), {})


@dataclass(frozen=True)
class MaskedDraft:
    """A draft that can end its calls with masks; beside the masks and the LoRA it shares every weight with the plain one."""

    draft: LoadedDraft
    """``draft.proposer`` drafts as usual."""
    gate: Gate
    masks: int
    """Most masks of a call."""
    layers: Mapping[str, nn.Module]
    """What differs from the plain one: the linear layers by name, and the embedding as :data:`MASKS`."""
    dtype: mx.Dtype
    """Number format of the draft."""

    def put(self, arrays: Mapping[str, mx.array], scale: float) -> None:
        """Run with other masks and another LoRA of the same shapes from now on, also those that a gradient is taken by."""
        for name, layer in self.layers.items():
            own = [arrays[MASKS]] if name == MASKS else [arrays[f"{name}.lora_a"], scale * arrays[f"{name}.lora_b"]]
            layer._parallel = (self.gate, *(array.astype(self.dtype) for array in own))  # a tuple is no parameter


def with_masks(draft: LoadedDraft, arrays: Mapping[str, mx.array], scale: float) -> MaskedDraft:
    """A copy of a draft that takes masks.

    Args:
        draft: its own model stays as it is, and shares its weights.
        arrays: ``masks`` (m, dim), and per linear layer ``<name>.lora_a`` (in, rank) and ``<name>.lora_b`` (rank, out).
        scale: factor of the LoRA.

    Raises:
        HarnessError: a draft whose cache does more than keep keys and values, one that cannot be opened, or arrays that do not fit.
    """
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    opened = open_model(draft.model)
    if opened is None or any(type(cache) is not KVCache for cache in make_prompt_cache(draft.model)):
        raise refusal(draft.model, "parallel drafting")
    names = {name.rpartition(".")[0] for name in arrays if name != MASKS}
    modules = dict(draft.model.named_modules())
    for name in names:
        if not _fits(modules.get(name), arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"]):
            raise _misfit(name)
    embedding = next(name for name, module in modules.items() if module is opened.embedding)
    if arrays[MASKS].shape[-1] != opened.embedding(mx.zeros((1, 1), dtype=mx.int32)).shape[-1]:
        raise _misfit(MASKS)
    layers = {name: _changed(modules[name], _Gated) for name in names} | {MASKS: _changed(modules[embedding], _Masked)}
    replaced = {embedding if name == MASKS else name: layer for name, layer in layers.items()}
    model = _copied(draft.model, lambda name, module: replaced.get(name, module))
    dtype = draft.model(mx.zeros((1, 1), dtype=mx.int32)).dtype
    masked = MaskedDraft(draft.with_model(model), Gate(), len(arrays[MASKS]), layers, dtype)
    masked.put(arrays, scale)
    mx.eval([layer._parallel[1:] for layer in layers.values()])
    open_model(model)  # known before any call has masks
    return masked


def _changed(module: nn.Module, mixin: type) -> nn.Module:
    """The same layer with the same weights, called as ``mixin`` does."""
    changed = copy.copy(module)
    base: Any = type(module)
    changed.__class__ = _kind(mixin, base)
    return changed


def _copied(module: nn.Module, choose: Callable[[str, nn.Module], nn.Module], name: str = "") -> nn.Module:
    """A model of copied modules over the same arrays; ``choose`` says what stands in the place of each."""
    chosen = choose(name, module)
    if chosen is not module:
        return chosen
    fresh = copy.copy(module)
    for key, child in module.items():
        at = f"{name}.{key}" if name else key
        if isinstance(child, nn.Module):
            fresh[key] = _copied(child, choose, at)
        elif isinstance(child, list):
            fresh[key] = [_copied(c, choose, f"{at}.{i}") if isinstance(c, nn.Module) else c for i, c in enumerate(child)]
    return fresh


def _fits(module: Any, a: mx.array, b: mx.array) -> bool:
    if not isinstance(module, nn.Linear | nn.QuantizedLinear):
        return False
    try:
        return bool(a.shape[1] == b.shape[0] and module(mx.zeros((1, a.shape[0]), dtype=a.dtype)).shape[-1] == b.shape[1])
    except ValueError:  # other inputs
        return False


def _misfit(name: str) -> HarnessError:
    return HarnessError(f"the parallel adapter does not fit the draft at {name}", "Use it with the draft it was trained on.")


def is_parallel(folder: Path) -> bool:
    """Whether an adapter folder is of this kind."""
    path = folder / CONFIG
    return path.is_file() and files.read_json(path, advice=AGAIN).get("fine_tune_type") == KIND


def read_masks(folder: Path, draft_hash: str) -> tuple[MaskInfo, dict[str, mx.array]]:
    """What a folder of this kind holds, for :func:`with_masks`.

    Raises:
        HarnessError: missing or damaged files, or another draft's.
    """
    path = folder / CONFIG
    data = files.read_json(path, advice=AGAIN)
    known = {name: value for name, value in data.items() if name in MaskInfo.__dataclass_fields__}
    info: MaskInfo = files.typed(MaskInfo, known, str(path), advice=AGAIN)
    if info.draft_hash != draft_hash:
        raise HarnessError(
            f"the parallel adapter in {folder} belongs to another draft ({info.draft_hash[:12]!a}, not {draft_hash[:12]})",
            "Use it with its own draft, or train one for this: `harness train --parallel K`.",
        )
    arrays = load_arrays(folder / WEIGHTS, finite=True, advice=AGAIN)[0]
    pairs = {name.rpartition(".")[0] for name in arrays if name != MASKS}
    whole = {MASKS, *(f"{name}.lora_{part}" for name in pairs for part in "ab")}
    if arrays.keys() != whole or arrays[MASKS].ndim != 2 or len(arrays[MASKS]) != info.masks or info.masks < 1:
        raise HarnessError(f"{folder / WEIGHTS} does not hold {info.masks} masks and a LoRA", AGAIN)
    if any(array.ndim != 2 for array in arrays.values()):
        raise HarnessError(f"{folder / WEIGHTS} holds something else than matrices", AGAIN)
    return info, arrays


_MADE: dict[int, dict[Path, tuple[str, MaskedDraft]]] = {}
"""Masked drafts by the id of the draft and by folder, with the hash of the weights; forgotten with the draft."""


def masked_draft(draft: LoadedDraft, folder: Path) -> MaskedDraft:
    """The draft with the masks of a folder; made once per draft and content of the folder.

    Raises:
        HarnessError: as :func:`read_masks` and :func:`with_masks`.
    """
    if id(draft) not in _MADE:
        weakref.finalize(draft, _MADE.pop, id(draft), None)
    stamp = "|".join((files.sha256(folder / WEIGHTS, advice=AGAIN), files.sha256(folder / CONFIG, advice=AGAIN), str(draft.target_rows)))
    known = _MADE.setdefault(id(draft), {})
    if folder not in known or known[folder][0] != stamp:
        info, arrays = read_masks(folder, draft.hash)
        known[folder] = (stamp, with_masks(draft, arrays, info.scale))
    return known[folder][1]
