"""Whatever a text file, an option or an argument holds: it is used, or refused in a sentence. No traceback, no hang."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from comparing import compare
from fuzzing import ODD, SNIPPETS, damaged_bytes, damaged_tree, fuzz
from hypothesis import given
from hypothesis import strategies as st
from test_buffer import a_case
from test_gate import draws, stored

from harness.adapt.adapters.adapter_folder import read_info
from harness.adapt.routers.routed import load_router_config
from harness.adapt.training.buffer import ReplayBuffer
from harness.adapt.training.failures import FailureStore, case_to_dict
from harness.adapt.training.rounds import read_rounds
from harness.adapt.training.tracker import AcceptanceTracker
from harness.adapt.training_config import load_training_config
from harness.cli import main
from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.datasets import DatasetSpec, check_dataset, load_samples
from harness.distill.distill_config import load_distill_config
from harness.models.naming import read_pair_config
from harness.report import load_run
from harness.report.cells_csv import render_csv
from harness.report.gate_output import junit, summary
from harness.report.markdown import render
from harness.results.gate import check, make_reference
from harness.results.reference import read_reference
from harness.run.estimate import read_speed
from harness.session.session_config import load_session_config
from harness.session.session_state import read_totals
from harness.suite.suite import load_suite

ROOT = Path(__file__).parent.parent


def survives(call: Callable[[], Any]) -> None:
    """Run ``call``: it returns, or raises a HarnessError of a readable size."""
    problem = ""
    try:
        call()
    except HarnessError as error:
        problem = error.problem
    assert len(problem) < 20_000
    assert len(problem.splitlines()) < 40


def command(*arguments: str) -> int:
    """Run a command line in this process; its output is printable and no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main(list(arguments))
    text = out.getvalue() + err.getvalue()
    assert "Traceback" not in text, text
    assert "fault of the harness" not in text
    assert printable(text, None) == text
    code = caught.value.code or 0
    assert code in (0, 1, 2), text
    return int(code)


SUITE = {
    "name": "tiny", "description": "d", "models": "smollm2", "seed": 3, "max_tokens": 32,
    "domains": {"code": {"dataset": "humaneval", "limit": 2}, "math": {"dataset": "wordproblems", "size": 50, "split": "all"},
                "own": {"dataset": "local", "path": "own.jsonl"}},
    "experiments": [{"kind": "baseline"}, {"kind": "drafters", "drafters": ["generic", "lookup"], "k": [2, 4], "temperatures": [0, 1.0]},
                    {"kind": "domain_adapters", "rank": 4, "train_samples": 10, "domains": ["code"]},
                    {"kind": "router", "router": "default"}, {"kind": "lenience", "values": [1.5]}, {"kind": "adaptive_rounds",
                    "rounds": 2},
                    {"kind": "dynamic_k", "policies": ["auto"]}],
}  # fmt: skip
ROWS = [{"prompt": f"write {i} words about {i * 7}", "id": f"p{i}", "domain": "own", "reference": {"answer": i}} for i in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def as_yaml(tree: Any) -> bytes:
    """A tree as YAML, characters that UTF-8 lacks escaped."""
    return yaml.safe_dump(tree, allow_unicode=False).encode()


def as_json(tree: Any) -> bytes:
    """A tree as JSON."""
    return json.dumps(tree).encode()


def damaged(tree: Any, write: Callable[[Any], bytes] = as_json) -> st.SearchStrategy[bytes]:
    """A file with wrong values, or with wrong bytes."""
    return damaged_tree(tree).map(write) | damaged_bytes(write(tree))


@fuzz(60)
@given(data=damaged(SUITE, as_yaml))
def test_suites(folder: Path, data: bytes) -> None:
    """``harness validate`` and the plan of ``harness run``."""
    (folder / "s.yaml").write_bytes(data)
    code = command("validate", "s.yaml")
    assert command("run", "s.yaml", "--plan") == code


CONFIGS: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "pair": ({"description": "d", "target": {"sources": ["path:none", "hub:a/b@main"], "license": "MIT"},
    "draft": {"sources": ["cut:none"]},
              "draft_vocab": "v.json", "k": 3, "dtype": "float32"}, read_pair_config),
    "training": (load_training_config().model_dump(), load_training_config),
    "router": (load_router_config().model_dump(), load_router_config),
    "session": ({"name": "s", "models": "smollm2", "drafter": "adaptive", "k": 3, "rule": "match", "temperature": 0.5, "max_tokens": 12,
    "system": "x",
                 "training": "default", "threshold": 0.5, "min_failure_cases": 3, "window": 9, "evaluation": {"chat": {"dataset": "chat",
                 "limit": 6}},
                 "evaluation_tokens": 12, "folder": "f"}, lambda path: load_session_config(path).check()),
    "draft": (yaml.safe_load((ROOT / "configs/drafts/smollm2.yaml").read_text()), load_distill_config),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
@fuzz(60)
@given(data=st.data())
def test_configs(folder: Path, kind: str, data: st.DataObject) -> None:
    """Every other YAML file."""
    tree, read = CONFIGS[kind]
    (folder / "c.yaml").write_bytes(data.draw(damaged(tree, as_yaml)))
    survives(lambda: read(str(folder / "c.yaml")))


@fuzz(150)
@given(data=damaged(ROWS, lambda rows: b"".join(as_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))))
def test_datasets(folder: Path, data: bytes) -> None:
    """Lines of prompts; what validation lets through also loads."""
    (folder / "d.jsonl").write_bytes(data)
    spec = DatasetSpec(dataset="local", path=str(folder / "d.jsonl"), split="all")
    survives(lambda: (check_dataset(spec), load_samples(spec)))


MEASURED = {
    "status": "finished", "calibration": {"lookup": {"c": 0.1, "v": [1.0, 1.1, 1.2, 1.3, 1.4]}}, "reference_s": [0.1, 0.2, 0.1, 0.1, 0.1],
    "peak_memory_bytes": 10**9, "time_s": {"load": 1.0, "decode": 2.0, "replay": 1.0, "total": 5.0}, "skipped": ["fast"],
    "adapters": {"code": {"hash": "h", "domain": "code", "metric": "alpha", "rounds": [
        {"round": 1, "accepted": True, "before": {"code": 0.5}, "after": {"code": 0.6}, "steps": 3, "tokens": 9, "train_s": 1.0,
         "gain": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 5, "p": None, "detectable": None}}]}},
    "routers": {}, "swaps": [{"policy": "fuse", "swap_s": 0.1, "held_bytes": 10, "step_ratio": 1.0}],
    "spot_checks": [{"drafter": "lookup", "sample_id": "s", "k": 4, "equal": False, "near_ties": 1}],
}  # fmt: skip
EXTRA = {"settings": {"rank": 4}, "score": {"metric": "pass@1", "status": "passed", "value": 1.0, "reason": ""}, "near_ties": 0,
        "choice": "code",
         "profile": {"draft_s": 0.1, "verify_s": 0.1, "sync_s": 0.1, "host_s": 0.1}}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything that a report can show."""
    return stored(tmp_path_factory.mktemp("runs") / "run", draws(6, 0, temperature=0.0), measured=MEASURED)


def read_everything(folder: Path) -> None:
    """Report, comparison and gate of a run."""
    loaded = load_run(folder)
    render(loaded)
    render_csv(loaded.rows)
    compare(folder, folder)
    check(folder, make_reference(folder), any_machine=True)


@fuzz(80)
@given(data=st.data())
def test_manifests(run: Path, folder: Path, data: st.DataObject) -> None:
    """A manifest of the right form is reported on, any other is refused."""
    manifest = json.loads((run / "manifest.json").read_text())
    (folder / "manifest.json").write_bytes(data.draw(damaged(manifest)))
    (folder / "records.jsonl").write_bytes((run / "records.jsonl").read_bytes())
    survives(lambda: read_everything(folder))


@fuzz(80)
@given(data=st.data())
def test_records(run: Path, folder: Path, data: st.DataObject) -> None:
    """Records with right checksums and wrong values, and damaged lines."""
    rows = [{**json.loads(line), **EXTRA} for line in (run / "records.jsonl").read_text().splitlines()]
    for row in rows:
        del row["checksum"]
    lines = b"".join(map(_sealed, rows))
    content = data.draw(damaged_tree(rows).map(lambda r: b"".join(map(_sealed, r))) | damaged_bytes(lines))
    (folder / "records.jsonl").write_bytes(content)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["seal"] = {"records": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    survives(lambda: read_everything(folder))


def _sealed(row: Any) -> bytes:
    """A line with the checksum that :func:`harness.core.journal.encode_line` would write."""
    body = as_json(row)
    return body[:-1] + b',"checksum":"%08x"}\n' % zlib.crc32(body[:-1])


@fuzz(80)
@given(data=st.data())
def test_references(run: Path, folder: Path, data: st.DataObject) -> None:
    """Reference files of the gate."""
    (folder / "r.json").write_bytes(data.draw(damaged(make_reference(run).model_dump(mode="json"))))

    def gate() -> None:
        verdicts = check(run, read_reference(folder / "r.json"), any_machine=True)
        junit(verdicts)
        summary(verdicts, "a", "b")

    survives(gate)


ESTIMATE = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 5, "p": None, "detectable": None}
CASE = json.loads(as_json(case_to_dict(a_case(0))))
STATE: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "rounds": ({"schema_version": 1, "rounds": [{"round": 1, "accepted": True, "failures": 2, "replayed": 1, "before": {"a": 0.5},
    "after": {"a": 0.6},
                "steps": 3, "tokens": 4, "train_s": 0.1, "adapter": None, "gain": ESTIMATE}]},
                lambda p: [r.verdict for r in read_rounds(p)]),
    "tracker": ({"schema_version": 1, "recent": [[1, 4], [2, 4], [0, 4]], "pending": {"code": 2}, "rounds": 1},
                lambda p: (t := AcceptanceTracker(path=p), t.rate, t.trend, t.due)),
    "totals": ({"schema_version": 1, "generations": 2, "tokens": 9, "wall_s": 0.5, "rounds": 4, "emitted": 9, "drafted": 8, "accepted": 4,
    "rejected": 3},
               read_totals),
    "failure": ({"schema_version": 1, **CASE}, lambda p: list(FailureStore(p))),
    "buffer": ({"schema_version": 1, "index": 0, "ids": ["a"], "slot": 0, "case": CASE, "buffer": {"capacity": 1000, "seed": 0}},
               lambda p: ReplayBuffer(p).cases()),
    "metadata.json": ({"schema_version": 1, "name": "n", "draft_hash": "h", "draft_name": "d", "domain": None, "rank": 4, "data_hash": "",
    "examples": 3,
                       "metric": "alpha", "before": {"a": 0.1}, "after": {}, "steps": 1, "train_s": 0.1, "created": "", "settings": {}},
                      lambda p: read_info(p.parent, "h")),
    "speed": ({"processor": "x", "prompt_tokens": 9.0, "prompt_token_s": 0.1, "step_s": 0.1, "c": 0.3}, lambda p: read_speed("speed")),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATE)
@fuzz(60)
@given(data=st.data())
def test_stored_state(folder: Path, kind: str, data: st.DataObject) -> None:
    """What sessions, trainings and runs left in the cache."""
    tree, read = STATE[kind]
    path = folder / "cache" / "speeds" / "speed.json" if kind == "speed" else folder / kind
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(damaged(tree)) + data.draw(st.sampled_from([b"\n", b""])))
    survives(lambda: read(path))


KEYS = st.sampled_from(
    ["name", "seed", "max_tokens", "models", "domains", "domains.code.limit", "domains.own.path", "domains.code.limit.x", "experiments.1.k",
     "experiments[1].k", "experiments.1.temperatures", "experiments.9", "experiments.-1", "experiments[", "a b", "=", ".", "", "\u00b2"]
)  # fmt: skip
VALUES = st.sampled_from([*map(json.dumps, ODD), *(s.decode("utf-8", "surrogateescape") for s in SNIPPETS)]) | st.text(max_size=20)


@fuzz(250)
@given(key=KEYS, equals=st.sampled_from(["=", "=", "=", "", "=="]), value=VALUES)
def test_overrides(folder: Path, key: str, equals: str, value: str) -> None:
    """``--set`` with any text."""
    (folder / "s.yaml").write_bytes(as_yaml(SUITE))
    survives(lambda: load_suite("s.yaml", [f"{key}{equals}{value}"]).cells())


ARGUMENTS = st.sampled_from(
    ["", "-", "--", "-1", "0", "1", "2", "99999999999999999999", "1e400", "nan", "inf", "-0.5", "\u00b2", "x", "x" * 300, "x" * 5000,
     "~nosuchuser", "~", "/dev/null", "/dev/null/x", "/dev/zero", "s.yaml", "own.jsonl",
     "folder", "locked", "smollm2", "none.yaml", "p.yaml",
     "[red]x[/red]", "a\nb", "a=b", "k=[", "\x1b", "\udcff", "code,code", ",", "detailed", "fast", "generic", "auto", "train", "*", "%s%n",
     "{0}", "$HOME", "`x`"]
)  # fmt: skip
LINES = [
    "validate ?", "validate s.yaml --limit ?", "validate s.yaml --domains ?", "validate s.yaml --models ?", "validate s.yaml --set ?",
    "run ? --plan", "run s.yaml --plan --results ?", "run s.yaml --plan --resume ?", "run s.yaml --models p.yaml --results ? --offline",
    "run s.yaml --models p.yaml --resume ? --offline", "report ?", "report ? --results ?", "report ? --verify", "check ? --against ?",
    "check x --results ? --against ?", "compare ? ?", "compare ? ? --results ?", "generate ? --models p.yaml",
    "generate hi --models ? --offline", "generate hi --models p.yaml -k ?", "generate hi --models p.yaml --drafter ?",
    "generate hi --models p.yaml --adapter ?", "generate hi --models p.yaml --seed ?",
    "generate hi --models p.yaml --temperature ? --max-tokens ?", "generate hi --models p.yaml --loop ? --rule ?",
    "collect ? --out ? --models p.yaml", "collect own.jsonl --out ? --models p.yaml --split ?",
    "collect own.jsonl --out o --models p.yaml --limit ? --batch ?", "train ? --models p.yaml",
    "train own.jsonl --models p.yaml --config ?", "train own.jsonl --models p.yaml --set ? --rank ?", "train-router ? --models p.yaml",
    "train-router own.jsonl --models p.yaml --adapters ?", "train-router own.jsonl --models p.yaml --config ? --set ?",
    "route ? --models p.yaml", "route hi --models p.yaml --adapters ?", "chat ? --offline", "chat --models p.yaml -k ? --offline",
    "chat --models p.yaml --drafter ? --temperature ? --offline", "demo ? --port ? --offline", "distill ? --offline",
    "serve --models p.yaml --host ? -k ? --offline", "serve --session ? --models p.yaml --queue ? --offline",
    "distill smollm2 --set ? --set pair=p.yaml --offline", "models ?", "models pull ? --offline", "models suggest ?",
    "models check ? ? --offline", "models vocab p.yaml --from ? --out ? --size ?", "?", "? ?", "validate ? ?", "--version ?",
    "validate --?",
]  # fmt: skip
"""Command lines; a question mark stands for any argument. The pair ``p.yaml`` has no weights."""


@fuzz(150)
@given(data=st.data())
def test_command_lines(folder: Path, data: st.DataObject) -> None:
    """Arguments of every command; nothing is loaded and nothing outside the folder is written."""
    (folder / "s.yaml").write_bytes(as_yaml(SUITE))
    (folder / "p.yaml").write_bytes(as_yaml({"target": {"sources": ["path:none"]}, "draft": {"sources": ["path:none"]}}))
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "locked").mkdir(mode=0, exist_ok=True)
    line = [data.draw(ARGUMENTS) if part == "?" else part for part in data.draw(st.sampled_from(LINES)).split()]
    command(*line)


@pytest.mark.parametrize("value", ["~nosuchuser", "/dev/null", "/dev/null/x", "x" * 5000, "/nonexistent", "", "own.jsonl"])
@pytest.mark.parametrize("name", ["HARNESS_CACHE", "HARNESS_BLAS"])
def test_environment(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Folders that cannot be and libraries that there are none of."""
    monkeypatch.setenv(name, value)
    (folder / "s.yaml").write_bytes(as_yaml(SUITE))
    (folder / "p.yaml").write_bytes(as_yaml({"target": {"sources": ["path:none"]}}))
    for line in (
        ["run", "s.yaml", "--plan"],
        ["generate", "hi", "--models", "p.yaml"],
        ["models", "list"],
        ["chat", "--models", "p.yaml", "--offline"],
    ):
        command(*line)
