"""Work on a cluster: the results of one process, each once, whatever becomes of workers and scheduler."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from adapting import put_adapter, quick_config
from rich.console import Console
from test_kill_run import SUITE
from test_runner import without_times
from tiny import write_pair

from harness.adapt.routers.arms import Replaying
from harness.adapt.training.bank import AdapterBank, replay_bank
from harness.adapt.training.rounds import Known, read_rounds
from harness.answers.collect import Batch, collect, shard_names
from harness.cluster.answering import ClusterPool, rollouts
from harness.cluster.client import Cluster
from harness.cluster.pairs import check_room, load_spec, spec_of
from harness.cluster.seat import Seat, seat
from harness.core.errors import HarnessError
from harness.core.records import Record, Sample
from harness.models.pair import load_pair
from harness.models.size import loaded_bytes
from harness.report import load_run
from harness.report.sections import machines
from harness.report.verify import verify
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run import remote
from harness.run.chain_task import ChainTask
from harness.run.crew import ClusterCrew
from harness.run.runner import reports_folder, run_suite
from harness.suite.suite import load_suite

SAMPLES = [Sample(id=f"s/{i}", domain="chat", prompt="abc" * (1 + i % 5) + chr(97 + i)) for i in range(12)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny pair and a suite of it, and a cache of its own."""
    root = tmp_path_factory.mktemp("cluster")
    pair = write_pair(root / "pair", max_position_embeddings=1024)
    (root / "suite.yaml").write_text(SUITE.format(pair=pair), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="module")
def workers(alone: Path) -> Iterator[Cluster]:
    """Two workers in this process, once it has decoded itself: constants of modules must be computed on the thread that imported them."""
    with Cluster("local:2", processes=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(world: Path) -> Path:
    """The run that one process makes."""
    return run(world, "alone")


def run(root: Path, name: str, cluster: Cluster | None = None, *, report: bool = False, **options: Any) -> Path:
    """A run of the suite, without the report where none is asked for."""
    suite, results = load_suite(str(root / "suite.yaml"), overrides=options.pop("overrides", [])), root / name / "results"
    console = Console(file=io.StringIO(), width=200)
    with nullcontext() if report else patch("harness.run.runner._report"):
        return run_suite(suite, results_dir=results, console=console, cluster=cluster, **options)


def bare(folder: Path) -> list[Record]:
    """Records of a run without clocks and places."""
    return [dataclasses.replace(r, place=None) for r in without_times(read_records(folder))]


def test_a_run_on_workers_is_the_run_of_one_process(world: Path, workers: Cluster, alone: Path) -> None:
    """Tokens, counts, scores and keys are equal; every record says where it was made, and the report follows from the records."""
    spread = run(world, "spread", workers, report=True)
    assert bare(spread) == bare(alone)
    records, measured = read_records(spread), read_manifest(spread).measured
    decoded = [r for r in records if r.method == "decode"]
    assert all(r.place is not None for r in records)
    assert {r.place.calibration for r in decoded if r.place} <= set(measured.workers)
    assert {r.machine for r in records} == {measured.reference_machine} == set(measured.machines)
    for sample in {r.sample_id for r in decoded}:
        assert len({r.place.worker for r in decoded if r.place and r.sample_id == sample}) == 1
    assert {"generic", "lookup"} <= set(measured.calibration)
    assert all(check["equal"] for check in measured.spot_checks)
    assert verify(spread, reports_folder(spread)) > 40


def test_answers_in_batches_and_counts_alone(world: Path, workers: Cluster) -> None:
    """A run that clocks few prompts, here without a clock at all: batches, samples, replays and scores are those of one process."""
    heats = [f"experiments.{i}.temperatures=[0.0, 1.0]" for i in range(2)]
    few: dict[str, Any] = {"overrides": ["clocked=1", "clock_tokens=4", *heats], "clock": False}
    assert bare(run(world, "few", workers, **few)) == bare(run(world, "few-alone", **few))


def test_an_interrupted_run_goes_on(world: Path, workers: Cluster, alone: Path) -> None:
    """A resumed run keeps its records and makes the others; one that was started in one process is not resumed on a cluster."""
    whole = run(world, "whole", workers)
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    left = [line for line in lines if b'"replay"' not in line]
    (whole / "records.jsonl").write_bytes(b"".join(left))
    text = (whole / "manifest.json").read_text(encoding="utf-8").replace('"finished"', '"running"')
    start = text.index('"seal"')
    (whole / "manifest.json").write_text(f'{text[:start]}"seal": null,{text[text.index("}", start) + 2 :]}', encoding="utf-8")
    again = run(world, "whole", workers, resume=whole.name)
    assert (again / "records.jsonl").read_bytes().startswith(b"".join(left))
    assert bare(again) == bare(alone)
    with pytest.raises(HarnessError, match="the run was started on a cluster"):
        run(world, "whole", resume=whole.name)


def test_batches_of_answers_are_those_of_one_process(world: Path, workers: Cluster, tmp_path: Path) -> None:
    """The same shards under the same names, whoever decoded them; what is there is not decoded again."""
    pair = load_pair(str(world / "pair/tiny.yaml"), draft=False)
    how: dict[str, Any] = {"max_tokens": 6, "batch": 3, "top_k": 4}
    here = list(collect(pair, SAMPLES, out=tmp_path / "here", **how))
    pool = ClusterPool(workers, spec_of(pair, str(world / "pair/tiny.yaml")))
    there = list(collect(pair, SAMPLES, out=tmp_path / "there", pool=pool, **how))
    assert there == here
    assert len(pool.places) == len(SAMPLES)
    for name in shard_names(tmp_path / "here"):
        for ending in ("jsonl", "safetensors"):
            assert (tmp_path / f"there/{name}.{ending}").read_bytes() == (tmp_path / f"here/{name}.{ending}").read_bytes()
    fresh = ClusterPool(workers, pool.spec)
    assert list(collect(pair, SAMPLES, out=tmp_path / "there", pool=fresh, **how)) == here
    assert not fresh.places


def test_chains_and_adapters_travel(world: Path, workers: Cluster, tmp_path: Path) -> None:
    """A chain that a worker trained has the adapter that this process trains, and workers replay it as this process does."""
    name = str(world / "pair/tiny.yaml")
    pair = load_pair(name)
    answers = list(collect(pair, SAMPLES, max_tokens=12, top_k=8))
    config = quick_config(adapt={"mine": False})
    facts: dict[str, Any] = {"name": "chat", "config": config, "rounds": 1, "domain": "chat", "prompts": {}}
    shared: dict[str, Any] = {**facts, "train": answers[:8], "validation": answers[8:]}
    here, there = (ChainTask(**shared, folder=tmp_path / side) for side in ("here", "there"))
    (own,) = here.run(pair.draft, here.folder, Known())
    crew = ClusterCrew(workers, spec_of(pair, name))
    ((record,),) = crew.train([there])
    assert own.steps
    assert dataclasses.replace(record, train_s=0, adapter=None) == dataclasses.replace(own, train_s=0, adapter=None)
    assert crew.train([there]) == [read_rounds(there.folder / "rounds.json")], "finished rounds are read, not trained again"
    folders = {"one": tmp_path / "one", "two": tmp_path / "two"}
    for seed, (adapter, folder) in enumerate(folders.items()):
        put_adapter(folder, pair.draft, seed=seed, name=adapter)
    rows = crew.replay(folders, answers, Replaying(k=3))
    assert rows == replay_bank(AdapterBank(pair.draft, folders), answers, [3])
    assert len({tuple(r.accept_lengths for r in rows if r.drafter == name) for name in ("generic", "one", "two")}) == 3
    assert {row.policy for row in crew.swaps(folders)} == {"fuse", "cached", "unfused"}
    assert crew.costs(3).max_k == 3


def test_other_models_and_models_without_room_are_refused(world: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the worker: another model under the same name would give other counts, one that does not fit would end the process."""
    spec = spec_of(load_pair(str(world / "pair/tiny.yaml"), lazy=True), str(world / "pair/tiny.yaml"))
    batch = Batch(prompts=((5, 6),), max_tokens=2, temperature=0.0, top_k=1, seed=0)
    with pytest.raises(HarnessError, match=r"worker \d: target hash of .* is .* there and 0000000000000000 here"):
        workers.all(rollouts, [(dataclasses.replace(spec, target_hash="0" * 64), batch, False)])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000, total=1000))
    with pytest.raises(HarnessError, match=r"take 0.0 GB, 0.0 GB of memory are free"):
        load_spec(spec)
    need = 2 * loaded_bytes(world / "pair/target")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1.5 * need, total=1000))
    check_room(spec)
    with pytest.raises(HarnessError, match=r"take 2 times 0.0 GB"):
        workers.spec_of(load_pair(str(world / "pair/tiny.yaml"), lazy=True), str(world / "pair/tiny.yaml"))


def test_of_two_that_load_together_only_one_finds_room_for_one(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of one machine load one after the other, so none counts on memory that another is about to take."""
    models = str(world / "pair/tiny.yaml")
    spec, need = spec_of(load_pair(models, lazy=True), models), 2 * loaded_bytes(world / "pair/target")
    free = [1.5 * need]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free[0], total=1000))

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        free[0] -= need
        return load_pair(*args, **kwargs)

    monkeypatch.setattr("harness.models.pair.load_pair", slow)
    with ThreadPoolExecutor(2) as pool:
        errors = [future.exception() for future in [pool.submit(load_spec, spec) for _ in range(2)]]
    assert errors.count(None) == 1
    assert any("of memory are free" in str(error) for error in errors)
    assert free == [0.5 * need]


def test_kinds_of_machine_keep_their_clocks_apart(world: Path, alone: Path) -> None:
    """A worker of another kind joins late: its counts pool, its clocks do not, and the report has both kinds."""
    with Cluster("local:1", processes=False) as cluster:
        own = cluster._own
        own.new_spec["options"]["plugins"] = (Seat(7),)
        own.scale(2)
        folder = run(world, "kinds", cluster)
    records, measured = read_records(folder), read_manifest(folder).measured
    assert bare(folder) == bare(alone)
    assert len(measured.machines) == len({r.machine for r in records if r.method == "decode"}) == 2
    loaded = load_run(folder)
    clocked = [r for r in records if r.method == "decode" and r.drafter == "generic" and r.machine == measured.reference_machine]
    row = next(row for row in loaded.rows if row.drafter == "generic" and row.clocked)
    assert row.clocked == len({r.sample_id for r in clocked}) < row.n == 4
    (table,) = machines.tables(loaded)
    assert table.rows[0][0] == measured.reference_machine
    assert {line[0] for line in table.rows} == set(measured.machines)
    assert "clocks are not" in machines.sentences(loaded)[0]


def test_kinds_that_count_differently_stop_a_run(world: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of such machines must not pool, so both are named."""

    def counted(setup: remote.Setup, prompt: Any) -> str:
        return seat().machine

    counted.__module__, counted.__qualname__ = remote.__name__, "counted"
    monkeypatch.setattr(remote, "counted", counted)
    with Cluster("local:1", processes=False) as cluster:
        own = cluster._own
        own.new_spec["options"]["plugins"] = (Seat(7),)
        own.scale(2)
        with pytest.raises(HarnessError, match=r"machines of the kinds '.*[17] threads.*' and '.*[17] threads.*' count .* differently"):
            run(world, "differently", cluster)


@pytest.mark.parametrize("what", ["worker goes", "worker is cut off", "client is cut off"])
def test_what_is_lost_on_the_way_is_done_again(world: Path, tmp_path: Path, what: str) -> None:
    """A worker goes, or a connection breaks, while it works: its batch is done again, by a worker that joins late or by the same one."""
    name = str(world / "pair/tiny.yaml")
    pair, how = load_pair(name, draft=False), dict[str, Any](max_tokens=12, batch=2, top_k=4)
    expected = list(collect(pair, SAMPLES, **how))
    with Cluster("local:1", processes=False) as cluster:
        own, client = cluster._own, cluster._client
        answers = collect(pair, SAMPLES, out=tmp_path, pool=ClusterPool(cluster, spec_of(pair, name)), **how)
        found = [next(answers)]
        (stream,) = own.scheduler.stream_comms.values()
        if what == "worker goes":
            own.sync(own.scheduler.remove_worker, *own.scheduler.workers, stimulus_id="lost", close=True)
        else:
            client.loop.add_callback(stream.abort if what == "worker is cut off" else client.scheduler_comm.abort)
        own.scale(2)
        assert [*found, *answers] == expected
        assert len(cluster.seen) == 2 or what == "client is cut off"


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(world: Path, tmp_path: Path) -> None:
    """SIGKILL while it works: its batch is done again by the process that takes its place."""
    pair, name = load_pair(str(world / "pair/tiny.yaml"), draft=False), str(world / "pair/tiny.yaml")
    how: dict[str, Any] = {"max_tokens": 40, "batch": 2, "top_k": 4}
    expected = list(collect(pair, SAMPLES, **how))
    with Cluster("local:1") as cluster:
        answers = collect(pair, SAMPLES, out=tmp_path, pool=ClusterPool(cluster, spec_of(pair, name)), **how)
        found = [next(answers)]
        (pid,) = cluster._client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        assert [*found, *answers] == expected


class Processes:
    """A scheduler and two workers in processes of their own, which are killed or stopped now and then."""

    def __init__(self, root: Path, port: int, patience: str = "5 minutes") -> None:
        self.patience = patience
        self.address, self.root, self.port = f"tcp://127.0.0.1:{port}", root, port
        self.landed = {"worker": 0, "scheduler": 0}
        self.scheduler = self._scheduler()
        self.workers = [self._worker(i) for i in range(2)]

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_CACHE": str(self.root / "cache")}
        environment["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] = self.patience
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-m", *command], env=environment, start_new_session=True, **quiet)

    def _scheduler(self) -> subprocess.Popen[bytes]:
        return self._start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    def _worker(self, i: int) -> subprocess.Popen[bytes]:
        return self._start("harness", "worker", self.address, "--threads", "1", "--name", f"w{i}")

    def working(self) -> list[Any]:
        """The processes that compute."""
        import psutil

        children = [c for w in self.workers for c in psutil.Process(w.pid).children(recursive=True)]
        return [c for c in children if "spawn_main" in " ".join(c.cmdline())]

    def kill(self, what: str, rng: random.Random) -> None:
        """SIGKILL the process that works, whose nanny starts it again, or the scheduler."""
        if what == "scheduler":
            self.scheduler.kill()
            self.scheduler.wait()
            self.scheduler = self._scheduler()
            self.landed[what] += 1
        elif children := self.working():
            rng.choice(children).kill()
            self.landed[what] += 1

    def stop(self) -> None:
        """End them all."""
        for process in (self.scheduler, *self.workers):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["slow", "unreachable"])
def test_a_worker_that_stands_still_loses_nothing(world: Path, tmp_path: Path, what: str) -> None:
    """Stopped for seconds it only gets less to do; stopped with its nanny for longer than the scheduler waits it is gone, then back."""
    pair, name = load_pair(str(world / "pair/tiny.yaml"), draft=False), str(world / "pair/tiny.yaml")
    how: dict[str, Any] = {"max_tokens": 40, "batch": 1, "top_k": 4}
    expected = list(collect(pair, SAMPLES, **how))
    processes = Processes(tmp_path, 18786, patience="6s")
    try:
        with Cluster(processes.address) as cluster:
            while len(cluster.workers) < 2:
                time.sleep(0.2)
            pool = ClusterPool(cluster, spec_of(pair, name))
            answers = collect(pair, SAMPLES, out=tmp_path, pool=pool, **how)
            found = [next(answers)]
            if what == "slow":
                still = processes.working()[0]
                still.suspend()
                threading.Timer(3, still.resume).start()
            else:
                os.killpg(processes.workers[0].pid, signal.SIGSTOP)
            assert [*found, *answers] == expected
            assert len({place.worker for place in pool.places.values()}) == 2 or what == "unreachable"
            os.killpg(processes.workers[0].pid, signal.SIGCONT)
            until = time.monotonic() + 60
            while len(cluster.workers) < 2:
                assert time.monotonic() < until
                time.sleep(0.2)
    finally:
        processes.stop()


@pytest.mark.slow
def test_many_kills_lose_and_double_nothing(world: Path, tmp_path: Path) -> None:
    """30 kills of workers and 5 of the scheduler at seeded moments of runs that go on: the records are those of one process."""
    overrides = ["domains.chat.limit=24", "max_tokens=24"]
    expected = bare(run(world, "long-alone", overrides=overrides))
    processes, rng, n = Processes(tmp_path, 18786), random.Random(0), 0
    kills = ["worker"] * 30 + ["scheduler"] * 5
    rng.shuffle(kills)
    ended = threading.Event()

    def killer() -> None:
        while kills and not ended.wait(rng.uniform(0.5, 6.0)):
            before = sum(processes.landed.values())
            processes.kill(kills[-1], rng)
            if sum(processes.landed.values()) > before:
                kills.pop()

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        while kills:
            with Cluster(processes.address) as cluster:
                assert bare(run(world, f"long-{n}", cluster, overrides=overrides)) == expected
            n += 1
    finally:
        ended.set()
        thread.join()
        processes.stop()
    assert processes.landed == {"worker": 30, "scheduler": 5}
    print(f"{processes.landed} in {n} runs")
