"""A run decodes every sample in every cell once, survives interruption, and refuses to continue as something else."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from harness.cli import main
from harness.core import machine
from harness.core.cell import record_key
from harness.core.errors import HarnessError
from harness.core.records import Divergence, Generation, Record, Sample, Score, Trajectory
from harness.decode.length import Costs
from harness.models.draft import Draft
from harness.report import load_run
from harness.report.integrity import contradictions
from harness.report.markdown import render
from harness.report.verify import verify
from harness.results.manifest import read_manifest
from harness.results.reading import read_records, to_record
from harness.results.store import RunStore
from harness.results.summary import summarise
from harness.run.engine import Engine
from harness.run.runner import reports_folder, run_suite
from harness.run.trained import Trained
from harness.scoring import sandbox
from harness.scoring.result import verdict
from harness.suite.cells import Cell
from harness.suite.experiments import Baseline, Drafters, GenericDraft, Lenience
from harness.suite.plan import make_plan
from harness.suite.suite import Suite

TIMES = ("prefill_s", "ttft_s", "draft_s", "verify_s", "route_s", "swap_s", "wall_s", "draft_times_s", "verify_times_s")


class FakePair:
    """A pair whose text and hashes are fixed."""

    name = "fake"
    target_hash = "target-1"
    eos_token_ids = frozenset({0})

    target = config = tokenizer = None
    context_tokens = 2048
    draft = Draft(model=None, token_map=None, hash="draft-1", name="fake-draft")

    def encode(self, prompt: str) -> list[int]:
        """One token per letter."""
        return [ord(c) for c in prompt]

    def decode(self, tokens: Any) -> str:
        """Token ids as text."""
        return " ".join(map(str, tokens))

    def render(self, messages: Any, *, add_generation_prompt: bool = True) -> str:
        """Their contents, line by line."""
        return "\n".join(m["content"] for m in messages)


def fake_generate(pair: Any, prompt: Any, *, drafter: str | None = "generic", k: Any = 4, max_tokens: int = 8, **_: Any) -> Generation:
    """Greedy tokens depend on the prompt alone; acceptance on prompt, drafter and k."""
    rng = random.Random(str(list(prompt)))
    tokens = tuple(rng.randrange(1, 100) for _ in range(max_tokens))
    k = k if isinstance(k, int) else 3
    accept = random.Random(f"{list(prompt)}{drafter}{k}")
    left, lengths = max_tokens, []
    while left:
        lengths.append(min(accept.randint(0, k), left - 1) if drafter else 0)
        left -= lengths[-1] + 1
    drafts = tuple(k if drafter else 0 for _ in lengths)
    return Generation(
        tokens=tokens, text=pair.decode(tokens), finish="length", prompt_tokens=len(prompt), rounds=len(lengths), drafted=sum(drafts),
        accepted=sum(lengths), rejected=sum(a < d for a, d in zip(lengths, drafts, strict=True)), accept_lengths=tuple(lengths),
        draft_lengths=drafts, prefill_s=0.01, ttft_s=0.02, draft_s=None, verify_s=None, wall_s=0.02 + 0.01 * len(lengths), drafter=drafter,
        k=k if drafter else None,
    )  # fmt: skip


def fake_answers(pair: Any, samples: Any, max_tokens: int, *, temperature: float = 0.0, seed: int = 0) -> list[Trajectory]:
    """The same tokens as decoding; samples are others, one token shorter and seed by seed."""
    found = []
    for s in samples:
        tokens = fake_generate(pair, pair.encode(s.prompt), drafter=None, max_tokens=max_tokens).tokens
        tokens = tuple(token + 100 + seed for token in tokens[1:]) if temperature else tokens
        facts: dict[str, Any] = {"sample_id": s.id, "domain": s.domain, "prompt_tokens": tuple(pair.encode(s.prompt))}
        found.append(Trajectory(tokens=tokens, finish="length", max_tokens=max_tokens, temperature=temperature, **facts))
    return found


def fake_replay(pair: Any, trajectories: Any, drafters: Any, ks: Any, **_: Any) -> list[Any]:
    """The same counts as decoding."""
    rows = []
    for t in trajectories:
        for k in ks:
            g = fake_generate(pair, t.prompt_tokens, drafter=drafters[0], k=k, max_tokens=len(t.tokens))
            row = type("Row", (), {"sample_id": t.sample_id, "k": k, "near_ties": 0, "sources": None})()
            for name in ("rounds", "drafted", "accepted", "rejected", "emitted", "accept_lengths", "draft_lengths"):
                setattr(row, name, getattr(g, name))
            rows.append(row)
    return rows


def make_engine(**changes: Any) -> Engine:
    """An engine without models."""
    costs = {"c": 0.2, "v": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]}
    engine = Engine(
        load_pair=lambda name, offline: FakePair(),
        load_samples=lambda spec, domain, seed, offline: [
            Sample(id=f"{domain}/{i}", domain=domain, prompt=f"{domain} {i}") for i in range(spec.limit)
        ],
        generate=fake_generate,
        classify=lambda pair, prompt, a, b: Divergence(position=0, gap=1.0, kind="bug"),
        answer=fake_answers,
        replay=fake_replay,
        ties=lambda pair, trajectories: [0] * len(trajectories),
        calibrate=lambda pair, cell, max_k: (None, costs),
        verification=lambda pair: 1.2,
        settings=lambda cell: {},
        train=lambda pair, suite, cells, samples, load_samples, check: Trained(),
        score=lambda sample, text, target_text: verdict("pass@1", len(text) % 2 == 0),
        facts=lambda: {"device": "fake", "blas": "fake"},
        dtype=lambda pair: "float32",
    )
    return dataclasses.replace(engine, **changes)


def make_suite(limit: int = 3, **changes: Any) -> Suite:
    """Baseline, two timed drafters, and one replayed."""
    values: dict[str, Any] = {
        "name": "tiny",
        "models": "smollm2",
        "max_tokens": 12,
        "domains": {"code": {"dataset": "humaneval", "limit": limit}, "math": {"dataset": "gsm8k", "limit": limit}},
        "experiments": [
            {"kind": "baseline"},
            {"kind": "drafters", "drafters": ["lookup", "early_exit"]},
            {"kind": "ablation_k", "k": [2, 4]},
        ],
    }
    return Suite.model_validate({**values, **changes})


def quiet() -> Console:
    """A console that is no terminal and keeps what it is told."""
    return Console(file=io.StringIO(), width=200)


def run(tmp_path: Path, *, report: bool = False, **options: Any) -> Path:
    """One run with the fake engine, without the report where none is asked for: it takes ten times as long as the rest."""
    values = {"results_dir": tmp_path / "results", "console": quiet(), "engine": make_engine(), **options}
    with nullcontext() if report else patch("harness.run.runner._report"):
        return run_suite(values.pop("suite", make_suite()), **values)


def without_times(records: list[Record]) -> list[Record]:
    """Records with their clocks removed, in a fixed order."""
    return sorted((dataclasses.replace(r, load=None, tries=(), **dict.fromkeys(TIMES)) for r in records), key=lambda r: str(record_key(r)))


def test_every_sample_in_every_cell_once(tmp_path: Path) -> None:
    """Nothing is dropped and nothing is counted twice: 6 prompts in 1 + 2 decoded and 2 replayed cells."""
    folder = run(tmp_path, report=True)
    records = read_records(folder)
    assert len(records) == len({record_key(r) for r in records}) == 6 * 5
    assert [r.method for r in records].count("replay") == 12
    assert all(r.wall_s is None for r in records if r.method == "replay")
    assert all(r.compared and r.divergence is None for r in records if r.method == "decode" and r.drafter)
    manifest = read_manifest(folder)
    assert manifest.measured.status == "finished"
    assert len(manifest.measured.reference_s) >= 3
    assert [r["after"] for r in manifest.measured.verification][:2] == ["loading", "calibration"]
    assert manifest.measured.verification[-1] == {"after": "the last cell", "v": 1.2}
    time_s = dict(manifest.measured.time_s)
    assert {"load", "train", "calibrate", "decode", "replay", "check", "score", "total"} <= set(time_s)
    assert 0 < sum(time_s.values()) - time_s["total"] <= time_s["total"]
    assert manifest.models == {
        "target": "target-1",
        "draft": "draft-1",
        "draft_vocab": None,
        "draft_name": "fake-draft",
        "dtype": "float32",
    }
    assert (reports_folder(folder) / "report.md").is_file()


@pytest.mark.parametrize(("costs", "warned"), [([1.2], False), ([1.2, 2.4, 1.2], False), ([1.2, 2.4], True)])
def test_a_report_tells_that_verification_became_slower(tmp_path: Path, costs: list[float], warned: bool) -> None:
    """Drafting that looks slow may be the process's own doing; a rise that a second look does not find again is none."""
    readings = itertools.chain(costs, itertools.repeat(costs[-1]))
    folder = run(tmp_path, engine=make_engine(verification=lambda pair: next(readings)))
    assert ("verification became 2.0x slower" in render(load_run(folder))) == warned


def test_cells_are_interleaved_and_rotated() -> None:
    """Compared cells run next to each other per prompt, baseline first, and no cell always comes last."""
    suite = make_suite()
    samples = [Sample(id=f"{d}/{i}", domain=d, prompt="") for d in ("code", "math") for i in range(2)]
    plan = make_plan(suite.cells(), samples, 0)
    assert [s.id for s, _ in plan.prompts] == ["code/0", "math/0", "code/1", "math/1"]
    orders = [[job.cell.drafter for job in jobs] for _, jobs in plan.prompts]
    assert orders[:2] == [[None, "lookup", "early_exit"], [None, "early_exit", "lookup"]]
    assert all(job.cell.domain == sample.domain == job.sample.domain for sample, jobs in plan.prompts for job in jobs)


def test_job_key_equals_record_key(tmp_path: Path) -> None:
    """Resume compares planned jobs with written records, so both must name a cell alike, lenience and layers included."""
    entries = [
        Baseline(kind="baseline", temperatures=(0.0, 1.0)),
        Drafters(kind="drafters", drafters=("early_exit", "lookup"), layers=2, ngram=5, k=(2, 3)),
        GenericDraft(kind="generic_draft", name="replayed", timed=False),
        Lenience(kind="lenience"),
    ]
    suite = make_suite(experiments=[e.model_dump() for e in entries])
    folder = run(tmp_path, suite=suite)
    samples = [s for d, spec in suite.domains.items() for s in make_engine().load_samples(spec, domain=d, seed=0, offline=True)]
    plan = make_plan(suite.cells(), samples, suite.seed)
    assert {job.key for job in (*plan.decodes, *plan.replays)} == {record_key(r) for r in read_records(folder)}


def test_replay_only_where_it_is_exact() -> None:
    """Sampling, lenience, chosen lengths, own settings and domains without a greedy baseline must be decoded."""
    base = Cell(experiment="b", kind="baseline", domain="code", drafter=None, k=None)
    cell = Cell(experiment="x", kind="x", domain="code", drafter="generic", k=4, timed=False)
    sample = [Sample(id="s", domain="code", prompt="")]
    assert len(make_plan([base, cell], sample, 0).replays) == 1
    for change in ({"timed": True}, {"temperature": 1.0}, {"k": "dynamic"}, {"lenience": 2.0}, {"layers": 3}):
        assert not make_plan([base, dataclasses.replace(cell, **change)], sample, 0).replays  # type: ignore[arg-type]
    assert len(make_plan([cell], sample, 0).decodes) == 1


class Boom(Exception):
    """A crash in the middle of a run."""


def failing(after: int) -> Any:
    """A generate that raises after some calls."""
    calls = 0

    def generate(*args: Any, **kwargs: Any) -> Generation:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Boom
        return fake_generate(*args, **kwargs)

    return generate


@pytest.mark.parametrize("after", [6, 9, 15, 22])
def test_resume_equals_an_unbroken_run(tmp_path: Path, after: int) -> None:
    """After a crash at any point, resuming gives the same records as an unbroken run, clocks apart, and repeats no work."""
    whole = run(tmp_path / "whole")
    with pytest.raises(Boom):
        run(tmp_path, engine=make_engine(generate=failing(after)))
    (folder,) = (tmp_path / "results").iterdir()
    before = read_records(folder)
    assert run(tmp_path, resume=folder.name) == folder
    records = read_records(folder)
    assert records[: len(before)] == before
    assert without_times(records) == without_times(read_records(whole))


def test_resume_of_a_finished_run_only_reports(tmp_path: Path) -> None:
    """Nothing is decoded twice, not even a warm-up."""
    folder = run(tmp_path)
    before = (folder / "records.jsonl").read_bytes()
    run(tmp_path, resume=folder.name, engine=make_engine(generate=failing(0)))
    assert (folder / "records.jsonl").read_bytes() == before


def test_records_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a run that is resumed; one that is new reads none. The report at its end is the one that the file gives."""
    read: list[str] = []
    monkeypatch.setattr("harness.results.reading.to_record", lambda data, where: read.append(where) or to_record(data, where))
    with pytest.raises(Boom):
        run(tmp_path, engine=make_engine(generate=failing(15)))
    assert not read
    (folder,) = (tmp_path / "results").iterdir()
    lines = len((folder / "records.jsonl").read_text().splitlines())
    run(tmp_path, resume=folder.name, report=True)
    assert len(read) == len(set(read)) == lines > 0
    assert (reports_folder(folder) / "report.md").read_text() == render(load_run(folder))


class OtherPair(FakePair):
    """Another target under the same name."""

    target_hash = "target-2"


def test_resume_refuses_what_changed_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of different suites, models or code must not mix in one folder."""
    name = run(tmp_path).name
    with pytest.raises(HarnessError, match=r"suite.max_tokens was 12 in the run, is 13 now"):
        run(tmp_path, resume=name, suite=make_suite(max_tokens=13))
    experiments = [{"kind": "baseline"}, {"kind": "drafters", "drafters": ["hybrid", "early_exit"]}, {"kind": "ablation_k", "k": [2, 4]}]
    with pytest.raises(HarnessError, match=r"suite.experiments\[1\].drafters\[0\] was 'lookup'"):
        run(tmp_path, resume=name, suite=make_suite(experiments=experiments))
    with pytest.raises(HarnessError, match=r"models.target was 'target-1' in the run, is 'target-2' now"):
        run(tmp_path, resume=name, engine=make_engine(load_pair=lambda name, offline: OtherPair()))
    monkeypatch.setattr(machine, "source_hash", lambda: "other")
    with pytest.raises(HarnessError, match=r"code.hash was"):
        run(tmp_path, resume=name)


@pytest.mark.parametrize("change", [{"prompt": "another"}, {"reference": {"answer": "7"}}, {"id": "{}/another"}])
def test_resume_refuses_other_prompts_under_the_same_ids(tmp_path: Path, change: dict[str, Any]) -> None:
    """An id stands for its prompt's tokens and its reference; a run keeps the hash of both."""

    def changed(spec: Any, **settings: Any) -> list[Sample]:
        first, *rest = make_engine().load_samples(spec, **settings)
        return [dataclasses.replace(first, **{k: v.format(first.domain) if k == "id" else v for k, v in change.items()}), *rest]

    folder = run(tmp_path)
    prompts = read_manifest(folder).prompts
    assert len(prompts) == len(set(prompts.values())) == 6
    with pytest.raises(HarnessError, match=r"cannot resume: .* of 6 prompts or their references are not those of the run, such as '"):
        run(tmp_path, resume=folder.name, engine=make_engine(load_samples=changed))


@pytest.mark.parametrize("name", ["processor", "cores", "threads", "device", "blas"])
def test_resume_refuses_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Clocks of two machines must not mix under one manifest; a different amount of memory does not matter."""
    folder = run(tmp_path)
    facts = {**read_manifest(folder).machine, "memory_bytes": 1}
    monkeypatch.setattr(machine, "machine_facts", lambda: facts)
    assert run(tmp_path, resume=folder.name) == folder
    facts[name] = "another"
    engine = make_engine(load_pair=lambda name, offline: pytest.fail("loaded"), facts=lambda: {n: facts[n] for n in ("device", "blas")})
    with pytest.raises(HarnessError, match=f"the run was made with {name} .*, here it is 'another'; clocks of two machines"):
        run(tmp_path, resume=folder.name, engine=engine)


@pytest.mark.parametrize("change", [{"experiment": "mine"}, {"temperature": 0.5}, {"sample_id": "code/99"}, {"seed": 1, "domain": "chat"}])
def test_resume_refuses_foreign_records(tmp_path: Path, change: dict[str, Any]) -> None:
    """Records that are none of the suite's would be reported as the run's own; nothing loads before they are found."""
    with pytest.raises(Boom):
        run(tmp_path, engine=make_engine(generate=failing(15)))
    (folder,) = (tmp_path / "results").iterdir()
    with RunStore.resume(folder) as store:
        store.append(dataclasses.replace(read_records(folder)[-1], **change))
    with pytest.raises(HarnessError, match=r"holds 1 foreign records: .* is not of this run's plan"):
        run(tmp_path, resume=folder.name, engine=make_engine(load_pair=lambda name, offline: pytest.fail("loaded")))


def test_a_killed_run_says_how_far_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended without a word is unfinished in its report, also right before its end; its last record is not lost."""
    with pytest.raises(Boom):
        run(tmp_path, engine=make_engine(generate=failing(15)))
    (folder,) = (tmp_path / "results").iterdir()
    done = len(read_records(folder))

    def killed(store: RunStore, **measured: Any) -> None:
        raise Boom

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "finish", killed)
        with pytest.raises(Boom):
            run(tmp_path, resume=folder.name)
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-1])  # killed between the record and its newline
    loaded = load_run(folder)
    assert 0 < done < len(loaded.records) == 30
    assert loaded.unfinished == f"Unfinished: 30 of 30 records; resume with: harness run ... --resume {folder.name}"
    run(tmp_path, resume=folder.name)
    loaded = load_run(folder)
    assert (len(loaded.records), loaded.unfinished) == (30, "")


def test_an_empty_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed before the first record: there is nothing to report, and the program says so with exit code 2."""
    with pytest.raises(Boom):
        run(tmp_path, engine=make_engine(generate=failing(0)))
    (folder,) = (tmp_path / "results").iterdir()
    for command in (["report"], ["report", "--verify"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, str(folder)])
        assert capsys.readouterr().err.startswith(f"error: run {folder.name} has no records yet\n")


def test_changed_suite_is_refused_before_any_model_loads(tmp_path: Path) -> None:
    """A wrong resume must not cost minutes of loading."""
    name = run(tmp_path).name

    def load(name: str, offline: bool) -> Any:
        raise AssertionError("loaded")

    with pytest.raises(HarnessError, match="cannot resume"):
        run(tmp_path, resume=name, suite=make_suite(seed=5), engine=make_engine(load_pair=load))


def test_unwritable_results_fail_before_any_model_loads(tmp_path: Path) -> None:
    """The folder is checked first."""
    (tmp_path / "results").write_text("in the way")

    def load(name: str, offline: bool) -> Any:
        raise AssertionError("loaded")

    with pytest.raises(HarnessError, match="cannot write"):
        run(tmp_path, engine=make_engine(load_pair=load))


def test_repeated_sample_ids_are_refused(tmp_path: Path) -> None:
    """Two prompts with one id would be one record."""
    same = [Sample(id="x", domain="code", prompt="a")]
    with pytest.raises(HarnessError, match="'x' occurs twice"):
        run(tmp_path, engine=make_engine(load_samples=lambda *a, **k: same))


def test_divergence_is_recorded(tmp_path: Path) -> None:
    """A drafter that changes the output is caught by the audit, not averaged away."""

    def generate(pair: Any, prompt: Any, **settings: Any) -> Generation:
        g = fake_generate(pair, prompt, **settings)
        return dataclasses.replace(g, tokens=(*g.tokens[:-1], 777)) if settings.get("drafter") == "lookup" else g

    folder = run(tmp_path, engine=make_engine(generate=generate))
    wrong = [r for r in read_records(folder) if r.divergence is not None]
    assert {r.drafter for r in wrong} == {"lookup"}
    assert len(wrong) == 6
    assert "a bug in the decoding" in render(load_run(folder))


def test_plain_output_is_one_line_per_answer(tmp_path: Path) -> None:
    """Logs of CI must be readable: no bars, no colour codes, one line per decoded answer and per replay."""
    console = quiet()
    run(tmp_path, console=console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert sum(line.startswith("[") for line in output.splitlines()) == 18 + 1
    assert "generic k=2, 4: replayed along 6 answers" in output
    assert "\x1b" not in output


INTERRUPTED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_runner as t
from harness.cli import main
def slow(*a, **k):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[3]))
    return t.fake_generate(*a, **k)
main([], command=lambda *a, **k: t.run(Path(sys.argv[1]), engine=t.make_engine(generate=slow), report=True))
"""


def interrupted(tmp_path: Path, sleep_s: float, signals: int) -> tuple[int, float]:
    """Start a slow run, send SIGINT; returns exit code and seconds from the last signal to the exit."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(Path(__file__).parent), str(sleep_s)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(8):
        process.stdout.readline()
    for _ in range(signals):
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    sent = time.perf_counter()
    process.communicate(timeout=60)
    return process.returncode, time.perf_counter() - sent


def test_ctrl_c_finishes_the_sample_and_reports(tmp_path: Path) -> None:
    """The first Ctrl-C keeps the sample in work, writes a partial report and exits with 130; the run can be resumed."""
    code, _ = interrupted(tmp_path, 0.3, 1)
    assert code == 130
    (folder,) = (tmp_path / "results").iterdir()
    assert 0 < len(read_records(folder)) < 30
    assert read_manifest(folder).measured.status == "interrupted"
    assert "**Unfinished: " in (tmp_path / "reports" / folder.name / "report.md").read_text()
    first = read_manifest(folder).measured.time_s
    run(tmp_path, resume=folder.name)
    assert len(read_records(folder)) == 30
    both = read_manifest(folder).measured.time_s
    assert all(both[stage] >= first[stage] for stage in first)


def test_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C does not wait for a long sample, and what was finished is intact."""
    code, seconds = interrupted(tmp_path, 0.9, 2)
    assert code == 130
    assert seconds < 1
    (folder,) = (tmp_path / "results").iterdir()
    read_records(folder)


def test_manifest_facts_are_plain_json() -> None:
    """Machine, code and package facts go into JSON and name what matters."""
    facts = json.loads(json.dumps([machine.machine_facts(), machine.code_state(), machine.package_versions()]))
    assert facts[0]["cores"] >= 1
    assert facts[0]["memory_bytes"] > 2**28
    assert len(facts[1]["hash"]) == 64
    assert "numpy" in facts[2]
    assert machine.peak_memory_bytes() > 2**20


def test_source_hash_follows_the_code(tmp_path: Path) -> None:
    """Any change in a file that makes records changes the hash; reports do not."""
    for name in ("harness/decode", "harness/report", "routing"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "harness/decode/a.py").write_text("x = 1")
    seen = [machine.source_hash(tmp_path)]
    (tmp_path / "harness/report/b.py").write_text("x = 1")
    assert machine.source_hash(tmp_path) == seen[0]
    for name in ("harness/decode/a.py", "harness/decode/new.py", "harness/at_the_top.py", "routing/c.py"):
        (tmp_path / name).write_text("x = 2")
        seen.append(machine.source_hash(tmp_path))
    assert len(set(seen)) == 5


def test_git_state_outside_a_checkout_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed wheel has no commit: None, not a made-up value."""
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert machine.code_state()["commit"] is None
    assert machine.code_state()["dirty"] is None


def test_a_run_without_a_sandbox_says_so_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code answers that nobody can run are announced before the models load, and in the manifest and the report; else nothing is."""
    reference = {"prompt": "def f(n):", "test": "def check(f): f(1)", "entry_point": "f"}
    console = Console(file=io.StringIO(), width=500)
    seen: list[str] = []

    def load_pair(name: str, offline: bool) -> FakePair:
        seen.append(console.file.getvalue())  # type: ignore[attr-defined]
        return FakePair()

    def told(code: bool) -> tuple[Any, str]:
        samples = [Sample(id=f"code/{code}", domain="code", prompt="f", reference=reference if code else None)]
        engine = make_engine(load_pair=load_pair, load_samples=lambda spec, domain, seed, offline: samples)
        suite = make_suite(domains={"code": {"dataset": "humaneval", "limit": 1}})
        folder = run(tmp_path, suite=suite, console=console, engine=engine)
        return read_manifest(folder).measured.warnings, render(load_run(folder))

    assert told(code=False)[0] == ()
    sandbox.find_box.cache_clear()
    monkeypatch.setattr(sandbox, "_boxes", lambda: [])
    try:
        (warning,), report = told(code=True)
    finally:
        sandbox.find_box.cache_clear()
    assert warning.startswith("code answers will be unscored, since no sandbox works here: ")
    assert f"Warning: {warning}" in seen[1]
    assert "Warning: code answers will be unscored" in report
    assert "Warning" not in seen[0]


def test_a_cache_that_cannot_be_written_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last record only shortcuts for later plans are kept there."""
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "a-file"))
    folder = run(tmp_path, report=True)
    assert read_manifest(folder).measured.status == "finished"
    assert (reports_folder(folder) / "report.md").is_file()


def test_without_a_clock_nothing_is_calibrated(tmp_path: Path) -> None:
    """Counts are the same, and what only clocks need is left out."""
    timed = run(tmp_path / "a", suite=make_suite())

    def never(*_: Any) -> Any:
        pytest.fail("the machine was timed")

    counted = run(tmp_path / "b", suite=make_suite(), engine=make_engine(calibrate=never, verification=never), clock=False)
    assert without_times(read_records(counted)) == without_times(read_records(timed))
    measured = read_manifest(counted).measured
    assert not measured.calibration
    assert not measured.reference_s
    assert not measured.verification
    assert "not warmed up" in render(load_run(counted))
    auto = make_suite(experiments=[{"kind": "baseline"}, {"kind": "dynamic_k", "policies": ["auto"]}])
    with pytest.raises(HarnessError, match="only a calibration measures"):
        run(tmp_path / "c", suite=auto, clock=False)


def clocked_suite(**changes: Any) -> Suite:
    """Counts of five prompts per domain, clocks of two."""
    experiments = [
        {"kind": "baseline"},
        {"kind": "generic_draft", "k": [2, "auto", "dynamic"]},
        {"kind": "ablation_k", "k": [4], "name": "counts"},
        {"kind": "lenience", "values": [1.5]},
    ]
    return make_suite(limit=5, max_tokens=20, clocked=2, clock_tokens=9, experiments=experiments, **changes)


def timed_generate(*args: Any, **settings: Any) -> Generation:
    """With times per round: 10 ms a plain step, 12 ms a verification, 1 ms a drafted token."""
    g = fake_generate(*args, **settings)
    drafting = tuple(0.001 * d for d in g.draft_lengths) if g.drafter else None
    verifying = tuple((0.012 if d else 0.010) for d in g.draft_lengths)
    spent = sum(verifying) + sum(drafting or ())
    sources = tuple("draft" if d else "" for d in g.draft_lengths)
    return dataclasses.replace(
        g, draft_times_s=drafting, verify_times_s=verifying, draft_s=sum(drafting) if drafting else None, verify_s=sum(verifying),
        sources=sources, prefill_s=0.001 * g.prompt_tokens, wall_s=spent + 0.001 * g.prompt_tokens,
    )  # fmt: skip


def test_counts_come_from_all_prompts_and_clocks_from_few(tmp_path: Path) -> None:
    """Lossless cells are replayed everywhere and clocked on the first prompts, lossy ones decoded to their end on those."""
    folder = run(tmp_path, report=True, suite=clocked_suite(), engine=make_engine(generate=timed_generate))
    records = read_records(folder)
    found = {
        (r.method, r.experiment, r.k): [x for x in records if (x.method, x.experiment, x.k) == (r.method, r.experiment, r.k)]
        for r in records
    }
    counts = {key: len(group) for key, group in found.items()}
    assert counts == {
        ("answer", "baseline", None): 10, ("decode", "baseline", None): 4, ("decode", "generic_draft", 2): 4,
        ("decode", "generic_draft", "auto"): 4, ("replay", "generic_draft", 2): 10, ("replay", "generic_draft", "auto"): 10,
        ("decode", "generic_draft", "dynamic"): 4, ("replay", "generic_draft", "dynamic"): 10,
        ("replay", "counts", 4): 10, ("decode", "lenience", 4): 4,
    }  # fmt: skip
    assert {r.emitted for r in records if r.method == "decode" and not r.lossy} == {9}
    assert {r.emitted for r in records if r.method != "decode" or r.lossy} == {20}
    assert all((r.score is None) == (r.method == "replay" or (r.method == "decode" and not r.lossy)) for r in records)
    rows = {(row.domain, row.experiment, row.k): row for row in summarise(records, pooled=False)}
    row = rows["code", "generic_draft", 2]
    assert (row.n, row.clocked, row.counts.emitted, row.method) == (5, 2, 100, "both")
    assert row.quality == rows["code", "baseline", None].quality
    own = [r for r in records if (r.domain, r.experiment, r.k, r.method) == ("code", "generic_draft", 2, "replay")]
    base = sum(0.001 * r.prompt_tokens + 0.010 * r.emitted for r in own)
    cell = sum(0.001 * r.prompt_tokens + sum((0.012 if d else 0.010) + 0.001 * d for d in r.draft_lengths) for r in own)
    assert row.robust is not None
    assert row.robust.value == pytest.approx(base / cell)
    assert row.speed is row.robust
    verify(folder, reports_folder(folder))


def sampled_suite() -> Suite:
    """As :func:`clocked_suite`, at temperature 1: what a draft and a lookup propose, and a cell that replay cannot follow."""
    experiments = [
        {"kind": "baseline", "temperatures": [0.0, 1.0]},
        {"kind": "generic_draft", "temperatures": [1.0], "rule": "rejection", "k": [2, "auto"]},
        {"kind": "prompt_lookup", "temperatures": [0.0, 1.0]},
        {"kind": "drafters", "drafters": ["head"], "temperatures": [1.0]},
        {"kind": "generic_draft", "name": "hot", "temperatures": [2.0], "k": [2]},
    ]
    return make_suite(limit=5, max_tokens=20, clocked=2, clock_tokens=9, experiments=experiments, seed=3)


def test_samples_are_counted_on_all_prompts_too(tmp_path: Path) -> None:
    """The target samples an answer to every prompt, along which cells of its temperature are replayed by their rule and the run's seed;
    a drafter that replay cannot follow, and a temperature without a baseline, have the clocked prompts alone."""
    asked: list[tuple[Any, ...]] = []

    def replaying(pair: Any, trajectories: Any, drafters: Any, ks: Any, **how: Any) -> list[Any]:
        drawn = how.get("temperature"), how.get("rule"), how.get("seed")
        asked.append((drafters[0], *drawn, {t.temperature for t in trajectories}))
        return fake_replay(pair, trajectories, drafters, ks)

    engine = make_engine(generate=timed_generate, replay=replaying)
    folder = run(tmp_path, report=True, suite=sampled_suite(), engine=engine)
    records = read_records(folder)
    counts = Counter((r.method, r.drafter, r.temperature) for r in records)
    assert counts == {
        ("answer", None, 0.0): 10, ("answer", None, 1.0): 10, ("decode", None, 0.0): 4, ("decode", None, 1.0): 4,
        ("decode", "generic", 1.0): 8, ("replay", "generic", 1.0): 20, ("replay", "lookup", 0.0): 10, ("replay", "lookup", 1.0): 10,
        ("decode", "lookup", 0.0): 4, ("decode", "lookup", 1.0): 4, ("decode", "head", 1.0): 4, ("decode", "generic", 2.0): 4,
    }  # fmt: skip
    assert sorted(asked, key=str) == [
        ("generic", 1.0, "rejection", 3, {1.0}), ("generic", 1.0, "rejection", 3, {1.0}),
        ("lookup", 1.0, "match", 3, {1.0}), ("lookup", None, None, None, {0.0}),
    ]  # fmt: skip
    assert {r.emitted for r in records if r.method != "decode"} == {19, 20}
    assert {r.tokens for r in records if r.method == "answer" and r.temperature}.isdisjoint(r.tokens for r in records if not r.temperature)
    rows = {(row.domain, row.drafter, row.temperature, row.k): row for row in summarise(records, pooled=False)}
    for drafter, temperature, k, n, clocked in (("generic", 1.0, 2, 5, 2), (None, 1.0, None, 5, 2), ("head", 1.0, 4, 2, 2)):
        row = rows["code", drafter, temperature, k]
        assert (row.n, row.clocked) == (n, clocked)
    quality = rows["code", None, 1.0, None].quality
    assert quality is not None
    assert (quality.scored, rows["code", "lookup", 0.0, 4].quality) == (5, rows["code", None, 0.0, None].quality)
    verify(folder, reports_folder(folder))


def resumed_as_whole(tmp_path: Path, suite: Suite, moments: Sequence[int]) -> Path:
    """Stopped after some answers and resumed, a run has the same records as an unbroken one, whose folder comes back."""
    whole = run(tmp_path / "whole", suite=suite)
    for after in moments:
        with pytest.raises(Boom):
            run(tmp_path / str(after), suite=suite, engine=make_engine(generate=failing(after)))
        (folder,) = (tmp_path / str(after) / "results").iterdir()
        assert run(tmp_path / str(after), suite=suite, resume=folder.name) == folder
        assert without_times(read_records(folder)) == without_times(read_records(whole))
    return whole


def test_a_run_with_samples_resumes(tmp_path: Path) -> None:
    """Stopped anywhere, the same records as an unbroken run; one of an older version, which replayed no samples, is still read as whole."""
    whole = resumed_as_whole(tmp_path, sampled_suite(), (1, 5, 13))
    manifest, records = read_manifest(whole), read_records(whole)
    assert not contradictions(manifest, records)
    older = dataclasses.replace(manifest, measured=dataclasses.replace(manifest.measured, samples_replayed=False))
    assert not contradictions(older, [r for r in records if r.method == "decode" or not r.temperature])


def test_a_disturbed_answer_is_decoded_again(tmp_path: Path) -> None:
    """An answer far slower than its own rounds is tried again; the best try counts, all are kept."""
    calls = itertools.count()

    def disturbed(*args: Any, **settings: Any) -> Generation:
        g = timed_generate(*args, **settings)
        slow = 5.0 if settings["max_tokens"] == 9 and settings["drafter"] and next(calls) % 4 == 3 else 0.0
        return dataclasses.replace(g, wall_s=g.wall_s + slow)

    records = read_records(run(tmp_path, suite=clocked_suite(), engine=make_engine(generate=disturbed)))
    tried = [r for r in records if r.tries]
    assert tried
    assert all(r.wall_s is not None and r.wall_s < 1 < r.tries[0].wall_s for r in tried)
    assert all(r.wall_s is None or r.wall_s < 1 for r in records)


def test_a_clocked_run_resumes(tmp_path: Path) -> None:
    """Stopped anywhere, the same records as an unbroken run."""
    resumed_as_whole(tmp_path, clocked_suite(), (1, 7, 14))


def test_repeats_are_records_of_their_own(tmp_path: Path) -> None:
    """Every prompt is decoded as often as the suite says; counts of a prompt pool its repeats."""
    suite = make_suite(limit=1, repeats=3, experiments=[{"kind": "baseline"}, {"kind": "prompt_lookup"}])
    records = read_records(run(tmp_path, suite=suite))
    expected = itertools.product(("code", "math"), ("baseline", "prompt_lookup"), range(3))
    assert sorted((r.domain, r.experiment, r.repeat) for r in records) == sorted(expected)


def test_drafters_of_one_draft_are_calibrated_once(tmp_path: Path) -> None:
    """The pair's draft is timed once for all cells that use it; what runs no draft has its verification and no cost of drafting."""
    timed: list[str | None] = []

    def calibrate(pair: Any, cell: Cell, max_k: int) -> tuple[Costs, dict[str, Any]]:
        timed.append(cell.drafter)
        return Costs(c=0.3, v=(1.0, 1.1, 1.2)), {"c": 0.3, "v": [1.0, 1.1, 1.2]}

    drafters = ["lookup", "generic", "hybrid", "early_exit"]
    suite = make_suite(limit=1, experiments=[{"kind": "baseline"}, {"kind": "drafters", "drafters": drafters, "k": ["auto"]}])
    measured = read_manifest(run(tmp_path, suite=suite, engine=make_engine(calibrate=calibrate))).measured.calibration
    assert sorted(map(str, timed)) == ["early_exit", "generic"]
    assert {name: costs["c"] for name, costs in measured.items()} == {"lookup": 0.0, "generic": 0.3, "hybrid": 0.3, "early_exit": 0.3}


def test_near_ties_come_with_answers_that_keep_probabilities(tmp_path: Path) -> None:
    """Half precision tells which of the target's choices were close, without another pass; answers without them are passed again."""

    def answers(pair: Any, samples: Any, max_tokens: int) -> list[Trajectory]:
        found = fake_answers(pair, samples, max_tokens)
        top = ((-0.7, -0.7005), *[(-0.1, -3.0)] * (max_tokens - 1))
        return [dataclasses.replace(t, top_tokens=((1, 2),) * max_tokens, top_logprobs=top) for t in found]

    def never(*_: Any) -> Any:
        pytest.fail("the target ran again")

    folder = run(tmp_path, suite=clocked_suite(), engine=make_engine(answer=answers, ties=never))
    assert set(read_manifest(folder).measured.target_ties.values()) == {1}


def test_whole_answers_are_scored_beside_whole_answers(tmp_path: Path) -> None:
    """Where few prompts have a clock, a lossy answer is compared with the target's from a batch, not with the short one of the clock."""
    seen: list[tuple[int, int]] = []

    def score(sample: Sample, text: str, target_text: str | None) -> Score:
        seen.append((len(text.split()), len((target_text or "").split())))
        return verdict("pass@1", True)

    def generate(*args: Any, **settings: Any) -> Generation:
        g = fake_generate(*args, **settings)
        return dataclasses.replace(g, tokens=g.tokens[::-1]) if settings.get("lenience", 1) > 1 else g

    class Words(FakePair):
        def decode(self, tokens: Any) -> str:
            return " ".join(map(str, tokens))

    run(tmp_path, suite=clocked_suite(), engine=make_engine(generate=generate, score=score, load_pair=lambda name, offline: Words()))
    assert set(seen) == {(20, 20)}


def test_clock_tokens_count_only_where_some_prompts_have_no_clock(tmp_path: Path) -> None:
    """Without ``clocked`` every answer is decoded to its end and scored."""
    records = read_records(run(tmp_path, suite=make_suite(limit=1, clock_tokens=5)))
    assert {r.emitted for r in records} == {12}
    assert all(r.score for r in records if r.method == "decode")
