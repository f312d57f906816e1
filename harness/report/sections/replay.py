"""What replay saved, and whether decoding agrees with it."""

from __future__ import annotations

from collections import Counter

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
    """Decoding is estimated from the target's own speed on each domain and the predicted speedups.

    Only cells whose replay was timed as a whole count: a process that was killed took its clock with it.
    """
    written: Counter[str | None] = Counter()
    for cell, n in run.groups.counts.items():
        written[cell.adapter or cell.drafter] += n if cell.method == "replay" else 0
    checks = [check for check in run.manifest.measured.spot_checks if check.get("replayed", 0) in (0, written[check["drafter"]])]
    seconds = {check["drafter"]: check["replay_s"] for check in checks if "replay_s" in check}
    plain = [r for r in run.rows if r.drafter is None and r.temperature == 0 and r.method == "decode"]
    base = {r.domain: r.counts.emitted / r.tok_s / r.n for r in plain if r.tok_s}
    cells = [r for r in run.own if r.method == "replay" and r.domain in base and (r.adapter or r.drafter) in seconds]
    if not cells:
        return []
    took = sum(seconds[name] for name in {r.adapter or r.drafter or "" for r in cells})
    decoding = sum(base[r.domain] * r.n / (r.predicted or 1.0) for r in cells)
    some, them = (f"{len(cells)} cells", "them") if len(cells) > 1 else ("1 cell", "it")
    ratio = f", {decoding / took:.0f} times as long" if took >= 1 else ""
    return [f"{some} came from replay in {took:.1f} s; decoding {them} would take about {decoding:.0f} s{ratio}."]


def _checks(run: Run) -> list[str]:
    checks = run.manifest.measured.spot_checks
    if not checks:
        return []
    equal = sum(c["equal"] for c in checks)
    ties = sum(not c["equal"] and bool(c["near_ties"]) for c in checks)
    rest = f"; {ties} of the others have a near-tie" if ties else ""
    return [f"Replay was spot-checked by decoding: the counts of every round are equal in {equal} of {len(checks)} cells{rest}."]
