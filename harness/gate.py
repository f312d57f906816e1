"""Regression gate: compare a run with a stored reference, exactly where counts are deterministic, else by paired intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.files import parse_json, read_json, typed
from harness.records import SCHEMA_VERSION, Record
from harness.report.summary import settings_of
from harness.schema import CellName, Reference
from harness.stats import Estimate
from harness.store import Manifest, read_manifest, read_records, settings_key, upgrade, write_atomic

COUNTS = ("rounds", "drafted", "accepted", "rejected", "emitted")
HARDWARE = ("processor", "machine", "system", "cores", "device", "blas")
RATE_TOLERANCE = 0.01
"""A fall of the acceptance rate up to this is not reported, where counts are not deterministic."""
SPEED_TOLERANCE = 0.10
"""A fall of the speedup up to this part is not reported."""
ALPHA = 0.05
"""Family-wise chance of a false alarm over all interval comparisons of one check."""

Outcome = Literal["same", "changed", "no regression", "regression", "improved"]
Cells = dict[str, dict[str, dict[str, float]]]
"""Cell name to sample id to counts, with ``base_s`` and ``cell_s`` where timed."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of one cell."""

    cell: str
    """Settings of the cell in words."""
    what: Literal["counts", "rate", "speedup"]
    """What was compared: exact counts, or an interval of the difference."""
    outcome: Outcome
    detail: str
    """Numbers behind the outcome."""

    @property
    def failed(self) -> bool:
        """True when the gate must not pass."""
        return self.outcome in ("changed", "regression")


def make_reference(folder: Path) -> dict[str, Any]:
    """What a later run is compared with: identity of the run and per-prompt counts of every cell."""
    manifest = read_manifest(folder)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": manifest.run,
        "started": manifest.started,
        "pair": manifest.pair,
        "suite_hash": manifest.suite_hash,
        "models": dict(manifest.models),
        "machine": {name: manifest.machine.get(name) for name in HARDWARE},
        "packages": dict(manifest.packages),
        "code": dict(manifest.code),
        "cells": cells_of(read_records(folder)),
    }


def write_reference(folder: Path, path: Path) -> None:
    """Write the reference of a finished run.

    Raises:
        HarnessError: the run is not finished, or the file cannot be written.
    """
    _finished(read_manifest(folder))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(make_reference(folder), indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise HarnessError(f"cannot write {path}: {error.strerror or error}", "Choose a file that can be written.") from error


def read_reference(path: Path) -> dict[str, Any]:
    """Read a reference file.

    Raises:
        HarnessError: missing, damaged or from a newer version.
    """
    if not os.path.lexists(path):
        raise HarnessError(f"there is no reference {path}", "Write one from a run you trust: harness check RUN --against FILE --update.")
    advice = "Restore the file, or write a new one with --update."
    data = upgrade(read_json(path, advice=advice), str(path))
    typed(Reference, data, str(path), advice=advice)
    for name in data["cells"]:
        where = f"{path}: the cell {name[:200]}"
        typed(CellName, parse_json(name, where, advice=advice), where, advice=advice)
    return data


def check(folder: Path, reference: Mapping[str, Any], *, any_machine: bool = False) -> list[Verdict]:
    """Compare a run with a reference.

    Args:
        folder: the run folder.
        reference: from :func:`read_reference` or :func:`make_reference`.
        any_machine: compare with a reference from other hardware; nothing is compared exactly then, and no times.

    Raises:
        HarnessError: the two cannot be compared; names the field that differs.
    """
    manifest = read_manifest(folder)
    _finished(manifest)
    _comparable(manifest, reference, any_machine)
    cells = cells_of(read_records(folder))
    _same_cells(cells, reference["cells"])
    same_machine = all(manifest.machine.get(name) == reference["machine"].get(name) for name in HARDWARE)
    exact = same_machine and manifest.models.get("dtype") == "float32"
    verdicts, pending = [], []
    for name, new in cells.items():
        old = reference["cells"][name]
        if exact and _deterministic(json.loads(name)):
            verdicts.append(_exact(name, new, old))
        elif any(counts["drafted"] for counts in new.values()):
            pending.append((name, "rate", *_rates(new, old)))
        if same_machine and all("cell_s" in counts for counts in (*new.values(), *old.values())):
            pending.append((name, "speedup", *_speedups(new, old)))
    return verdicts + _intervals(pending)


def cells_of(records: Iterable[Record]) -> Cells:
    """Per-prompt sums of counts and, where timed and paired with a baseline, wall times of every cell."""
    records = list(records)
    base = {(r.sample_id, r.temperature, r.seed): r for r in reversed(records) if r.drafter is None and r.wall_s is not None}
    cells: Cells = {}
    for r in records:
        counts = cells.setdefault(_name(r), {}).setdefault(r.sample_id, dict.fromkeys(COUNTS, 0.0))
        for count in COUNTS:
            counts[count] += getattr(r, count)
        baseline = base.get((r.sample_id, r.temperature, r.seed))
        if r.drafter is not None and r.wall_s is not None and baseline is not None and baseline.wall_s is not None:
            counts["base_s"] = counts.get("base_s", 0.0) + baseline.wall_s / baseline.emitted
            counts["cell_s"] = counts.get("cell_s", 0.0) + r.wall_s / r.emitted
    return cells


def _name(r: Record) -> str:
    fields = {name: getattr(r, name) for name in ("experiment", "domain", "drafter", "k", "rule", "temperature", "mode", "method")}
    fields["adapter"] = None if r.drafter == "router" else r.adapter
    return settings_key({**fields, **({"settings": dict(settings_of(r))} if settings_of(r) else {})})


def describe(name: str) -> str:
    """A cell's name for people: ``code lookup K=4 (ablation_k, replay)``."""
    cell = json.loads(name)
    settings = "".join(f" {key}={value}" for key, value in sorted(cell.get("settings", {}).items()))
    adapter = f" {cell['adapter']}" if cell["adapter"] else ""
    temperature = f" T={cell['temperature']:g} {cell['rule']}" if cell["temperature"] else ""
    k = "" if cell["k"] is None else f" K={cell['k']}"
    return (
        f"{cell['domain']} {cell['drafter'] or 'target only'}{adapter}{k}{temperature}{settings} ({cell['experiment']}, {cell['method']})"
    )


def _deterministic(cell: Mapping[str, Any]) -> bool:
    """Greedy counts that no clock decides."""
    return cell["temperature"] == 0 and cell["k"] != "auto"


def _exact(name: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Verdict:
    different = [s for s in new if any(new[s][count] != old[s][count] for count in COUNTS)]
    if not different:
        return Verdict(
            cell=describe(name), what="counts", outcome="same", detail=f"equal on {len(new)} prompt{'s' if len(new) != 1 else ''}"
        )
    sample = different[0]
    first = next(count for count in COUNTS if new[sample][count] != old[sample][count])
    detail = f"{len(different)} of {len(new)} prompts differ, first {sample}: {first} {old[sample][first]:g} -> {new[sample][first]:g}; "
    detail += f"rate {_pooled(old)} -> {_pooled(new)}"
    return Verdict(cell=describe(name), what="counts", outcome="changed", detail=detail)


def _pooled(cell: Mapping[str, Any]) -> str:
    drafted = sum(counts["drafted"] for counts in cell.values())
    return f"{sum(counts['accepted'] for counts in cell.values()) / drafted:.3f}" if drafted else "–"


def _columns(cell: Mapping[str, Any], samples: Sequence[str], *names: str) -> list[Any]:
    return [np.array([cell[s][name] for s in samples], float) for name in names]


def _rates(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[Estimate | None, float]:
    samples = sorted(new)
    a, b = _columns(new, samples, "accepted", "drafted"), _columns(old, samples, "accepted", "drafted")
    return stats.difference((a[0], a[1]), (b[0], b[1])), -RATE_TOLERANCE


def _speedups(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[Estimate | None, float]:
    samples = sorted(new)
    a, b = _columns(new, samples, "base_s", "cell_s"), _columns(old, samples, "base_s", "cell_s")
    return stats.relative((a[0], a[1]), (b[0], b[1])), 1 - SPEED_TOLERANCE


def _intervals(pending: Sequence[tuple[str, Any, Estimate | None, float]]) -> list[Verdict]:
    """Judge all interval comparisons of a check together (Holm)."""
    adjusted = stats.holm([estimate.p if estimate else None for _, _, estimate, _ in pending])
    verdicts = []
    for (name, what, estimate, limit), p in zip(pending, adjusted, strict=True):
        null = 0.0 if what == "rate" else 1.0
        outcome: Outcome = "no regression"
        if estimate is not None and p is not None and p < ALPHA:
            outcome = "regression" if estimate.value < limit else "improved" if estimate.value > null else "no regression"
        verdicts.append(Verdict(cell=describe(name), what=what, outcome=outcome, detail=_detail(what, estimate, p, limit)))
    return verdicts


def _detail(what: str, estimate: Estimate | None, p: float | None, limit: float) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return f"too few prompts to compare ({estimate.n if estimate else 0})"
    kind = "rate difference" if what == "rate" else "speedup ratio"
    return f"{kind} {estimate.signed()}, n = {estimate.n}, adjusted p = {p:.3f}, limit {limit:+.2f}, detectable {estimate.detectable:.3f}"


def _finished(manifest: Manifest) -> None:
    if manifest.measured.get("status") != "finished":
        raise HarnessError(f"run {manifest.run} is not finished", f"Finish it with --resume {manifest.run}.")


def _comparable(manifest: Manifest, reference: Mapping[str, Any], any_machine: bool) -> None:
    pairs: list[tuple[str, object, object]] = [
        ("suite_hash", manifest.suite_hash, reference["suite_hash"]),
        ("pair", manifest.pair, reference["pair"]),
    ]
    now, then = manifest.models, reference["models"]
    pairs += [(f"models.{name}", now.get(name), then.get(name)) for name in ("target", "draft", "draft_vocab", "dtype")]
    if not any_machine:
        pairs += [(f"machine.{name}", manifest.machine.get(name), reference["machine"].get(name)) for name in HARDWARE]
    for field, new, old in pairs:
        if new != old:
            advice = "Compare with a reference of the same suite and models, or write a new one with --update."
            if field.startswith("machine."):
                advice = "Use a reference made on this machine (--update writes one), or --any-machine to compare acceptance by intervals."
            raise HarnessError(f"cannot compare: {field} is {new!r} in the run, {old!r} in the reference", advice)


def _same_cells(new: Cells, old: Cells) -> None:
    for name in {*new, *old}:
        missing = "run" if name not in new else "reference" if name not in old else None
        if missing:
            raise HarnessError(f"cannot compare: the {missing} has no cell {describe(name)}", "Write a new reference with --update.")
        if set(new[name]) != set(old[name]):
            sample = sorted(set(new[name]) ^ set(old[name]))[0]
            raise HarnessError(
                f"cannot compare: sample {sample} of {describe(name)} is in one of the two only", "Write a new reference with --update."
            )
