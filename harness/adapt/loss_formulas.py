"""Distillation losses at answer positions, written once for mlx and for torch. Imports neither.

The target's distribution p is known on its top k tokens; everything else is one more bin, "the rest", on both sides. Grouping
tokens never raises a divergence, so each value is a lower bound of the full-vocabulary one and equal to it when k is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

EPSILON = 1e-6
"""Smallest probability inside a logarithm."""

Array = Any
"""An array of mlx or of torch."""


@dataclass(frozen=True)
class Positions:
    """What a loss is a function of at N positions: target p and draft q over the top k tokens and the rest, (N, k + 1) each."""

    label: Array
    """(N,) log-probability that the draft gives to the target's own token."""
    p: Array
    log_p: Array
    q: Array
    log_q: Array
    log: Callable[[Array], Array]
    """Logarithm of probabilities, of small ones that of :data:`EPSILON`."""

    @staticmethod
    def of(xp: Any, log_q: Array, valid: Array, p: Array) -> Positions:
        """Group the distributions.

        Args:
            xp: the library of the arrays: ``mlx.core`` or ``torch``.
            log_q: (N, 1 + k) draft log-probabilities of the label and of the target's top tokens.
            valid: (N, k), False is padding: probability 0 on both sides.
            p: (N, k) target probabilities.
        """

        def log(x: Array) -> Array:
            return xp.log(xp.clip(x, EPSILON, None))

        top = xp.where(valid, log_q[:, 1:], 0.0)
        q, p = xp.where(valid, xp.exp(top), 0.0), xp.where(valid, p, 0.0)
        p_rest, q_rest = (xp.clip(1 - x.sum(axis=1, keepdims=True), 0.0, None) for x in (p, q))
        p, q = xp.concatenate([p, p_rest], axis=1), xp.concatenate([q, q_rest], axis=1)
        return Positions(log_q[:, 0], p, log(p), q, xp.concatenate([top, log(q_rest)], axis=1), log)


def _jensen_shannon(at: Positions) -> Array:
    middle = at.log((at.p + at.q) / 2)
    return (at.p * (at.log_p - middle) + at.q * (at.log_q - middle)).sum(axis=1) / 2


LOSSES: dict[str, Callable[[Positions], Array]] = {
    "ce": lambda at: -at.label,
    "forward_kl": lambda at: (at.p * (at.log_p - at.log_q)).sum(axis=1),
    "reverse_kl": lambda at: (at.q * (at.log_q - at.log_p)).sum(axis=1),
    "js": _jensen_shannon,
}
"""Name -> loss, (N,). ``ce``: cross-entropy on the target's token. ``forward_kl``: the draft covers what the target may say.
``reverse_kl``: the draft avoids what the target would not say. ``js``: Jensen-Shannon divergence, symmetric, at most log 2."""


def mixed(xp: Any, log_q: Array, valid: Array, p: Array, parts: Mapping[str, float]) -> Array:
    """The weighted sum of losses at N positions, (N,).

    Args:
        xp, log_q, valid, p: as in :meth:`Positions.of`.
        parts: name in :data:`LOSSES` -> factor.
    """
    at = Positions.of(xp, log_q, valid, p)
    return sum(factor * LOSSES[name](at) for name, factor in parts.items())
