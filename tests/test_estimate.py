"""The plan's time estimate: proportional to the work, honest where nothing was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core.records import Record
from harness.run import estimate
from harness.run.estimate import describe_time, estimate_s, read_speed, remember
from harness.suite.suite import Suite

SPEED = {"prompt_tokens": 100.0, "prompt_token_s": 0.01, "step_s": 0.1, "c": 0.2}


def suite(limit: int = 2, **changes: Any) -> Suite:
    """Two domains; a baseline, a timed and a replayed entry."""
    values = {
        "name": "s",
        "max_tokens": 10,
        "domains": {"code": {"dataset": "humaneval", "limit": limit}, "math": {"dataset": "wordproblems", "limit": limit}},
        "experiments": [
            {"kind": "baseline"},
            {"kind": "prompt_lookup"},
            {"kind": "ablation_k", "drafters": ["generic", "hybrid", "lookup"], "k": [2, 4]},
        ],
        **changes,
    }
    return Suite.model_validate(values)


def record(**changes: Any) -> Record:
    """One decoded baseline answer: 4 s, of which 1 s prompt."""
    values = {
        "experiment": "baseline", "method": "decode", "loop": "own", "sample_id": "a", "domain": "code", "drafter": None, "k": None,
        "prompt_tokens": 100, "rounds": 30, "drafted": 0, "accepted": 0, "rejected": 0, "accept_lengths": (0,) * 30,
        "draft_lengths": (0,) * 30, "emitted": 30, "finish": "length", "prefill_s": 1.0, "wall_s": 4.0,
    }  # fmt: skip
    return Record(**{**values, **changes})


def test_decoding_is_counted_answer_by_answer() -> None:
    """Eight timed answers of 100 prompt and 10 output tokens at these speeds are 16 s; the draft reads 110 tokens of each once for all
    lengths, and lookup reads nothing."""
    times = estimate_s(suite(), suite().cells(), SPEED)
    assert times["decoding"] == pytest.approx(8 * 2.0)
    assert times["replay"] == pytest.approx(4 * 110 * 0.01 * 0.2 * estimate.READ_SHARE)
    assert times["training"] == 0
    assert estimate_s(suite(4), suite(4).cells(), SPEED)["decoding"] == pytest.approx(2 * times["decoding"])


def test_samples_cost_answers_and_passes_of_their_own() -> None:
    """A temperature is one more answer to every prompt and one more pass of the draft; lengths that the draft's own samples decide also
    take a pass of the target, unless it draws apart. Where nothing is clocked apart, samples are decoded."""

    def times(k: list[Any], rule: str, **changes: Any) -> dict[str, float]:
        entries = [{"kind": "baseline", "temperatures": [0.0, 1.0]}, {"kind": "generic_draft", "temperatures": [1.0], "k": k, "rule": rule}]
        own = suite(experiments=entries, **{"clocked": 1, **changes})
        return estimate_s(own, own.cells(), SPEED)

    fixed, told = times([2, 4], "rejection"), times(["dynamic"], "rejection")
    assert fixed["answers"] == pytest.approx(8 * 2.0 * estimate.BATCH_SHARE)
    assert fixed["replay"] == pytest.approx(4 * 110 * 0.01 * 0.2 * estimate.READ_SHARE)
    assert told["replay"] - times(["dynamic"], "match")["replay"] == pytest.approx(4 * 110 * 0.01)
    assert times([2], "rejection", clocked=None)["replay"] == 0


def test_training_counts_answers_and_rounds() -> None:
    """More rounds or prompts must cost more; the shared first round costs once."""
    entry = {"kind": "adaptive_rounds", "train_samples": 10, "rounds": 2}
    two = suite(experiments=[{"kind": "baseline"}, entry])
    four = suite(experiments=[{"kind": "baseline"}, {**entry, "rounds": 4}])
    both = suite(experiments=[{"kind": "baseline"}, entry, {"kind": "domain_adapters", "train_samples": 10}])
    seconds = [estimate_s(s, s.cells(), SPEED)["training"] for s in (two, four, both)]
    assert seconds[1] > seconds[0] > 0
    assert seconds[2] == pytest.approx(seconds[0])
    assert estimate_s(both, both.cells(), SPEED, shipped=list(both.domains))["training"] == pytest.approx(seconds[0]), "rounds always train"
    alone = suite(experiments=[{"kind": "baseline"}, {"kind": "domain_adapters", "train_samples": 10}])
    assert estimate_s(alone, alone.cells(), SPEED, shipped=list(alone.domains))["training"] == 0


def test_a_run_is_remembered_for_its_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next plan uses this run's times; another processor, or a damaged file, gives no estimate instead of a wrong one."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    assert "no run has measured" in describe_time(suite(), suite().cells(), "p")
    remember("p", [record(drafter="lookup")], None)
    assert read_speed("p") is None
    remember("p", [record(), record(drafter="lookup", wall_s=99.0)], 0.25)
    speed = read_speed("p")
    assert speed is not None
    assert (speed["step_s"], speed["prompt_token_s"], speed["c"]) == pytest.approx((0.1, 0.01, 0.25))
    assert "100 ms per target step" in describe_time(suite(), suite().cells(), "p")
    monkeypatch.setattr(estimate.machine, "machine_facts", lambda: {"processor": "another"})
    assert read_speed("p") is None
    monkeypatch.undo()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    (tmp_path / "speeds" / "p.json").write_text("{")
    assert read_speed("p") is None


def test_a_clocked_suite_decodes_few_and_answers_all() -> None:
    """Of 20 prompts two have a clock, of 4 tokens each; the others cost a batch and a replay."""
    own = Suite.model_validate(
        {
            "name": "few", "max_tokens": 10, "clocked": 1, "clock_tokens": 4,
            "domains": {"code": {"dataset": "humaneval", "limit": 10}, "math": {"dataset": "gsm8k", "limit": 10}},
            "experiments": [{"kind": "baseline"}, {"kind": "prompt_lookup"}],
        }
    )  # fmt: skip
    times = estimate_s(own, own.cells(), SPEED)
    assert times["decoding"] == pytest.approx(2 * 2 * (1.0 + 0.4))
    assert times["answers"] == pytest.approx(20 * 2.0 * estimate.BATCH_SHARE)
    assert times["replay"] == 0
