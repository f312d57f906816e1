"""Calibration: which block sizes are timed, and what is made of the times."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_pair

from harness.decode import calibrate as module
from harness.decode.calibrate import block_sizes, calibrate
from harness.decode.drafters import LookupDrafter


@given(st.integers(0, 40))
def test_block_sizes_cover_the_range(max_k: int) -> None:
    """Ends are always timed, small blocks all of them, and no gap is wider than four."""
    sizes = block_sizes(max_k)
    assert sizes[0] == 1
    assert sizes[-1] == max_k + 1
    assert set(range(1, min(max_k + 1, 9) + 1)) <= set(sizes)
    assert all(0 < b - a <= 4 for a, b in itertools.pairwise(sizes))


def test_untimed_sizes_lie_between_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that charges one second per row of a block must come back as v(m) = m for every m, timed or not."""
    now = [0.0]

    def block(model, m):
        def run() -> None:
            now[0] += m

        return run

    monkeypatch.setattr(module, "_block", block)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = calibrate(toy_pair(), LookupDrafter(3, 1), max_k=16)
    assert found.costs.v == pytest.approx(range(1, 18))
    assert found.draft_step_s is None
    assert found.costs.max_k == 16
    assert module.verification_cost(toy_pair().target) == pytest.approx(5)
