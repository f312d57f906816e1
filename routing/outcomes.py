"""Outcome table: what every drafter did on every prompt at every draft length, as dense arrays."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from routing.routing_error import RoutingError

PLAIN = "plain"
"""Name of the arm that does not speculate: the target alone. Its speedup is 1 by definition."""
AUTO = "auto"
"""Draft length that is chosen while decoding."""
TARGET = "target"
"""Who proposed the tokens that nobody drafted."""

Value = Literal["tau", "rate", "speedup", "measured"]
_COUNTS = ("rounds", "drafted", "accepted", "emitted")
_REQUIRED = ("sample_id", "drafter", "k", *_COUNTS)
_NEVER_MIXED = ("rule", "temperature", "lossy", "method", "mode")
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Arm:
    """One thing the router can choose."""

    drafter: str
    """Adapter or drafter name, or ``plain``."""
    k: int | str | None = None
    """Draft length, a number or ``auto``. None for ``plain`` and where the draft length is not part of the choice."""

    @property
    def name(self) -> str:
        """Printable name, unique within one table: ``code`` or ``code@4``."""
        return self.drafter if self.k is None else f"{self.drafter}@{self.k}"


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """Raw outcomes of n samples, d drafters and m draft lengths. Missing cells are NaN in every array."""

    sample_ids: tuple[str, ...]
    """(n,) unique ids."""
    domains: tuple[str, ...]
    """(n,) domain labels; empty strings where unknown."""
    prompts: tuple[str, ...] | None
    """(n,) prompt texts; None where the rows have none."""
    drafters: tuple[str, ...]
    """(d,) names."""
    ks: tuple[int | str, ...]
    """(m,) draft lengths, ascending, ``auto`` last."""
    rounds: np.ndarray
    """(n, d, m) target passes."""
    drafted: np.ndarray
    """(n, d, m) draft tokens verified."""
    accepted: np.ndarray
    """(n, d, m) draft tokens emitted."""
    emitted: np.ndarray
    """(n, d, m) tokens emitted."""
    spent: np.ndarray
    """(n, d, m) what all rounds take by measured costs, in target steps; NaN where nobody said."""
    proposed: Mapping[str, np.ndarray]
    """Source -> (n, d, m) draft tokens emitted that it proposed; empty where nobody said."""
    wall_s: np.ndarray
    """(n, d, m) measured seconds; NaN for replayed cells."""
    baseline_s: np.ndarray
    """(n,) measured seconds of plain decoding."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def tau(self) -> np.ndarray:
        """(n, d, m) emitted tokens per target pass."""
        return _ratio(self.emitted, self.rounds)

    @property
    def rate(self) -> np.ndarray:
        """(n, d, m) draft acceptance rate."""
        return _ratio(self.accepted, self.drafted)

    @property
    def measured_speedup(self) -> np.ndarray:
        """(n, d, m) plain seconds over cell seconds, per prompt."""
        return _ratio(np.broadcast_to(self.baseline_s[:, None, None], self.wall_s.shape), self.wall_s)

    @property
    def predicted_speedup(self) -> np.ndarray:
        """(n, d, m) emitted tokens per target step of time."""
        return _ratio(self.emitted, self.spent)

    def arms(self, k: int | str | None = None, *, plain: bool = False) -> tuple[Arm, ...]:
        """Arms to choose from: the drafters at one draft length, or (k None) every drafter and draft length.

        Args:
            k: fix the draft length; the arms then carry it in ``Arm.k``.
            plain: add the arm that does not speculate.
        """
        if k is not None and k not in self.ks:
            raise RoutingError(f"no outcomes at K = {k}", f"The table holds K = {', '.join(map(str, self.ks))}.")
        chosen = tuple(Arm(d, one) for d in self.drafters for one in (self.ks if k is None else (k,)))
        return (*chosen, Arm(PLAIN)) if plain else chosen

    def rewards(self, arms: Sequence[Arm], value: Value = "tau") -> np.ndarray:
        """(n_samples, n_arms) float64 rewards, higher is better.

        Args:
            arms: columns, in order.
            value: ``tau``, ``rate``, ``speedup`` (predicted, needs ``spent``) or ``measured`` (from wall times).

        Raises:
            RoutingError: unknown arm, a missing cell, or nothing said of the time for ``speedup``.
        """
        cells = self._cells(value)
        plain = {"tau": 1.0, "rate": 0.0, "speedup": 1.0, "measured": 1.0}[value]
        columns = [np.full(len(self), plain) if a.drafter == PLAIN else cells[self._index(a)] for a in arms]
        out = np.stack(columns, axis=1)
        if not np.isfinite(out).all():
            i, j = np.argwhere(~np.isfinite(out))[0]
            raise RoutingError(
                f"sample {self.sample_ids[i]!r} has no {value} for {arms[j].name!r}",
                "Run the missing cells, or keep the complete samples only with OutcomeTable.complete(arms).",
            )
        return out

    def shares(self, arms: Sequence[Arm], choices: np.ndarray | None = None) -> dict[str, float]:
        """Share of all emitted tokens by who proposed them, the largest first, ``target`` last; empty where nobody said.

        Args:
            arms: what was chosen from.
            choices: (n_samples,) index of the arm that each sample was decoded with; the only arm where None.
        """
        if not self.proposed:
            return {}
        chosen = np.zeros(len(self), dtype=np.int64) if choices is None else choices
        found = dict.fromkeys(self.proposed, 0.0)
        emitted = 0.0
        for j, arm in enumerate(arms):
            rows = chosen == j
            if arm.drafter == PLAIN:
                emitted += float(np.nanmax(self.emitted[rows], axis=(1, 2)).sum())
                continue
            emitted += float(self.emitted[self._index(arm)][rows].sum())
            for source, tokens in self.proposed.items():
                found[source] += float(tokens[self._index(arm)][rows].sum())
        shares = {source: n / emitted for source, n in sorted(found.items(), key=lambda item: -item[1]) if n}
        return {**shares, TARGET: max(0.0, 1 - sum(shares.values()))}

    def complete(self, arms: Sequence[Arm]) -> tuple[OutcomeTable, tuple[str, ...]]:
        """Samples that have every arm, and the ids of those left out."""
        cells = [self.rounds[self._index(a)] for a in arms if a.drafter != PLAIN]
        keep = np.isfinite(np.stack(cells, axis=1)).all(axis=1)
        return self.take(np.flatnonzero(keep)), tuple(s for s, ok in zip(self.sample_ids, keep, strict=True) if not ok)

    def take(self, rows: np.ndarray) -> OutcomeTable:
        """The same table for a subset of samples (integer row indices)."""

        def pick(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {name: own[rows] for name, own in values.items()}
            return values[rows] if isinstance(values, np.ndarray) else tuple(values[i] for i in rows)

        per_sample = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("drafters", "ks")}
        picked: dict[str, Any] = {n: None if v is None else pick(v) for n, v in per_sample.items()}
        return dataclasses.replace(self, **picked)

    def groups(self) -> np.ndarray:
        """(n,) integer labels, equal for samples whose prompts are equal up to case and spacing."""
        texts = self.prompts if self.prompts is not None else self.sample_ids
        return prompt_groups(texts)

    def _cells(self, value: Value) -> np.ndarray:
        if value == "speedup" and np.isnan(self.spent).all():
            raise RoutingError("a speedup needs what the answers take", "Give rows with `spent`, from the pair's calibration.")
        known = {"tau": self.tau, "rate": self.rate, "speedup": self.predicted_speedup, "measured": self.measured_speedup}
        if value not in known:
            raise RoutingError(f"unknown reward {value!r}", "Use tau, rate, speedup or measured.")
        return known[value]

    def _index(self, arm: Arm) -> tuple[slice, int, int]:
        if arm.drafter not in self.drafters or arm.k not in self.ks:
            known = ", ".join(a.name for a in self.arms())
            raise RoutingError(f"the table has no outcomes for arm {arm.name!r}", f"It holds {known}.")
        return slice(None), self.drafters.index(arm.drafter), self.ks.index(arm.k)


def prompt_groups(texts: Iterable[str]) -> np.ndarray:
    """(n,) integer labels: texts equal up to case and white space share one, so folds never split them."""
    labels: dict[str, int] = {}
    return np.array([labels.setdefault(" ".join(t.lower().split()), len(labels)) for t in texts], dtype=np.int64)


def text_hash(text: str) -> str:
    """Hex SHA-256 of a text: the key of every cache in this package."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def from_rows(rows: Iterable[Mapping[str, Any]], *, drafters: Sequence[str] | None = None, source: str = "rows") -> OutcomeTable:
    """Outcome table from long-form rows. Repeats of a cell (seeds) are pooled: counts are summed, times averaged.

    A row whose drafter is None is plain decoding and gives ``baseline_s``. Rows need the fields sample_id, drafter, k, rounds, drafted,
    accepted and emitted; domain, prompt, wall_s, spent and proposed (source -> accepted tokens) are optional.
    """
    samples: dict[str, dict[str, Any]] = {}
    cells: dict[tuple[str, str, int | str], list[Mapping[str, Any]]] = {}
    baseline: dict[str, list[float]] = {}
    settings: dict[str, set[Any]] = {}
    for row in rows:
        _check_row(row, source)
        drafter, sample = row["drafter"], row["sample_id"]
        if drafter is None:
            baseline.setdefault(sample, []).extend([row["wall_s"]] if row.get("wall_s") is not None else [])
            continue
        if drafters is not None and drafter not in drafters:
            continue
        for field in _NEVER_MIXED:
            settings.setdefault(field, set()).add(row.get(field))
        samples.setdefault(sample, {"domain": row.get("domain") or "", "prompt": row.get("prompt")})
        cells.setdefault((sample, drafter, row["k"]), []).append(row)
    _refuse_mixed(settings, source)
    if not cells:
        raise RoutingError(f"{source} holds no speculative records that match", "Check the filters, or replay the drafters first.")
    return _dense(samples, cells, baseline, drafters)


def _dense(
    samples: Mapping[str, Mapping[str, Any]],
    cells: Mapping[tuple[str, str, int | str], list[Mapping[str, Any]]],
    baseline: Mapping[str, list[float]],
    drafters: Sequence[str] | None,
) -> OutcomeTable:
    ids = tuple(samples)
    names = tuple(dict.fromkeys(d for _, d, _ in cells))
    names = tuple(d for d in drafters if d in names) if drafters is not None else names
    ks = tuple(sorted({k for _, _, k in cells}, key=lambda k: (isinstance(k, str), k)))
    arrays = {name: np.full((len(ids), len(names), len(ks)), np.nan) for name in (*_COUNTS, "spent", "wall_s")}
    told = all(row.get("proposed") is not None for rows in cells.values() for row in rows)
    sources = {source for rows in cells.values() for row in rows for source in row["proposed"]} if told else set()
    proposed = {source: np.zeros_like(arrays["spent"]) for source in sorted(sources)}
    at = {s: i for i, s in enumerate(ids)}
    for (sample, drafter, k), rows in cells.items():
        index = at[sample], names.index(drafter), ks.index(k)
        for name in _COUNTS:
            arrays[name][index] = sum(r[name] for r in rows)
        for source, tokens in proposed.items():
            tokens[index] = sum(r["proposed"].get(source, 0) for r in rows)
        spent = [r.get("spent") for r in rows]
        arrays["spent"][index] = np.nan if None in spent else sum(spent)  # type: ignore[arg-type]
        walls = [r["wall_s"] for r in rows if r.get("wall_s") is not None]
        arrays["wall_s"][index] = np.mean(walls) if walls else np.nan
    texts = tuple(samples[s]["prompt"] for s in ids)
    return OutcomeTable(
        sample_ids=ids,
        domains=tuple(samples[s]["domain"] for s in ids),
        prompts=None if any(t is None for t in texts) else texts,
        drafters=names,
        ks=ks,
        proposed=proposed,
        baseline_s=np.array([np.mean(baseline[s]) if baseline.get(s) else np.nan for s in ids]),
        **arrays,
    )


def _check_row(row: Mapping[str, Any], source: str) -> None:
    version = row.get("schema_version", _SCHEMA_VERSION)
    if version > _SCHEMA_VERSION:
        raise RoutingError(f"{source} has schema version {version}, newer than {_SCHEMA_VERSION}", "Upgrade this package to read it.")
    missing = [f for f in _REQUIRED if f not in row]
    if missing:
        raise RoutingError(f"a record of {source} lacks {', '.join(missing)}", "Give a run's records.jsonl, or a table with these columns.")
    if row["drafter"] is None:
        return
    k = row["k"]
    if k != AUTO and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise RoutingError(
            f"{source}: {row['drafter']!r} has draft length {k!r}; the table needs whole numbers, or auto",
            "Filter to the experiment with fixed draft lengths, e.g. experiment='router'.",
        )
    counts = [row[c] for c in _COUNTS]
    if any(c is None or c < 0 for c in counts) or row["accepted"] > row["drafted"] or row["accepted"] > row["emitted"]:
        raise RoutingError(f"{source}: impossible counts for sample {row['sample_id']!r}: {dict(zip(_COUNTS, counts, strict=True))}")


def _refuse_mixed(settings: Mapping[str, set[Any]], source: str) -> None:
    for field, values in settings.items():
        if len(values) > 1:
            shown = ", ".join(sorted(map(repr, values)))
            raise RoutingError(f"{source} mixes {field} = {shown}", f"Choose one, e.g. {field}={sorted(map(repr, values))[0]}.")


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)
