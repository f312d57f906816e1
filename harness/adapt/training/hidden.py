"""Frozen-prefix cache: hidden states below the lowest trained block, computed once per example and kept on disk.

Each example is run alone, so its states do not depend on the batch it was met in, and a resumed run sees the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from harness.adapt.adapters.surface import adapted_layers, embed, run_blocks
from harness.adapt.training.examples import Batch, Example
from harness.adapt.training_config import TrainingConfig
from harness.core.files import write_atomic
from harness.core.paths import cache_dir
from harness.core.protocols import LoadedDraft
from harness.models.blas import blas_name
from harness.models.cache_key import cache_key
from harness.models.mlx_names import mx

FLOAT16_LIMIT = 60_000.0
"""Examples with larger activations are kept in float32."""


class Tokens(Protocol):
    """What states belong to."""

    @property
    def tokens(self) -> np.ndarray:
        """(n,) int32, prompt then answer."""

    @property
    def key(self) -> str:
        """Hash of the token ids."""


class PrefixCache:
    """Hidden states after the first ``depth`` blocks.

    Args:
        model: the draft, without or with updates above ``depth``.
        depth: frozen blocks; 0 needs no cache (an embedding lookup).
        folder: where the states are kept; None keeps nothing on disk.
        model_hash: identifies the draft's weights.
        dtype: storage type.
        budget_bytes: most disk space for this draft and depth.
        compute: (n,) tokens -> (n, dim) states, in place of ``model``'s own.
    """

    def __init__(
        self,
        model: Any,
        depth: int,
        *,
        folder: Path | None,
        model_hash: str,
        dtype: Literal["float16", "float32"] = "float16",
        budget_bytes: int = 20_000_000_000,
        compute: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._below = compute or self._run
        self.model, self.depth, self.dtype = model, depth, np.dtype(dtype)
        name = hashlib.sha256(f"{model_hash}|{depth}|{dtype}".encode()).hexdigest()[:24]
        self.folder = folder / name if folder is not None and depth > 0 else None
        self.free_bytes = budget_bytes - _size(self.folder)
        self.hits = self.misses = 0

    def batch(self, batch: Batch) -> mx.array:
        """Return the states of a batch, (B, L, dim) in the model's dtype, zeros after each example's end."""
        if self.depth == 0:
            return embed(self.model, mx.array(batch.tokens))
        return mx.array(self.padded(batch)).astype(embed(self.model, mx.array([[0]])).dtype)

    def padded(self, batch: Batch) -> np.ndarray:
        """The same as stored, for a ``depth`` above 0."""
        states = [self.states(example) for example in batch.examples]
        out = np.zeros((len(states), batch.tokens.shape[1], states[0].shape[1]), dtype=np.result_type(*states))
        for row, state in zip(out, states, strict=True):
            row[: len(state)] = state
        return out

    def states(self, example: Tokens) -> np.ndarray:
        """Return (n - 1, dim) states that predict tokens 1..n-1 of the example."""
        path = self.folder / f"{example.key}.npy" if self.folder is not None else None
        found = _read(path, len(example.tokens) - 1) if path is not None else None
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        states = self._compute(example)
        if path is not None and states.nbytes <= self.free_bytes:
            _write(path, states)
            self.free_bytes -= states.nbytes
        return states

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        hidden = embed(self.model, mx.array(tokens[None]))
        return np.array(run_blocks(list(self.model.layers[: self.depth]), hidden)[0].astype(mx.float32))

    def _compute(self, example: Tokens) -> np.ndarray:
        states = self._below(example.tokens[:-1])
        return states if np.abs(states).max() > FLOAT16_LIMIT else states.astype(self.dtype)


def prefix_cache(
    draft: LoadedDraft,
    config: TrainingConfig,
    folder: Path | None,
    compute: Callable[[np.ndarray], np.ndarray] | None = None,
    variant: str = "",
) -> PrefixCache:
    """The cache that training with ``config`` reads: states below the lowest trained block, or none where it is switched off.

    Its address changes with the draft, this package's sources, the packages that compute and the library that multiplies.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        config: which blocks are trained, and how states are stored.
        folder: where they are kept; None is the user's cache.
        compute: another way to them, see :class:`PrefixCache`.
        variant: names it: its states are kept apart.
    """
    depth = len(draft.model.layers) - adapted_layers(draft.model, config.lora) if config.cache.enabled else 0
    return PrefixCache(
        draft.model,
        depth,
        folder=folder or cache_dir() / "hidden",
        model_hash=cache_key(kind="hidden", draft=draft.hash + variant, blas=blas_name()),
        dtype=config.cache.dtype,
        budget_bytes=config.cache.budget_bytes,
        compute=compute,
    )


def fill(cache: PrefixCache, examples: Sequence[Example]) -> int:
    """Compute the states of all examples that are not on disk; return how many were computed."""
    before = cache.misses
    if cache.folder is not None:
        for example in examples:
            cache.states(example)
    return cache.misses - before


def _size(folder: Path | None) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.npy")) if folder is not None and folder.is_dir() else 0


def _read(path: Path, length: int) -> np.ndarray | None:
    """Memory-map the states; None when absent, damaged or of another length."""
    try:
        states: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return states if states.ndim == 2 and len(states) == length else None


def _write(path: Path, states: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, states, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
