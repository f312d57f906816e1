"""``records.jsonl`` of a run folder, read and checked line by line against its rules and the manifest's seal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core.cell import RecordKey, record_key
from harness.core.errors import HarnessError
from harness.core.files import read_bytes, typed
from harness.core.journal import decode_line
from harness.core.records import Record
from harness.results.groups import Groups, Listed
from harness.results.invariants import broken
from harness.results.manifest import ADVICE, MANIFEST, Manifest, nothing_yet, read_manifest, upgrade

RECORDS = "records.jsonl"
RECORDS_BYTES = 4 * 2**30
"""A larger file of records is refused."""


def read_run(folder: Path) -> tuple[Manifest, list[Record]]:
    """Manifest and records of a run that has any; see :func:`read_records`.

    Raises:
        HarnessError: also where there is no record yet.
    """
    manifest, records = _read(folder)
    if not records:
        raise nothing_yet(manifest)
    return manifest, records


def read_records(folder: Path) -> list[Record]:
    """All finished records of a run in the order they were written; a half-written last line is skipped.

    Raises:
        HarnessError: a line is damaged (names the lines), breaks a rule of :mod:`harness.results.invariants`, repeats another or is from a
            newer version; or the run is finished and these are not the records it finished with.
    """
    return _read(folder)[1]


def read_listed(folder: Path) -> Groups:
    """The same, by cell."""
    return Listed(read_records(folder))


def _read(folder: Path) -> tuple[Manifest, list[Record]]:
    manifest, path = read_manifest(folder), folder / RECORDS
    content = read_bytes(path, most=RECORDS_BYTES, advice=ADVICE) if os.path.lexists(path) else b""
    *lines, tail = content.split(b"\n")
    found = [decode_line(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]
    whole = decode_line(tail, f"{path} line {len(lines) + 1}")  # a writer that is killed between a record and its newline leaves this
    rows = [row for row in (*found, whole) if row is not None]
    wrong = [number for number, row in enumerate(found, start=1) if row is None]
    if wrong:
        raise damaged(path, wrong, manifest)
    check_seal(manifest, path, content.count(b"\n"), hashlib.sha256(content).hexdigest())
    records: dict[RecordKey, Record] = {}
    for number, row in enumerate(rows, start=1):
        record = to_record(row, f"{path} line {number}")
        if records.setdefault(record_key(record), record) is not record:
            raise repeated(path, number)
    return manifest, list(records.values())


def damaged(path: Path, lines: Sequence[int], manifest: Manifest) -> HarnessError:
    """The error for lines whose checksum does not fit."""
    named = ", ".join(map(str, lines[:10])) + (" and more" if len(lines) > 10 else "")
    again = "run the suite again" if manifest.finished else "delete those lines and resume: their samples are decoded again"
    return HarnessError(f"{path} is damaged: the checksum of line {named} does not fit", f"Restore the file from a copy, or {again}.")


def repeated(path: Path, line: int) -> HarnessError:
    """The error for a record that is there twice."""
    return HarnessError(f"{path} line {line} repeats an earlier one: the same sample in the same cell", ADVICE)


def check_seal(manifest: Manifest, path: Path, lines: int, digest: str) -> None:
    """A finished run holds the records that its manifest sealed; runs from before there were seals have none.

    Args:
        manifest: of the run.
        path: its ``records.jsonl``.
        lines: how many it has.
        digest: its SHA-256.

    Raises:
        HarnessError: it is another file, or the seal is missing.
    """
    if manifest.seal is None and not (manifest.finished and manifest.prompts):
        return
    if manifest.seal is None:
        raise HarnessError(f"{path.parent / MANIFEST} says that the run is finished, but its seal is missing", ADVICE)
    if (lines, digest) != (manifest.seal.records, manifest.seal.sha256):
        raise HarnessError(
            f"{path} was changed after the run finished: it is not the file of {manifest.seal.records} records that the manifest seals",
            ADVICE,
        )


def to_record(data: dict[str, Any], where: str) -> Record:
    """The record that a line holds, as ``where`` calls it.

    Raises:
        HarnessError: a field is wrong, what it says cannot be true, or a newer version wrote it.
    """
    record: Record = typed(Record, upgrade(data, where), where, advice="Read it with the version that wrote it.")
    problem = broken(record)
    if problem:
        raise HarnessError(f"{where} cannot be true: {problem}", ADVICE)
    return record
