"""Small heads beside toy targets, and what such a head proposes, worked out without a cache, a loop or a wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from toy import ToyPair, toy_pair

from harness.decode.head_chains import shifted
from harness.models.blas import mx
from harness.models.head_config import HeadInfo
from harness.models.reading_head import Head, ReadingHead
from harness.models.taps import Tapped


def toy_info(hidden: int, vocab: int, **changes: Any) -> HeadInfo:
    """Sizes of a small head."""
    sizes: dict[str, Any] = {
        "name": "toy", "target_hash": "toy-target", "taps": (1, 2), "layers": 1, "vocab": vocab, "hidden": hidden, "heads": 4,
        "kv_heads": 2, "head_dim": hidden // 4, "intermediate": 2 * hidden, "eps": 1e-5, "rope_theta": 10000.0, "quantised": {},
        "sha256": "",
    }  # fmt: skip
    return HeadInfo(**{**sizes, **changes})


def toy_head(target: Any, *, ids: Sequence[int] | None = None, seed: int = 0, said_tokens: int = 20, **changes: Any) -> Head:
    """A head with random blocks whose output rows are the least-squares fit to the target's logits: it agrees now and then."""
    args = target.args
    ids = tuple(ids or range(args.vocab_size))
    info = toy_info(args.hidden_size, len(ids), **changes)
    mx.random.seed(seed)
    model, tapped = ReadingHead(info, target), Tapped(target, info.taps)
    text = mx.random.randint(0, args.vocab_size, (32, 6))
    for _ in range(said_tokens):  # what the target says, for the head to agree with
        text = mx.concatenate([text, mx.argmax(target(text)[:, -1:], axis=-1)], axis=1)
    logits = tapped(text)[..., mx.array(ids)]
    hidden = model.norm(model(text, model.fused(shifted(mx.concatenate(tapped.states, axis=-1)))))
    fit = np.linalg.lstsq(np.array(hidden).reshape(-1, info.hidden), np.array(logits).reshape(-1, len(ids)), rcond=None)[0]
    model.lm_head.weight = mx.array(fit.T.astype(np.float32))
    mx.eval(model.own_weights())
    return Head(model=model, token_map=mx.array(ids, dtype=mx.int32), hash="toy-head", name="toy", vocab=ids, tapped=tapped)


def headed(pair: ToyPair | None = None, **changes: Any) -> ToyPair:
    """A toy pair with a head."""
    pair = pair or toy_pair()
    pair.head = toy_head(pair.target, **changes)  # type: ignore[attr-defined]
    return pair


def said(target: Any, head: Head, context: Sequence[int], guesses: Sequence[int] = ()) -> tuple[np.ndarray, list[int]]:
    """Logits (kept,) of the head's next proposal after ``context``, which the target has read, and ``guesses``; and their ids."""
    model, body = head.model, target.model
    before = model.fused(mx.zeros((1, len(head.tapped.after) * head.tapped.width)))
    if len(context) > 1:
        h, found = body.embed_tokens(mx.array([context[:-1]])), {}
        for place, layer in enumerate(body.layers, 1):
            h = found[place] = layer(h, "causal")
        before = mx.concatenate([before, model.fused(mx.concatenate([found[place][0] for place in head.tapped.after], axis=-1))])
    tokens = list(context)
    hidden = model(mx.array([tokens]), before[None])[0]
    for guess in guesses:
        tokens, before = [*tokens, guess], mx.concatenate([before, hidden[-1:]])
        hidden = model(mx.array([tokens]), before[None])[0]
    wide = head.proposer[0].widened(context)
    return np.array(wide.head_logits(model.norm(hidden[-1]))), wide.token_map.tolist()


def proposals(target: Any, head: Head, context: Sequence[int], k: int) -> list[int]:
    """The head's k favourites in a row after ``context``."""
    guesses: list[int] = []
    for _ in range(k):
        logits, ids = said(target, head, context, guesses)
        guesses.append(ids[int(logits.argmax())])
    return guesses
