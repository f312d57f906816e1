"""The costs that docs/scale.md states are those of its simulation, and the simulation behaves as work on machines does."""

from __future__ import annotations

from pathlib import Path

import pytest
import scaling

from harness.cluster.shares import MOST
from harness.run.engine import ANSWER_BATCH

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_page_has_the_table() -> None:
    """``python tests/scaling.py`` prints what the page shows."""
    assert scaling.table() in PAGE


def test_tasks_are_as_large_as_those_of_a_run() -> None:
    """What the simulation assumes of them is what the code does where there are many prompts."""
    assert (scaling.ANSWERS, scaling.REPLAYED) == (ANSWER_BATCH, MOST)


def test_the_page_says_what_a_record_takes() -> None:
    """Bytes per record, from the records that are kept in this repository."""
    lines = (ROOT / "results" / "reference" / "full-qwen-coder" / "records.jsonl").read_bytes().splitlines(keepends=True)
    each = sum(map(len, lines)) / len(lines)
    records = scaling.PROMPTS * (1 + scaling.DRAFTERS)
    assert f"{each:.0f} bytes a record" in PAGE
    assert f"{records / 1e6:.0f} million records, {records * each / 1e9:.0f} GB" in PAGE


@pytest.mark.parametrize("kind", [scaling.CPU, scaling.GPU], ids=["cpu", "gpu"])
def test_no_time_beats_what_bounds_it(kind: scaling.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine takes the sum of its work; with many of them it is never faster than the writer, a chain or the shared work."""
    monkeypatch.setattr(scaling, "PROMPTS", 25_600)
    one, many = scaling.simulate(kind, 1), scaling.simulate(kind, 64)
    assert one.busy_s == many.busy_s
    assert one.wall_s == pytest.approx(one.busy_s, rel=0.1)
    writer = scaling.PROMPTS * (1 + scaling.DRAFTERS) * scaling.WRITER_S
    floors = (many.busy_s / 64, writer, scaling.CHAIN_TOKENS / kind.train_tokens_s)
    assert max(floors) * 0.8 <= many.wall_s < one.wall_s
