"""One target over several processes, each with a device and a part of every layer; the first process decides everything.

The first one runs the program. Before each pass of the target it tells the others which tokens to read, and after how many of which
cache; all run the pass over their parts and add them up. Drafts, sampling, clocks and files are the first process's alone, so no two
of them can come to different decisions.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.models.blas import ints, mx, nn
from harness.models.folder import read_config, text_config, whole
from harness.models.opened import find_body
from harness.models.shard_lines import Lines

LOAD, PASS = 1, 2
"""Kinds of messages: load a target, run a pass."""
ADVICE = "Use another number of processes, or run without --shards."


def default_backend() -> str:
    """What processes on this machine talk through: ``nccl`` between CUDA devices, else ``ring``."""
    return "nccl" if mx.default_device() != mx.cpu and not mx.metal.is_available() else "ring"


def check_backend(backend: str) -> None:
    """Refuse a way of talking that mlx was built without.

    Raises:
        HarnessError: it is not there.
    """
    if not mx.distributed.is_available(backend):
        raise HarnessError(f"mlx has no back end {backend!r} here", "Use --shards-backend ring, which needs nothing but a network.")


def check_split(folder: Path, parts: int) -> None:
    """Refuse a target that mlx-lm cannot split, before its weights are read.

    Raises:
        HarnessError: an architecture without tensor parallelism, or heads that do not come out even.
    """
    from mlx_lm.utils import _get_classes

    config, path = read_config(folder), folder / "config.json"
    try:
        splits = hasattr(_get_classes(config)[0], "shard")
    except (ImportError, ValueError):
        splits = False
    if not splits:
        raise HarnessError(f"mlx-lm cannot split models of type {config['model_type']!r}", "Run without --shards.")
    text = text_config(config, path)
    heads = whole(text, "num_attention_heads", path)
    counts = {"attention heads": heads, "key-value heads": whole(text, "num_key_value_heads", path, default=heads)}
    for name, count in counts.items():
        if count % parts:
            fits = [str(n) for n in range(2, heads + 1) if all(c % n == 0 for c in counts.values())]
            advice = f"Use --shards {' or '.join(fits)}." if fits else "Run without --shards."
            raise HarnessError(f"the target has {count} {name}, which do not come out even over {parts} processes", advice)


class Shards:
    """The processes of one target, as one of them sees it. Use :meth:`join`, and close it (it is a context manager).

    Attributes:
        group: mlx's group of them.
        backend: what they add up their parts through.
    """

    def __init__(self, group: Any, backend: str) -> None:
        self.group = group
        self.backend = backend
        self._lines = Lines(self.leads, self.parts, self._sum)
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._made = 0
        self._gone: list[int] = []

    @classmethod
    def join(cls, parts: int, backend: str) -> Shards:
        """Meet the other processes that ``mlx.launch`` has started.

        Raises:
            HarnessError: no such back end, nobody there, or another number of processes than ``parts``.
        """
        check_backend(backend)
        try:
            group = mx.distributed.init(strict=True, backend=backend)
        except RuntimeError as error:
            raise HarnessError(f"the processes do not find each other: {error}", "Start them with mlx.launch and its --hostfile.") from None
        if group.size() != parts:
            raise HarnessError(f"--shards is {parts}, mlx.launch started {group.size()} processes", "Give both the same number.")
        return cls(group, backend)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    @property
    def parts(self) -> int:
        """How many processes there are."""
        return int(self.group.size())

    @property
    def leads(self) -> bool:
        """True in the process that runs the program."""
        return bool(self.group.rank() == 0)

    def facts(self) -> dict[str, Any]:
        """Plain JSON types for the manifest's machine."""
        return {"shards": self.parts, "shards_backend": self.backend}

    def send(self, kind: int, numbers: Sequence[int]) -> None:
        """Tell the others something; they wait for it in :meth:`receive`."""
        self._lines.send(kind, numbers)

    def receive(self) -> tuple[int, list[int]] | None:
        """What the first process says: the kind of message and its numbers; None once it has ended."""
        return self._lines.receive()

    def _sum(self, numbers: Sequence[int]) -> list[int]:
        return ints(mx.distributed.all_sum(mx.array(numbers, dtype=mx.int32), group=self.group))

    def split(self, model: nn.Module) -> None:
        """Leave this process's part of every layer in ``model``, lazily; the first process's part tells the others of its passes.

        Raises:
            HarnessError: the model's caches cannot be kept alike in several processes.
        """
        from mlx_lm.models.cache import make_prompt_cache

        if not all(map(_counts, make_prompt_cache(model))):
            kind = getattr(model, "model_type", type(model).__name__)
            raise HarnessError(f"models of type {kind!r} keep more than keys and values, which cannot be split", "Run without --shards.")
        model.shard(self.group)
        if self.leads:
            text, body_name, layers_name = find_body(model)
            body = text[body_name]
            body.leader = _Leader(self, layers_name)
            body.__class__ = type(f"Leading{type(body).__name__}", (_Leading, type(body)), {})

    def announce(self, tokens: mx.array, cache: Sequence[Any] | None, layers: int) -> None:
        """Tell the others about a pass over ``tokens`` (B, n) and the first ``layers`` layers.

        Raises:
            TypeError: a cache that the others cannot keep, or that holds what they have not read.
        """
        number, offset = (0, 0) if cache is None else self._number(cache)
        gone = self._gone[:]
        del self._gone[: len(gone)]
        batch, n = tokens.shape
        self.send(PASS, [layers, number, offset, batch, n, len(gone), *gone, *ints(tokens.reshape(-1))])

    def _number(self, cache: Sequence[Any]) -> tuple[int, int]:
        """The number that the others know a cache by, and how many tokens it holds; a new one gets one."""
        first = cache[0]
        if not all(map(_counts, cache)):
            raise TypeError(f"a {type(first).__name__} cannot be kept in several processes")
        if first not in self._numbers:
            if first.offset:
                raise TypeError("the other processes have not read what this cache holds")
            self._made += 1
            self._numbers[first] = self._made
            weakref.finalize(first, self._gone.append, self._made)
        return self._numbers[first], first.offset


def _counts(cache: Any) -> bool:
    """True for a cache of one layer whose state follows from the tokens it holds, and that can drop the last of them."""
    return isinstance(getattr(cache, "offset", None), int) and hasattr(cache, "trim")


@dataclass(frozen=True)
class _Leader:
    """What the body of a split target needs in the first process; no part of its parameters."""

    shards: Shards
    layers_name: str


class _Leading:
    """The body of a split target in the first process: the others run each of its passes too."""

    leader: _Leader

    def __call__(self, tokens: mx.array, cache: Sequence[Any] | None = None, *rest: Any, **named: Any) -> mx.array:
        if any(value is not None for value in (*rest, *named.values())):
            raise TypeError("a split target reads tokens alone")
        layers = self[self.leader.layers_name]  # type: ignore[index]
        self.leader.shards.announce(tokens, cache, len(layers))
        return finished(super().__call__(tokens, cache=cache), cache)  # type: ignore[misc]


def finished(states: mx.array, cache: Sequence[Any] | None) -> mx.array:
    """The states of a pass once all of it has run: every process has to take part in all of its sums, in one order."""
    mx.eval(states, [layer.state for layer in cache or ()])
    return states


def is_split(model: Any) -> bool:
    """True for a target of which this process has a part."""
    return isinstance(model, nn.Module) and any(isinstance(module, _Leading) for module in model.modules())
