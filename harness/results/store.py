"""Run folders: ``manifest.json`` says what ran, ``records.jsonl`` holds one checksummed line per finished sample in a cell.

A record is on disk (fsync) before the next sample starts, so a killed run loses no finished sample. One process writes
to a folder at a time; readers need no lock and skip a half-written last line. When a run finishes, its manifest seals the
records; whoever reads a finished run reads what was sealed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from harness.core.cell import RecordKey, record_key
from harness.core.errors import HarnessError
from harness.core.files import sha256, sync_folder, write_atomic
from harness.core.journal import encode_line, repair_tail
from harness.core.lock import take_lock
from harness.core.records import Record, to_dict
from harness.core.schema import Measured
from harness.results.groups import LARGE, Groups
from harness.results.invariants import broken
from harness.results.manifest import MANIFEST, Manifest, Seal, read_manifest
from harness.results.parquet import pack
from harness.results.reading import RECORDS, read_listed

PART = 25_000
"""Records after which a large run packs what is new, so that a killed one has seconds of it left to do."""
TORN = "records.torn"
_LOCK = "lock"


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
        before = len(self)
        self._done |= keys
        self.records += [record for record in new if record.method != "replay" or len(self) < LARGE]
        if len(self) >= LARGE and len(self) // PART > before // PART:
            pack(self.folder, unique=True)

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
