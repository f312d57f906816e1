"""Check a report against the raw records, every file again and every point value by a second computation, and the records themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness.core.cell import BOTH, FIELDS
from harness.core.errors import CheckFailed, HarnessError
from harness.core.files import read_bytes, read_text
from harness.core.journal import decode_line
from harness.report import make_run, report_texts
from harness.report.escape import cells
from harness.report.integrity import contradictions, first_difference
from harness.report.run import Run
from harness.report.sections.result import domain_rows, first_rows
from harness.report.tables import MISSING, ON
from harness.results.manifest import upgrade
from harness.results.reading import RECORDS, read_run
from harness.results.summary import ALL, CellRow
from harness.results.texts import read_texts

Raw = Mapping[str, Any]


def verify(folder: Path, out: Path) -> int:
    """Recompute a run's report from its records, and check that manifest, plan and records do not contradict each other.

    Every file in ``out`` is made again from the records, intervals and charts included, and must be equal. Counts, rates, speeds and
    speedups of the first table and of the acceptance table are also recomputed from the JSON lines without the code of the summary.

    Returns:
        How many values the second computation checked.

    Raises:
        CheckFailed: something differs; names the first places.
        HarnessError: the run cannot be read.
    """
    manifest, records = read_run(folder)
    false = contradictions(manifest, records)
    if false:
        raise CheckFailed(f"the records of {folder} cannot be what the run made:\n{_first(false)}", "Restore the run's folder from a copy.")
    run = make_run(manifest, records, read_texts(folder))
    texts = report_texts(run)
    wrong = differences(texts, out)
    problems, checked = recompute(texts["report.md"], run, folder)
    if wrong or problems:
        lines = _first([*problems, *wrong])
        raise CheckFailed(
            f"the report in {out} does not follow from {folder / RECORDS}:\n{lines}", "Write the report again, or restore the records."
        )
    return checked


def recompute(report: str, run: Run, folder: Path) -> tuple[list[str], int]:
    """Compute the first table and the acceptance table of a Markdown report a second way; what is wrong, and how many were checked."""
    content = read_bytes(folder / RECORDS)
    raw = [upgrade(row, RECORDS) for line in content.split(b"\n") if (row := decode_line(line)) is not None]
    tables, machine = _tables(report), run.manifest.measured.reference_machine
    problems, checked = _check_cells(tables[0], first_rows(run.shown), raw, machine)
    drafted = [row for row in run.shown if row.drafter is not None]
    for header, shown in (("tok/s", domain_rows(run.shown)), ("rate, pooled", drafted)):
        for table in [t for t in tables[1:] if t and header in t[0]]:
            more, count = _check_cells(table, shown, raw, machine)
            problems, checked = problems + more, checked + count
    return problems, checked


def differences(texts: Mapping[str, str], out: Path) -> list[str]:
    """Where the files in ``out`` first differ from what they should hold (file name to text), a line for each that does."""
    return [line for name, text in texts.items() if (line := _different(out / name, text)) is not None]


def _first(lines: Sequence[str]) -> str:
    return "\n".join([*lines[:10], *([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])])


_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def _different(path: Path, computed: str) -> str | None:
    """Where a written file first differs from what the records give; the last bits of long decimals depend on the machine's numpy."""
    try:
        written = read_text(path)
    except HarnessError as error:
        return error.problem
    at = 0
    for here, there in zip_longest(_NUMBER.split(written), _NUMBER.split(computed), fillvalue=""):
        if here != there and not ("." in here and "." in there and _close(here, there)):
            same = first_difference(here, there) or 0
            line, start = written.count("\n", 0, at + same) + 1, max(0, same - 20)
            return f"{path} line {line} has {here[start : same + 60]!r} where the records give {there[start : same + 60]!r}"
        at += len(here)
    return None


def _close(a: str, b: str) -> bool:
    return _NUMBER.fullmatch(a) is not None and _NUMBER.fullmatch(b) is not None and math.isclose(float(a), float(b), rel_tol=1e-9)


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
            found[-1].append(dict(zip(headers, texts, strict=True)))
    return found


def _check_cells(
    table: Sequence[Mapping[str, str]], rows: Sequence[CellRow], raw: Sequence[Raw], machine: str | None
) -> tuple[list[str], int]:
    if len(table) != len(rows):
        return [f"a table has {len(table)} lines, the records give {len(rows)} cells"], 0
    problems, checked = [], 0
    for line, row in zip(table, rows, strict=True):
        everything = [r for r in raw if _belongs(r, row)]
        clocked = [r for r in everything if r["method"] == "decode" and machine in (None, (r.get("place") or {}).get("machine"))]
        counted = {r["sample_id"] for r in everything if r["method"] != "decode"}
        own = [r for r in everything if r["method"] != "decode" or r["sample_id"] not in counted]
        for header in line:
            compute = _POINTS.get(header)
            if header.startswith(ON) and not any(r.get("verify_times_s") for r in raw):  # else they are robust
                compute = partial(_speedup_on, header.removeprefix(ON))
            if compute is None:
                continue
            checked += 1
            printed = line[header].split(" [")[0].rstrip("x")
            value = compute(clocked if header in _CLOCKED or header.startswith(ON) else own, raw)
            if not _agrees(printed, value):
                problems.append(f"{row.domain} {row.label} K={row.k}, {header}: report {printed}, records {value}")
    return problems, checked


def _agrees(printed: str, value: float | None) -> bool:
    if value is None or printed == MISSING:
        return value is None and printed == MISSING
    digits = len(printed.partition(".")[2])
    return abs(float(printed) - value) <= 0.5000001 * 10.0**-digits


def _belongs(record: Raw, row: CellRow) -> bool:
    loose = {"domain": row.domain == ALL, "method": row.method == BOTH, "adapter": row.drafter == "router"}
    return all(loose.get(name) or record.get(name, {}) == getattr(row, name) for name in FIELDS)


def _sum(records: Sequence[Raw], name: str) -> float:
    return float(sum(record[name] for record in records))


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


_CLOCKED = ("tok/s", "speedup [95%]")
"""Columns that come from the prompts with a clock."""
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
