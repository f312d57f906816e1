"""CSV of all cells for other tools; a missing value is an empty field, text that a spreadsheet would compute begins with an apostrophe."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from harness.core.stats import Estimate
from harness.report.escape import spreadsheet
from harness.results.summary import CellRow, corrected_speedups

_COUNTS = {"tokens": "emitted", **{name: name for name in ("rounds", "drafted", "accepted", "rejected")}}
"""Column to count."""
_PLAIN = (
    "experiment", "domain", "drafter", "adapter", "k", "rule", "temperature", "loop", "method", "lossy", "n", "clocked", *_COUNTS,
    "rate_per_prompt", "tok_s", "predicted", "efficiency", "unpaired", "compared",
)  # fmt: skip
_ESTIMATES = ("rate", "alpha", "tau", "speedup", "robust")
_LATENCIES = ("ttft_s", "token_s", "total_s")


def render_csv(rows: Sequence[CellRow]) -> str:
    """One line per cell with every number of :class:`~harness.results.summary.CellRow` at full precision."""
    records = [_flat(row, speedup) for row, speedup in zip(rows, corrected_speedups(rows), strict=True)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else list(_PLAIN), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _flat(row: CellRow, speedup: Estimate | None) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(row.counts, _COUNTS[name]) if name in _COUNTS else getattr(row, name) for name in _PLAIN}
    values["settings"] = row.settings.key if row.settings else None
    for name in _ESTIMATES:
        estimate: Estimate | None = getattr(row, name)
        for part in ("value", "low", "high"):
            values[name if part == "value" else f"{name}_{part}"] = getattr(estimate, part) if estimate else None
    values["speedup_detectable"] = speedup.detectable if speedup else None
    for name in _LATENCIES:
        times = getattr(row, name) or (None, None, None)
        for level, value in zip((50, 90, 99), times, strict=True):
            values[f"{name}_p{level}"] = value
    values["divergences"] = len(row.divergences) if row.compared else None
    values["ties"] = sum(d.kind == "tie" for _, d in row.divergences) if row.compared else None
    values["metric"] = row.quality.metric if row.quality else None
    values["score"] = row.quality.mean if row.quality else None
    return {name: spreadsheet(value) for name, value in values.items()}
