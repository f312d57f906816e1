"""Caches that forget rejected tokens: windows that keep a little more than they show, and states that are put back.

A plain key-value cache forgets its last tokens by itself. A rotating one overwrites what a rejection would need again, so
:class:`Window` stands in for it. Recurrent states, and whatever else cannot go back, are kept before tokens that may be rejected;
arrays of mlx are values, so that costs no copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.models.blas import mx

SLACK_TOKENS = 128
"""Tokens that a window can forget at any time."""
STEP_TOKENS = 256
"""A window's buffer grows by this many tokens."""


class Window:
    """A sliding window of keys and values in the order of their tokens, which can forget its last tokens.

    Stands in for mlx-lm's ``RotatingKVCache``: attention sees the same keys under the same mask.

    Args:
        max_size: tokens that one token attends to, itself included.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.offset = 0
        """Tokens seen."""
        self.keys: mx.array | None = None
        """(B, heads, rows, dim): the first ``_end`` rows are the last tokens."""
        self.values: mx.array | None = None
        self._end = 0
        self._shown = 0  # rows that the last tokens attended to

    def _before(self) -> int:
        """Earlier tokens that the next one sees."""
        return min(self.max_size - 1, self.offset)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add tokens (B, heads, n, dim); return what they attend to."""
        n, before = keys.shape[2], self._before()
        if self.keys is None or self._end + n > self.keys.shape[2]:
            kept = min(self._end, self.max_size - 1 + SLACK_TOKENS)
            rows = -(-(kept + n) // STEP_TOKENS) * STEP_TOKENS
            self.keys = _moved(self.keys, self._end - kept, self._end, rows, keys)
            self.values = _moved(self.values, self._end - kept, self._end, rows, values)
            self._end = kept
        assert self.keys is not None
        assert self.values is not None
        self.keys[..., self._end : self._end + n, :] = keys
        self.values[..., self._end : self._end + n, :] = values
        self._end += n
        self.offset += n
        self._shown = before + n
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What the last tokens attended to: layers that share keys ask for it again."""
        assert self.keys is not None
        assert self.values is not None
        start = self._end - self._shown
        return self.keys[..., start : self._end, :], self.values[..., start : self._end, :]

    def make_mask(self, n: int, window_size: int | None = None, return_array: bool = False) -> mx.array | str | None:
        """The mask of ``n`` new tokens over what they see, as mlx-lm's attention takes it."""
        from mlx_lm.models.cache import create_causal_mask

        before = self._before()
        if n == 1:
            return None if window_size is None or before < window_size else mx.arange(before + 1) > before - window_size
        window_size = window_size or self.max_size
        if before + n <= window_size and not return_array:
            return "causal"
        mask: mx.array = create_causal_mask(n, before, window_size=window_size)
        return mask

    def is_trimmable(self) -> bool:
        """Whether it can go back to any length: nothing has left the buffer yet. Near lengths are always in reach of :meth:`trim`."""
        return self._end == self.offset

    def trim(self, n: int) -> int:
        """Forget the last ``n`` tokens, or as many as leave a whole window; return how many."""
        n = min(n, self._end if self.is_trimmable() else max(0, self._end - self.max_size + 1))
        self.offset -= n
        self._end -= n
        self._shown = min(self._shown, self._end)
        return n

    def size(self) -> int:
        """Tokens in the window."""
        return min(self.offset, self.max_size)

    def empty(self) -> bool:
        """True before the first token."""
        return self.keys is None

    @property
    def state(self) -> Any:
        """Arrays to evaluate."""
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in (self.keys, self.values) if a is not None)


def _moved(old: mx.array | None, start: int, end: int, rows: int, like: mx.array) -> mx.array:
    """A buffer of ``rows`` rows that begins with rows ``start`` to ``end`` of the old one."""
    b, heads, _, dim = like.shape
    kept = [] if old is None else [old[..., start:end, :]]
    return mx.concatenate([*kept, mx.zeros((b, heads, rows - (end - start), dim), like.dtype)], axis=2)


def rewindable(cache: Any) -> Any:
    """The cache of one layer, empty, with windows that can forget in the place of rotating ones."""
    from mlx_lm.models.cache import CacheList, RotatingKVCache

    if type(cache) is CacheList:
        return CacheList(*map(rewindable, cache.caches))
    if type(cache) is RotatingKVCache and cache.keep == 0:
        return Window(cache.max_size)
    return cache


def parts(caches: Sequence[Any]) -> Iterator[Any]:
    """Every cache of a list, those inside lists too."""
    for cache in caches:
        inner = getattr(cache, "caches", None)
        yield from parts(inner) if isinstance(inner, list | tuple) else (cache,)


def forgets(cache: Any) -> bool:
    """True for a cache that drops its last tokens at any length without losing others.

    Those of rotating and chunked caches come and go with their length, and a cache that only counts back keeps what it should drop.
    """
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    return isinstance(cache, KVCache | QuantizedKVCache | Window)


def kept(value: Any) -> Any:
    """A cache, or what it holds, as it is now: arrays under names of their own, since caches write into them by name."""
    if isinstance(value, mx.array):
        return value[...]
    if isinstance(value, list | tuple):
        return type(value)(map(kept, value))
    if isinstance(value, dict):
        return {name: kept(item) for name, item in value.items()}
    return value


class Mark:
    """The caches that cannot go back, as they are after ``offset`` tokens."""

    def __init__(self, offset: int, stuck: Sequence[Any]) -> None:
        self.offset = offset
        self._states = [kept(vars(cache)) for cache in stuck]

    def restore(self, stuck: Sequence[Any]) -> None:
        """Put the caches back. A mark serves once: they go on to write into what it kept."""
        for cache, state in zip(stuck, self._states, strict=True):
            vars(cache).clear()
            vars(cache).update(state)
