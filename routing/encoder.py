"""Text -> vector: a sentence-transformers model behind a cache keyed by text hash."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routing.apart import apart
from routing.fetch import encoder_folder
from routing.outcomes import text_hash
from routing.routing_error import RoutingError

_CHARS_PER_TOKEN = 12
"""Texts are cut to this many characters per token before tokenisation, so that a long prompt costs no more than a short one."""
_MEMORY_ENTRIES = 20_000


class VectorCache:
    """Vectors by key, in memory; safe across threads."""

    def __init__(self) -> None:
        self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors that are known, by key."""
        with self._lock:
            return {k: self._memory[k] for k in keys if k in self._memory}

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        """Remember vectors; the oldest leave first."""
        with self._lock:
            self._memory.update(vectors)
            while len(self._memory) > _MEMORY_ENTRIES:
                self._memory.popitem(last=False)


class Encoder:
    """A loaded sentence encoder. Calling it gives (n, ``dim``) float32 unit vectors.

    Args:
        name: short name, hub name or local folder.
        max_tokens: prompts are cut to this many tokens.
        dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the CPU computes in it (half the time), else float32.
        offline: fetch nothing.
    """

    def __init__(self, name: str, *, max_tokens: int, dtype: str = "auto", offline: bool = False) -> None:
        self._model = _load(encoder_folder(name, offline=offline), dtype)
        self._model.max_seq_length = max_tokens
        self._max_chars = max_tokens * _CHARS_PER_TOKEN
        self._recipe = f"{name}/{max_tokens}/{dtype}"
        self._cache = VectorCache()
        self.dim: int = self._encode(["dimension"]).shape[1]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32; repeated texts are encoded once."""
        keys = [text_hash(f"{self._recipe}\n{t}") for t in texts]
        known = self._cache.get(keys)
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in known}
        if new:
            fresh = dict(zip(new, self._encode(list(new.values())), strict=True))
            self._cache.put(fresh)
            known |= fresh
        return np.stack([known[k] for k in keys]) if keys else np.empty((0, self.dim), dtype=np.float32)

    @apart
    def _encode(self, texts: list[str]) -> np.ndarray:
        cut = [t[: self._max_chars] for t in texts]
        out = self._model.encode(cut, batch_size=32, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()
        found: np.ndarray = out / np.linalg.norm(out, axis=1, keepdims=True)  # once more: bfloat16 leaves the length 0.2% off
        return found


@functools.lru_cache(maxsize=4)
def load_encoder(name: str, max_tokens: int, dtype: str, offline: bool = False) -> Encoder:
    """The encoder, loaded once per process and shared: cloned feature steps and folds reuse model and cache."""
    return Encoder(name, max_tokens=max_tokens, dtype=dtype, offline=offline)


@apart
def _load(folder: Path, dtype: str) -> Any:
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise RoutingError(f"sentence embeddings need sentence-transformers: {e}", "Install it, or use the encoder 'tfidf'.") from e
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": torch.bfloat16 if fast else torch.float32}
    if dtype not in dtypes:
        raise RoutingError(f"unknown encoder dtype {dtype!r}", "Use auto, float32 or bfloat16.")
    with _quiet():
        return SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": dtypes[dtype]},
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no deprecation notes while a model loads."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
