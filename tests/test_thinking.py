"""Thinking and answer of one output are counted apart, and only the answer is judged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import SPECIALS, write_pair, write_tokenizer

from harness.core.records import Record
from harness.report import load_run
from harness.report.sections import thinking as section
from harness.report.tables import MISSING
from harness.results.thinking_counts import counted_by_part, thinking_tokens
from harness.run.runner import run_suite
from harness.scoring.agreement import score_agreement
from harness.suite.suite import load_suite

MARKERS = ((7,), (8, 9))


@pytest.mark.parametrize(
    ("prompt", "tokens", "thought"),
    [
        ([1, 2], [7, 3, 8, 9, 4], 4),
        ([1, 7], [3, 8, 9, 4], 3),
        ([1, 7, 8, 9], [3, 4], 0),
        ([1, 2], [3, 4], 0),
        ([1, 7], [3, 4], 2),
        ([1, 2], [7, 3, 8], 3),
        ([1, 2], [3, 8, 9, 4], 0),
        ([], [], 0),
    ],
)
def test_where_thinking_ends(prompt: list[int], tokens: list[int], thought: int) -> None:
    """It may begin in the prompt, as reasoning templates have it, and may be cut off; a template that closes it at once asks for none."""
    assert thinking_tokens(prompt, tokens, MARKERS) == thought


def record(thinking: int | None, **changes: Any) -> Record:
    """Rounds of 4, 3 and 1 emitted tokens."""
    lengths: dict[str, Any] = {"accept_lengths": (3, 2, 1), "draft_lengths": (3, 4, 4), "drafted": 11, "accepted": 6, "emitted": 8}
    common: dict[str, Any] = {"experiment": "e", "method": "decode", "sample_id": "s", "domain": "d", "drafter": "generic", "k": 4}
    return Record(**common, prompt_tokens=3, rounds=3, rejected=2, finish="length", thinking=thinking, **{**lengths, **changes})


@pytest.mark.parametrize(
    ("thinking", "first", "second"),
    [(0, (0, 0, 0, 0), (3, 11, 6, 8)), (4, (1, 3, 3, 4), (2, 8, 3, 4)), (5, (2, 7, 5, 7), (1, 4, 1, 1)), (8, (3, 11, 6, 8), (0, 0, 0, 0))],
)
def test_rounds_belong_to_the_part_they_began_in(thinking: int, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Both parts together are the record; the last round may be cut short."""
    parts = counted_by_part(record(thinking))
    assert parts is not None
    assert [(p.rounds, p.drafted, p.accepted, p.emitted) for p in parts] == [first, second]


def test_what_cannot_be_told_apart_is_left_out() -> None:
    """Models without markers, and loops that keep no rounds."""
    assert counted_by_part(record(None)) is None
    assert counted_by_part(dataclasses.replace(record(4), accept_lengths=(), draft_lengths=())) is None


def test_agreement_is_that_of_the_answers() -> None:
    """Other thoughts, same answer: equal. A target that was cut off while thinking is compared as a whole."""
    assert score_agreement("<think>\nwell\n</think>\nIt is 4.", "<think>\nhm, 2 + 2\n</think>\nIt is 4.").value == 1
    assert score_agreement("<think>\na b", "<think>\na c").value == pytest.approx(2 / 3)


def test_a_run_of_a_model_that_thinks(tmp_path: Path) -> None:
    """From the tokenizer's markers, through replayed and decoded records, to a table of the report."""
    pair = write_pair(tmp_path, vocab_size=272)
    for role in ("target", "draft"):
        write_tokenizer(tmp_path / role, (*SPECIALS, "<think>", "</think>"))
        settings = json.loads((tmp_path / role / "tokenizer_config.json").read_text())
        settings["chat_template"] = settings["chat_template"].replace("assistant\n", "assistant\n<think>\n")
        (tmp_path / role / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say hello."}\n')
    (tmp_path / "s.yaml").write_text(
        "name: s\nmax_tokens: 6\ndomains: {mine: {dataset: local, path: p.jsonl, split: all}}\n"
        "experiments: [{kind: baseline}, {kind: drafters, drafters: [generic], k: [2]}]\n"
    )
    suite = load_suite(tmp_path / "s.yaml", models=str(pair))
    run = load_run(run_suite(suite, results_dir=tmp_path / "results", clock=False, console=Console(quiet=True)))
    assert {record.thinking for record in run.records} == {6}
    (table,) = section.tables(run)
    assert [row[-5] for row in table.rows] == ["6"] * len(table.rows)
    assert {row[-2:] for row in table.rows} == {(MISSING, MISSING)}
