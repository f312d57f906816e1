"""Check a report against the raw records: every line again, and every point value by a second, plain computation."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import CheckFailed
from harness.files import read_text
from harness.report import load_run
from harness.report.escape import cells
from harness.report.markdown import render
from harness.report.router import compare_router
from harness.report.summary import ALL, CellRow
from harness.report.tables import MISSING, ON, first_rows, timed_rows
from harness.store import RECORDS

Raw = Mapping[str, Any]


def verify(folder: Path, report: Path) -> int:
    """Recompute every number of a Markdown report from ``records.jsonl``.

    The whole text is rendered again from the records, intervals included, and must be equal. Counts, rates, speeds and speedups
    of the first table and of the acceptance table are also recomputed from the JSON lines without the code of the summary.

    Returns:
        How many values the second computation checked.

    Raises:
        CheckFailed: a value differs; names the first lines.
        HarnessError: the report or the run cannot be read.
    """
    text = read_text(report, advice=f"Write it first: harness report {folder.name}.")
    run = load_run(folder)
    rows = run.rows
    wrong = _different_lines(text, render(rows, run.manifest, compare_router(run.records)))
    raw = [json.loads(line) for line in (folder / RECORDS).read_bytes().split(b"\n")[:-1]]
    tables = _tables(text)
    problems, checked = _check_cells(tables[0], first_rows(rows), raw)
    own = [row for row in timed_rows(rows) if row.domain != ALL]
    drafted = [row for row in rows if row.drafter is not None]
    for header, shown in (("tok/s", own), ("rate, pooled", drafted)):
        for table in [t for t in tables[1:] if t and header in t[0]]:
            more, count = _check_cells(table, shown, raw)
            problems, checked = problems + more, checked + count
    if wrong or problems:
        first = "\n".join([*problems, *wrong][:10])
        raise CheckFailed(f"{report} does not follow from {folder / RECORDS}:\n{first}", "Write the report again, or restore the records.")
    return checked


def _different_lines(written: str, computed: str) -> list[str]:
    lines = difflib.unified_diff(written.splitlines(), computed.splitlines(), "report", "records", lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _tables(text: str) -> list[list[dict[str, str]]]:
    """Pipe tables of a Markdown text in order, each a list of header -> cell."""
    found: list[list[dict[str, str]]] = []
    headers: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            headers = []
            continue
        texts = cells(line)
        if not headers:
            headers = texts
            found.append([])
        elif not set(line) <= set("|:- "):
            found[-1].append(dict(zip(headers, texts, strict=False)))
    return found


def _check_cells(table: Sequence[Mapping[str, str]], rows: Sequence[CellRow], raw: Sequence[Raw]) -> tuple[list[str], int]:
    if len(table) != len(rows):
        return [f"a table has {len(table)} lines, the records give {len(rows)} cells"], 0
    problems, checked = [], 0
    for line, row in zip(table, rows, strict=True):
        own = [r for r in raw if _belongs(r, row)]
        for header in line:
            compute = _POINTS.get(header)
            if header.startswith(ON):
                compute = partial(_speedup_on, header.removeprefix(ON))
            if compute is None:
                continue
            checked += 1
            printed = line[header].split(" [")[0].rstrip("x")
            value = compute(own, raw)
            if not _agrees(printed, value):
                problems.append(f"{row.domain} {row.label} K={row.k}, {header}: report {printed}, records {value}")
    return problems, checked


def _agrees(printed: str, value: float | None) -> bool:
    if value is None or printed == MISSING:
        return value is None and printed == MISSING
    digits = len(printed.partition(".")[2])
    return abs(float(printed) - value) <= 0.5000001 * 10.0**-digits


def _belongs(record: Raw, row: CellRow) -> bool:
    names = ("experiment", "drafter", "k", "rule", "temperature", "mode", "method", "lossy")
    same = all(record[name] == getattr(row, name) for name in names) and row.domain in (ALL, record["domain"])
    adapter = row.drafter == "router" or record["adapter"] == row.adapter
    return same and adapter and ((record["extra"] or {}).get("settings") or {}) == dict(row.settings)


def _sum(records: Sequence[Raw], name: str) -> float:
    return sum(record[name] for record in records)


def _quotient(top: float, bottom: float) -> float | None:
    return top / bottom if bottom else None


def _if_drafting(compute: Callable[[Sequence[Raw]], float | None]) -> Callable[[Sequence[Raw], Sequence[Raw]], float | None]:
    return lambda own, raw: compute(own) if own[0]["drafter"] is not None else None


def _rate(own: Sequence[Raw]) -> float | None:
    return _quotient(_sum(own, "accepted"), _sum(own, "drafted"))


def _alpha(own: Sequence[Raw]) -> float | None:
    return _quotient(_sum(own, "accepted"), _sum(own, "accepted") + _sum(own, "rejected"))


def _per_prompt(own: Sequence[Raw]) -> float | None:
    by_prompt: dict[str, list[Raw]] = {}
    for record in own:
        by_prompt.setdefault(record["sample_id"], []).append(record)
    rates = [rate for rate in map(_rate, by_prompt.values()) if rate is not None]
    return _quotient(sum(rates), len(rates))


def _speedup(own: Sequence[Raw], raw: Sequence[Raw]) -> float | None:
    if own[0]["drafter"] is None:
        return None
    base: dict[Any, Raw] = {}
    for record in raw:
        if record["drafter"] is None and record["method"] == "decode":
            base.setdefault((record["sample_id"], record["temperature"], record["seed"]), record)
    pairs = [(base.get((r["sample_id"], r["temperature"], r["seed"])), r) for r in own]
    pairs = [(b, r) for b, r in pairs if b and (r["temperature"] > 0 or b["emitted"] == r["emitted"])]
    base_s, cell_s = sum(b["wall_s"] for b, _ in pairs if b), sum(r["wall_s"] for _, r in pairs)
    tokens = _quotient(sum(r["emitted"] for _, r in pairs), sum(b["emitted"] for b, _ in pairs if b))
    ratio = _quotient(base_s, cell_s)
    return ratio * tokens if ratio is not None and tokens is not None else None


def _speedup_on(domain: str, own: Sequence[Raw], raw: Sequence[Raw]) -> float | None:
    here = [record for record in own if record["domain"] == domain]
    return _speedup(here, raw) if here else None


def _speed(own: Sequence[Raw], raw: Sequence[Raw]) -> float | None:
    return _quotient(_sum(own, "emitted"), _sum(own, "wall_s"))


_POINTS: dict[str, Callable[[Sequence[Raw], Sequence[Raw]], float | None]] = {
    "n": lambda own, raw: len({record["sample_id"] for record in own}),
    "tokens": lambda own, raw: _sum(own, "emitted"),
    "drafted": lambda own, raw: _sum(own, "drafted"),
    "accepted": lambda own, raw: _sum(own, "accepted"),
    "rate": _if_drafting(_rate),
    "rate, pooled": _if_drafting(_rate),
    "rate, per prompt": _if_drafting(_per_prompt),
    "alpha": _if_drafting(_alpha),
    "tau": lambda own, raw: _quotient(_sum(own, "emitted"), _sum(own, "rounds")),
    "tok/s": _speed,
    "speedup [95%]": _speedup,
}
