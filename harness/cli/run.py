"""``harness run``: read the options and hand over to the runner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.validate import DomainsOption, LimitOption, ModelsOption, SetOption

ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of the run folders.")]


def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A YAML file, or a name in suites/.")],
    models: ModelsOption = None,
    limit: LimitOption = None,
    domains: DomainsOption = None,
    set_: SetOption = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")] = None,
    results: ResultsOption = Path("results"),
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is in the cache.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and stop.")] = False,
) -> None:
    """Decode a suite and write a run folder with records and a report.

    Example: `harness run suites/quick.yaml --limit 2 --domains code,math --set max_tokens=32`
    """
    from harness.cli.validate import describe, load

    loaded = load(suite, models=models, limit=limit, domains=domains, overrides=set_)
    if plan:
        typer.echo("\n".join(describe(loaded)))
        return
    from rich.console import Console

    from harness.runner import run_suite
    from harness.store import check_writable

    check_writable(results)
    run_suite(loaded, results_dir=results, resume=resume, offline=offline, console=Console())
