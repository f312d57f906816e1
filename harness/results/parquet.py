"""Records as Parquet beside records.jsonl: what a large run is read from, a cell at a time and without what nobody asks for.

The lines stay the record of what happened. ``records.parquet`` is a folder of parts made from them, one after the other while the run goes
on. A part says which bytes of the lines it was made from and which hash the lines up to there have, and is used where that fits and no part
before it is missing. It is sorted into groups of rows of one cell each, whose values need not be stored with every row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_type_hints

from harness.core.cell import CellId, RecordKey, from_key, record_key
from harness.core.errors import HarnessError
from harness.core.files import open_regular, reading, replacing, typed
from harness.core.journal import decode_line
from harness.core.records import Record
from harness.results.groups import LARGE, Groups
from harness.results.manifest import Manifest, nothing_yet, read_manifest
from harness.results.reading import RECORDS, check_seal, damaged, read_listed, repeated, to_record

if TYPE_CHECKING:
    import pyarrow as pa

PACKED = "records.parquet"
LAYOUT = 2
"""Version of a part; another one is made again."""
WAITING = 20_000
"""Records that wait for others of their cell while packing."""
ADVICE = "Delete records.parquet: it is made again from records.jsonl."
_ALIKE = ("experiment", "method", "loop", "domain", "drafter", "k", "rule", "temperature", "lossy", "settings")
"""Fields that all records of a cell share."""
_TEXTS = ("sample_id", "adapter", "finish", "choice")
_WHOLE = ("seed", "repeat", "prompt_tokens", "rounds", "drafted", "accepted", "rejected", "emitted", "thinking", "near_ties")
_SECONDS = ("prefill_s", "ttft_s", "draft_s", "verify_s", "route_s", "swap_s", "wall_s")
_LISTS = {"accept_lengths": "int16", "draft_lengths": "int16", "draft_times_s": "float64", "verify_times_s": "float64", "tokens": "int64"}


def pack(folder: Path, *, unique: bool = False) -> int:
    """Write a part of ``records.parquet`` of the lines that none has yet, in bounded memory; return how many records all parts hold.

    Args:
        folder: of the run.
        unique: the caller knows that no record is there twice.

    Raises:
        HarnessError: as :func:`harness.results.reading.read_records`, or the folder cannot be written.
    """
    return _grown(folder, _Chain(folder), unique).records


def _grown(folder: Path, chain: _Chain, unique: bool = False) -> _Chain:
    """The parts once every whole line is in one of them."""
    import pyarrow.parquet as pq

    if chain.rest or not chain.parts:
        seen = set() if unique else set(Packed(chain).keys())
        path = folder / PACKED / f"{len(chain.parts)}.parquet"
        try:
            if path.parent.is_file():  # what earlier versions wrote
                path.parent.unlink()
            with replacing(path) as part, pq.ParquetWriter(part, _schema(), compression="zstd", write_page_checksum=True) as writer:
                facts = _Packing(writer).all_of(folder, chain, seen)
                writer.add_key_value_metadata({"harness": json.dumps(facts)})
        except OSError as error:
            raise HarnessError(f"cannot write {path}: {error.strerror or error}", "Free some space.") from error
        chain = _Chain(folder)
    chain.check_seal(folder)
    return chain


class _Chain:
    """The parts that are there, up to the first that does not fit the lines, and how the lines go on behind them.

    Raises:
        HarnessError: a part is damaged, or the lines cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        self.parts: list[tuple[Any, dict[str, Any]]] = []
        """Open file of each part, and what it says of itself."""
        self.records = 0
        self.size = 0
        """Bytes of the lines that the parts were made from."""
        self.digest = hashlib.sha256()
        """Of these bytes."""
        self.rest = 0
        """Whole lines behind them."""
        self._torn = b""
        with open_regular(folder / RECORDS) as lines:
            while (path := folder / PACKED / f"{len(self.parts)}.parquet").is_file():
                with reading(path, advice=ADVICE):
                    file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
                    facts = json.loads(file.metadata.metadata[b"harness"])
                if not self._fits(facts, lines):
                    break
                self.parts.append((file, facts))
            lines.seek(self.size)
            for line in lines:
                if line.endswith(b"\n"):
                    self.rest += 1
                else:
                    self._torn = line

    def _fits(self, facts: Mapping[str, Any], lines: BinaryIO) -> bool:
        """Go to the end of the next part; False where it is not of these lines."""
        if (facts["layout"], facts.get("start")) != (LAYOUT, self.size):
            return False
        lines.seek(self.size)
        digest, left = self.digest.copy(), facts["end"] - self.size
        while left and (block := lines.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
        if left or digest.hexdigest() != facts["sha256"]:
            return False
        self.records, self.size, self.digest = self.records + facts["records"], facts["end"], digest
        return True

    def check_seal(self, folder: Path) -> None:
        """Refuse a run that has ended with other lines than these, all of them in parts."""
        digest = self.digest.copy()
        digest.update(self._torn)
        check_seal(read_manifest(folder), folder / RECORDS, self.records, digest.hexdigest())


class _Packing:
    """Records on their way into groups of rows of one cell each."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._cells: dict[CellId, int] = {}
        self._waiting: dict[CellId, list[tuple[int, Record]]] = {}
        self._groups: list[int] = []

    def all_of(self, folder: Path, chain: _Chain, seen: set[RecordKey]) -> dict[str, Any]:
        """Check and write the whole lines behind ``chain``, whose records are ``seen``; return what the part says of itself."""
        manifest, path = read_manifest(folder), folder / RECORDS
        digest, size, held, number = chain.digest.copy(), chain.size, 0, chain.records
        for number, line in enumerate(_whole_lines(path, chain.size), start=chain.records + 1):
            row = decode_line(line[:-1], f"{path} line {number}")
            if row is None:
                raise damaged(path, [number], manifest)
            record = to_record(row, f"{path} line {number}")
            key = record_key(record)
            if key in seen:
                raise repeated(path, number)
            seen.add(key)
            digest.update(line)
            size += len(line)
            self._cells.setdefault(key.cell, len(self._cells))
            self._waiting.setdefault(key.cell, []).append((number - 1, record))
            held += 1
            if held == WAITING:
                held -= self._write(max(self._waiting, key=lambda cell: len(self._waiting[cell])))
        for cell in list(self._waiting):
            self._write(cell)
        facts = {"layout": LAYOUT, "records": number - chain.records, "start": chain.size, "end": size, "sha256": digest.hexdigest()}
        return {**facts, "groups": self._groups, "cells": [cell.key for cell in self._cells]}

    def _write(self, cell: CellId) -> int:
        rows = self._waiting.pop(cell)
        self._writer.write_table(_table(rows))
        self._groups.append(self._cells[cell])
        return len(rows)


def open_run(folder: Path) -> tuple[Manifest, Groups]:
    """Manifest and records of a run that has any; a large one is packed first.

    Raises:
        HarnessError: as :func:`harness.results.reading.read_records`, or there is no record yet.
    """
    manifest = read_manifest(folder)
    groups = read_groups(folder)
    if not groups.counts:
        raise nothing_yet(manifest)
    return manifest, groups


def read_groups(folder: Path) -> Groups:
    """The records of a run, by cell.

    Raises:
        HarnessError: as :func:`harness.results.reading.read_records`.
    """
    if not (folder / PACKED).exists() and count_lines(folder / RECORDS) < LARGE:
        return read_listed(folder)
    chain = _Chain(folder)
    if chain.rest and chain.records + chain.rest < LARGE:
        return read_listed(folder)
    return Packed(_grown(folder, chain))


def count_lines(path: Path) -> int:
    """Lines of a file that may be large; 0 where there is none."""
    if not os.path.lexists(path):
        return 0
    with open_regular(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _whole_lines(path: Path, start: int) -> Iterator[bytes]:
    """Lines from byte ``start`` on, with their newline; what stands behind the last one is left out."""
    with open_regular(path) as file:
        file.seek(start)
        for line in file:
            if line.endswith(b"\n"):
                yield line


class Packed(Groups):
    """The records of a run, read from ``records.parquet``. Use :meth:`open`."""

    def __init__(self, chain: _Chain) -> None:
        self._files = [file for file, _ in chain.parts]
        self._groups: dict[CellId, list[tuple[int, int]]] = {}
        """Groups of rows of a cell: number of the file, number in it."""
        for n, (_, facts) in enumerate(chain.parts):
            cells = [from_key(key) for key in facts["cells"]]
            for cell in cells:
                self._groups.setdefault(cell, [])
            for group, place in enumerate(facts["groups"]):
                self._groups[cells[place]].append((n, group))
        self._texts: dict[str, str] = {}

    @classmethod
    def open(cls, folder: Path) -> Packed | None:
        """The packed records of a run; None where there are none, or not of all lines of ``records.jsonl`` as it is now.

        Raises:
            HarnessError: a part is damaged, or the run has ended and these are not the records it ended with.
        """
        if not (folder / PACKED).is_dir() or not (folder / RECORDS).is_file():
            return None
        chain = _Chain(folder)
        if chain.rest or not chain.parts:
            return None
        chain.check_seal(folder)
        return cls(chain)

    @cached_property
    def counts(self) -> dict[CellId, int]:
        files = [file.metadata for file in self._files]
        return {cell: sum(files[n].row_group(group).num_rows for n, group in groups) for cell, groups in self._groups.items()}

    @cached_property
    def thinks(self) -> bool:
        import pyarrow.compute as pc

        groups = [group for groups in self._groups.values() for group in groups]
        return any(pc.any(pc.greater(self._read([group], ["thinking"])["thinking"], 0)).as_py() for group in groups)

    def of(self, cells: Iterable[CellId], *, tokens: bool = False) -> list[Record]:
        names = [name for name in _schema().names if tokens or name != "tokens"]
        found: list[tuple[int, Record]] = []
        for cell in dict.fromkeys(cells):
            alike = {name: getattr(cell, name) for name in _ALIKE}
            for group in self._groups[cell]:
                found += self._records(self._read([group], names), alike)
        found.sort(key=lambda item: item[0])
        return [record for _, record in found]

    def samples(self, cells: Iterable[CellId]) -> list[str]:
        import numpy as np

        groups = [group for cell in dict.fromkeys(cells) for group in self._groups[cell]]
        if not groups:
            return []
        table = self._read(groups, ["at", "sample_id"])
        order = np.argsort(table["at"].to_numpy(), kind="stable")
        return list(dict.fromkeys(table["sample_id"].take(order).to_pylist()))

    def keys(self) -> Iterator[RecordKey]:
        for cell, groups in self._groups.items():
            if groups:
                table = self._read(groups, ["sample_id", "seed", "repeat"])
                for sample, seed, repeat in zip(*(table[name].to_pylist() for name in ("sample_id", "seed", "repeat")), strict=True):
                    yield RecordKey(cell, self._texts.setdefault(sample, sample), seed, repeat)

    def _read(self, groups: Sequence[tuple[int, int]], names: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        by_file: dict[int, list[int]] = {}
        for n, group in groups:
            by_file.setdefault(n, []).append(group)
        with reading(PACKED, advice=ADVICE):
            tables = [self._files[n].read_row_groups(own, columns=list(names), use_threads=False) for n, own in by_file.items()]
        return pa.concat_tables(tables)

    def _records(self, table: pa.Table, alike: Mapping[str, Any]) -> Iterator[tuple[int, Record]]:
        columns = {name: _values(name, table[name].combine_chunks()) for name in table.column_names}
        columns["sample_id"] = [self._texts.setdefault(sample, sample) for sample in columns["sample_id"]]
        nested, places = columns.pop("nested"), columns.pop("at")
        names = list(columns)
        for at, own, *values in zip(places, nested, *columns.values(), strict=True):
            yield at, Record(**alike, **dict(zip(names, values, strict=True)), **(_unpacked(own) if own else {}))


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"int16": pa.int16(), "int64": pa.int64(), "float64": pa.float64()}
    fields: dict[str, Any] = {"at": pa.int64()} | dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_WHOLE, pa.int64())
    fields |= dict.fromkeys(_SECONDS, pa.float64()) | {"compared": pa.bool_()}
    fields |= {name: pa.list_(kinds[kind]) for name, kind in _LISTS.items()} | {"sources": pa.list_(pa.string()), "nested": pa.string()}
    return pa.schema(fields)


def _table(rows: Sequence[tuple[int, Record]]) -> pa.Table:
    import pyarrow as pa

    schema = _schema()
    columns: dict[str, Any] = {name: [getattr(record, name) for _, record in rows] for name in schema.names if name not in ("at", "nested")}
    columns["at"] = [at for at, _ in rows]
    columns["nested"] = [_nested(record) for _, record in rows]
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)


def _nested(record: Record) -> str | None:
    """What few records have, as JSON; None where there is nothing."""
    found = {name: value for name, default in _rare().items() if (value := getattr(record, name)) != default}
    return json.dumps(found, default=dataclasses.asdict) if found else None


@lru_cache(maxsize=1024)
def _unpacked(text: str) -> dict[str, Any]:
    kinds = _kinds()
    found = json.loads(text).items()
    return {n: typed(kinds[n], value, PACKED, advice=ADVICE) if isinstance(value, dict | list) else value for n, value in found}


@cache
def _rare() -> dict[str, Any]:
    """Fields of a record without a column, with their defaults."""
    known = {*_ALIKE, *_schema().names, "schema_version"}
    return {f.name: f.default for f in dataclasses.fields(Record) if f.name not in known}


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Record, include_extras=True)


def _values(name: str, column: Any) -> list[Any]:
    """The values of a column as a record has them: tuples, and one object for equal texts."""
    if name in _TEXTS:
        return _texts(column)
    if name not in _LISTS and name != "sources":
        found: list[Any] = column.to_pylist()
        return found
    flat = column.flatten()
    items = _texts(flat) if name == "sources" else flat.to_numpy(zero_copy_only=False).tolist()
    lengths = column.value_lengths().to_pylist()
    rows, start = [], 0
    for length in lengths:
        rows.append(None if length is None else tuple(items[start : start + length]))
        start += length or 0
    return rows


def _texts(column: Any) -> list[str | None]:
    coded = column.dictionary_encode()
    known = [*coded.dictionary.to_pylist(), None]
    return [known[-1 if i is None else i] for i in coded.indices.to_pylist()]
