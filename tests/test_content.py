"""The checked-in chat and structured prompts: well formed, balanced, distinct, and kept apart from training prompts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import harness.datasets
from harness.datasets.promptbank import prompts
from harness.datasets.wordproblems import generate

DATA = Path(harness.datasets.__file__).parent / "data"
CATEGORIES = {
    "chat": {"writing": 32, "explanation": 32, "summarising": 32, "translation": 32, "advice": 32},
    "structured": {"extraction": 30, "table": 30, "sql": 30},
}


def rows(domain: str) -> list[dict[str, Any]]:
    """All lines of one dataset."""
    return [json.loads(line) for line in (DATA / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()]


def five_grams(text: str) -> frozenset[tuple[str, ...]]:
    """Word 5-grams of a text, lower case, punctuation ignored; the whole text when it is shorter."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1)))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Shared fraction of two sets."""
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("domain", list(CATEGORIES))
def test_lines_are_well_formed(domain: str) -> None:
    """Loaders and licence checks rely on these keys; ids are consecutive so that a lost line is noticed."""
    for number, row in enumerate(rows(domain), start=1):
        assert set(row) - {"reference"} == {"id", "domain", "category", "prompt", "license"}
        assert row["id"] == f"{domain}/{number:03d}"
        assert (row["domain"], row["license"]) == (domain, "CC0-1.0")
        assert row["prompt"] == row["prompt"].strip()
        assert 25 <= len(row["prompt"]) <= 1600, row["id"]


@pytest.mark.parametrize("domain", list(CATEGORIES))
def test_categories_are_filled(domain: str) -> None:
    """Every category is present in the promised number, and no other category exists."""
    counts = Counter(row["category"] for row in rows(domain))
    assert set(counts) == set(CATEGORIES[domain])
    assert all(counts[category] >= least for category, least in CATEGORIES[domain].items()), counts


def test_no_near_duplicates() -> None:
    """Near-copies would count one prompt twice and could straddle the splits."""
    grams = {row["id"]: five_grams(row["prompt"]) for domain in CATEGORIES for row in rows(domain)}
    close = [(a, b) for a, b in combinations(grams, 2) if jaccard(grams[a], grams[b]) > 0.2]
    assert not close
    assert jaccard(five_grams("write one two three four five six"), five_grams("Write one, two three four five six!")) == 1.0


@pytest.mark.parametrize("domain", list(CATEGORIES))
def test_varied_openings(domain: str) -> None:
    """Realistic prompts do not all start with the same words."""
    openings = Counter(" ".join(row["prompt"].lower().split()[:3]) for row in rows(domain))
    assert openings.most_common(1)[0][1] <= 0.08 * sum(openings.values()), openings.most_common(3)


def test_passages_to_summarise_are_in_the_prompt() -> None:
    """A summary needs something to summarise: each prompt carries a passage of 80 to 200 words."""
    lengths = {row["id"]: len(row["prompt"].split()) for row in rows("chat") if row["category"] == "summarising"}
    assert all(90 <= n <= 220 for n in lengths.values()), lengths


def test_lengths_vary() -> None:
    """Short and long prompts both occur, because prompt length changes the cost of a round."""
    words = sorted(len(row["prompt"].split()) for row in rows("chat"))
    assert words[len(words) // 10] < 20 < 100 < words[-len(words) // 10]


@pytest.mark.parametrize("domain", ["chat", "structured"])
def test_training_prompts_are_different(domain: str) -> None:
    """A draft trained on the prompt bank must not have seen evaluation prompts."""
    evaluation = [(row["id"], five_grams(row["prompt"])) for row in rows(domain)]
    for text in prompts(domain, 600):
        grams = five_grams(text)
        assert not [name for name, other in evaluation if jaccard(grams, other) > 0.25], text


def test_word_problems_differ_across_templates() -> None:
    """Different templates are different problems, not one problem in two dresses."""
    problems = generate(56, seed=4)
    grams = [five_grams(problem.question) for problem in problems]
    assert all(jaccard(a, b) < 0.3 for a, b in combinations(grams, 2))


def test_references_are_deterministic_answers() -> None:
    """A reference is text of the announced format, so a scorer can parse it without guessing."""
    referenced = [row for row in rows("structured") if "reference" in row]
    assert len(referenced) >= 20
    for row in referenced:
        (kind, text), *more = row["reference"].items()
        assert not more
        if kind == "json":
            assert json.loads(text), row["id"]
        else:
            assert kind == "csv"
            delimiter = ";" if "semicolon" in row["prompt"] else ","
            table = list(csv.reader(io.StringIO(text), delimiter=delimiter))
            assert len(table) >= 3
            assert len({len(line) for line in table}) == 1, row["id"]


def test_reference_values_come_from_the_prompt() -> None:
    """Extraction copies: every word of a JSON reference value stands in the prompt (dates and numbers may be rewritten)."""

    def leaves(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        if isinstance(value, list):
            return [leaf for item in value for leaf in leaves(item)]
        return [value] if isinstance(value, str) else []

    for row in rows("structured"):
        if "json" in row.get("reference", {}):
            words = set(re.findall(r"[^\W\d]+", row["prompt"].lower())) | {"eur", "chf"}  # ISO codes stand for the currencies' names
            text = " ".join(leaf for leaf in leaves(json.loads(row["reference"]["json"])) if not re.match(r"\d{4}-\d\d", leaf))
            missing = set(re.findall(r"[^\W\d]+", text.lower())) - words
            assert not missing, (row["id"], missing)


def test_readme_states_licence_and_categories() -> None:
    """Whoever copies the data must find its licence and contents beside it."""
    text = (DATA / "README.md").read_text(encoding="utf-8")
    assert "CC0-1.0" in text
    for domain, categories in CATEGORIES.items():
        counts = Counter(row["category"] for row in rows(domain))
        for category in categories:
            assert f"| {domain} | {category} | {counts[category]} |" in text
