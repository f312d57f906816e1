"""``harness results`` and ``harness cache``: what is on the disk, and what may go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.run import ResultsOption
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.run.storage import CacheItem

results_app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")
cache_app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@results_app.command("list")
def list_runs(results: ResultsOption = Path("results")) -> None:
    """Show the runs of a results folder, the newest last.

    Example: `harness results list`
    """
    from harness.run.storage import stored_runs

    found = stored_runs(results)
    for run in found:
        state = run.manifest.measured.status if run.manifest else "unreadable"
        pair = run.manifest.pair if run.manifest else run.problem
        say(f"{run.folder.name:<44} {state:<12} {run.records:>6} records {_size(run.size):>9}  {pair}")
    if not found:
        say(f"no runs in {results}")


@results_app.command("show")
def show_run(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name under the results folder.")],
    results: ResultsOption = Path("results"),
) -> None:
    """Show what a run was and what it recommends.

    Example: `harness results show quick-smollm2-20260131-142501`
    """
    from harness.report import load_run
    from harness.report.sections.recommendation import paragraph
    from harness.results.manifest import run_folder
    from harness.run.storage import disk_bytes

    folder = run_folder(results, name)
    run = load_run(folder)
    manifest = run.manifest
    facts = {
        "folder": f"{folder}, {_size(disk_bytes(folder))}",
        "started": manifest.started,
        "state": run.unfinished or "finished",
        "suite": f"{manifest.suite.get('name')}, hash {manifest.suite_hash[:12]}",
        "models": f"{run.models}, {manifest.models.get('dtype')}",
        "machine": f"{manifest.machine.get('processor')}, {manifest.machine.get('device')}",
        "code": f"{manifest.code.get('version')}, commit {str(manifest.code.get('commit'))[:12]}",
        "records": f"{len(run.groups)} on {len(run.groups.samples(run.groups.cells))} prompts",
    }
    say("\n".join(f"{key:<9} {value}" for key, value in facts.items()))
    say(f"\n{paragraph(run)}\n  {run.recommendation.command}")


@results_app.command("pack")
def pack_run(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name under the results folder.")],
    results: ResultsOption = Path("results"),
) -> None:
    """Write a run's records as Parquet too, which reports of large runs are made from.

    Runs of 100,000 records and more are packed without being asked, while they go on and when they are reported.

    Example: `harness results pack quick-smollm2-20260131-142501`
    """
    from harness.results.manifest import run_folder
    from harness.results.parquet import PACKED, pack
    from harness.results.reading import RECORDS
    from harness.run.storage import disk_bytes

    folder = run_folder(results, name)
    count = pack(folder)
    packed, lines = disk_bytes(folder / PACKED), (folder / RECORDS).stat().st_size
    say(f"{folder / PACKED}: {count} records, {_size(packed)} of {_size(lines)}")


@results_app.command("rm")
def remove_runs(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or their names under the results folder.")],
    results: ResultsOption = Path("results"),
    yes: YesOption = False,
) -> None:
    """Remove runs and their reports.

    Example: `harness results rm quick-smollm2-20260131-142501 --yes`
    """
    from harness.results.manifest import run_folder
    from harness.run.storage import remove_run

    folders = [run_folder(results, name) for name in names]
    _agree(f"Remove {', '.join(folder.name for folder in folders)} and their reports?", yes)
    for folder in folders:
        remove_run(folder)
        say(f"removed {folder}")


@cache_app.command("ls")
def list_cache(results: ResultsOption = Path("results")) -> None:
    """Show what the cache holds, how large it is and who needs it.

    Example: `harness cache ls`
    """
    from harness.core.paths import cache_dir
    from harness.run.storage import cache_items

    items = cache_items(results)
    for item in items:
        say(_line(item))
    say(f"{_size(sum(item.size for item in items))} in {cache_dir()}")


@cache_app.command("gc")
def collect_garbage(
    results: ResultsOption = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also what runs, sessions and configured pairs would fetch or compute again.")] = False,
) -> None:
    """Remove what can be fetched or computed again and nobody needs; adapters, memories, routers, drafts and sessions stay.

    Needed is what a run in the results folder, a session or a configured pair refers to: it goes only with --yes.

    Example: `harness cache gc --dry-run`
    """
    from harness.run.storage import cache_items, remove_items

    again = [item for item in cache_items(results) if not item.stays]
    gone = [item for item in again if yes or not item.needed_by]
    for item in again:
        say(f"{'goes ' if item in gone else 'stays'} {_line(item)}")
    if not dry_run:
        remove_items(gone)
    say(f"{_size(sum(item.size for item in gone))} {'would be ' if dry_run else ''}freed")


def _line(item: CacheItem) -> str:
    needed = ", ".join(item.needed_by[:2]) + (f" and {len(item.needed_by) - 2} more" if len(item.needed_by) > 2 else "")
    return f"{item.name:<44} {_size(item.size):>9}  {'stays' if item.stays else needed or 'needed by nothing here'}"


def _agree(question: str, yes: bool) -> None:
    """Ask before something is lost.

    Raises:
        HarnessError: nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        from harness.core.errors import HarnessError

        raise HarnessError("nobody is there to agree to the removal", "Add --yes.")
    typer.confirm(question, abort=True)


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
