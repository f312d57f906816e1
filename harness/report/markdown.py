"""The Markdown report: one table, one sentence per finding, then the details."""

from __future__ import annotations

from tabulate import tabulate

from harness.core.walltime import own_share
from harness.report.escape import markdown
from harness.report.run import Run
from harness.report.sections import SECTIONS, details, findings
from harness.report.tables import Table
from harness.results.store import Manifest


def render(run: Run) -> str:
    """The whole report as GitHub Markdown; the same records give the same text."""
    parts = [
        f"# {markdown(title(run.manifest))}",
        f"**{markdown(run.unfinished)}**" if run.unfinished else "",
        *(markdown_table(table) for table in SECTIONS[0].tables(run)),
        "\n".join(f"- {markdown(sentence)}" for sentence in findings(run)),
        "## How to read it",
        LEGEND,
    ]
    for table in details(run):
        parts += [f"## {markdown(table.title)}", markdown_table(table)]
    parts += ["## The run", _facts(run.manifest)]
    return "\n\n".join(part for part in parts if part) + "\n"


LEGEND = """Rate is accepted / drafted tokens, alpha accepted / (accepted + rejections), tau emitted tokens per target pass, all from
pooled counts. Speedup is the target's own wall time over the cell's, paired per prompt, prompt processing included. Brackets are 95%
intervals over prompts (jackknife; score intervals of rates and tau, logarithms of speedups); claims of speed and detectable differences
are corrected for the number of cells (Holm). `–` is missing."""


def title(manifest: Manifest) -> str:
    """What the report is called."""
    return f"{manifest.suite.get('name', manifest.run)} on {manifest.pair}"


def markdown_table(table: Table) -> str:
    """A pipe table; text columns left, numbers right."""
    align = ["left" if i < table.left else "right" for i in range(len(table.headers))]
    rows = [[markdown(cell) for cell in row] for row in table.rows]
    return tabulate(
        rows,
        headers=[markdown(header) for header in table.headers],
        tablefmt="pipe",
        colalign=align if rows else None,
        disable_numparse=True,
    )


def _facts(manifest: Manifest) -> str:
    machine, code, measured = manifest.machine, manifest.code, manifest.measured
    memory = machine.get("memory_bytes")
    facts = {
        "run": manifest.run,
        "started": manifest.started,
        "suite": f"{manifest.suite.get('name')} ({manifest.suite_hash[:12]})",
        "pair": manifest.pair,
        "models": ", ".join(f"{name} {str(value)[:12]}" for name, value in manifest.models.items()),
        "machine": f"{machine.get('processor')}, {machine.get('cores')} cores" + (f", {memory / 2**30:.0f} GiB" if memory else ""),
        "device": f"{machine.get('device')}, BLAS {machine.get('blas')}",
        "code": f"{code.get('version')} {str(code.get('commit'))[:12]}{' with local changes' if code.get('dirty') else ''}",
        "packages": ", ".join(f"{name} {version}" for name, version in manifest.packages.items()),
    }
    sealed = manifest.seal
    facts["records"] = f"{sealed.records}, sealed with SHA-256 {sealed.sha256[:12]}" if sealed else "not sealed"
    if measured.peak_memory_bytes:
        facts["peak memory"] = f"{measured.peak_memory_bytes / 2**30:.2f} GiB"
    if measured.time_s:
        time_s = measured.time_s
        facts["time"] = f"{time_s['total']:.0f} s, of which {own_share(time_s):.1%} outside model calls and training"
    return "\n".join(f"- {name}: {markdown(value)}" for name, value in facts.items())
