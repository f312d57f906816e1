"""Run folders survive crashes, damage and full disks, and never mix two writers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.cell import record_key
from harness.core.errors import HarnessError
from harness.core.journal import decode_line, encode_line
from harness.core.records import RUN_VERSION, Divergence, Record, to_dict
from harness.core.schema import Measured
from harness.results import store
from harness.results.manifest import Manifest, read_manifest, run_folder
from harness.results.reading import read_records, read_run
from harness.results.store import RunStore
from harness.results.upgrades import UPGRADES

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import make_manifest, make_record
from harness.core.cell import record_key
from harness.results.store import RunStore
folder = Path(sys.argv[1])
store = RunStore.resume(folder) if (folder / "manifest.json").exists() else RunStore.create(folder, make_manifest())
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    record = make_record(i)
    if record_key(record) not in store:
        store.append(record)
        print(i, flush=True)
print("done", flush=True)
"""


def make_manifest(**changes: object) -> Manifest:
    """A manifest with every field set."""
    values: dict[str, object] = {
        "run": "quick-tiny",
        "started": "2026-01-01T00:00:00+00:00",
        "pair": "tiny",
        "suite": {"name": "quick"},
        "suite_hash": "s",
        "models": {"target": "t", "draft": "d", "dtype": "float32"},
        "code": {"version": "0", "commit": None, "dirty": None, "hash": "c"},
        "packages": {"numpy": "2"},
        "machine": {"cores": 2},
        "measured": Measured(status="finished"),
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def make_record(i: int = 0, **changes: object) -> Record:
    """A plausible record; ``i`` makes it distinct and deterministic."""
    rng = random.Random(i)
    lengths = tuple(rng.randint(0, 4) for _ in range(rng.randint(1, 30)))
    values: dict[str, object] = {
        "experiment": "baseline",
        "method": "decode",
        "loop": "own",
        "sample_id": f"s/{i}",
        "domain": "code",
        "drafter": "lookup",
        "k": 4,
        "prompt_tokens": 12,
        "rounds": len(lengths),
        "drafted": 4 * len(lengths),
        "accepted": sum(lengths),
        "rejected": sum(n < 4 for n in lengths),
        "accept_lengths": lengths,
        "draft_lengths": (4,) * len(lengths),
        "emitted": sum(lengths) + len(lengths),
        "finish": "length",
        "wall_s": rng.random(),
        "tokens": tuple(rng.randrange(50000) for _ in range(sum(lengths) + len(lengths))),
        "compared": i % 3 == 0,
        "divergence": Divergence(position=1, gap=0.001, kind="tie") if i % 3 == 0 else None,
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def written(folder: Path, n: int = 5) -> Path:
    """A run folder with ``n`` records."""
    with RunStore.create(folder, make_manifest()) as run:
        for i in range(n):
            run.append(make_record(i))
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Records and manifest must survive the round trip exactly, divergences and tuples included."""
    folder = written(tmp_path / "run")
    assert read_records(folder) == [make_record(i) for i in range(5)]
    assert read_manifest(folder) == make_manifest()


def test_update_keeps_the_rest_of_the_manifest(tmp_path: Path) -> None:
    """Facts learned while running are added without losing what was there."""
    calibration = {"generic": {"c": 0.3, "v": [1.0]}}
    with RunStore.create(tmp_path / "run", make_manifest()) as run:
        run.update(calibration=calibration)
    assert read_manifest(tmp_path / "run") == make_manifest(measured=dataclasses.replace(make_manifest().measured, calibration=calibration))


def test_extend_is_all_or_nothing(tmp_path: Path) -> None:
    """A batch with a duplicate inside must leave the file as it was."""
    folder = written(tmp_path / "run", 2)
    before = (folder / "records.jsonl").read_bytes()
    with RunStore.resume(folder) as run, pytest.raises(ValueError, match="twice"):
        run.extend([make_record(7), make_record(7)])
    assert (folder / "records.jsonl").read_bytes() == before


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_detected(data: st.DataObject) -> None:
    """A single changed byte anywhere in a line, checksum and field names included, may not pass as data."""
    line = bytearray(encode_line(to_dict(make_record(1)))[:-1])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= data.draw(st.integers(1, 255))
    assert decode_line(bytes(line)) is None


def test_damaged_lines_are_named_and_left_alone(tmp_path: Path) -> None:
    """Damage in the middle is an error that says where, for readers and for resume; the file is not touched."""
    path = written(tmp_path / "run") / "records.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"k":4', b'"k":5')
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    for read in (read_records, RunStore.resume):
        with pytest.raises(HarnessError, match=r"damaged: the checksum of line 3 does"):
            read(path.parent)
    assert path.read_bytes() == before


def test_a_lost_newline_is_damage(tmp_path: Path) -> None:
    """Two records glued together by a flipped newline must not read as one."""
    path = written(tmp_path / "run") / "records.jsonl"
    content = path.read_bytes()
    end = content.index(b"\n")
    path.write_bytes(content[:end] + b" " + content[end + 1 :])
    with pytest.raises(HarnessError, match="line 1 does"):
        read_records(path.parent)


@pytest.mark.parametrize("keep", [1, 40, -2])
def test_torn_last_line_is_moved_aside(tmp_path: Path, keep: int) -> None:
    """What a killed writer leaves behind is repaired on resume, reported, and kept for inspection."""
    folder = written(tmp_path / "run", 3)
    tail = encode_line(to_dict(make_record(3)))[:keep]
    with open(folder / "records.jsonl", "ab") as file:
        file.write(tail)
    assert len(read_records(folder)) == 3
    with RunStore.resume(folder) as run:
        assert run.repaired_bytes == len(tail)
        run.append(make_record(3))
    assert read_records(folder) == [make_record(i) for i in range(4)]
    assert (folder / "records.torn").read_bytes() == tail + b"\n"


def test_complete_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    """A record that lacks only its newline is finished work and must not be decoded again."""
    folder = written(tmp_path / "run", 2)
    with open(folder / "records.jsonl", "ab") as file:
        file.write(encode_line(to_dict(make_record(2)))[:-1])
    with RunStore.resume(folder) as run:
        assert record_key(make_record(2)) in run
        run.append(make_record(3))
    assert read_records(folder) == [make_record(i) for i in range(4)]


def kill_writers(folder: Path, kills: int, n: int, seed: int) -> set[int]:
    """Start a writer ``kills`` times, kill it at a random moment each time; returns the acknowledged records."""
    rng = random.Random(seed)
    acknowledged: set[int] = set()
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parent), str(n)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        acknowledged |= {int(line) for line in process.communicate()[0].split("\n") if line.strip().isdigit()}
    return acknowledged


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_nine_loses_no_finished_record(tmp_path: Path, kills: int) -> None:
    """After SIGKILL at random moments every acknowledged record is there, and the finished file equals an unbroken one."""
    folder, n = tmp_path / "run", kills * 60
    acknowledged = kill_writers(folder, kills, n, seed=kills)
    with RunStore.resume(folder) as run:
        assert acknowledged <= {int(r.sample_id[2:]) for r in read_records(folder)}
        assert len(acknowledged) > kills
        run.extend(record for record in map(make_record, range(n)) if record_key(record) not in run)
    assert read_records(folder) == [make_record(i) for i in range(n)]


def test_second_writer_is_refused(tmp_path: Path) -> None:
    """Two processes on one folder would interleave lines; the second gets told who holds it."""
    folder = written(tmp_path / "run", 1)
    with RunStore.resume(folder), pytest.raises(HarnessError, match=f"another process .pid {os.getpid()}. is writing"):
        RunStore.resume(folder)
    with RunStore.resume(folder) as run:
        run.append(make_record(1))
    assert len(read_records(folder)) == 2


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    """A new run never writes into an old one."""
    folder = written(tmp_path / "run")
    with pytest.raises(HarnessError, match="exists already"):
        RunStore.create(folder, make_manifest())
    assert len(read_records(folder)) == 5


def test_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    """A future file must not be half-understood."""
    folder = tmp_path / "run"
    with RunStore.create(folder, make_manifest()) as run:
        run.append(make_record(schema_version=RUN_VERSION + 1))
    with pytest.raises(HarnessError, match=r"line 1 was written by a newer version .schema 3(.|\n)*pip install -U"):
        read_records(folder)
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(HarnessError, match="newer version"):
        read_manifest(folder)


def test_older_schema_is_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old runs stay readable: every version has a function to the next, applied in order."""
    folder = tmp_path / "run"
    with RunStore.create(folder, make_manifest(schema_version=-1)) as run:
        run.append(make_record(schema_version=-1, seed=1))
    monkeypatch.setitem(UPGRADES, -1, lambda data: {**data, "seed": data["seed"] + 1} if "seed" in data else data)
    monkeypatch.setitem(UPGRADES, 1, lambda data: data)
    monkeypatch.setitem(UPGRADES, 0, lambda data: {**data, "seed": data["seed"] * 10} if "seed" in data else data)
    assert [(r.seed, r.schema_version) for r in read_records(folder)] == [(20, RUN_VERSION)]
    assert read_manifest(folder).schema_version == RUN_VERSION


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list where a JSON object belongs"),
        ("{}", "no schema_version"),
        ('{"schema_version": 1}', "does not fit its schema: run is missing"),
        (json.dumps({**dataclasses.asdict(make_manifest()), "seeds": ["a"]}), r"does not fit its schema: seeds.0 must be"),
        (json.dumps({**dataclasses.asdict(make_manifest()), "extra": 1}), "unknown field 'extra'"),
    ],
)
def test_broken_manifest_is_explained(tmp_path: Path, content: str, message: str) -> None:
    """A manifest that is cut, foreign or incomplete gives one clear message."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(HarnessError, match=message):
        read_manifest(tmp_path)


def test_unknown_run_lists_the_newest(tmp_path: Path) -> None:
    """A mistyped run name shows what there is."""
    written(tmp_path / "alpha")
    assert run_folder(tmp_path, "alpha") == run_folder(Path("elsewhere"), str(tmp_path / "alpha"))
    with pytest.raises(HarnessError, match="Newest runs: alpha"):
        run_folder(tmp_path, "alhpa")


def test_full_disk_keeps_old_records(tmp_path: Path) -> None:
    """When the disk fills up in the middle of a line, the file is cut back to the last whole record."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)], capture_output=True).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with RunStore.create(mount / "run", make_manifest()) as run:
            count = append_until_full(run)
        assert count > 10
        assert read_records(mount / "run") == [make_record(i) for i in range(count)]
        assert read_manifest(mount / "run") == make_manifest()
        fill(mount)
        with pytest.raises(HarnessError, match="No space left"):
            store.check_writable(mount)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def append_until_full(run: RunStore) -> int:
    """Append until the disk is full; returns how many records fitted."""
    for count in range(10_000):
        try:
            run.append(make_record(count))
        except HarnessError as error:
            if "No space left" not in error.problem:
                raise
            return count
    raise AssertionError("the disk never filled up")


def fill(folder: Path) -> None:
    """Use up the last byte of a small disk."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def test_failed_write_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where no small disk can be mounted: a write that stops half-way leaves whole records only."""
    folder = written(tmp_path / "run", 2)
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 200:
            raise OSError(28, "No space left on device")
        return real(fd, bytes(data)[: len(data) // 2])

    with RunStore.resume(folder) as run:
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(HarnessError, match="No space left"):
            run.append(make_record(2))
        monkeypatch.undo()
        run.append(make_record(2))
    assert read_records(folder) == [make_record(i) for i in range(3)]


def test_failed_manifest_update_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is replaced whole or not at all."""
    folder = written(tmp_path / "run", 1)

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with RunStore.resume(folder) as run:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(HarnessError, match="No space left"):
            run.update(status="finished")
        monkeypatch.undo()
    assert read_manifest(folder) == make_manifest()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("blocker", ["file", "denied"])
def test_unwritable_results_folder_fails_early(tmp_path: Path, blocker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results folder that cannot be written is reported before anything is computed."""
    folder = tmp_path / "results"
    if blocker == "file":
        folder.write_text("")
    else:

        def deny(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "write_bytes", deny)
    with pytest.raises(HarnessError, match=r"cannot write to .*results"):
        store.check_writable(folder)


def test_read_only_folder_stays_readable(tmp_path: Path) -> None:
    """Reports of an archived run need no write access to it (root ignores modes, so no write is attempted at all)."""
    folder = written(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    folder.chmod(0o555)
    assert len(read_records(folder)) == 5
    read_manifest(folder)
    folder.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


@given(st.sampled_from([f.name for f in dataclasses.fields(Record)]))
def test_key_ignores_results_but_no_setting(name: str) -> None:
    """Two cells that differ in any setting are different; two measurements of one cell are the same."""
    changes = {
        "experiment": "x", "sample_id": "x", "drafter": None, "adapter": "x", "k": 5, "rule": "rejection",
        "temperature": 0.5, "seed": 1, "loop": "mlx-lm", "method": "replay", "wall_s": 9.0, "accepted": 0,
    }  # fmt: skip
    if name in changes:
        same = record_key(make_record(**{name: changes[name]})) == record_key(make_record())
        assert same == (name in ("wall_s", "accepted"))


def test_new_run_names_are_free(tmp_path: Path) -> None:
    """Two runs started in the same second get different folders, and odd characters stay out of paths."""
    first = store.new_run_name("a b/c", "p", tmp_path)
    (tmp_path / first).mkdir()
    assert store.new_run_name("a b/c", "p", tmp_path) != first
    assert "/" not in first


def test_runs_of_version_1_are_read() -> None:
    """The reference run was written by version 1: free mappings became fields, and mlx-lm's loop has its name."""
    folder = Path(__file__).parent.parent / "results/reference/full-qwen-coder"
    first = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
    assert first["schema_version"] == 1
    assert "mode" in first
    manifest, records = read_run(folder)
    assert manifest.finished
    assert manifest.measured.calibration["generic"]["c"] > 0
    assert {r.loop for r in records} == {"own", "mlx-lm"}
    assert any(r.settings for r in records)
    assert any(r.score and r.score.metric == "pass@1" for r in records)
