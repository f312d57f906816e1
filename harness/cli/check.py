"""``harness check`` and ``harness compare``: a run against a reference, a run against another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.terminal import say

ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of the run folders.")]


def check(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name under the results folder.")],
    against: Annotated[Path, typer.Option("--against", metavar="FILE", help="Reference file, such as results/reference/smollm2.json.")],
    results: ResultsOption = Path("results"),
    update: Annotated[bool, typer.Option("--update", help="Write the run as the new reference instead of checking.")] = False,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Accept a reference from other hardware: acceptance by intervals, no times.")
    ] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write the result as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option("--summary", metavar="FILE", help="Also append the result as Markdown.")] = None,
) -> None:
    """Compare a run with a reference: exit 0 without a regression, 1 with one, 2 when the two cannot be compared.

    Example: `harness check regression-smollm2-20260131-142501 --against results/reference/smollm2.json`
    """
    from harness import gate
    from harness.errors import CheckFailed
    from harness.report import gate_output
    from harness.store import run_folder

    folder = run_folder(results, name)
    if update:
        gate.write_reference(folder, against)
        say(f"wrote {against}")
        return
    verdicts = gate.check(folder, gate.read_reference(against), any_machine=any_machine)
    text = gate_output.summary(verdicts, folder.name, str(against))
    gate_output.write(junit, gate_output.junit(verdicts))
    gate_output.write(summary, text, append=True)
    say(text)
    failed = sum(v.failed for v in verdicts)
    if failed:
        raise CheckFailed(
            f"{failed} of {len(verdicts)} comparisons failed", "If the change is intended, write a new reference with --update."
        )


def compare(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or its name under the results folder.")],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare with it.")],
    results: ResultsOption = Path("results"),
) -> None:
    """Show what changed from one run to another: settings, machine and every cell both have.

    Example: `harness compare quick-smollm2-20260131-142501 quick-smollm2-20260201-090000`
    """
    from harness.report.compare import compare as compare_runs
    from harness.store import run_folder

    say(compare_runs(run_folder(results, a), run_folder(results, b)))
