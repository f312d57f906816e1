"""Failure store, acceptance tracker and their files: nothing stored is lost, nothing torn is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.adapt.training.failures import Case, Disagreement, FailureStore, case_from_dict, case_from_generation, case_to_dict, is_failure
from harness.adapt.training.tracker import AcceptanceTracker
from harness.core import journal
from harness.core.errors import HarnessError
from harness.core.records import Generation, Position, Sample


def a_case(number: int = 0, **changes: Any) -> Case:
    """A case with one disagreement."""
    disagreement = Disagreement(
        position=1,
        draft_token=4,
        target_token=5,
        draft_p=0.25,
        target_p=0.5,
        context_tokens=(1, 2, 3),
        top_tokens=(5, 4),
        top_logprobs=(-0.7, -1.5),
    )
    base = Case(
        id=f"case-{number}",
        sample_id=f"s/{number}",
        domain="code",
        prompt="Grüße\n\u2028",
        prompt_tokens=(1, 2),
        output_tokens=(3, 5, 6),
        accepted=1,
        drafted=4,
        rejected=1,
        timestamp="2026-01-01T00:00:00+00:00",
        drafter="generic",
        disagreements=(disagreement,),
    )
    return dataclasses.replace(base, **changes)


def test_round_trip(tmp_path: Path) -> None:
    """What is read back equals what was stored, nested records and odd characters included; a case is stored once."""
    store = FailureStore(tmp_path / "f.jsonl")
    cases = [a_case(0), a_case(1, domain="math", round=2)]
    assert [store.append(c) for c in cases] == [True, True]
    assert not store.append(cases[0])
    again = FailureStore(tmp_path / "f.jsonl")
    assert list(again) == cases
    assert len(again) == 2
    assert again.cases(domain="math") == [cases[1]]
    assert again.cases(round_=0) == [cases[0]]
    assert case_from_dict(json.loads(json.dumps(case_to_dict(cases[1])))) == cases[1]
    assert case_from_dict({**case_to_dict(cases[1]), "top_tokens": [[1]], "top_logprobs": None}) == cases[1], "of an earlier version"


@given(cut=st.integers(1, 400))
def test_torn_tail_is_repaired(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A crash may cut the last line anywhere: what is whole survives and appending goes on."""
    path = tmp_path_factory.mktemp("torn") / "f.jsonl"
    store = FailureStore(path)
    store.append(a_case(0))
    first = path.stat().st_size
    store.append(a_case(1))
    data = path.read_bytes()
    cut = min(cut, len(data) - first)
    path.write_bytes(data[:-cut])
    repaired = FailureStore(path)
    assert [c.id for c in repaired] == (["case-0", "case-1"] if cut == 1 else ["case-0"]), "only the newline is missing"
    assert repaired.append(a_case(1)) == (cut > 1)
    assert [c.id for c in FailureStore(path)] == ["case-0", "case-1"]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """Only the tail can be torn by a crash: other damage is named, not skipped. So is a newer version."""
    path = tmp_path / "f.jsonl"
    store = FailureStore(path)
    for i in range(3):
        store.append(a_case(i))
    lines = [line + "\n" for line in path.read_text().split("\n")]
    path.write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(HarnessError, match=r"f\.jsonl:2"):
        FailureStore(path)
    path.write_text(lines[0].replace("case-0", "case-9"))
    with pytest.raises(HarnessError, match=r"f\.jsonl:1 is damaged: its checksum"):
        FailureStore(path)
    path.write_bytes(journal.encode_line({"schema_version": 99, "id": "x"}))
    with pytest.raises(HarnessError, match="newer"):
        FailureStore(path)
    path.write_text('{"schema_version": 1, "id": "x", "unknown": 3}\n')  # as earlier versions wrote it
    with pytest.raises(HarnessError, match=r"f\.jsonl:1 does not fit its schema: unknown field 'unknown'"):
        list(FailureStore(path))


def test_threshold_is_strict() -> None:
    """Below the threshold is a failure, equal is not; without drafted tokens there is nothing to judge."""
    assert is_failure(a_case(accepted=1, drafted=4), 0.5)
    assert not is_failure(a_case(accepted=2, drafted=4), 0.5)
    assert not is_failure(a_case(accepted=0, drafted=0), 0.5)


def generation(**changes: Any) -> Generation:
    """Three tokens, the second one corrected by the target."""
    position = {"draft_p": 0.5, "target_p": 0.9, "target_rank": 0, "top_tokens": (8,), "top_logprobs": (-0.1,)}
    values: dict[str, Any] = {
        "tokens": (7, 8, 9),
        "text": "x",
        "finish": "length",
        "prompt_tokens": 2,
        "rounds": 2,
        "drafted": 3,
        "accepted": 1,
        "rejected": 1,
        "accept_lengths": (1, 0),
        "draft_lengths": (2, 1),
        "prefill_s": 0.0,
        "ttft_s": 0.0,
        "draft_s": 0.0,
        "verify_s": 0.0,
        "wall_s": 1.0,
        "drafter": "generic",
        "positions": (
            Position(position=0, draft_token=7, target_token=7, **position),
            Position(position=1, draft_token=3, target_token=8, **position),
        ),
    }
    return Generation(**{**values, **changes})


def test_case_from_generation() -> None:
    """Only positions where draft and target differ are disagreements, with the tokens before them."""
    sample = Sample(id="s/1", domain="chat", prompt="hi", source="synthetic")
    case = case_from_generation(sample, [1, 2], generation(), round_=3, now="t")
    assert (case.accepted, case.drafted, case.rejected, case.round, case.synthetic) == (1, 3, 1, 3, True)
    assert [(d.position, d.draft_token, d.target_token, d.context_tokens) for d in case.disagreements] == [(1, 3, 8, (1, 2, 7))]
    assert case.id != case_from_generation(sample, [1, 2], generation(), round_=4, now="t").id
    with pytest.raises(HarnessError, match="detailed"):
        case_from_generation(sample, [1, 2], generation(positions=None))


def test_tracker_window_trend_and_trigger(tmp_path: Path) -> None:
    """The rate pools counts over the window; the trend is the slope; a round is due at the set number of failures."""
    tracker = AcceptanceTracker(window=4, threshold=0.5, min_failure_cases=2, path=tmp_path / "t.json")
    assert tracker.rate is None
    assert tracker.trend is None
    assert not tracker.update(0, 0, "code")
    outcomes = [tracker.update(a, d, "code") for a, d in ((9, 10), (1, 10), (2, 20), (3, 10), (4, 10))]
    assert outcomes == [False, True, True, True, True]
    assert tracker.rate == pytest.approx(10 / 50)
    assert tracker.trend == pytest.approx(0.11)
    assert tracker.due
    again = AcceptanceTracker(window=4, threshold=0.5, min_failure_cases=2, path=tmp_path / "t.json")
    assert (again.rate, again.trend, again.pending, again.due) == (tracker.rate, tracker.trend, {"code": 4}, True)
    again.round_done()
    assert (again.due, again.rounds, again.rate) == (False, 1, None)
    for wrong in ("[]", '{"schema_version": 1, "recent": [[1, 0]], "pending": {}, "rounds": 0}'):
        (tmp_path / "t.json").write_text(wrong)
        with pytest.raises(HarnessError, match=r"t\.json (holds a list|does not fit its schema: recent\.0\.1)"):
            AcceptanceTracker(path=tmp_path / "t.json")
