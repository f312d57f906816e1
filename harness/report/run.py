"""A run as its report needs it: read and summarised once, rows that repeat the plain draft left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.core.records import Record
from harness.results.groups import Groups, grouped
from harness.results.manifest import Manifest, resume_command
from harness.results.parquet import open_run
from harness.results.recommend import Recommendation, ranked_rows, recommend
from harness.results.router_rows import MEMORY, compare_router
from harness.results.summary import ALL, CellRow, summarise
from harness.results.texts import Texts, read_texts


@dataclass(frozen=True)
class Run:
    """A run as its reports need it."""

    manifest: Manifest
    records: Sequence[Record] | Groups
    rows: Sequence[CellRow]
    """Every cell; :attr:`shown` is what tables and charts show."""
    texts: Texts = field(default_factory=Texts)
    """Prompts and answers, as far as the run kept them."""

    @cached_property
    def groups(self) -> Groups:
        """The records cell by cell."""
        return grouped(self.records)

    @cached_property
    def shown(self) -> list[CellRow]:
        """Rows without the cells of adapters and routers that turned out to be the plain draft: a sentence says which."""
        trained = {row.settings.get("adapter_domain") for row in self.rows if row.drafter == "adapter" and row.adapter}
        return [row for row in self.rows if not (_untrained(row, trained) or (row.drafter == "router" and self.router_has_no_choice))]

    @cached_property
    def own(self) -> list[CellRow]:
        """Shown rows of single domains; of the only domain where there is one."""
        return [row for row in self.shown if row.domain != ALL]

    @cached_property
    def models(self) -> str:
        """The pair, as ``--models`` takes it."""
        return str(self.manifest.suite.get("models") or self.manifest.pair)

    @cached_property
    def recommendation(self) -> Recommendation:
        """What to use."""
        return recommend(self.shown, self.models)

    @cached_property
    def best_row(self) -> CellRow | None:
        """The row that the recommendation calls the best."""
        return next(iter(ranked_rows(self.shown)), None)

    @cached_property
    def unfinished(self) -> str:
        """What stands above everything else where the run was killed or interrupted; empty for a finished one."""
        if self.manifest.finished:
            return ""
        done, planned = len(self.records), self.manifest.measured.planned
        part = f"{done} of {planned} records" if planned else f"{done} records"
        return f"Unfinished: {part}; resume with: {resume_command(self.manifest)}"

    @cached_property
    def router_has_no_choice(self) -> bool:
        """True where no adapter was kept that the run's routers could choose."""
        routers = self.manifest.measured.routers
        return bool(routers) and all(list(facts.get("arms", ())) == ["generic"] for facts in routers.values())

    @cached_property
    def router(self) -> list[dict[str, Any]]:
        """The router beside the best single drafter and the best of every prompt; empty where it had no choice."""
        routed = any(cell.drafter == "router" for cell in self.groups.cells)
        if self.router_has_no_choice or not routed:
            return []
        chosen = ("router", "generic", "adapter", *MEMORY)
        return compare_router(self.groups.of(cell for cell in self.groups.cells if cell.drafter in chosen))


def _untrained(row: CellRow, trained: set[Any]) -> bool:
    """An adapter cell that ran with the plain draft; before the first round that is what a curve over rounds begins with."""
    if row.drafter != "adapter" or row.adapter:
        return False
    return row.settings.get("round") != 0 or row.settings.get("adapter_domain") not in trained


def load_run(folder: Path) -> Run:
    """Read and summarise a run folder.

    Raises:
        HarnessError: the run cannot be read, or has no record yet.
    """
    return make_run(*open_run(folder), read_texts(folder))


def make_run(manifest: Manifest, records: Sequence[Record] | Groups, texts: Texts | None = None) -> Run:
    """Summarise what :func:`harness.results.reading.read_run` returned; domains in the order of the suite."""
    measured, order = manifest.measured, list(manifest.suite.get("domains", ()))
    rows = summarise(records, measured.calibration, machine=measured.reference_machine)
    rows.sort(key=lambda row: order.index(row.domain) if row.domain in order else len(order))
    return Run(manifest, records, rows, texts or Texts())
