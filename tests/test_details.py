"""The detailed mode's top-k over large vocabularies is exact, not approximate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.decode.positions import BLOCK, top_ids
from harness.models.blas import mx


@pytest.mark.parametrize("vocab", [16, BLOCK, 8 * BLOCK, 8 * BLOCK + 1, 20 * BLOCK - 1, 40 * BLOCK])
@given(seed=st.integers(0, 2**16), spread=st.sampled_from([0, 1]))
@settings(max_examples=15, deadline=None)
def test_top_ids_are_the_largest(vocab: int, seed: int, spread: int) -> None:
    """Also where the largest entries share one block, or sit in the last, shorter one, and where all logits are negative."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(vocab)[None] + rng.permutation(3)[:, None] - 2.0 * vocab
    if not spread:
        rows = np.sort(rows, axis=-1)
    found = np.array(top_ids(mx.array(rows.astype(np.float32)), 8))
    for row, ids in zip(rows, found, strict=True):
        assert set(ids.tolist()) == set(np.argsort(row)[-8:].tolist())
