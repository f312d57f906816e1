"""Who may work on a cluster, and with which workers: addresses, certificates, the token, versions, functions, files."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from distributed import LocalCluster, Security

from harness.cluster import client, sent_files, serving
from harness.cluster.address import TOKEN, Address, read_address
from harness.cluster.client import Cluster
from harness.cluster.serving import serve
from harness.core.errors import HarnessError
from harness.core.progress import notes_to

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("text", ["", "local", "local:0", "host:8786", "tcp://host", "tcp://host:99999", "http://host:80", "tcp://a b:80"])
def test_what_is_no_cluster_is_refused(text: str) -> None:
    """A typing error must not start or wait for anything."""
    with pytest.raises(HarnessError, match="names no cluster"):
        read_address(text)


LOOPBACK = {"local:2": True, "tcp://127.0.0.1:1": True, "tls://[::1]:1": True, "tcp://localhost:1": True, "tcp://10.0.0.1:1": False}


@pytest.mark.parametrize(("text", "loopback"), [*LOOPBACK.items(), ("tcp://a.org:1", False)])
def test_only_this_machine_is_loopback(text: str, loopback: bool) -> None:
    """What decides whether certificates are asked for."""
    assert read_address(text).loopback is loopback


def test_a_worker_wants_certificates_from_elsewhere() -> None:
    """Whoever reaches the port can run programs: nobody should open it by mistake."""
    with pytest.raises(HarnessError, match="is another machine and not encrypted"):
        serve(Address(text="tcp://10.0.0.1:8786", workers=None), processes=1, threads=1, name=None)


def papers(folder: Path) -> dict[str, str]:
    """Certificates of a new authority, in the files and under the environment variables that docs/scale.md names."""
    own, page = Security.temporary(), (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"(DASK_DISTRIBUTED__COMM__\w+)=(\S+)", page))
    folder.mkdir()
    for variable, file in found.items():
        if Path(file).suffix:
            (folder / file).write_text(own.tls_worker_key if file.endswith(".key") else own.tls_ca_file, encoding="ascii")
            found[variable] = str(folder / file)
    return found


def shown(environment: Mapping[str, str | None]) -> AbstractContextManager[Any]:
    """Dask's configuration of a process that starts with these variables; None removes what one of them says."""
    return dask.config.set({name[5:].lower().replace("__", "."): value for name, value in environment.items()})


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An encrypted scheduler, a worker that `harness worker` started for it with a token, and a client who has both."""
    root = tmp_path_factory.mktemp("papers")
    ours, theirs = papers(root / "ours"), papers(root / "theirs")
    with shown(ours), LocalCluster(n_workers=0, protocol="tls", security=Security(), dashboard_address=None) as own:
        address = own.scheduler_address
        command = [sys.executable, "-m", "harness", "worker", address, "--threads", "1", "--name", "far"]
        environment = {**os.environ, **ours, TOKEN: "word", "PYTHONPATH": str(ROOT), "HARNESS_CACHE": str(root / "cache")}
        with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as worker:
            try:
                patch.setenv(TOKEN, "word")
                with Cluster(address) as inside:
                    yield SimpleNamespace(address=read_address(address), inside=inside, ours=ours, theirs=theirs, own=own)
            finally:
                worker.terminate()
        assert worker.returncode == 0


def test_with_certificates_and_the_word_work_is_done(door: SimpleNamespace) -> None:
    """What docs/scale.md says to set is all that is needed. The worker keeps its memory as a process does that Dask did not start."""
    (reply,) = door.inside.all(sent_files.keep, [({},)])
    assert (reply.worker, reply.error) == ("far", None)
    assert door.inside._client.run(os.getenv, "MALLOC_TRIM_THRESHOLD_") == {reply.address: None}


def test_another_word_is_refused(door: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of somebody else's workers is told so."""
    monkeypatch.setenv(TOKEN, "other")
    with Cluster(door.address) as stranger, pytest.raises(HarnessError, match="worker far: the token is another one"):
        stranger.all(sent_files.keep, [({},)])


@pytest.mark.parametrize("has", ["no certificate", "another authority's", "no encryption"])
def test_a_client_without_certificates_stays_outside(door: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, has: str) -> None:
    """It cannot even ask which workers there are."""
    monkeypatch.setattr(client, "WAIT_S", 0)
    monkeypatch.setattr(client, "TRY_S", 1)
    address = door.address if has != "no encryption" else read_address(door.address.text.replace("tls", "tcp"))
    message = "nothing says which certificate to use" if has == "no certificate" else "no scheduler answers at"
    with shown(door.theirs if has == "another authority's" else dict.fromkeys(door.ours)), pytest.raises(HarnessError, match=message):
        Cluster(address)


def test_a_worker_without_certificates_stays_outside(door: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any it says so at once; with another authority's it waits at the door and gets no work."""
    monkeypatch.setattr(serving, "AGAIN_S", 0.1)
    how: dict[str, Any] = {"processes": 1, "threads": 1, "name": "stranger"}
    with shown(dict.fromkeys(door.ours)), pytest.raises(HarnessError, match="nothing says which certificate to use"):
        serve(door.address, **how)
    said: list[str] = []

    def heard(text: str) -> None:
        said.append(text)
        os.kill(os.getpid(), signal.SIGTERM)

    with shown({**door.theirs, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}), notes_to(heard):
        serve(door.address, **how)
    assert said == [f"worker stranger waits for {door.address.text}"]
    assert [worker.name for worker in door.own.scheduler.workers.values()] == ["far"]


@pytest.mark.parametrize(
    "name", ["posix:getcwd", "harness.cluster.sent_files:write_atomic", "harness.cluster.sent_files:json", "harness.nowhere:x"]
)
def test_only_functions_of_the_harness_run(door: SimpleNamespace, name: str) -> None:
    """What a harness client sends by mistake does not run, nor what a module of the harness has from another one."""
    module, _, attribute = name.partition(":")
    function: Any = SimpleNamespace(__module__=module, __qualname__=attribute, __name__=attribute)
    with pytest.raises(HarnessError, match=f"worker far: {name} is no function of the harness"):
        door.inside.all(function, [()])


def test_workers_with_other_versions_are_refused(door: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would give other numbers: they are named, with both versions, and get no work."""
    here = client.versions()
    monkeypatch.setattr(client, "versions", lambda: {**here, "mlx": "0.1"})
    monkeypatch.setattr(client, "badge", lambda: "harness-other")
    with pytest.raises(HarnessError, match=rf"worker far at .* has mlx {here['mlx']}, here it is 0.1"):
        Cluster(door.address)


def test_files_are_kept_by_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker asks for what it lacks, takes nothing else, and notices a file that was changed."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_bytes(b"a")
    sources: dict[str, Path] = {}
    folder = sent_files.described(source, sources)
    ((_, digest),) = folder
    assert sources == {digest: source / "a.txt"}
    with pytest.raises(sent_files.LackingError) as lacking:
        sent_files.unpacked(folder)
    assert lacking.value.hashes == (digest,)
    with pytest.raises(HarnessError, match="is not the one with SHA-256"):
        sent_files.keep({digest: b"b"})
    sent_files.keep({digest: b"a"})
    assert (sent_files.unpacked(folder) / "a.txt").read_bytes() == b"a"
    sent_files.kept(digest).write_bytes(b"changed")
    (sent_files.unpacked(folder) / "a.txt").write_bytes(b"changed too")
    with pytest.raises(sent_files.LackingError):
        sent_files.unpacked(folder)
    outside = hashlib.sha256(b"c").hexdigest()
    sent_files.keep({outside: b"c"})
    with pytest.raises(HarnessError, match="no plain file name"):
        sent_files.unpacked((("../c", outside),))
