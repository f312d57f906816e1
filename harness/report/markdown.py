"""The Markdown report: one table, one sentence per finding, then the details."""

from __future__ import annotations

from tabulate import tabulate

from harness.core.walltime import own_share
from harness.report.escape import code, markdown
from harness.report.run import Run
from harness.report.sections import findings, recommendation, tables
from harness.report.tables import Table
from harness.results.manifest import Manifest


def render(run: Run) -> str:
    """The whole report as GitHub Markdown; the same records give the same text."""
    first, *details = tables(run)
    parts = [
        f"# {markdown(title(run.manifest))}",
        f"**{markdown(run.unfinished)}**" if run.unfinished else "",
        markdown(recommendation.paragraph(run)),
        f"Command: {code(run.recommendation.command)}",
        markdown_table(first),
        "\n".join(f"- {markdown(sentence)}" for sentence in findings(run)),
        "## How to read it",
        "\n".join(f"- {name}: {text}" for name, text in DEFINITIONS.items()),
        HOW,
    ]
    for table in details:
        parts += [f"## {markdown(table.title)}", markdown_table(table)]
    parts += ["## The run", "\n".join(f"- {name}: {markdown(value)}" for name, value in facts(run.manifest).items())]
    return "\n\n".join(part for part in parts if part) + "\n"


DEFINITIONS = {
    "rate": "accepted / drafted tokens: how much of what the draft proposed was kept",
    "alpha": "accepted / (accepted + rejections): how often a single proposed token is kept; what follows a rejection does not count",
    "tau": "emitted tokens per pass of the target, its own token included: from 1 to K + 1",
    "robust": "speedup over all n prompts, every round at the median time of its kind in this run; what a recommendation goes by",
    "speedup": "the target's own wall time over the cell's, paired per prompt, prompt processing included; over the clocked prompts",
    "K": "tokens drafted per round; auto weighs acceptance against measured costs, dynamic stops where the draft is unsure",
    "predicted": "the speedup that tau and the calibrated costs of drafting and verifying promise",
    "n, clocked": "prompts that the counts are from, and those of them that were decoded with a clock",
    "diverged": "greedy outputs that are not the target's own; each is a near-tie or a bug",
}
"""What the columns mean."""
HOW = """Counts are pooled over prompts. Brackets are 95% intervals over prompts (jackknife; score intervals of rates and tau, logarithms of
speedups); claims of speed and detectable differences are corrected for the number of cells (Holm). `–` is missing."""


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


def facts(manifest: Manifest) -> dict[str, str]:
    """What ran, where and when."""
    machine, code, measured = manifest.machine, manifest.code, manifest.measured
    memory = machine.get("memory_bytes")
    found = {
        "run": manifest.run,
        "started": manifest.started,
        "suite": f"{manifest.suite.get('name')} ({manifest.suite_hash[:12]})",
        "pair": manifest.pair,
        "models": ", ".join(f"{name} {str(value)[:12]}" for name, value in manifest.models.items() if name != "translated"),
        "machine": f"{machine.get('processor')}, {machine.get('cores')} cores" + (f", {memory / 2**30:.0f} GiB" if memory else ""),
        "device": f"{machine.get('device')}, BLAS {machine.get('blas')}"
        + (f", the target over {machine['shards']} processes ({machine.get('shards_backend')})" if machine.get("shards") else ""),
        "code": f"{code.get('version')} {str(code.get('commit'))[:12]}{' with local changes' if code.get('dirty') else ''}",
        "packages": ", ".join(f"{name} {version}" for name, version in manifest.packages.items()),
    }
    sealed = manifest.seal
    found["records"] = f"{sealed.records}, sealed with SHA-256 {sealed.sha256[:12]}" if sealed else "not sealed"
    if measured.peak_memory_bytes:
        found["peak memory"] = f"{measured.peak_memory_bytes / 2**30:.2f} GiB"
    if measured.time_s:
        time_s = measured.time_s
        found["time"] = f"{time_s['total']:.0f} s, of which {own_share(time_s):.1%} outside model calls and training"
    return found
