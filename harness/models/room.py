"""How much memory models may take here, and in which number formats they are computed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

USABLE = 0.75
"""Share of a machine's memory for weights; the rest is for caches, activations and other programs."""


@dataclass(frozen=True)
class Room:
    """What this machine has for weights."""

    gigabytes: float
    """Memory that models may take."""
    forms: tuple[str, ...]
    """Names of :data:`harness.models.families.FORMATS` that models are computed with here: float32 alone on a CPU."""

    def fitting(self, gigabytes: Callable[[str], float]) -> list[str]:
        """Those of ``forms`` in which ``gigabytes(form)`` fit."""
        return [form for form in self.forms if gigabytes(form) <= self.gigabytes]


def room() -> Room:
    """This machine's."""
    import psutil

    from harness.models.blas import mx

    if mx.default_device() == mx.cpu:
        return Room(USABLE * psutil.virtual_memory().total / 1e9, ("float32",))
    facts = mx.device_info()
    total = facts.get("max_recommended_working_set_size") or facts.get("total_memory") or facts.get("memory_size")
    return Room((USABLE * psutil.virtual_memory().total if total is None else 0.9 * float(total)) / 1e9, ("4 bits", "8 bits", "bfloat16"))
