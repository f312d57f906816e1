"""Replay buffer: uniform, capped, repeatable, and the same after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_failures import a_case

from harness.adapt.training.buffer import ReplayBuffer, mix
from harness.core.errors import HarnessError


def ids(buffer: ReplayBuffer) -> list[str]:
    return [case.id for case in buffer.cases()]


@given(count=st.integers(0, 60), capacity=st.integers(1, 8), reopen_every=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_reopening_changes_nothing(tmp_path_factory: pytest.TempPathFactory, count: int, capacity: int, reopen_every: int) -> None:
    """A buffer closed and reopened at any time holds what one that stayed open holds, and never more than its capacity."""
    folder = tmp_path_factory.mktemp("buffer")
    whole = ReplayBuffer(folder / "a.jsonl", capacity=capacity, seed=3)
    parts = ReplayBuffer(folder / "b.jsonl", capacity=capacity, seed=3)
    for i in range(count):
        whole.add(a_case(i))
        parts.add(a_case(i))
        if i % reopen_every == 0:
            parts = ReplayBuffer(folder / "b.jsonl", capacity=capacity, seed=3)
    assert ids(whole) == ids(parts)
    assert len(whole) == min(count, capacity)
    assert parts.seen == count


def test_a_case_offered_twice_counts_once(tmp_path: Path) -> None:
    """A resumed round offers its cases again: that must not change the sample."""
    buffer = ReplayBuffer(tmp_path / "b.jsonl", capacity=4)
    assert buffer.add(a_case(0))
    assert not buffer.add(a_case(0))
    assert not ReplayBuffer(tmp_path / "b.jsonl", capacity=4).add(a_case(0))
    assert buffer.seen == 1


def test_torn_tail_loses_one_case_at_most(tmp_path: Path) -> None:
    """A line cut by a crash is a case that was not added yet."""
    path = tmp_path / "b.jsonl"
    buffer = ReplayBuffer(path, capacity=4)
    for i in range(3):
        buffer.add(a_case(i))
    path.write_bytes(path.read_bytes()[:-5])
    again = ReplayBuffer(path, capacity=4)
    assert again.seen == 2
    again.add(a_case(2))
    assert ids(again) == ids(buffer)


def test_journal_is_compacted(tmp_path: Path) -> None:
    """The file does not grow with every case for ever, and compaction keeps cases, count and known ids."""
    path = tmp_path / "b.jsonl"
    buffer = ReplayBuffer(path, capacity=2)
    for i in range(200):
        buffer.add(a_case(i))
    assert len(path.read_text().splitlines()) <= 4 * 2 + 65
    again = ReplayBuffer(path, capacity=2)
    assert (ids(again), again.seen) == (ids(buffer), 200)
    assert not again.add(a_case(0))


def test_sample_is_uniform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Early and late cases are kept equally often (algorithm R): 600 buffers of 3 out of 12, each case near 1/4."""
    monkeypatch.setattr("harness.core.journal.append", lambda path, rows: None)
    cases = [a_case(i) for i in range(12)]
    kept = dict.fromkeys((c.id for c in cases), 0)
    for seed in range(600):
        buffer = ReplayBuffer(tmp_path / "none.jsonl", capacity=3, seed=seed)
        for case in cases:
            buffer.add(case)
        for name in ids(buffer):
            kept[name] += 1
    assert all(150 - 45 < n < 150 + 45 for n in kept.values())


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Another capacity or seed would make the sample meaningless."""
    ReplayBuffer(tmp_path / "b.jsonl", capacity=4).add(a_case(0))
    with pytest.raises(HarnessError, match="capacity"):
        ReplayBuffer(tmp_path / "b.jsonl", capacity=5)


@given(failures=st.integers(1, 60), replay=st.integers(0, 60), fraction=st.sampled_from([0.5, 0.8, 1.0]))
def test_mix_share(failures: int, replay: int, fraction: float) -> None:
    """All failures are used; replay cases fill up to the wanted share and no further; the order is seeded."""
    wrong, right = [f"f{i}" for i in range(failures)], [f"r{i}" for i in range(replay)]
    mixed = mix(wrong, right, failure_fraction=fraction, seed=1)
    assert set(wrong) <= set(mixed)
    assert len(mixed) == len(set(mixed)) == failures + min(replay, round(failures * (1 - fraction) / fraction))
    assert mixed == mix(wrong, right, failure_fraction=fraction, seed=1)


def test_mix_without_failures() -> None:
    """No failures: the replay cases alone; a share of 0 with failures is a contradiction."""
    assert sorted(mix([], ["a", "b"], failure_fraction=0.8, seed=0)) == ["a", "b"]
    with pytest.raises(HarnessError, match="failure_fraction"):
        mix(["f"], ["a"], failure_fraction=0.0, seed=0)
