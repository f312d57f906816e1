"""Learning while serving: real generations in, a round when due, test prompts never trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import quick_config, target_trajectories
from tiny import tiny_pair

from harness.adapt.training.bank import AdapterBank
from harness.adapt.training.learner import Learner
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.decode.generation import generate


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[tuple[Sample, list[int], Any]]]:
    """A tiny pair and 30 detailed generations."""
    pair = tiny_pair(tmp_path_factory.mktemp("pair"), noise=0.3)
    served = []
    for i in range(30):
        sample = Sample(id=f"chat/{i}", domain="chat", prompt=f"question number {i * 37} about topic {i}", split="train")
        ids = pair.encode(sample.prompt)
        served.append((sample, ids, generate(pair, ids, drafter="generic", k=3, max_tokens=12, detailed=True)))
    return pair, served


def learner(pair: Any, folder: Path, **changes: Any) -> Learner:
    config = quick_config(optim={"epochs": 6}, adapt={"threshold": 1.0, "min_failure_cases": 20}, stop={"every": 3, "patience": 20})
    return Learner(pair.draft, folder, config, cache_folder=folder / "h", **changes)


def test_a_round_runs_when_due_and_goes_on_after_reopening(served: Any, tmp_path: Path) -> None:
    """Failures accumulate over restarts; the trained adapter is usable; the count starts anew."""
    pair, generations = served
    first = learner(pair, tmp_path)
    for item in generations[:10]:
        first.observe(*item)
    first.observe(*generations[0])  # the same generation again is not a new case
    assert not first.due
    again = learner(pair, tmp_path)
    for item in generations[10:]:
        again.observe(*item)
    assert again.due
    assert len(again.store) + len(again.buffer) == 30
    record = again.train()
    assert not again.due
    assert record.failures <= len(again.store)
    if record.accepted:
        assert again.adapter is not None
        AdapterBank(pair.draft, {"x": again.adapter})
    reopened = learner(pair, tmp_path)
    assert reopened.records == [record]
    assert reopened.adapter == again.adapter
    with pytest.raises(HarnessError, match="no failure case"):
        reopened.train()


def test_test_prompts_are_kept_for_analysis_only(served: Any, tmp_path: Path) -> None:
    """Failures on evaluation prompts are stored but trigger nothing and reach no training; a leak is refused with both ids."""
    pair, generations = served
    watching = learner(pair, tmp_path / "a")
    for sample, ids, generation in generations:
        watching.observe(dataclasses.replace(sample, split="test"), ids, generation)
    assert len(watching.store) > 20
    assert not watching.due
    with pytest.raises(HarnessError, match="no failure case"):
        watching.train()
    copy = dataclasses.replace(generations[1][0], id="test/copy", split="test")
    leaking = learner(pair, tmp_path / "b", evaluation=[copy], validation=target_trajectories(8))
    for item in generations:
        leaking.observe(*item)
    with pytest.raises(HarnessError, match="chat/1 and test/copy"):
        leaking.train()


def test_recorded_probabilities_become_targets(served: Any, tmp_path: Path) -> None:
    """The target's probabilities of the generation arrive at the disagreement they belong to."""
    from harness.adapt.training.examples import from_case

    pair, generations = served
    case = learner(pair, tmp_path).observe(*generations[0])
    assert case.disagreements
    example = from_case(case, 3.0)
    for disagreement in case.disagreements:
        row = example.top_p[disagreement.position]
        np.testing.assert_allclose(row[: len(disagreement.top_logprobs)], np.exp(disagreement.top_logprobs), rtol=1e-5)
        assert example.weights[disagreement.position] == 3.0
