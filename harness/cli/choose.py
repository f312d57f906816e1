"""``harness choose``: what to draft with, decided on one's own prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.generate import PAIR_HELP, OfflineOption
from harness.cli.run import ResultsOption
from harness.cli.worker import ClusterOption, joined


def choose(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=PAIR_HELP)],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL file with a prompt per line; a few of every shipped domain without it.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="End after as many with what is known.")] = 20,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts per domain; by default 8 shipped ones, 40 of a file.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 128,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was interrupted or whose time was up.")
    ] = None,
    results: ResultsOption = Path("results"),
    offline: OfflineOption = False,
    cluster: ClusterOption = None,
) -> None:
    """Find what drafts fastest for a target: which drafter, how far, and by how much.

    Everything that can draft here is counted on all prompts by replay. Then only what can still win is timed, until the best is known or
    the time is up. The result is a run like any other: `harness report RUN --verify` and `harness compare` take it.

    Example: `harness choose smollm2 --prompts mine.jsonl --minutes 5`
    """
    from rich.console import Console

    from harness.core.limits import check
    from harness.run.choose import choose as decide

    check(max_tokens=max_tokens)
    with joined(cluster) as workers:
        decide(
            target,
            results_dir=results,
            prompts=prompts,
            limit=limit,
            max_tokens=max_tokens,
            minutes=minutes,
            resume=resume,
            offline=offline,
            console=Console(),
            cluster=workers,
        )
