"""What training did, what the router chose among and what swaps cost, as tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.tables import MISSING, Table, number
from harness.results.router_rows import oracle_gap_recovery
from harness.results.summary import ALL, CellRow


def training_table(measured: Mapping[str, Any], rows: Sequence[CellRow]) -> Table | None:
    """One line per adapter: its last round, validation acceptance before and after, and when training has paid for itself."""
    lines = []
    for name, adapter in (measured.get("adapters") or {}).items():
        rounds, domain = adapter["rounds"], adapter["domain"]
        if not rounds:
            lines.append((name, domain, "too few failure cases to train on", *[MISSING] * 6))
            continue
        last = rounds[-1]
        verdict = "kept" if last["accepted"] else "rejected, the old draft stays"
        verdict += _noise(last.get("gain"))
        before, after = rounds[0]["before"].get(domain), last["after"].get(domain)
        others = [last["after"][d] - rounds[0]["before"][d] for d in last["after"] if d != domain]
        numbers = (
            f"{number(before)} to {number(after)}",
            number(min(others)) if others else MISSING,
            str(sum(r["steps"] for r in rounds)),
            str(sum(r["tokens"] for r in rounds)),
            number(sum(r["train_s"] for r in rounds), 0, " s"),
            _break_even(rows, name, domain, sum(r["train_s"] for r in rounds)),
        )
        lines.append((name, domain, f"round {last['round']}: {verdict}", *numbers))
    if not lines:
        return None
    metric = next(iter(measured["adapters"].values()))["metric"]
    headers = ("adapter", "domain", "result", f"validation {metric}", "worst other domain", "updates", "tokens", "training", "pays after")
    return Table("Training", headers, tuple(lines), left=3)


def _noise(gain: Mapping[str, Any] | None) -> str:
    """Says so where the interval of a round's gain contains 0; ``gain`` is that of a round record."""
    if not gain or not gain["value"] or gain["low"] is None:
        return ""
    return ", gain within noise" if gain["low"] <= 0 <= gain["high"] else ""


def _break_even(rows: Sequence[CellRow], name: str, domain: str, train_s: float) -> str:
    """Emitted tokens after which the saved decoding time equals the training time."""
    timed = [r for r in rows if r.domain == domain and r.tok_s and r.temperature == 0 and r.mode == "detailed"]
    for adapted in (r for r in timed if r.drafter == "adapter" and r.adapter == name):
        plain = next((r for r in timed if r.drafter == "generic" and r.k == adapted.k), None)
        if plain is None or plain.tok_s is None or adapted.tok_s is None:
            continue
        saved = 1 / plain.tok_s - 1 / adapted.tok_s
        return f"{train_s / saved:,.0f} tokens" if saved > 0 else "never"
    return MISSING


def swap_table(measured: Mapping[str, Any]) -> Table | None:
    """The bank's policies: swap time, memory and what a draft step costs."""
    swaps = measured.get("swaps") or []
    if not swaps:
        return None
    lines = [
        (s["policy"], number(1000 * s["swap_s"], 2, " ms"), number(s["held_bytes"] / 2**20, 1, " MiB"), number(s["step_ratio"], 2, "x"))
        for s in swaps
    ]
    return Table("Adapter swaps", ("policy", "swap", "memory held", "draft step"), tuple(lines), left=1)


def router_table(comparison: Sequence[Mapping[str, Any]]) -> Table | None:
    """Best fixed drafter, router and oracle per domain, and the share of the gap that the router closes."""
    if not comparison:
        return None
    lines = []
    for entry in comparison:
        recovery = oracle_gap_recovery(comparison, entry["domain"]) if entry["choice"] == "router" else None
        lines.append((entry["domain"], entry["choice"], entry["name"], str(entry["n"]), number(entry["rate"]), number(recovery, 2)))
    return Table("Router", ("domain", "choice", "drafter", "n", "rate, per prompt", "oracle gap recovered"), tuple(lines), left=3)


def training_findings(measured: Mapping[str, Any], rows: Sequence[CellRow]) -> list[str]:
    """Sentences on spot checks of replay, rounds that were rejected, and the router's own cost."""
    sentences = []
    checks = measured.get("spot_checks") or []
    if checks:
        equal = sum(c["equal"] for c in checks)
        ties = sum(not c["equal"] and bool(c["near_ties"]) for c in checks)
        rest = f"; {ties} of the others have a near-tie" if ties else ""
        sentences.append(
            f"Replay was spot-checked by decoding: the counts of every round are equal in {equal} of {len(checks)} cells{rest}."
        )
    adapters = measured.get("adapters") or {}
    untrained = [name for name, a in adapters.items() if not a["rounds"]]
    if untrained:
        sentences.append(f"Too few failure cases to train {', '.join(untrained)} on: these cells ran with the plain draft.")
    rejected = [name for name, a in adapters.items() if a["rounds"] and not any(r["accepted"] for r in a["rounds"])]
    if rejected:
        sentences.append(f"No round of {', '.join(rejected)} raised validation acceptance: these cells ran with the plain draft.")
    for row in rows:
        if row.route_s is not None and row.domain == ALL:
            swap = f", adapter swap {1000 * row.swap_s:.1f} ms" if row.swap_s is not None else ""
            sentences.append(f"Routing took {1000 * row.route_s:.1f} ms per prompt{swap}, counted in the router's speedup.")
    return sentences
