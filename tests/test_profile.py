"""A profile says where a round's time went: every moment once, in the right part, and nothing at all unless it was asked for."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from test_runner import fake_generate, make_engine, run
from toy import ToyPair, toy_pair

from harness.core.files import typed
from harness.core.records import Generation, Profile, to_dict
from harness.decode import plain, speculative
from harness.decode.cached import CachedModel
from harness.decode.generation import generate, stream
from harness.decode.length import FixedK
from harness.decode.making import resolve_drafter
from harness.decode.timing import Laps
from harness.report import load_run, report_texts, summarise
from harness.report.verify import verify
from harness.results.reading import read_records
from harness.run.runner import reports_folder

PROMPT = list(range(2, 20))
PARTS = ("draft_s", "verify_s", "sync_s", "host_s")
NAP_S = 0.04
"""Longer than any part of a toy round, on a busy machine too."""


@pytest.fixture(scope="module")
def pair() -> ToyPair:
    """A toy pair that never ends early."""
    return toy_pair(eos=())


def total(profile: Profile) -> float:
    """Seconds in all parts."""
    return sum(getattr(profile, part) for part in PARTS)


@pytest.mark.parametrize("settings", [{"drafter": None}, {}, {"drafter": "hybrid"}, {"temperature": 1.0, "rule": "rejection"}])
def test_parts_make_up_the_wall_time(pair: ToyPair, settings: dict[str, Any]) -> None:
    """What the parts leave out of the wall time is prefill and little else; the answer is that of an unprofiled run."""
    generate(pair, PROMPT, max_tokens=4, **settings)
    g = generate(pair, PROMPT, max_tokens=48, profile=True, **settings)
    assert g.profile is not None
    assert all(getattr(g.profile, part) >= 0 for part in PARTS)
    assert 0.8 * g.wall_s < g.prefill_s + total(g.profile) <= g.wall_s
    assert g.tokens == generate(pair, PROMPT, max_tokens=48, **settings).tokens
    assert typed(Generation, to_dict(g), "g") == g


def test_without_the_flag_nothing_is_recorded(pair: ToyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unprofiled loop has no stopwatch at all, so it cannot wait for one."""

    def refuse(self: Laps) -> None:
        raise AssertionError("a stopwatch was made")

    monkeypatch.setattr(Laps, "__init__", refuse)
    for drafter in (None, "generic"):
        assert generate(pair, PROMPT, drafter=drafter, max_tokens=8).profile is None
        assert all(step.profile is None for step in stream(pair, PROMPT, drafter=drafter, max_tokens=8))
    with pytest.raises(AssertionError, match="stopwatch"):
        generate(pair, PROMPT, max_tokens=8, profile=True)


class SlowPolicy(FixedK):
    """Bookkeeping that takes a while."""

    def update(self, **_: Any) -> None:
        time.sleep(NAP_S)


@pytest.mark.parametrize("slow", PARTS)
def test_time_lands_in_the_right_part(pair: ToyPair, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nap in one place of the round must show in that part and in no other."""
    drafter, policy = resolve_drafter(pair, "generic"), FixedK(2)

    def napping(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(NAP_S)
            return function(*args, **kwargs)

        return call

    if slow == "draft_s":
        monkeypatch.setattr(drafter, "propose", napping(drafter.propose))
    elif slow == "verify_s":
        monkeypatch.setattr(speculative, "_verdict", napping(speculative._verdict))
    elif slow == "sync_s":
        monkeypatch.setattr(speculative, "_read", napping(speculative._read))
    else:
        policy = SlowPolicy(2)
    profiles = [step.profile for step in stream(pair, PROMPT, drafter=drafter, k=policy, max_tokens=12, profile=True)]
    median = {part: statistics.median(getattr(p, part) for p in profiles) for part in PARTS}
    assert {part for part in PARTS if median[part] >= NAP_S} == {slow}


def test_plain_decoding_waits_in_verify(pair: ToyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's pass is the whole of plain decoding: a slow one shows as verification, nothing as drafting."""
    forward = CachedModel.forward

    def slow(self: CachedModel, tokens: Any) -> Any:
        time.sleep(NAP_S)
        return forward(self, tokens)

    monkeypatch.setattr(plain.CachedModel, "forward", slow)
    g = generate(pair, PROMPT, drafter=None, max_tokens=6, profile=True)
    assert g.profile is not None
    assert g.profile.draft_s == 0
    assert g.profile.verify_s >= 5 * NAP_S > g.profile.host_s + g.profile.sync_s


def profiled(pair: Any, prompt: Any, *, profile: bool = False, **settings: Any) -> Generation:
    """The fake decoder of the runner's tests, with times."""
    g = fake_generate(pair, prompt, **settings)
    parts = Profile(draft_s=0.002, verify_s=0.004, sync_s=0.001, host_s=0.001)
    return dataclasses.replace(g, profile=parts if profile else None, prefill_s=0.01, wall_s=0.02)


@pytest.mark.parametrize("asked", [False, True])
def test_profiled_run_reports_where_the_time_goes(tmp_path: Path, asked: bool) -> None:
    """``--profile`` puts raw times into the records, a table and a chart into the reports; without it there is no trace of it."""
    folder = run(tmp_path, report=asked, engine=make_engine(generate=profiled), profile=asked)
    records = [r for r in read_records(folder) if r.method == "decode"]
    assert {r.profile is not None for r in records} == {asked}
    texts = report_texts(load_run(folder))
    markdown, html = texts["report.md"], texts["report.html"]
    assert ("## Where the time goes" in markdown) == ("milliseconds per emitted token" in html) == asked
    if asked:
        verify(folder, reports_folder(folder))
        section = markdown.split("## Where the time goes")[1].split("\n## ")[0]
        row = [cell.strip() for cell in next(line for line in section.splitlines() if "lookup" in line).split("|")]
        assert row[-7:-1] == ["50.0%", "10.0%", "20.0%", "5.0%", "5.0%", "10.0%"]


def test_partly_profiled_cells_are_missing(tmp_path: Path) -> None:
    """Shares of half a cell would not be the cell's: a run resumed without the flag shows no profile for that cell."""
    folder = run(tmp_path, engine=make_engine(generate=profiled), profile=True)
    records = read_records(folder)
    first = next(i for i, r in enumerate(records) if r.drafter == "lookup")
    records[first] = dataclasses.replace(records[first], profile=None)
    rows = {row.drafter: row for row in summarise(records, pooled=False) if row.method == "decode" and row.domain == records[first].domain}
    assert rows["lookup"].profile is None
    assert rows["early_exit"].profile is not None
