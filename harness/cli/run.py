"""``harness run`` and ``harness report``: read the options and hand over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.generate import FallbackOption, OfflineOption
from harness.cli.shards import ShardsBackendOption, ShardsOption, sharded
from harness.cli.validate import DomainsOption, ExperimentsOption, LimitOption, ModelsOption, SetOption, TrackOption
from harness.cli.worker import ClusterOption, joined
from harness.core.terminal import say

ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of the run folders.")]


def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A YAML file, or a name in suites/.")],
    models: ModelsOption = None,
    limit: LimitOption = None,
    domains: DomainsOption = None,
    experiments: ExperimentsOption = None,
    set_: SetOption = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")] = None,
    results: ResultsOption = Path("results"),
    fallback: FallbackOption = False,
    offline: OfflineOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and stop.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also record where the time of each round goes.")] = False,
    no_clock: Annotated[
        bool, typer.Option("--no-clock", help="Only counts matter: no calibration, no warm-up, no predicted speedups.")
    ] = False,
    shards: ShardsOption = 1,
    shards_backend: ShardsBackendOption = None,
    cluster: ClusterOption = None,
    track: TrackOption = None,
) -> None:
    """Decode a suite and write a run folder with records and a report.

    Example: `harness run suites/quick.yaml --limit 2 --domains code,math --set max_tokens=32`
    """
    from harness.cli.validate import describe, load
    from harness.core.errors import HarnessError
    from harness.core.tracking import check_tracker, tracking
    from harness.models.naming import pair_name
    from harness.run.estimate import count_prompts, describe_time

    if cluster is not None and shards > 1:
        raise HarnessError("--shards and --cluster exclude each other", "Split a model over devices, or spread prompts over workers.")
    with sharded(1 if plan else shards, shards_backend) as parts:
        loaded = load(suite, models=models, limit=limit, domains=domains, experiments=experiments, overrides=set_, fallback=fallback)
        counts = count_prompts(loaded)
        say("\n".join([*describe(loaded, counts), describe_time(loaded, loaded.cells(), pair_name(loaded.models), counts)]))
        if plan:
            return
        check_tracker(track)
        from rich.console import Console

        from harness.run.runner import run_suite

        options: dict[str, Any] = {"resume": resume, "offline": offline, "fallback": fallback, "profile": profile, "clock": not no_clock}
        with joined(cluster) as workers:
            folder = run_suite(loaded, results_dir=results, console=Console(), shards=parts, cluster=workers, **options)
    if track is not None:  # only now: nothing of a tracker runs beside the clocks
        from harness.report import load_run
        from harness.report.tracked import track_run
        from harness.run.runner import reports_folder

        with tracking(track, folder.name, loaded.resolved()) as tracker:
            track_run(load_run(folder), reports_folder(folder), tracker)


def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name under the results folder.")],
    results: ResultsOption = Path("results"),
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to; reports/RUN when absent.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Write nothing; check report and records against each other.")] = False,
) -> None:
    """Write the Markdown, CSV and HTML report of a run, from its records.

    Beside it come the charts, and what to use: recommendation.json, and settings.yaml for `--settings`.

    Example: `harness report results/quick-smollm2-20260131-142501`
    """
    from rich.console import Console

    from harness.report import load_run, show_recommendation, show_table, write_reports
    from harness.results.manifest import run_folder
    from harness.run.runner import reports_folder

    folder = run_folder(results, name)
    console = Console()
    if verify:
        from harness.report.verify import verify as verify_report
        from harness.results.manifest import read_manifest

        checked = verify_report(folder, out or reports_folder(folder))
        say(f"every file of the report follows from the records; {checked} values recomputed a second way")
        if read_manifest(folder).seal is None:
            say("the records are not sealed: that they are those the run wrote cannot be shown")
        return
    loaded, target = load_run(folder), out or reports_folder(folder)
    written = write_reports(loaded, target)
    show_table(loaded, console)
    say("\n".join(map(str, written)))
    show_recommendation(loaded, target / "report.html", console)
