"""The records of a run, cell by cell: what summary and report go through, so that a large run need not be in memory at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from harness.core.cell import CellId, RecordKey, cell_of, record_key
from harness.core.records import Record

LARGE = 100_000
"""Records from which on a run is not held in memory as a whole."""


class Groups(ABC):
    """Records by cell. What comes out is in the order in which it was written."""

    @property
    @abstractmethod
    def counts(self) -> dict[CellId, int]:
        """Every cell with its number of records, in order of first appearance."""

    @property
    @abstractmethod
    def thinks(self) -> bool:
        """True where the model thought in some answer."""

    @abstractmethod
    def of(self, cells: Iterable[CellId], *, tokens: bool = False) -> list[Record]:
        """The records of some cells; those of a large run have no ``tokens`` unless they are asked for."""

    @abstractmethod
    def samples(self, cells: Iterable[CellId]) -> list[str]:
        """The prompts of some cells, in order of first appearance."""

    @abstractmethod
    def keys(self) -> Iterator[RecordKey]:
        """The key of every record, in any order."""

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Record]:
        return iter(self.of(self.cells, tokens=True))

    @property
    def cells(self) -> list[CellId]:
        """Every cell."""
        return list(self.counts)


class Listed(Groups):
    """Records that are in memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._places: dict[CellId, list[int]] = {}
        for i, record in enumerate(records):
            self._places.setdefault(cell_of(record), []).append(i)

    @property
    def counts(self) -> dict[CellId, int]:
        return {cell: len(places) for cell, places in self._places.items()}

    @property
    def thinks(self) -> bool:
        return any(record.thinking for record in self._records)

    def of(self, cells: Iterable[CellId], *, tokens: bool = False) -> list[Record]:
        places = sorted(i for cell in set(cells) for i in self._places[cell])
        return [self._records[i] for i in places]

    def samples(self, cells: Iterable[CellId]) -> list[str]:
        return list(dict.fromkeys(record.sample_id for record in self.of(cells)))

    def keys(self) -> Iterator[RecordKey]:
        return map(record_key, self._records)


class OneKind(Groups):
    """Records of a run on a cluster without what other kinds of machine clocked.

    Args:
        groups: all of them.
        machine: the kind whose clocks stay.
    """

    def __init__(self, groups: Groups, machine: str) -> None:
        self._all, self._machine = groups, machine

    @property
    def counts(self) -> dict[CellId, int]:
        return self._all.counts

    @property
    def thinks(self) -> bool:
        return self._all.thinks

    def of(self, cells: Iterable[CellId], *, tokens: bool = False) -> list[Record]:
        return [r for r in self._all.of(cells, tokens=tokens) if r.method != "decode" or r.machine == self._machine]

    def samples(self, cells: Iterable[CellId]) -> list[str]:
        return list(dict.fromkeys(record.sample_id for record in self.of(cells)))

    def keys(self) -> Iterator[RecordKey]:
        return self._all.keys()


def grouped(records: Sequence[Record] | Groups) -> Groups:
    """Records by cell, however they are held."""
    return records if isinstance(records, Groups) else Listed(records)
