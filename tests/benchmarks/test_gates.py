"""A small version of what the script measures: false alarms are rare, and the gate's own number of prompts finds three points."""

from __future__ import annotations

from pathlib import Path

import gates
import numpy as np
import pytest

from harness.results.reference import read_reference

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "smollm2.json"


def test_equal_drafts_pass_and_a_worse_one_is_found() -> None:
    """Counts of the shipped reference, drawn anew: 40 gates between equal drafts, 3 with a draft that lost 3 points."""
    reference = read_reference(REFERENCE)
    same, worse = gates.Candidates(reference, 0.0), gates.Candidates(reference, gates.DROP)
    assert (len(same.cells), same.prompts) == (6, 40)
    assert gates.failures(same, 40, same.prompts) <= 0.1
    assert gates.failures(worse, 3, gates.needed(same, same.prompts)) == 1.0


def test_lowered_chances_lower_the_rate_by_the_drop() -> None:
    """What the script calls a loss of 3 points is one: pooled over many answers, to half a point."""
    chance, tokens = np.full(400, 0.7), np.full(400, 64)
    rates = []
    for chances in (chance, gates.lowered(chance, tokens, 4, gates.DROP)):
        _, drafted, accepted, _, _ = gates.drawn(chances, tokens, 4, np.random.default_rng(1))
        rates.append(accepted.sum() / drafted.sum())
    assert rates[0] - rates[1] == pytest.approx(gates.DROP, abs=0.005)
