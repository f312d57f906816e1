"""Splits: stable, order-free, and closed under near-duplication."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets.splits import (
    SPLITS,
    THRESHOLD,
    _shingles,
    assign_splits,
    cluster_labels,
    leaks,
    near_duplicates,
    normalise,
    refuse_leaks,
)

WORDS = [f"w{i}" for i in range(400)]


def sample(number: int, prompt: str, template: str | None = None) -> Sample:
    return Sample(id=f"t/{number}", domain="d", prompt=prompt, source="t", reference={"template": template} if template else None)


def split_of(prompt: str) -> str:
    """The split of a prompt that is alone in its dataset."""
    return str(assign_splits([sample(0, prompt)])[0].split)


def random_prompts(count: int, seed: int, words: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


def test_split_is_stable_across_processes_and_releases() -> None:
    """Published results depend on the split: these values must never change, whatever PYTHONHASHSEED is."""
    prompts = ["Write a haiku", "What is 2 + 2?", "def f(x):", "Übersetze das", "0", "7 apples"]
    expected = ["train", "train", "train", "train", "train", "train"]
    assert [split_of(p) for p in prompts] == expected
    code = f"from test_splits import split_of; print([split_of(p) for p in {prompts!r}])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PYTHONPATH": ".:tests"}
    )
    assert out.stdout.strip() == str(expected)


def test_normalisation_ignores_case_width_and_space_but_keeps_digits() -> None:
    """Cosmetic edits must not move a prompt; another number is another prompt."""
    assert normalise("  Ｈello\n\tWORLD 12 ") == "hello world 12"
    assert split_of("Hello  World") == split_of("hello world\n")
    assert normalise("2 apples") != normalise("3 apples")


def test_shares_are_met() -> None:
    """Over many prompts the splits have the promised sizes."""
    counts = dict.fromkeys(SPLITS, 0)
    for i in range(20_000):
        counts[split_of(f"prompt {i}")] += 1
    assert [round(counts[s] / 20_000, 2) for s in SPLITS] == [0.6, 0.1, 0.3]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=9), max_size=14))
def test_near_duplicates_equal_brute_force(texts: list[list[str]]) -> None:
    """The prefix filter must not lose or invent a pair."""
    prompts = [" ".join(words) for words in texts]
    sets = [_shingles(p) for p in prompts]
    expected = [
        (i, j)
        for i in range(len(sets))
        for j in range(i + 1, len(sets))
        if len(sets[i] & sets[j]) >= THRESHOLD * len(sets[i] | sets[j]) - 1e-9
    ]
    assert near_duplicates(prompts) == expected


@settings(deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_near_duplicates_never_straddle(seed: int, rng: random.Random) -> None:
    """Small edits of a prompt (a word changed, case, space, an added word) stay in its split, in any order of the input."""
    base = random_prompts(12, seed)
    edited = []
    for prompt in base:
        words = prompt.split()
        words[rng.randrange(len(words))] = "changed"
        edited.append(" ".join(words))
    prompts = [*base, *edited, *(p.upper() for p in base), *(p + " please" for p in base)]
    samples = [sample(i, p) for i, p in enumerate(prompts)]
    rng.shuffle(samples)
    result = {s.id: s.split for s in assign_splits(samples)}
    for i in range(12):
        assert len({result[f"t/{i + 12 * j}"] for j in range(4)}) == 1
    rng.shuffle(samples)
    assert {s.id: s.split for s in assign_splits(samples)} == result


def test_a_lone_prompt_follows_its_own_hash() -> None:
    """Without duplicates, assign_splits and split_of agree."""
    samples = [sample(i, p) for i, p in enumerate(random_prompts(50, 1))]
    assert [s.split for s in assign_splits(samples)] == [split_of(s.prompt) for s in samples]


def test_templates_stay_together_and_do_not_depend_on_the_draw() -> None:
    """Siblings of a template share a split however different they look, and more problems do not move a template."""
    prompts = random_prompts(400, 2)
    few = assign_splits([sample(i, p, f"template{i % 20}") for i, p in enumerate(prompts[:100])])
    many = assign_splits([sample(i, p, f"template{i % 20}") for i, p in enumerate(prompts)])
    by_template = {(s.reference or {})["template"]: s.split for s in few}
    assert {((s.reference or {})["template"], s.split) for s in many} == set(by_template.items())
    assert len(set(by_template.values())) > 1


def test_pinned_splits_pull_their_duplicates() -> None:
    """An official test problem keeps its split, and a training prompt that repeats it leaves the training split."""
    prompts = random_prompts(30, 3)
    samples = [sample(i, p) for i, p in enumerate([*prompts, *(p + " now" for p in prompts)])]
    result = assign_splits(samples, shares=(1, 0, 0), pinned={f"t/{i}": "test" for i in range(30)})
    assert {s.split for s in result} == {"test"}
    assert {s.split for s in assign_splits(samples, shares=(1, 0, 0))} == {"train"}


def test_leaks_find_every_planted_copy() -> None:
    """Copies, near-copies and template siblings are found with their ids; unrelated prompts are not."""
    prompts = random_prompts(60, 4)
    train = [sample(i, p) for i, p in enumerate(prompts[:40])]
    clean = [sample(100 + i, p) for i, p in enumerate(prompts[40:])]
    assert leaks(train, clean) == []
    refuse_leaks(train, clean)
    planted = [sample(200, prompts[3]), sample(201, prompts[7].title() + " thanks")]
    assert leaks(train, [*clean, *planted]) == [("t/3", "t/200"), ("t/7", "t/201")]
    siblings = leaks([sample(1, prompts[0], "shop")], [sample(2, prompts[1], "shop"), sample(3, prompts[2], "train")])
    assert siblings == [("t/1", "t/2")]
    with pytest.raises(HarnessError, match="t/3 and t/200"):
        refuse_leaks(train, planted)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_assigned_splits_never_leak(seed: int) -> None:
    """The split and the leak check must agree: what one assigns, the other accepts."""
    rng = random.Random(seed)
    prompts = random_prompts(20, seed, words=8)
    prompts += [" ".join([*p.split(), rng.choice(WORDS)]) for p in prompts]
    done = assign_splits([sample(i, p, rng.choice([None, "a", "b"])) for i, p in enumerate(prompts)])
    parts = {name: [s for s in done if s.split == name] for name in SPLITS}
    assert (
        leaks(parts["train"], parts["test"])
        == leaks(parts["train"], parts["validation"])
        == leaks(parts["validation"], parts["test"])
        == []
    )


def test_ten_thousand_prompts_take_seconds() -> None:
    """Splitting must stay usable on real training sets: unrelated prompts, copies and siblings of a few texts."""
    prompts = random_prompts(7000, 5)
    prompts += [f"{prompts[i % 7]} and then {i} more with {i * 7} left" for i in range(2000)] + ["the same prompt again"] * 1000
    start = time.perf_counter()
    assign_splits([sample(i, p) for i, p in enumerate(prompts)])
    assert time.perf_counter() - start < 30


def test_cluster_labels_join_duplicates_and_template_siblings() -> None:
    """Folds that keep these labels together never test on a near-copy of a training prompt, chains of copies included."""
    words = random_prompts(1, 3)[0].split()
    chain = [" ".join(words), " ".join([*words[:-1], "x"]), " ".join([*words[:-1], "x", "y"])]
    samples = [
        sample(0, chain[0]),
        sample(1, "alone"),
        sample(2, chain[1]),
        sample(3, "one", "t"),
        sample(4, chain[2]),
        sample(5, "two", "t"),
    ]
    labels = cluster_labels(samples)
    assert labels[0] == labels[2] == labels[4]
    assert labels[3] == labels[5]
    assert len(set(labels)) == 3
    for i, j in near_duplicates([s.prompt for s in samples]):
        assert labels[i] == labels[j]
