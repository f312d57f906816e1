"""Outcome table: what every drafter did on every prompt at every draft length, as dense arrays."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from routing.errors import RoutingError

PLAIN = "plain"
"""Name of the arm that does not speculate: the target alone. Its speedup is 1 by definition."""

Value = Literal["tau", "rate", "speedup", "measured"]
_COUNTS = ("rounds", "drafted", "accepted", "emitted")
_REQUIRED = ("sample_id", "drafter", "k", *_COUNTS)
_NEVER_MIXED = ("rule", "temperature", "lossy", "method", "mode")
_SCHEMA_VERSION = 1


@dataclass(frozen=True, order=True)
class Arm:
    """One thing the router can choose."""

    drafter: str
    """Adapter or drafter name, or ``plain``."""
    k: int | None = None
    """Draft length. None for ``plain`` and where the draft length is not part of the choice."""

    @property
    def name(self) -> str:
        """Printable name, unique within one table: ``code`` or ``code@4``."""
        return self.drafter if self.k is None else f"{self.drafter}@{self.k}"


@dataclass(frozen=True)
class CostModel:
    """Costs in units of one target step, for the predicted speedup tau / (K c + v(K+1))."""

    c: float | Mapping[str, float]
    """Time of one draft step, one number or one per drafter."""
    v: Mapping[int, float]
    """``v[m]``: time of a target pass over m tokens; ``v[1]`` is 1."""

    def round_cost(self, drafter: str, k: int) -> float:
        """Cost of one round: K draft steps and one target pass over K + 1 tokens."""
        c = self.c if isinstance(self.c, int | float) else self.c.get(drafter)
        if c is None:
            raise RoutingError(f"the cost model has no draft cost for {drafter!r}", "Calibrate this drafter, or give one cost for all.")
        if k + 1 not in self.v:
            raise RoutingError(
                f"the cost model has no v({k + 1}), needed for K = {k}", "Calibrate the pair for this K, or leave the K out."
            )
        return k * c + self.v[k + 1]


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
    ks: tuple[int, ...]
    """(m,) draft lengths, ascending."""
    rounds: np.ndarray
    """(n, d, m) target passes."""
    drafted: np.ndarray
    """(n, d, m) draft tokens verified."""
    accepted: np.ndarray
    """(n, d, m) draft tokens emitted."""
    emitted: np.ndarray
    """(n, d, m) tokens emitted."""
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

    def predicted_speedup(self, cost: CostModel) -> np.ndarray:
        """(n, d, m) tau / (K c + v(K+1))."""
        per_round = np.array([[cost.round_cost(d, k) for k in self.ks] for d in self.drafters])
        found: np.ndarray = self.tau / per_round
        return found

    def arms(self, k: int | None = None, *, plain: bool = False) -> tuple[Arm, ...]:
        """Arms to choose from: the drafters at one draft length, or (k None) every drafter and draft length.

        Args:
            k: fix the draft length; the arms then carry it in ``Arm.k``.
            plain: add the arm that does not speculate.
        """
        if k is not None and k not in self.ks:
            raise RoutingError(f"no outcomes at K = {k}", f"The table holds K = {', '.join(map(str, self.ks))}.")
        chosen = tuple(Arm(d, one) for d in self.drafters for one in (self.ks if k is None else (k,)))
        return (*chosen, Arm(PLAIN)) if plain else chosen

    def rewards(self, arms: Sequence[Arm], value: Value = "tau", cost: CostModel | None = None) -> np.ndarray:
        """(n_samples, n_arms) float64 rewards, higher is better.

        Args:
            arms: columns, in order.
            value: ``tau``, ``rate``, ``speedup`` (predicted, needs ``cost``) or ``measured`` (from wall times).
            cost: the pair's measured costs.

        Raises:
            RoutingError: unknown arm, a missing cell, or no ``cost`` for ``speedup``.
        """
        cells = self._cells(value, cost)
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

    def complete(self, arms: Sequence[Arm]) -> tuple[OutcomeTable, tuple[str, ...]]:
        """Samples that have every arm, and the ids of those left out."""
        cells = [self.rounds[self._index(a)] for a in arms if a.drafter != PLAIN]
        keep = np.isfinite(np.stack(cells, axis=1)).all(axis=1)
        return self.take(np.flatnonzero(keep)), tuple(s for s, ok in zip(self.sample_ids, keep, strict=True) if not ok)

    def take(self, rows: np.ndarray) -> OutcomeTable:
        """The same table for a subset of samples (integer row indices)."""

        def pick(values: Any) -> Any:
            return values[rows] if isinstance(values, np.ndarray) else tuple(values[i] for i in rows)

        per_sample = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("drafters", "ks")}
        picked: dict[str, Any] = {n: None if v is None else pick(v) for n, v in per_sample.items()}
        return dataclasses.replace(self, **picked)

    def groups(self) -> np.ndarray:
        """(n,) integer labels, equal for samples whose prompts are equal up to case and spacing."""
        texts = self.prompts if self.prompts is not None else self.sample_ids
        return prompt_groups(texts)

    def _cells(self, value: Value, cost: CostModel | None) -> np.ndarray:
        if value == "speedup":
            if cost is None:
                raise RoutingError("predicted speedup needs a cost model", "Give cost=CostModel(c, v) from the pair's calibration.")
            return self.predicted_speedup(cost)
        known = {"tau": self.tau, "rate": self.rate, "measured": self.measured_speedup}
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
    accepted and emitted; domain, prompt and wall_s are optional.
    """
    samples: dict[str, dict[str, Any]] = {}
    cells: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
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
    cells: Mapping[tuple[str, str, int], list[Mapping[str, Any]]],
    baseline: Mapping[str, list[float]],
    drafters: Sequence[str] | None,
) -> OutcomeTable:
    ids = tuple(samples)
    names = tuple(dict.fromkeys(d for _, d, _ in cells))
    names = tuple(d for d in drafters if d in names) if drafters is not None else names
    ks = tuple(sorted({k for _, _, k in cells}))
    arrays = {name: np.full((len(ids), len(names), len(ks)), np.nan) for name in (*_COUNTS, "wall_s")}
    at = {s: i for i, s in enumerate(ids)}
    for (sample, drafter, k), rows in cells.items():
        index = at[sample], names.index(drafter), ks.index(k)
        for name in _COUNTS:
            arrays[name][index] = sum(r[name] for r in rows)
        walls = [r["wall_s"] for r in rows if r.get("wall_s") is not None]
        arrays["wall_s"][index] = np.mean(walls) if walls else np.nan
    texts = tuple(samples[s]["prompt"] for s in ids)
    return OutcomeTable(
        sample_ids=ids,
        domains=tuple(samples[s]["domain"] for s in ids),
        prompts=None if any(t is None for t in texts) else texts,
        drafters=names,
        ks=ks,
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
    if not isinstance(row["k"], int) or isinstance(row["k"], bool) or row["k"] < 1:
        raise RoutingError(
            f"{source}: {row['drafter']!r} has draft length {row['k']!r}; the table needs whole numbers",
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
