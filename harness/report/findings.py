"""Plain sentences computed from the rows: what is faster, what could not be shown, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core import stats
from harness.core.stats import Estimate
from harness.report.tables import interval, number
from harness.report.training_tables import training_findings
from harness.results.store import Manifest
from harness.results.summary import ALL, CellRow, corrected_speedups

ALPHA = 0.05
"""Family-wise error of the speed claims of one report (Holm)."""
MANY = 12
"""With more timed cells than this, or several domains, only the fastest and those that are shown to be slower get a sentence."""


def findings(rows: Sequence[CellRow], measured: Mapping[str, Any]) -> list[str]:
    """Sentences for the first screen of a report.

    Args:
        rows: from :func:`harness.results.summary.summarise`.
        measured: the manifest's ``measured``.
    """
    sentences = _speed(rows)
    sentences += _lossless(rows)
    sentences += _quality(rows)
    sentences += _replayed(rows, measured)
    sentences += training_findings(measured, rows)
    sentences += [f"Warning: {text}" for text in measured.get("warnings", ())]
    sentences += [f"Warning: {text}." for text in stats.instability(measured.get("reference_s", ()))]
    sentences += [f"Warning: {text}." for text in stats.slower_verification(measured.get("verification", ()))]
    if measured.get("skipped"):
        sentences.append(f"Not run: {', '.join(measured['skipped'])}. mlx-lm's loop needs a draft with the target's whole vocabulary.")
    return sentences


def unfinished(rows: Sequence[CellRow], manifest: Manifest) -> list[str]:
    """What stands above everything else in the report of a run that was killed or interrupted; nothing for a finished one."""
    done, planned = sum(row.n for row in rows if row.domain != ALL), manifest.measured.get("planned")
    if manifest.finished:
        return []
    part = f"{done} of {planned} records" if planned else f"{done} records"
    return [f"Unfinished: {part}; resume with: harness run ... --resume {manifest.run}"]


def _speed(rows: Sequence[CellRow]) -> list[str]:
    cells = [row for row in rows if row.speedup is not None]
    speedups = [estimate for estimate in corrected_speedups(cells) if estimate is not None]
    sentences = {id(row): _speed_sentence(row, speedup, len(cells)) for row, speedup in zip(cells, speedups, strict=True)}
    domains = sorted(dict.fromkeys(r.domain for r in cells), key=lambda d: d != ALL)
    if len(domains) == 1 and len(cells) <= MANY:
        return [text[0].upper() + text[1:] for text in sentences.values()]
    exact = [r for r in cells if not r.lossy and not r.temperature] or cells
    best = [max((r for r in exact if r.domain == d), key=_speedup_value) for d in domains if any(r.domain == d for r in exact)]
    slow = [
        f"{_name(row)} on {_where(row)} {interval(row.speedup, 2, 'x')}"
        for row, speedup in zip(cells, speedups, strict=True)
        if speedup.p is not None and speedup.p < ALPHA and speedup.value < 1
    ]
    first = [f"Fastest: {sentences[id(row)]}" if _speedup_value(row) > 1 else _nothing_faster(row) for row in best]
    return first + ([f"Slower than the target alone: {'; '.join(slow)}."] if slow else [])


def _nothing_faster(row: CellRow) -> str:
    closest = f"{_name(row)} came closest at {interval(row.speedup, 2, 'x')}, n = {row.n}"
    return f"On {_where(row)}, nothing ran faster than the target alone: {closest}."


def _speedup_value(row: CellRow) -> float:
    return row.speedup.value if row.speedup else 0.0


def _where(row: CellRow) -> str:
    return "all domains together" if row.domain == ALL else row.domain


def _name(row: CellRow) -> str:
    return f"{row.label}{'' if row.k is None else f' (K = {row.k})'}{f' at T = {row.temperature:g}' if row.temperature else ''}"


def _speed_sentence(row: CellRow, speedup: Estimate, cells: int) -> str:
    """``speedup`` is the row's, corrected for the number of cells."""
    p = speedup.p
    if p is None:
        return f"on {_where(row)}, {_name(row)} ran at {speedup.value:.2f}x the target alone; n = {speedup.n} is too few for an interval."
    if p >= ALPHA and speedup.excludes(1.0):
        return (
            f"on {_where(row)}, {_name(row)} ran at {interval(speedup, 2, 'x')} the target alone, n = {speedup.n}; "
            f"among {cells} cells that may be chance (p = {p:.2g} after Holm's correction)."
        )
    if p >= ALPHA:
        detectable = number(speedup.detectable, 2, "x")
        return (
            f"on {_where(row)}, no difference in speed between {_name(row)} and the target alone could be shown at n = {speedup.n} "
            f"({interval(speedup, 2, 'x')}; detectable: {detectable})."
        )
    word = "faster" if speedup.value > 1 else "slower"
    return f"on {_where(row)}, {_name(row)} is {word} than the target alone: {interval(speedup, 2, 'x')}, n = {speedup.n}."


def _lossless(rows: Sequence[CellRow]) -> list[str]:
    cells = [row for row in rows if row.compared and row.domain != ALL]
    compared = sum(row.compared for row in cells)
    if not compared:
        return []
    found = [d for row in cells for _, d in row.divergences]
    if not found:
        return [f"All {compared} greedy outputs equal the target's own, token for token."]
    bugs = sum(d.kind == "bug" for d in found)
    text = f"{compared - len(found)} of {compared} greedy outputs equal the target's own; {len(found) - bugs} differ from a near-tie on"
    return [text + (f", {bugs} differ without a near-tie: a bug in the decoding (listed below)." if bugs else " (listed below).")]


def _replayed(rows: Sequence[CellRow], measured: Mapping[str, Any]) -> list[str]:
    """What replay cost beside decoding the same cells, estimated from the target's own speed on each domain and the predicted speedups.

    Only cells whose replay was timed count: a process that was killed took its clock with it.
    """
    seconds = {check["drafter"]: check["replay_s"] for check in measured.get("spot_checks", ()) if "replay_s" in check}
    plain = [r for r in rows if r.drafter is None and r.temperature == 0 and r.method == "decode"]
    base = {r.domain: r.tokens / r.tok_s / r.n for r in plain if r.tok_s}
    replays = [r for r in rows if r.method == "replay" and r.domain != ALL]
    cells = [r for r in replays if r.domain in base and (r.adapter or r.drafter) in seconds]
    if not cells:
        return []
    took = sum(seconds[name] for name in {r.adapter or r.drafter for r in cells})
    decoding = sum(base[r.domain] * r.n / (r.predicted or 1.0) for r in cells)
    some, them = (f"{len(cells)} cells", "them") if len(cells) > 1 else ("1 cell", "it")
    ratio = f", {decoding / took:.0f} times as long" if took >= 1 else ""
    return [f"{some} came from replay in {took:.1f} s; decoding {them} would take about {decoding:.0f} s{ratio}."]


def _quality(rows: Sequence[CellRow]) -> list[str]:
    sentences = []
    for domain in dict.fromkeys(row.domain for row in rows if row.domain != ALL):
        scored = [row for row in rows if row.domain == domain and row.quality and row.quality.mean is not None and row.temperature == 0]
        base = next((row for row in scored if row.drafter is None), None)
        others = [row for row in scored if row.drafter is not None and not row.lossy]
        if base is None or base.quality is None or not others or base.quality.metric == "agreement":
            continue
        different = [row for row in others if row.quality and row.quality.mean != base.quality.mean]
        score = f"{base.quality.metric} on {domain} is {number(base.quality.mean)} for the target alone"
        if different:
            named = "; ".join(f"{_name(row)} {number(row.quality.mean if row.quality else None)}" for row in different)
            sentences.append(f"{score} and differs for {named}.")
        else:
            sentences.append(f"{score} and for every lossless cell.")
        if base.quality.cut:
            cut = f"{base.quality.cut} of {base.quality.scored}"
            sentences[-1] += f" {cut} answers were cut at the token limit: raise max_tokens to judge quality."
    return sentences
