"""Records as Parquet say what the lines say, and are used only where they do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import big_run
import pytest
from test_store import make_record

from harness.core.cell import cell_of, record_key
from harness.core.errors import HarnessError
from harness.core.records import Divergence, Load, Place, Profile, Record, Score, Try
from harness.report import load_run, report_texts
from harness.results import groups as grouping
from harness.results import parquet as packed
from harness.results.manifest import read_manifest
from harness.results.parquet import PACKED, Packed, open_run, pack, read_groups
from harness.results.reading import read_records
from harness.results.store import RunStore
from harness.results.summary import summarise


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made up run of a few thousand records, packed in small groups."""
    folder = tmp_path_factory.mktemp("large") / "results" / "run"
    big_run.write_run(folder, 1000, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "WAITING", 400)
        pack(folder)
    return folder


def test_every_record_comes_back(large: Path) -> None:
    """All fields, in the order of the file, for single cells and for all; tokens where they are asked for."""
    records, groups = read_records(large), Packed.open(large)
    assert groups is not None
    assert groups.of(groups.cells, tokens=True) == records
    assert len(groups) == len(records) == 1000
    for cell in groups.cells[::7]:
        own = [dataclasses.replace(r, tokens=None) for r in records if cell_of(r) == cell]
        assert groups.of([cell]) == own
        assert groups.samples([cell]) == list(dict.fromkeys(r.sample_id for r in own))
    assert groups.cells == list(dict.fromkeys(map(cell_of, records)))
    assert sorted(groups.keys(), key=str) == sorted(map(record_key, records), key=str)


def test_reports_are_the_same(large: Path) -> None:
    """Summary and every file of the report, from the lines and from Parquet."""
    manifest, groups = open_run(large)
    assert isinstance(groups, Packed)
    ours, theirs = load_run(large), summarise(read_records(large), manifest.measured.calibration)
    assert list(ours.rows) == theirs
    texts = report_texts(ours)
    (large / PACKED).rename(large / "aside")
    try:
        assert report_texts(load_run(large)) == texts
    finally:
        (large / "aside").rename(large / PACKED)


def unusual() -> list[Record]:
    """Records with everything that few records have."""
    nested = {
        "score": Score(metric="exact_match", status="passed", value=1.0, details={"expected": 3, "found": "3", "x": 0.5}),
        "profile": Profile(draft_s=0.1, verify_s=0.2, sync_s=0.0, host_s=0.3), "load": Load(average=1.5, pressure=None, steal=0.0),
        "tries": (Try(wall_s=2.0, expected_s=1.0, load=Load(average=3.0)), Try(wall_s=3.0, expected_s=1.0)), "thinking": 3,
        "choice": "code", "settings": {"layers": 4, "lenience": 1.5, "around": "hybrid"}, "reused_tokens": 5,
        "place": Place(worker="w", machine="m"),
    }  # fmt: skip
    first = make_record(0, **nested)
    parted = make_record(1, compared=True, divergence=Divergence(position=0, gap=0.25, kind="tie"))
    return [first, parted, make_record(2, drafter="router", adapter="code", k="auto"), make_record(4, temperature=1.0, seed=7, repeat=2)]


def test_what_few_records_have_comes_back_too(tmp_path: Path) -> None:
    """Scores, profiles, loads, tries, differences, settings, adapters, thinking, and where it was made."""
    from test_store import make_manifest

    with RunStore.create(tmp_path / "run", make_manifest()) as store:
        store.extend(unusual())
    assert pack(tmp_path / "run") == 4
    groups = read_groups(tmp_path / "run")
    assert isinstance(groups, Packed)
    assert groups.of(groups.cells, tokens=True) == read_records(tmp_path / "run") == unusual()
    assert groups.thinks


def test_a_run_that_went_on_is_read_from_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet of fewer records is not used; a large run is packed again, and resuming it reads keys alone of what was replayed."""
    folder = tmp_path / "run"
    plan = big_run.write_run(folder, 300, 1)
    pack(folder)
    with RunStore.resume(folder, read_groups) as store:
        assert all(key in store for key in plan.jobs)
        store.append(dataclasses.replace(store.records[-1], sample_id="new"))
    assert Packed.open(folder) is None
    assert len(read_groups(folder)) == len(plan.jobs) + 1
    monkeypatch.setattr(packed, "LARGE", 100)
    groups = read_groups(folder)
    assert isinstance(groups, Packed)
    assert len(groups) == len(plan.jobs) + 1
    monkeypatch.setattr("harness.results.store.LARGE", 100)
    with RunStore.resume(folder, read_groups) as store:
        assert len(store) == len(plan.jobs) + 1
        assert {record.method for record in store.records} == {"decode", "answer"}
    assert grouping.LARGE == 100_000


def parts_of(folder: Path) -> dict[str, bytes]:
    """The finished parts of a packed run."""
    return {part.name: part.read_bytes() for part in sorted((folder / PACKED).glob("[0-9]*"))}


KILLED = """
import os, signal, sys
from pathlib import Path
import big_run
from harness.results import parquet, store

store.LARGE, store.PART, parquet.WAITING = 100, 50, 20
write, times = parquet._Packing._write, iter(range(int(sys.argv[2])))
def fatal(self, cell):
    if next(times, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, cell)
parquet._Packing._write = fatal
big_run.write_run(Path(sys.argv[1]), 300, 1, batch=7)
"""


@pytest.mark.parametrize("writes", [130, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_killed_while_it_packs_has_only_the_rest_to_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """What was packed before stays as it is, the rest becomes one more part, and every record is there once."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(folder), str(writes)]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parent).returncode == -signal.SIGKILL
    before, records = parts_of(folder), read_records(folder)
    assert bool(before) == (writes > 3)
    with open(folder / "records.jsonl", "ab") as lines:
        lines.write(b'{"half a')
    for module in ("parquet", "store"):
        monkeypatch.setattr(f"harness.results.{module}.LARGE", 100)
    with RunStore.resume(folder, read_groups) as store:
        assert list(store.keys()) == list(dict.fromkeys(store.keys()))
        assert set(store.keys()) == {record_key(record) for record in records}
        after = parts_of(folder)
        assert after.keys() - before.keys() == {f"{len(before)}.parquet"}
        assert {name: after[name] for name in before} == before
        store.extend(dataclasses.replace(record, sample_id=f"new {i}") for i, record in enumerate(records[:20]))
    groups = read_groups(folder)
    assert isinstance(groups, Packed)
    assert groups.of(groups.cells, tokens=True) == read_records(folder)
    assert parts_of(folder).keys() - after.keys() == {f"{len(after)}.parquet"}


def test_a_record_twice_is_found_across_parts(tmp_path: Path) -> None:
    """Whoever copies lines within the file is told which one repeats another."""
    folder = tmp_path / "run"
    big_run.write_run(folder, 100, 1)
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(manifest, seal=None))), encoding="utf-8")
    assert pack(folder) == 200
    first = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)[0]
    with open(folder / "records.jsonl", "ab") as lines:
        lines.write(first)
    with pytest.raises(HarnessError, match="line 201 repeats an earlier one"):
        pack(folder)
    assert list(parts_of(folder)) == ["0.parquet"]


def test_a_damaged_file_is_not_believed(large: Path, tmp_path: Path) -> None:
    """A flipped bit in a page is noticed, and a changed line makes the file another run's."""
    import pyarrow.parquet as pq

    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(large, folder, dirs_exist_ok=True)
    part = folder / PACKED / "0.parquet"
    group = pq.read_metadata(part).row_group(0)
    counts = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "accepted")
    content = bytearray(part.read_bytes())
    content[(counts.dictionary_page_offset or counts.data_page_offset) + counts.total_compressed_size - 1] ^= 1
    part.write_bytes(content)
    with pytest.raises(HarnessError, match="cannot read"):
        load_run(folder)
    (folder / "records.jsonl").write_bytes((large / "records.jsonl").read_bytes().replace(b"code/1", b"code/2", 1))
    assert Packed.open(folder) is None
    with pytest.raises(HarnessError, match="checksum of line"):
        pack(folder)
    assert read_manifest(folder).finished
