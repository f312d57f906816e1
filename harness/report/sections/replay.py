"""What replay saved, and whether decoding agrees with it."""

from __future__ import annotations

from harness.core.cell import BOTH
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Table

TITLE = "Replay"


def tables(run: Run) -> list[Table]:
    """None."""
    return []


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """What replay cost beside decoding the same cells, and its spot checks."""
    return [*_cost(run), *_checks(run)]


def _cost(run: Run) -> list[str]:
    """Decoding is estimated from the target's own speed on each domain and the speedups, measured or predicted.

    Nothing is said where some of the replays took their clock with them: a process was killed.
    """
    replayed = run.manifest.measured.replayed
    written = sum(n for cell, n in run.groups.counts.items() if cell.method == "replay")
    plain = [r for r in run.rows if r.drafter is None and r.temperature == 0]
    base = {r.domain: r.counts.emitted / r.tok_s / r.n for r in plain if r.tok_s}
    cells = [r for r in run.own if r.drafter and r.method in ("replay", BOTH) and r.domain in base]
    if replayed is None or replayed["records"] != written or not cells:
        return []
    decoding = sum(base[r.domain] * r.n / (r.speed.value if r.speed else r.predicted or 1.0) for r in cells)
    some, them = (f"{len(cells)} cells", "them") if len(cells) > 1 else ("1 cell", "it")
    took = replayed["seconds"]
    ratio = f", {decoding / took:.0f} times as long" if took >= 1 else ""
    return [f"The counts of {some} came from replay in {took:.1f} s; decoding {them} would take about {decoding:.0f} s{ratio}."]


def _checks(run: Run) -> list[str]:
    checks = run.manifest.measured.spot_checks
    if not checks:
        return []
    equal = sum(c["equal"] for c in checks)
    ties = sum(not c["equal"] and bool(c["near_ties"]) for c in checks)
    rest = f"; {ties} of the others have a near-tie" if ties else ""
    return [f"Replay was spot-checked by decoding: the counts of every round are equal in {equal} of {len(checks)} cells{rest}."]
