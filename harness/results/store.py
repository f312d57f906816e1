"""Run folders: ``manifest.json`` says what ran, ``records.jsonl`` holds one checksummed line per finished sample in a cell.

A record is on disk (fsync) before the next sample starts, so a killed run loses no finished sample. One process writes
to a folder at a time; readers need no lock and skip a half-written last line. When a run finishes, its manifest seals the
records; whoever reads a finished run reads what was sealed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from harness.core.cell import RecordKey, record_key
from harness.core.errors import HarnessError
from harness.core.files import read_bytes, read_json, sha256, sync_folder, typed, version_of, write_atomic
from harness.core.journal import decode_line, encode_line, repair_tail
from harness.core.lock import take_lock
from harness.core.records import RUN_VERSION, Record, to_dict
from harness.core.schema import Machine, Measured
from harness.results.groups import LARGE, Groups, Listed
from harness.results.invariants import broken
from harness.results.upgrades import UPGRADES

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
TORN = "records.torn"
RECORDS_BYTES = 4 * 2**30
"""A larger file of records is refused."""
_LOCK = "lock"
_ADVICE = "Restore the file from a copy, or run the suite again."


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What the records of a finished run are."""

    records: int
    """How many."""
    sha256: str
    """SHA-256 of ``records.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run was: everything needed to repeat it or to refuse a wrong comparison."""

    run: str
    """Name of the run folder."""
    started: str
    """UTC time the run began, ISO 8601."""
    pair: str
    """Model pair."""
    suite: Mapping[str, Any]
    """The resolved suite, flags applied."""
    suite_hash: str
    """SHA-256 of the resolved suite."""
    models: Mapping[str, str | None]
    """``target`` and ``draft`` file hashes, ``dtype`` of the computation, and where the draft is ``translated``, why."""
    code: Mapping[str, Any]
    """``version``, ``commit``, ``dirty`` and ``hash`` of the sources that make records."""
    packages: Mapping[str, str]
    """Installed versions of the packages that matter."""
    machine: Mapping[str, Any]
    """Processor, cores, memory, system, device, BLAS."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds used."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Sample id to :func:`prompt_hash`: what stands behind the ids. Empty in runs of versions that did not store it."""
    measured: Measured = field(default_factory=Measured)
    """Facts learned while running."""
    seal: Seal | None = None
    """Set when the run finished; None before, and in runs of versions that did not seal."""
    schema_version: int = RUN_VERSION

    @property
    def finished(self) -> bool:
        """True when every planned record was written."""
        return self.measured.status == "finished"


def prompt_hash(tokens: Sequence[int], reference: Mapping[str, str] | None) -> str:
    """What tells a prompt from another under the same id: 16 hex digits of the SHA-256 of its token ids and its reference answer."""
    text = json.dumps([list(tokens), dict(reference or {})], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def upgrade(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring a manifest or record to the current schema version.

    Raises:
        HarnessError: written by a newer version of this package, or no version given.
    """
    version = version_of(data, where, newest=RUN_VERSION, advice="It was not written by this program; check the path.")
    while version < RUN_VERSION:
        if version not in UPGRADES:
            raise HarnessError(f"{where} has schema version {version}, which can no longer be read", "Run the suite again.")
        data = UPGRADES[version](data)
        version += 1
        data["schema_version"] = version
    return data


def run_folder(results_dir: Path, run: str) -> Path:
    """Folder of an existing run, given its name under ``results_dir`` or its path.

    Raises:
        HarnessError: there is no such run; lists the newest ones.
    """
    for folder in (results_dir / run, Path(run)):
        if (folder / MANIFEST).is_file():
            return folder
    known = sorted((p.parent for p in results_dir.glob(f"*/{MANIFEST}")), key=lambda p: (p / MANIFEST).stat().st_mtime)
    names = ", ".join(p.name for p in known[-5:]) or "none yet"
    raise HarnessError(f"no run {run!r} in {results_dir}", f"Newest runs: {names}.")


def read_manifest(folder: Path) -> Manifest:
    """Read and upgrade a manifest.

    Raises:
        HarnessError: missing, not JSON, from a newer version, or with fields missing or of a wrong type.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise HarnessError(f"{folder} is no run folder: it has no {MANIFEST}", "Give the name of a finished or interrupted run.")
    data = upgrade(read_json(path, advice=_ADVICE), str(path))
    manifest: Manifest = typed(Manifest, data, str(path), advice=_ADVICE)
    typed(Machine, dict(manifest.machine), f"{path}: machine", advice=_ADVICE)
    return manifest


def resume_command(manifest: Manifest) -> str:
    """The command line that goes on with a run."""
    if not manifest.suite.get("race"):
        return f"harness run ... --resume {manifest.run}"
    return f"harness choose {shlex.quote(str(manifest.suite.get('models')))} --resume {manifest.run}"


def nothing_yet(manifest: Manifest) -> HarnessError:
    """The error for a run without a record."""
    return HarnessError(f"run {manifest.run} has no records yet", f"Go on with it: {resume_command(manifest)}.")


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
    content = read_bytes(path, most=RECORDS_BYTES, advice=_ADVICE) if os.path.lexists(path) else b""
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
    return HarnessError(f"{path} line {line} repeats an earlier one: the same sample in the same cell", _ADVICE)


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
        raise HarnessError(f"{path.parent / MANIFEST} says that the run is finished, but its seal is missing", _ADVICE)
    if (lines, digest) != (manifest.seal.records, manifest.seal.sha256):
        raise HarnessError(
            f"{path} was changed after the run finished: it is not the file of {manifest.seal.records} records that the manifest seals",
            _ADVICE,
        )


def to_record(data: dict[str, Any], where: str) -> Record:
    """The record that a line holds, as ``where`` calls it.

    Raises:
        HarnessError: a field is wrong, what it says cannot be true, or a newer version wrote it.
    """
    record: Record = typed(Record, upgrade(data, where), where, advice="Read it with the version that wrote it.")
    problem = broken(record)
    if problem:
        raise HarnessError(f"{where} cannot be true: {problem}", _ADVICE)
    return record


class RunStore:
    """The one writer of a run folder. Use :meth:`create` or :meth:`resume`, and close it (it is a context manager).

    Attributes:
        folder: the run folder.
        manifest: what was written to ``manifest.json``.
        records: what ``records.jsonl`` holds; of a large run nothing that was replayed.
        repaired_bytes: size of a half-written last line that :meth:`resume` moved to ``records.torn``; 0 when there was none.
    """

    def __init__(self, folder: Path, lock: BinaryIO) -> None:
        self.folder = folder
        self.repaired_bytes = 0
        self._lock = lock
        self._fd = -1
        self.records: list[Record] = []
        self._done: dict[RecordKey, None] = {}
        self._manifest: Manifest | None = None

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> RunStore:
        """Make a new run folder and write its manifest.

        Raises:
            HarnessError: the folder exists, or cannot be written.
        """
        with _disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                raise HarnessError(f"{folder} exists already", f"Continue it with --resume {folder.name}, or move it away.") from None
            store = cls(folder, _take_lock(folder))
            store._write_manifest(manifest)
            store._open()
        return store

    @classmethod
    def resume(cls, folder: Path, read: Callable[[Path], Groups] = read_listed) -> RunStore:
        """Open an existing run for more records; repairs a half-written last line.

        Args:
            folder: of the run.
            read: how its records are read, once the last line is repaired.

        Raises:
            HarnessError: no run there, damaged, newer version, or another process writes to it.
        """
        read_manifest(folder)
        with _disk_errors(folder):
            store = cls(folder, _take_lock(folder))
            try:
                store.repaired_bytes = repair_tail(folder / RECORDS, folder / TORN)
                store._manifest, groups = read_manifest(folder), read(folder)
                kept = [cell for cell in groups.cells if cell.method != "replay" or len(groups) < LARGE]
                store.records = groups.of(kept, tokens=True)
                store._done = dict.fromkeys(groups.keys())
                store._open()
            except BaseException:
                store.close()
                raise
        return store

    @property
    def manifest(self) -> Manifest:
        """What ``manifest.json`` holds now."""
        assert self._manifest is not None
        return self._manifest

    @property
    def measured(self) -> Measured:
        """What the run has learned by now."""
        return self.manifest.measured

    def __contains__(self, key: object) -> bool:
        return key in self._done

    def __len__(self) -> int:
        return len(self._done)

    def keys(self) -> Iterable[RecordKey]:
        """The key of every record."""
        return self._done

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on disk; see :meth:`extend`."""
        self.extend([record])

    def extend(self, records: Iterable[Record]) -> None:
        """Write records together and wait once until they are on disk: all of them are kept, or none.

        Raises:
            HarnessError: the disk is full or gone; records written before stay intact.
            ValueError: a record with the same key exists, or one breaks a rule of :mod:`harness.results.invariants`.
        """
        new, lines, keys = list(records), [], dict[RecordKey, None]()
        for record in new:
            key = record_key(record)
            if key in self._done or key in keys:
                raise ValueError(f"record written twice: {key}")
            problem = broken(record)
            if problem:
                raise ValueError(f"record of {record.sample_id} cannot be true: {problem}")
            keys[key] = None
            lines.append(encode_line(to_dict(record)))
        with _disk_errors(self.folder):
            if self.manifest.seal is not None:
                unsealed = dataclasses.replace(self.manifest.measured, status="interrupted")
                self._write_manifest(dataclasses.replace(self.manifest, seal=None, measured=unsealed))
            size = os.fstat(self._fd).st_size
            try:
                _write_all(self._fd, b"".join(lines))
                os.fsync(self._fd)
            except OSError:
                os.ftruncate(self._fd, size)
                raise
        self._done |= keys
        self.records += [record for record in new if record.method != "replay" or len(self) < LARGE]

    def update(self, **measured: Any) -> None:
        """Replace fields of ``measured`` in the manifest."""
        manifest = dataclasses.replace(self.manifest, measured=dataclasses.replace(self.manifest.measured, **measured))
        with _disk_errors(self.folder):
            self._write_manifest(manifest)

    def finish(self, **measured: Any) -> None:
        """Seal the records: from now on a reader gets these and no others."""
        seal = Seal(records=len(self), sha256=sha256(self.folder / RECORDS))
        learned = dataclasses.replace(self.manifest.measured, **{**measured, "status": "finished"})
        manifest = dataclasses.replace(self.manifest, seal=seal, measured=learned)
        with _disk_errors(self.folder):
            self._write_manifest(manifest)

    def close(self) -> None:
        """Release the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._fd = os.open(self.folder / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sync_folder(self.folder)

    def _write_manifest(self, manifest: Manifest) -> None:
        write_atomic(self.folder / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False) + "\n")
        self._manifest = manifest


def check_writable(folder: Path) -> None:
    """Fail early when results cannot be written: creates the folder and a probe file.

    Raises:
        HarnessError: read-only, full, or a file stands in the way.
    """
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"\0" * 65536)
        finally:
            probe.unlink(missing_ok=True)


def new_run_name(suite: str, pair: str, results_dir: Path) -> str:
    """A free, sortable name such as ``quick-smollm2-20260131-142501``."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{suite}-{pair}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    names = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    return next(name for name in names if not (results_dir / name).exists())


def _take_lock(folder: Path) -> BinaryIO:
    def busy(owner: str) -> HarnessError:
        return HarnessError(f"another process (pid {owner}) is writing to {folder}", "Wait until it ends, or stop it.")

    return take_lock(folder / _LOCK, busy)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn OSError into a HarnessError that says what to do about the folder."""
    try:
        yield
    except OSError as error:
        raise HarnessError(
            f"cannot write to {folder}: {error.strerror or error}",
            "Free some space or choose another results folder; records written before are intact.",
        ) from error
