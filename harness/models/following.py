"""A process that holds a part of a target and runs the passes that the first process announces; see :mod:`harness.models.shards`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from harness.core.errors import HarnessError
from harness.models.blas import mx, nn
from harness.models.naming import find_pair
from harness.models.opened import find_body
from harness.models.pair import load_weights
from harness.models.shards import LOAD, Shards, finished
from harness.models.weights import locate


def follow(shards: Shards, prepare: Callable[[Any], Any]) -> None:
    """Load what the first process loads and run what it runs, until it ends.

    Args:
        shards: the processes, this one among them.
        prepare: what decoding makes of an empty cache of one layer.

    Raises:
        HarnessError: the target is another one here, or cannot be fetched or loaded.
    """
    model: Any = None
    caches: dict[int, list[Any]] = {}
    while (message := shards.receive()) is not None:
        kind, numbers = message
        if kind == LOAD:
            model, caches = _load(shards, json.loads(bytes(numbers))), {}
        else:
            _pass(model, caches, numbers, prepare)


def _load(shards: Shards, order: dict[str, Any]) -> nn.Module:
    """This process's part of the target that ``order`` names."""
    named = find_pair(order["models"])
    folder = locate(named.config.target, named.base, offline=order["offline"], progress=lambda *_: None)
    if folder is None or folder.hash != order["hash"]:
        raise HarnessError(
            f"process {shards.group.rank()} has another target under {order['models']!r} than the first",
            "Give every machine the same files.",
        )
    return load_weights(folder, named.config.dtype, "target", shards)[0]


def _pass(model: Any, caches: dict[int, list[Any]], numbers: Sequence[int], prepare: Callable[[Any], Any]) -> None:
    """Run a pass that the first process has announced."""
    from mlx_lm.models.cache import make_prompt_cache

    layers, number, offset, batch, n, gone = numbers[:6]
    for old in numbers[6 : 6 + gone]:
        caches.pop(old, None)
    tokens = mx.array(numbers[6 + gone :], dtype=mx.int32).reshape(batch, n)
    text, body_name, layers_name = find_body(model)
    body = text[body_name]
    if layers < len(body[layers_name]):
        body = copy.copy(body)
        body[layers_name] = body[layers_name][:layers]
    if number and number not in caches:
        caches[number] = [prepare(cache) for cache in make_prompt_cache(model)[:layers]]
    cache = caches.get(number)
    for layer in cache or ():
        surplus = layer.offset - offset
        if surplus < 0 or (surplus and layer.trim(surplus) != surplus):
            raise RuntimeError(f"a cache of {layer.offset} tokens cannot go to {offset}")
    finished(body(tokens, cache=cache), cache)
