"""``harness worker``, and the option that sends a command's work to workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.core.progress import notes_to
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.cluster.answering import ClusterPool
    from harness.cluster.client import Cluster
    from harness.run.crew import ClusterCrew

ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="ADDRESS", help="Work on tcp://HOST:PORT or tls://HOST:PORT, or on local:N processes here."),
]


def joined(cluster: str | None) -> AbstractContextManager[Cluster | None]:
    """The cluster that ``--cluster`` names; None without it.

    Raises:
        HarnessError: it is none, or nobody is there.
    """
    if cluster is None:
        return nullcontext()
    from harness.cluster.address import read_address

    address = read_address(cluster)
    from harness.cluster.client import Cluster

    return Cluster(address)


def pool_of(cluster: Cluster | None, pair: Any, models: str, *, offline: bool, fast: bool = False) -> ClusterPool | None:
    """Answers of a pair's target by the workers; None without a cluster."""
    if cluster is None:
        return None
    from harness.cluster.answering import ClusterPool

    return ClusterPool(cluster, cluster.spec_of(pair, models, offline=offline), fast=fast)


def crew_of(cluster: Cluster | None, pair: Any, models: str, *, offline: bool) -> ClusterCrew | None:
    """Training and replay by the workers; None without a cluster."""
    if cluster is None:
        return None
    from harness.run.crew import ClusterCrew

    return ClusterCrew(cluster, cluster.spec_of(pair, models, offline=offline))


@notes_to(partial(say, err=True))
def worker(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Of the scheduler: tcp://HOST:PORT or tls://HOST:PORT.")],
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, each with models of its own.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each; its share of the cores without it.")] = None,
    name: Annotated[str | None, typer.Option(help="What records call this machine; its host name without it.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Join a scheduler on another machine without certificates.")] = False,
) -> None:
    """Work for a scheduler: load the models that a client asks for, keep them, and answer, until Ctrl-C.

    Whoever reaches the scheduler can run programs on this machine; see docs/scale.md.

    Example: `harness worker tcp://127.0.0.1:8786 --processes 2 --threads 1`
    """
    from harness.cluster.address import read_address

    where = read_address(address)
    from harness.cluster.serving import serve

    serve(where, processes=processes, threads=threads, name=name, insecure=insecure)
