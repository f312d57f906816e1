"""Long prompts: a draft may read their end alone, which changes no answer, and reading them shows how far it is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny import write_pair
from toy import toy_model, toy_pair
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import HarnessError
from harness.core.progress import notes_to
from harness.core.records import Trajectory
from harness.decode import cached
from harness.decode.drafters import Request
from harness.decode.generation import generate
from harness.decode.kept import KeptCaches
from harness.decode.length import Costs
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.replay import replay
from harness.models.blas import ints
from harness.models.pair import load_pair
from harness.models.pair_config import ModelConfig, PairConfig
from harness.suite.suite import load_suite

WINDOW = 8
PROMPT = [random.Random(3).randrange(2, 64) for _ in range(40)]


def windowed(tokens: int | None = WINDOW) -> Any:
    """A random pair whose draft reads the last tokens of a prompt."""
    pair = toy_pair(noise=0.2, seed=10, scale=10.0)
    pair.config = PairConfig(target=ModelConfig(sources=["path:x"]), draft_context=tokens)
    return pair


@pytest.mark.parametrize("drafter", ["generic", "hybrid", "cascade", "early_exit", "restricted"])
def test_answers_and_replay_with_a_part_of_the_prompt(drafter: str) -> None:
    """The answer is the target's; replay counts what decoding counts, which is not what a draft does that read it all."""
    options = DrafterOptions(vocab=40) if drafter == "restricted" else None
    name = "generic" if options else drafter
    costs = Costs(c=0.1, v=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5))
    rows: dict[int | None, list[Any]] = {}
    for tokens in (WINDOW, None):
        pair = windowed(tokens)
        plain = generate(pair, PROMPT, drafter=None, max_tokens=40)
        answer = Trajectory(sample_id="a", domain="x", prompt_tokens=tuple(PROMPT), tokens=plain.tokens, finish="length", max_tokens=40)
        rows[tokens] = replay(pair, [answer], [name], [1, 4, "dynamic", "auto"], costs=costs, options=options)
        for row in rows[tokens]:
            real = generate(pair, PROMPT, drafter=name, k=row.k, max_tokens=40, costs=costs, options=options)
            assert real.tokens == plain.tokens
            assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)
    accepted = {tokens: [row.accept_lengths for row in found] for tokens, found in rows.items()}
    assert accepted[WINDOW] != accepted[None] or drafter == "early_exit"


def test_the_draft_reads_just_the_end() -> None:
    """It proposes what it would behind the end alone, and goes on so when the answer has grown and with kept caches."""
    drafter = resolve_drafter(windowed(), "generic")
    assert isinstance(drafter, ModelDrafter)
    drafter.caches = KeptCaches()
    alone = ModelDrafter(drafter.model)
    for context in (PROMPT, [*PROMPT, 5, 9, 33, 7]):
        start = len(PROMPT) - WINDOW
        if context == PROMPT:
            drafter.begin(context)
            alone.begin(context[start:])
        found, expected = drafter.propose(context, Request(k=4)), alone.propose(context[start:], Request(k=4))
        assert found is not None
        assert expected is not None
        assert ints(found.tokens) == ints(expected.tokens)
    drafter.keep([*PROMPT, 5, 9, 33, 7])
    drafter.begin([*PROMPT, 5, 9])
    assert resolve_drafter(toy_pair(), "generic").window is None  # type: ignore[attr-defined]


def test_a_short_draft_no_longer_bounds_the_context(tmp_path: Path) -> None:
    """A draft made for short texts can draft behind a long prompt; the pair's file, a call and a suite may say so."""
    path = write_pair(tmp_path)
    config = json.loads((tmp_path / "draft" / "config.json").read_text())
    (tmp_path / "draft" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    assert load_pair(str(path)).context_tokens == 100
    assert load_pair(str(path), draft_context=50).context_tokens == 512
    path.write_text(f"{path.read_text()}draft_context: 30\n")
    found = load_pair(str(path))
    assert (found.context_tokens, resolve_drafter(found, "generic").window) == (512, 30)  # type: ignore[attr-defined]
    with pytest.raises(HarnessError, match="draft_context is 0"):
        load_pair(str(path), draft_context=0)


def test_suites_and_commands_take_it(tmp_path: Path) -> None:
    """Its default leaves the hash of older suites as it was; the answer of a command is the same."""
    write_pair(tmp_path / "pair")
    (tmp_path / "p.jsonl").write_text('{"prompt": "A prompt of some words."}\n')
    (tmp_path / "s.yaml").write_text(
        f"name: t\nmodels: {tmp_path}/pair/tiny.yaml\nmax_tokens: 12\n"
        f"domains:\n  x: {{dataset: local, split: all, path: {tmp_path}/p.jsonl}}\n"
        "experiments:\n  - kind: baseline\n  - {kind: generic_draft, k: [2]}\n  - {kind: ablation_k, k: [3]}\n"
    )
    whole, part = load_suite(tmp_path / "s.yaml"), load_suite(tmp_path / "s.yaml", ["draft_context=8"])
    assert whole.hash() == load_suite(tmp_path / "s.yaml", ["draft_context=null"]).hash() != part.hash()
    line = ["generate", "Some words to read", "--models", str(tmp_path / "pair/tiny.yaml"), "--max-tokens", "6"]
    texts = [CliRunner().invoke(app, [*line, *more]).stdout for more in ([], ["--draft-context", "4"])]
    assert texts[0] == texts[1] != ""


def test_reading_a_long_prompt_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes without a sign look like a hang; a prompt that is read at once says nothing."""
    monkeypatch.setattr(cached, "PREFILL_CHUNK_TOKENS", 16)
    heard: list[str] = []
    with notes_to(heard.append):
        cached.CachedModel(toy_model()).prefill(PROMPT)
        assert heard == []
        monkeypatch.setattr(cached, "PREFILL_NOTE_S", 0.0)
        cached.CachedModel(toy_model()).prefill(PROMPT)
    assert heard == ["  16 of 40 prompt tokens read", "  32 of 40 prompt tokens read"]
