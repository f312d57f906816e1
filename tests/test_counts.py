"""The five counts and what follows from them: right values, sums, and None where nothing is defined."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.counts import COUNTS, MEASURES, Counts, columns, parts, quotient, span, total

counts = st.builds(Counts, **{name: st.integers(0, 10**6) for name in COUNTS})


def test_rates_by_hand() -> None:
    """12 of 20 drafted tokens stood, 4 rounds of 8 ended by a rejection, 20 tokens came out."""
    one = Counts(rounds=8, drafted=20, accepted=12, rejected=4, emitted=20)
    assert (one.rate, one.alpha, one.tau) == (0.6, 0.75, 2.5)
    assert [span(measure) for measure in MEASURES] == [1.0, 1.0, math.inf]


def test_nothing_is_undefined_and_never_zero() -> None:
    """No draft has no rate, no round no tau; drafts that were all refused have a rate of 0."""
    assert [getattr(Counts(), measure) for measure in MEASURES] == [None, None, None]
    assert Counts(rounds=1, drafted=3, rejected=1, emitted=1).rate == 0.0


@given(st.lists(counts, min_size=1, max_size=6))
def test_sums_pool_and_columns_add_up_to_them(many: list[Counts]) -> None:
    """A pooled measure is the ratio of the columns' sums, never a mean of ratios; adding in parts changes nothing."""
    whole = total(many)
    assert whole == total([total(many[:1]), total(many[1:])])
    for measure in MEASURES:
        over, under = columns(many, measure)
        assert (sum(over), sum(under)) == parts(whole, measure)
        assert getattr(whole, measure) == (None if not sum(under) else pytest.approx(quotient(sum(over), sum(under))))
