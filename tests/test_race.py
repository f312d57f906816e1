"""A race clocks what can still win, finds what is fastest, and leaves a run that reports, verifies and goes on like any other."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from test_runner import Boom, FakePair, make_engine, make_suite, quiet, run, without_times

from harness.core.errors import HarnessError
from harness.core.records import Generation, Record, Trajectory
from harness.core.stats import Estimate
from harness.report import load_run
from harness.report.integrity import contradictions
from harness.report.sections.recommendation import sentences
from harness.report.verify import verify
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.results.recommend import ALPHA
from harness.results.summary import CellRow, summarise
from harness.run.engine import Engine
from harness.run.race import entries, losers, settled
from harness.run.runner import reports_folder, run_suite
from harness.suite.suite import Suite

STEP_S = 0.01
ACCEPTED = {"lookup": 0.55, "early_exit": 0.5, "generic": 0.7, "hybrid": 0.68}
"""Chance that a drafted token stands."""
STEPS = {"lookup": 0.0, "early_exit": 0.6, "generic": 0.1, "hybrid": 0.1}
"""Cost of a drafted token in target steps."""


def clocked_generate(pair: Any, prompt: Any, *, drafter: str | None = "generic", k: Any = 4, max_tokens: int = 8, **_: Any) -> Generation:
    """An answer whose rounds take what :data:`STEPS` says, to 2%; acceptance depends on prompt, drafter and k."""
    rng, jitter = random.Random(f"{list(prompt)}{drafter}{k}"), random.Random()
    k, left, lengths = k if isinstance(k, int) else 3, max_tokens, []
    while left:
        n = next((i for i in range(k) if rng.random() > ACCEPTED[drafter]), k) if drafter else 0
        lengths.append(min(n, left - 1))
        left -= lengths[-1] + 1
    drafts = tuple(k if drafter else 0 for _ in lengths)
    draft_s, verify_s = (
        tuple(STEP_S * cost * jitter.uniform(0.98, 1.02) for _ in lengths) for cost in (STEPS.get(drafter or "", 0.0) * k, 1 + 0.04 * k)
    )
    wall_s = 0.01 + sum(draft_s) + sum(verify_s)
    return Generation(
        tokens=tuple(random.Random(str(list(prompt))).randrange(1, 100) for _ in range(max_tokens)), text="", finish="length",
        prompt_tokens=len(prompt), rounds=len(lengths), drafted=sum(drafts), accepted=sum(lengths),
        rejected=sum(a < d for a, d in zip(lengths, drafts, strict=True)), accept_lengths=tuple(lengths), draft_lengths=drafts,
        prefill_s=0.01, ttft_s=0.02, draft_s=sum(draft_s), verify_s=sum(verify_s), wall_s=wall_s, drafter=drafter,
        k=k if drafter else None, draft_times_s=draft_s, verify_times_s=verify_s, sources=("draft",) * len(lengths),
    )  # fmt: skip


def clocked_replay(pair: Any, trajectories: Any, drafters: Any, ks: Any, **_: Any) -> list[Any]:
    """The same counts as decoding."""
    names = ("rounds", "drafted", "accepted", "rejected", "emitted", "accept_lengths", "draft_lengths", "sources")
    rows = []
    for t in trajectories:
        for k in ks:
            g = clocked_generate(pair, t.prompt_tokens, drafter=drafters[0], k=k, max_tokens=t.max_tokens)
            values = {name: len(g.tokens) if name == "emitted" else getattr(g, name) for name in names}
            rows.append(type("Row", (), {"sample_id": t.sample_id, "k": k, "near_ties": 0, **values})())
    return rows


def clocked_answers(pair: Any, samples: Any, max_tokens: int) -> list[Trajectory]:
    """The same tokens as decoding."""
    return [
        Trajectory(
            sample_id=s.id, domain=s.domain, prompt_tokens=tuple(pair.encode(s.prompt)), finish="length", max_tokens=max_tokens,
            tokens=clocked_generate(pair, pair.encode(s.prompt), drafter=None, max_tokens=max_tokens).tokens,
        )
        for s in samples
    ]  # fmt: skip


def engine(**changes: Any) -> Engine:
    """An engine with a clock but without models."""
    costs = {name: (None, {"c": c, "v": [1 + 0.04 * m for m in range(17)]}) for name, c in STEPS.items()}
    return make_engine(
        **{
            "generate": clocked_generate,
            "replay": clocked_replay,
            "answer": clocked_answers,
            "calibrate": lambda pair, cell, max_k: costs[cell.drafter],
            **changes,
        }
    )


def racing(limit: int = 8, **changes: Any) -> Suite:
    """Four drafters at two lengths, over two domains."""
    entry = {"kind": "drafters", "drafters": list(ACCEPTED), "k": [2, 4]}
    values = {"max_tokens": 96, "clocked": limit, "clock_tokens": 48, "race": True, "experiments": [{"kind": "baseline"}, entry]}
    return make_suite(limit, **{**values, **changes})


def race(tmp_path: Path, **options: Any) -> Path:
    """One race of the fake engine."""
    return run(tmp_path, **{"suite": racing(), "engine": engine(), **options})


def decoded(records: list[Record]) -> dict[str, int]:
    """Drafter to its answers with a clock."""
    names = [str(r.drafter) for r in records if r.method == "decode"]
    return {name: names.count(name) for name in names}


def test_a_race_finds_the_fastest_with_fewer_clocks(tmp_path: Path) -> None:
    """The slow are never clocked or dropped early; everything is counted; report and records agree."""
    folder = race(tmp_path, report=True)
    records, manifest = read_records(folder), read_manifest(folder)
    assert sum(r.method == "replay" for r in records) == 16 * 8
    clocks = decoded(records)
    assert clocks["None"] == max(clocks.values())
    assert "early_exit" not in clocks
    assert manifest.measured.status == "finished"
    facts = manifest.measured.race
    assert facts is not None
    assert facts["ended"] in ("decided", "prompts")
    assert sum(clocks.values()) == sum(facts["clocked"].values()) < 16 * 5
    loaded = load_run(folder)
    assert loaded.recommendation.verdict == "faster"
    assert loaded.recommendation.use.drafter in ("generic", "lookup")
    assert f"Of 8 ways of drafting {len(facts['clocked']) - 1} were clocked" in " ".join(sentences(loaded))
    assert verify(folder, reports_folder(folder)) > 20
    before = (folder / "records.jsonl").read_bytes()
    race(tmp_path, resume=folder.name, engine=engine(generate=lambda *a, **k: pytest.fail("decoded")))
    assert (folder / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [3, 14])
def test_a_killed_race_goes_on(tmp_path: Path, after: int) -> None:
    """Wherever it broke off, a race ends with every record that its manifest promises, and none is made twice."""
    calls = 0

    def generate(*args: Any, **settings: Any) -> Generation:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Boom
        return clocked_generate(*args, **settings)

    with pytest.raises(Boom):
        race(tmp_path, engine=engine(generate=generate))
    (folder,) = (tmp_path / "results").iterdir()
    before = read_records(folder)
    race(tmp_path, resume=folder.name)
    records = read_records(folder)
    assert without_times(records[: len(before)]) == without_times(before)
    assert contradictions(read_manifest(folder), records) == []


def test_time_that_is_up_ends_a_race_and_more_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit ends the clocks, not the run: what is known is reported, what is open too, and a second call takes it up."""
    now = [0.0]
    monkeypatch.setattr("harness.core.interrupt.time.monotonic", lambda: now[0])

    def slow(*args: Any, **settings: Any) -> Generation:
        now[0] += 10
        return clocked_generate(*args, **settings)

    folder = race(tmp_path, minutes=5, suite=racing(12), engine=engine(generate=slow))
    facts, said = read_manifest(folder).measured.race, " ".join(sentences(load_run(folder)))
    assert facts is not None
    assert facts["ended"] == "time"
    assert read_manifest(folder).finished
    assert 0 < max(facts["clocked"].values()) < 24
    assert f"more of it clocks more: harness choose smollm2 --resume {folder.name} --minutes N." in said
    assert contradictions(read_manifest(folder), read_records(folder)) == []
    race(tmp_path, suite=racing(12), resume=folder.name)
    later = read_manifest(folder).measured.race
    assert later is not None
    assert later["ended"] in ("decided", "prompts")
    assert max(later["clocked"].values()) >= max(facts["clocked"].values())


def test_time_that_is_up_while_counting_leaves_an_unfinished_run(tmp_path: Path) -> None:
    """Without counts nothing can be said; the run says how to go on."""
    console = quiet()
    folder = race(tmp_path, minutes=0, console=console)
    assert not read_manifest(folder).finished
    line = f"the time was up before the counts were complete; go on with: harness choose smollm2 --resume {folder.name}"
    assert line in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"clocked": None}, "race needs clocked"),
        ({"repeats": 2}, "race needs clocked"),
        ({"experiments": [{"kind": "baseline"}, {"kind": "generic_draft", "temperatures": [1.0]}]}, "race compares greedy cells"),
        ({"experiments": [{"kind": "baseline"}, {"kind": "generic_draft", "loop": "mlx-lm"}]}, "race compares greedy cells"),
    ],
)
def test_what_cannot_race_is_refused(changes: dict[str, Any], problem: str) -> None:
    """Counts must follow from the target's answers, and only a part is clocked."""
    with pytest.raises(ValueError, match=problem):
        racing(**changes)


def test_a_race_needs_its_clock(tmp_path: Path) -> None:
    """Without calibration nothing decides what to clock."""
    with pytest.raises(HarnessError, match="a race is run by the clock"):
        run_suite(racing(), results_dir=tmp_path / "results", clock=False, console=quiet(), engine=engine())


def rows(predicted: dict[tuple[str, Any], float | None]) -> list[CellRow]:
    """Rows of cells with these predictions."""
    (row, *_) = [r for r in summarise([_record()]) if r.drafter]
    return [dataclasses.replace(row, drafter=drafter, k=k, predicted=value) for (drafter, k), value in predicted.items()]


def _record() -> Record:
    g = clocked_generate(FakePair(), [1, 2], drafter="generic", k=2)
    return Record(
        experiment="drafters", method="replay", loop="own", sample_id="s", domain="code", drafter="generic", k=2, seed=0, prompt_tokens=2,
        rounds=g.rounds, drafted=g.drafted, accepted=g.accepted, rejected=g.rejected, accept_lengths=g.accept_lengths,
        draft_lengths=g.draft_lengths, emitted=8, finish="length",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("predicted", "entered"),
    [
        ({("generic", 1): 1.27, ("generic", 2): 1.3, ("generic", "auto"): 1.27}, {"generic with K = 2", "generic with K = auto"}),
        ({("generic", 1): 1.2, ("generic", 2): 1.3, ("generic", "auto"): 1.25}, {"generic with K = 2"}),
        ({("generic", 2): 1.5, ("lookup", 2): 1.26}, {"generic with K = 2"}),
        ({("generic", 2): 1.5, ("lookup", 2): 1.28}, {"generic with K = 2", "lookup with K = 2"}),
        ({("generic", 2): 0.5, ("lookup", 2): 0.4}, {"generic with K = 2"}),
        ({("generic", 2): 0.9, ("lookup", 2): 0.86}, {"generic with K = 2", "lookup with K = 2"}),
        ({("generic", 2): 1.5, ("lookup", 2): None}, {"generic with K = 2", "lookup with K = 2"}),
        ({("generic", 2): None}, {"generic with K = 2"}),
    ],
)
def test_what_enters_a_race(predicted: dict[tuple[str, Any], float | None], entered: set[str]) -> None:
    """Of a drafter the best fixed length and each policy, near the best prediction; the best one always, and what has no prediction."""
    assert {name.removeprefix("drafters: ") for name in entries(rows(predicted))} == entered


def ratio(value: float, p: float, width: float = 0.1) -> Estimate:
    """A ratio of times with its interval and p-value."""
    return Estimate(value=value, low=value / (1 + width), high=value * (1 + width), n=20, p=p, null=1.0)


def test_only_what_is_shown_is_dropped() -> None:
    """Slower than the target or than the best, beyond the error of all looks together; looks become stricter."""
    speeds = {"a": ratio(1.4, 1e-9), "b": ratio(1.2, 1e-9), "c": ratio(0.8, 1e-12), "d": ratio(1.3, 1e-9), "e": None}
    leads = {"b": ratio(1.17, 1e-7), "c": ratio(1.75, 1e-9), "d": ratio(1.08, 0.002), "e": None}
    assert losers(speeds, leads, looks=4, tried=5) == ["c", "b"]
    assert losers(speeds, leads, looks=4000, tried=5) == ["c"]
    assert sum(ALPHA * 6 / (3.141592653589793 * look) ** 2 for look in range(1, 10**5)) <= ALPHA


@pytest.mark.parametrize(
    ("best", "speeds", "leads", "expected"),
    [
        ("a", {"a": ratio(1.4, 1e-9)}, {}, True),
        ("a", {"a": ratio(1.04, 0.2)}, {}, False),
        ("a", {"a": ratio(1.001, 0.8, 0.01)}, {}, True),
        ("a", {"a": ratio(1.4, 1e-9), "b": ratio(1.39, 1e-9)}, {"b": ratio(1.005, 0.4, 0.01)}, True),
        ("a", {"a": ratio(1.4, 1e-9), "b": ratio(1.3, 1e-9)}, {"b": ratio(1.05, 0.02, 0.04)}, False),
        ("a", {"a": ratio(1.4, 1e-9), "b": None}, {"b": None}, False),
        ("a", {}, {}, True),
        (None, {"a": None}, {}, False),
    ],
)
def test_when_a_race_is_decided(best: str | None, speeds: Any, leads: Any, expected: bool) -> None:
    """Nothing is open when the best is known and everything else is as good, or nothing is left."""
    assert settled(best, speeds, leads, tried=5) is expected
