"""Whether greedy outputs equal the target's own."""

from __future__ import annotations

from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Table
from harness.results.summary import ALL

TITLE = "Divergences"


def tables(run: Run) -> list[Table]:
    """Every divergence with its first position and logit gap."""
    lines = [
        (row.label, str(row.k), sample, str(d.position), f"{d.gap:.2e}", d.kind)
        for row in run.shown
        if row.domain != ALL
        for sample, d in row.divergences
    ]
    return [
        Table("Divergences from the target's greedy output", ("drafter", "K", "sample", "position", "gap (nats)", "kind"), tuple(lines), 3)
    ]


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """How many of the compared outputs are equal, and whether the others differ at a near-tie."""
    cells = [row for row in run.rows if row.compared and row.domain != ALL]
    compared = sum(row.compared for row in cells)
    if not compared:
        return []
    found = [d for row in cells for _, d in row.divergences]
    if not found:
        return [f"All {compared} greedy outputs equal the target's own, token for token."]
    bugs = sum(d.kind == "bug" for d in found)
    text = f"{compared - len(found)} of {compared} greedy outputs equal the target's own; {len(found) - bugs} differ from a near-tie on"
    return [text + (f", {bugs} differ without a near-tie: a bug in the decoding (listed below)." if bugs else " (listed below).")]
