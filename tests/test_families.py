"""Every model type of mlx-lm decodes with drafts to its own answer, far beyond its windows, and replay counts what decoding counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import family_table
import pytest
from all_families import ALL, FAST
from families import FAMILIES

from harness.decode.generation import generate


@pytest.mark.parametrize("family", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in FAST)])
def test_drafts_change_no_token(family: str) -> None:
    """With lookup and with a draft, greedy tokens are those of mlx-lm's plain loop; replay of the draft gives the same rounds."""
    if (reason := family_table.not_here(family)) is not None:
        pytest.skip(reason)
    assert family_table.checked(family) == {"decode": "yes", "replay": "yes"}


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2", "nemotron_h", "gpt_oss", "gemma4_text", "llama4"])
def test_replay_counts_what_decoding_counts_where_the_context_ends(family: str) -> None:
    """An answer that was collected with more room is cut where decoding is cut, and drafted alike up to there."""
    pair = family_table.tiny_pair(family)
    pair.context_tokens = len(family_table.PROMPT) + 21
    g = generate(pair, family_table.PROMPT, drafter="generic", k=family_table.K, max_tokens=family_table.TOKENS)
    assert (g.emitted, g.finish) == (21, "context")
    longer = dataclasses.replace(g, tokens=family_table.plain(pair.target), finish="length")
    assert longer.tokens[:21] == g.tokens
    assert family_table.replayed(pair, "generic", longer)


def test_the_table_names_every_family() -> None:
    """What docs/models.md says was written by ``python tests/family_table.py``, which runs all of them."""
    text = Path("docs/models.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| `") for line in text.partition("| model type |")[2].splitlines() if line.startswith("| `")}
    assert rows == {*FAMILIES, *ALL}
    assert set(FAST) <= set(ALL)
