"""``harness check`` and ``harness compare``: a run against a reference, a run against another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.generate import JsonOption
from harness.cli.run import ResultsOption
from harness.core.terminal import say, say_json


def check(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name under the results folder.")],
    against: Annotated[Path, typer.Option("--against", metavar="FILE", help="Reference file, such as results/reference/smollm2.json.")],
    results: ResultsOption = Path("results"),
    update: Annotated[bool, typer.Option("--update", help="Write the run as the new reference instead of checking.")] = False,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Accept a reference from other hardware: no times, near-ties may flip.")
    ] = False,
    allow_undecided: Annotated[
        bool, typer.Option("--allow-undecided", help="Pass comparisons that have too few prompts to tell a regression from chance.")
    ] = False,
    candidate: Annotated[
        bool, typer.Option("--candidate", help="The run has another draft, memory or adapter on purpose: judge what it proposes.")
    ] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write the result as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option("--summary", metavar="FILE", help="Also append the result as Markdown.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a run with a reference: exit 0 without a regression, 1 with one or undecided, 2 when the two cannot be compared.

    Example: `harness check regression-smollm2-20260131-142501 --against results/reference/smollm2.json`
    """
    from harness.core.errors import CheckFailed, HarnessError
    from harness.report import gate_output
    from harness.results import gate, reference
    from harness.results.manifest import run_folder

    if update:
        reference.write_reference(run_folder(results, name), against)
        say(f"wrote {against}")
        return
    try:
        old = reference.read_reference(against)
        verdicts = gate.check(run_folder(results, name), old, any_machine=any_machine, candidate=candidate)
    except HarnessError as error:
        gate_output.write(junit, gate_output.junit([], error=str(error)))
        gate_output.write(summary, gate_output.summary([], name, str(against), error=str(error)), append=True)
        if as_json:
            say_json(gate_output.plain([], name, str(against), error=error))
        raise
    text = gate_output.summary(verdicts, name, str(against), allow_undecided=allow_undecided)
    gate_output.write(junit, gate_output.junit(verdicts, allow_undecided=allow_undecided))
    gate_output.write(summary, text, append=True)
    if as_json:
        say_json(gate_output.plain(verdicts, name, str(against), allow_undecided=allow_undecided))
    else:
        say(text)
    failed, undecided = sum(v.failed for v in verdicts), sum(v.undecided for v in verdicts)
    if failed:
        raise CheckFailed(
            f"{failed} of {len(verdicts)} comparisons failed", "If the change is intended, write a new reference with --update."
        )
    if undecided and not allow_undecided:
        raise CheckFailed(
            f"{undecided} of {len(verdicts)} comparisons are undecided: too few prompts to tell a regression from chance",
            "Run both on more prompts, as many as the table says, or pass them with --allow-undecided.",
        )


def compare(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or its name under the results folder.")],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare with it.")],
    results: ResultsOption = Path("results"),
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write compare.md and compare.json into this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed from one run to another: settings, machine and every cell both have, whatever its experiment is called.

    Example: `harness compare quick-smollm2-20260131-142501 quick-smollm2-20260201-090000`
    """
    from harness.report.compare import compare_text
    from harness.report.gate_output import write
    from harness.results.comparison import as_json as plain
    from harness.results.comparison import compare_runs
    from harness.results.manifest import run_folder

    found = compare_runs(run_folder(results, a), run_folder(results, b))
    text, data = compare_text(found), plain(found)
    if out is not None:
        write(out / "compare.md", text)
        write(out / "compare.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        say_json(data)
    else:
        say(text)
