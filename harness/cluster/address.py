"""Where a cluster is and who may join it: addresses, versions, the token. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import ipaddress
import json
import os
import re
from dataclasses import dataclass

from harness.core import machine
from harness.core.errors import HarnessError

SAME = ("mlx", "mlx-lm", "transformers", "numpy", "torch", "distributed")
"""Packages whose versions all machines of a cluster share; a BLAS may differ and is part of a machine's kind."""
TOKEN = "HARNESS_CLUSTER_TOKEN"
"""Environment variable of the word that workers ask for."""
_ADVICE = "Write tcp://HOST:PORT or tls://HOST:PORT of a scheduler, or local:N for N processes on this machine."


@dataclass(frozen=True, kw_only=True)
class Address:
    """What ``--cluster`` names."""

    text: str
    """As it was written."""
    workers: int | None
    """Processes to start on this machine; None where a scheduler runs already."""

    @property
    def encrypted(self) -> bool:
        """Whether both sides show certificates."""
        return self.text.startswith("tls://")

    @property
    def loopback(self) -> bool:
        """Whether nobody outside this machine can reach it."""
        return self.workers is not None or _is_loopback(self.text.partition("://")[2].rpartition(":")[0].strip("[]"))


def read_address(text: str) -> Address:
    """Read ``--cluster``.

    Raises:
        HarnessError: no address of a cluster, or the package it needs is not installed.
    """
    local = re.fullmatch(r"local:([1-9]\d{0,2})", text)
    port = re.fullmatch(r"(?:tcp|tls)://(?:[\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", text)
    if local is None and (port is None or not 0 < int(port[1]) < 65536):
        raise HarnessError(f"{text!r} names no cluster", _ADVICE)
    if importlib.util.find_spec("distributed") is None:
        raise HarnessError("a cluster needs the package distributed", "Install it: pip install 'specdraft-harness[cluster]'.")
    return Address(text=text, workers=int(local[1]) if local else None)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def versions() -> dict[str, str]:
    """What all machines of a cluster must share: the sources that make records, Python's minor version, and :data:`SAME`."""
    found = {"harness sources": machine.source_hash()[:16], "python": ".".join(machine.package_versions()["python"].split(".")[:2])}
    for name in SAME:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def badge() -> str:
    """What a worker shows the scheduler and tasks ask for: work goes only to workers with the same :func:`versions`."""
    return "harness-" + hashlib.sha256(json.dumps(versions(), sort_keys=True).encode()).hexdigest()[:16]


def token() -> str:
    """The word that this process gives to workers, or asks of clients; empty where none is set."""
    return os.environ.get(TOKEN, "")
