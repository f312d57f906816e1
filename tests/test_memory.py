"""The memory: counts equal a plain search, drafts cost no exactness, foreign and evaluated answers are refused, growth forgets nothing."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from serving import session_file
from test_collect import Counting
from tiny import tiny_pair, write_pair
from toy import ToyPair, toy_pair
from typer.testing import CliRunner

from harness import Session, api
from harness.adapt import memory_sources
from harness.adapt.memory_sources import Growth, UserWords, answers_in_folder, answers_of_run, answers_of_session, build_memory
from harness.answers.collect import collect
from harness.cli import app
from harness.core import journal
from harness.core.errors import HarnessError
from harness.core.paths import found_memory, memory_path, shipped_memories
from harness.core.records import Sample, Trajectory
from harness.datasets import DatasetSpec, load_samples
from harness.datasets.splits import refuse_leaks
from harness.decode import memory as memories
from harness.decode.drafters import LookupDrafter, MemoryDrafter, Request
from harness.decode.generation import generate
from harness.decode.length import AutoK, Costs
from harness.decode.memory import Answer, Memory, grow_memory, pair_memory, write_memory
from harness.decode.replay import replay
from harness.decode.suffix_counts import DOUBT, END, LONGEST, SHORTEST, Walker, count_suffixes
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run.runner import run_suite
from harness.session.session_config import SessionConfig
from harness.suite.suite import load_suite

NAMES = ("memory", "memory_hybrid")
ALL = (*NAMES, "cascade")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def answer(i: int, tokens: Sequence[int], before: Sequence[int] = (), prompt: str = "") -> Answer:
    """An answer to a prompt that resembles no other."""
    words = prompt or " ".join(f"word{i}x{j}" for j in range(6))
    return Answer(sample_id=f"s/{i}", domain="x", prompt=words, before=tuple(before), tokens=tuple(tokens))


def walker(texts: Sequence[Sequence[int]], said: int = 0) -> Walker:
    """Counts over texts whose first ``said`` tokens are context only."""
    return Walker(count_suffixes(*_arrays(texts, said)))


def _arrays(texts: Sequence[Sequence[int]], said: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = [token for text in texts for token in (*text, END)]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    return np.array(flat, dtype=np.int32), starts, np.full(len(texts), said)


def drafted(counts: Walker, context: Sequence[int], most: int, threshold: float = 0.1) -> list[int]:
    """What the counts propose after a context."""
    return counts.walk(counts.find(context)[0], most, threshold)[0]


def searched(texts: Sequence[Sequence[int]], context: Sequence[int], most: int, threshold: float) -> list[int]:
    """The same draft by trying every place of every text."""
    context, tokens, survive = list(context), [], 1.0
    while len(tokens) < most:
        followed: list[int] = []
        for n in range(min(LONGEST, len(context)), SHORTEST - 1, -1):
            followed = [text[i] for text in texts for i in range(n, len(text)) if list(text[i - n : i]) == context[-n:]]
            if followed:
                break
        if not followed:
            break
        latest = {token: i for i, token in enumerate(followed)}
        best = max(latest, key=lambda token: (followed.count(token), latest[token]))
        survive *= round(65535 * followed.count(best) / (len(followed) + DOUBT)) / 65535
        if survive < threshold:
            break
        tokens.append(best)
        context.append(best)
    return tokens


@given(
    texts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=24), min_size=1, max_size=5),
    context=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    threshold=st.sampled_from([0.0, 0.15, 0.4]),
)
def test_drafts_equal_a_plain_search(texts: list[list[int]], context: list[int], threshold: float) -> None:
    """Hash, bisection and stored links must propose exactly what trying every place proposes: longest suffix, most frequent, latest."""
    for start in (context, texts[0][: len(context)]):
        assert drafted(walker(texts), start, 9, threshold) == searched(texts, start, 9, threshold)


@given(
    texts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=24), min_size=1, max_size=5),
    most=st.integers(0, 40),
)
def test_what_is_left_of_condensed_counts_is_theirs(texts: list[list[int]], most: int) -> None:
    """Kept states say what they said; a link to one that went leads to the longest suffix of its context that is kept."""
    arrays = _arrays(texts)
    full, less = count_suffixes(*arrays), count_suffixes(*arrays, most)
    assert len(less.keys) == min(most, len(full.keys))
    at = np.searchsorted(full.keys, less.keys)
    for name in ("keys", "following", "shares"):
        np.testing.assert_array_equal(getattr(full, name)[at], getattr(less, name))
    context_of = {}
    for text in texts:
        for start, end in itertools.combinations(range(len(text) + 1), 2):
            state, length = Walker(full).find(text[start:end])
            context_of[state] = text[end - length : end]
    contexts = [context_of.get(link) for link in full.links[at].tolist()]
    assert [Walker(less).find(c)[0] if c else -1 for c in contexts] == less.links.tolist()


def test_condensed_counts_keep_what_followed_most_often() -> None:
    """What was said five times stays, before what was said twice, before what a shorter context proposes too."""
    often, seldom = [1, 2, 3, 4], [5, 6, 7, 8]
    texts = [[*often, i] for i in range(20, 25)] + [[*seldom, i] for i in range(30, 32)]
    counts = Walker(count_suffixes(*_arrays(texts), 2))
    assert drafted(counts, [1, 2], 2) == [3, 4]
    assert drafted(counts, [5, 6], 2) == []
    counts = Walker(count_suffixes(*_arrays(texts), 4))
    assert drafted(counts, [5, 6], 2) == [7, 8]


def test_of_several_counts_the_longer_match_proposes_then_the_first() -> None:
    """A memory and its base are searched together; states of both can be walked."""
    own, base = _arrays([[1, 2, 3, 9]]), _arrays([[1, 2, 3, 7, 8], [4, 1, 2, 6, 6]])
    counts = Walker(count_suffixes(*own), count_suffixes(*base))
    assert drafted(counts, [1, 2], 2) == [3, 9]
    assert drafted(counts, [4, 1, 2], 2) == [6, 6]
    assert drafted(counts, [3, 7], 2) == [8]
    assert drafted(counts, [9, 9], 2) == []


def test_the_end_of_a_prompt_is_context_and_never_proposed() -> None:
    """What an answer begins with follows the chat template; the prompt itself was not said by the target."""
    counts = walker([[1, 2, 3, 7, 8, 9], [4, 2, 3, 7, 8, 6]], said=3)
    assert drafted(counts, [5, 2, 3], 2) == [7, 8]
    assert drafted(counts, [1, 2], 2) == []


def test_one_text_does_not_go_on_in_the_next() -> None:
    """The end of one answer and the beginning of another are no neighbours."""
    assert drafted(walker([[1, 2, 3], [4, 5, 6]]), [2, 3], 4) == []
    assert drafted(walker([[1, 2, 3], [4, 5, 6]]), [3, 4], 4) == []


@pytest.mark.parametrize(
    ("context", "tokens", "source"),
    [
        ([7, 8, 3, 2, 7, 8], [3, 2], "lookup"),  # the memory knows nothing of it
        ([5, 6, 1, 1, 5, 6], [1, 1], "lookup"),  # both know two tokens
        ([4, 1, 1, 4, 7, 5, 6, 2], [9, 9], "memory"),  # the text knows nothing
        ([6, 2, 1, 4, 7, 5, 6, 2], [9, 9], "memory"),  # the text knows two tokens, the memory four
        ([5, 6, 2, 1, 4, 7, 5, 6, 2], [1, 4], "lookup"),  # three and four: the nearer one
    ],
)
def test_the_longer_match_proposes(context: list[int], tokens: list[int], source: str) -> None:
    """The text so far and the memory compete by how long a suffix they know."""
    memory = walker([[7, 5, 6, 2, 9, 9, 9], [8, 5, 6, 2, 4, 4], [3, 5, 6, 3, 2, 2]])
    drafter = MemoryDrafter(memory, LookupDrafter(8, 2), threshold=0.1)
    drafter.begin(context)
    found = drafter.search(context, Request(k=2))
    assert found[:2] == (tokens, source)
    assert len(found.confidences) == (2 if source == "memory" else 0)


def test_a_memory_that_is_not_worth_it_gives_way() -> None:
    """Where the policy takes none of its tokens, a shorter match in the text proposes."""
    drafter = MemoryDrafter(walker([[7, 5, 6, 2, 9, 9, 9], [8, 5, 6, 2, 4, 4]]), LookupDrafter(8, 2), threshold=0.1)
    context = [6, 2, 1, 4, 7, 5, 6, 2]
    drafter.begin(context)
    assert drafter.search(context, Request(k=2, worth=lambda shares: 1))[:2] == ([9], "memory")
    assert drafter.search(context, Request(k=2, worth=lambda shares: 0))[:2] == ([1, 4], "lookup")
    assert drafter.search(context, Request(k=2, worth=lambda shares: 0, free_k={"lookup": 0, "copy": 0, "memory": 2})).tokens == []


def pairs() -> list[ToyPair]:
    """Toy pairs whose draft is near, and far."""
    return [toy_pair(seed=s, noise=n) for s, n in ((0, 0.1), (10, 0.3))]


def remember(pair: Any, prompts: Sequence[list[int]], tokens: int = 16) -> Memory:
    """Remember the target's answers to prompts."""
    said = [generate(pair, prompt, drafter=None, max_tokens=tokens).tokens for prompt in prompts]
    found = [answer(i, t, p[-LONGEST:]) for i, (p, t) in enumerate(zip(prompts, said, strict=True))]
    return write_memory(memory_path(pair.name), pair.name, pair.target_hash, found)


PROMPTS = [[2 + (p * 7 + i * 3) % 60 for i in range(2 + p % 9)] for p in range(20)]


@pytest.mark.parametrize("name", NAMES)
def test_replay_equals_decoding(name: str) -> None:
    """Over 120 cases each: replay stands in for decoding in every ablation, and output is the target's whatever was remembered."""
    cases = accepted = 0
    for pair in pairs():
        remember(pair, PROMPTS[::2])
        for i, prompt in enumerate(PROMPTS):
            plain = generate(pair, prompt, drafter=None, max_tokens=23)
            known = {"prompt_tokens": tuple(prompt), "tokens": plain.tokens, "finish": plain.finish, "max_tokens": 23}
            for row in replay(pair, [Trajectory(sample_id=str(i), domain="x", **known)], [name], [1, 3, 8]):
                real = generate(pair, prompt, drafter=name, k=row.k, max_tokens=23)
                assert real.tokens == plain.tokens
                assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)
                cases += 1
                accepted += real.accepted
    assert cases == 120
    assert accepted > 300


@pytest.mark.parametrize("name", ALL)
def test_auto_changes_lengths_not_output(name: str) -> None:
    """``auto`` and ``dynamic`` weigh the memory's tokens one by one; the answer stays the target's."""
    pair = pairs()[1]
    remember(pair, PROMPTS[::2])
    for prompt in PROMPTS:
        plain = generate(pair, prompt, drafter=None, max_tokens=20)
        for k in (AutoK(Costs(c=0.2, v=(1.0, 1.1, 1.2, 1.3, 1.5))), "dynamic", 0):
            assert generate(pair, prompt, drafter=name, k=k, max_tokens=20).tokens == plain.tokens  # type: ignore[arg-type]


def test_auto_verifies_what_pays() -> None:
    """Sure tokens are verified, doubtful ones are not, and what does not stand loses its weight."""
    policy = AutoK(Costs(c=0.0, v=(1.0, 1.2, 1.4, 1.6)))
    assert policy.worth((0.95, 0.95, 0.95)) == 3
    assert policy.worth((0.95, 0.05, 0.05)) == 1
    assert policy.worth((0.05,)) == 0
    for _ in range(30):
        policy.update(drafted=1, accepted=0, confidences=(0.95,), source="memory")
    assert policy.worth((0.95, 0.95, 0.95)) == 0


# --- growth ---


def told(n: int, seed: int = 0) -> list[Answer]:
    """Random answers over few tokens."""
    rng = np.random.default_rng(seed)
    return [answer(i, rng.integers(0, 9, 30).tolist(), (1, 2, 3)) for i in range(n)]


def check_growth(path: Path) -> None:
    """Grown in steps, a memory is the one made at once, and drafts from what came last."""
    whole = write_memory(path.with_name("whole"), "p", "h", told(12))
    for part in (told(12)[:5], told(12)[5:6], told(12)[3:]):
        grown = grow_memory(path, "p", "h", part)
    assert grown.answers() == told(12)
    assert grown.hash == whole.hash
    last = told(12)[-1].tokens
    assert drafted(grown.walker, last[5:13], 4) == list(last[13:17])


def check_trim(path: Path) -> None:
    """Grown beyond its bound, a memory is the one made of what was said last: nothing of what went is proposed."""
    last = write_memory(path.with_name("last"), "p", "h", told(12)[9:])
    for part in (told(4), told(8)[4:], told(12)[8:]):
        memory = grow_memory(path, "p", "h", part, most_tokens=100)
        assert memory.info.tokens <= 100
    assert memory.answers() == told(12)[9:]
    assert memory.hash == last.hash


@pytest.mark.parametrize("check", [check_growth, check_trim])
def test_growing_and_trimming_is_the_same_as_building_at_once(tmp_path: Path, check: Callable[[Path], None]) -> None:
    """Same answers, same bytes, in however many steps; what is said twice is kept once, the oldest go."""
    check(tmp_path / "m")
    with pytest.raises(HarnessError, match="needs at least one answer"):
        write_memory(tmp_path / "m", "p", "h", [answer(0, ())])


@pytest.mark.parametrize("check", [check_growth, check_trim])
def test_stale_counts_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Path], None]) -> None:
    """An injected fault: answers come and go, and the counts stay those of the second time."""
    real, first = memories.count_suffixes, []

    def stale(*arguments: Any) -> Any:
        first.append(real(*arguments))
        return first[min(1, len(first) - 1)]

    monkeypatch.setattr(memories, "count_suffixes", stale)
    with pytest.raises(AssertionError):
        check(tmp_path / "m")


def test_two_sessions_growing_one_memory_lose_nothing(tmp_path: Path) -> None:
    """Each reads, adds and replaces the file: the second waits for the first."""

    def grow(mine: list[Answer]) -> None:
        for one in mine:
            grow_memory(tmp_path / "m", "p", "h", [one])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(grow, (told(12)[:6], told(12)[6:])))
    assert sorted(a.sample_id for a in Memory(tmp_path / "m").answers()) == sorted(a.sample_id for a in told(12))


# --- what is refused ---


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_without_a_memory_is_told_before_it_loads(name: str, tmp_path: Path) -> None:
    """In a suite, a session file and on the command line; a session that remembers makes its own."""
    pair_file = write_pair(tmp_path / "pair")
    (tmp_path / "pair/target/model.safetensors").write_bytes(b"not read")
    with pytest.raises(HarnessError, match=r"experiments: pair 'tiny' has no memory"):
        load_suite(suite_file(tmp_path, "test", experiments=[{"kind": "drafters", "drafters": [name]}]))
    with pytest.raises(HarnessError, match="pair 'tiny' has no memory"):
        CliRunner().invoke(app, ["generate", "hi", "--models", str(pair_file), "--drafter", name], catch_exceptions=False)
    config = SessionConfig(models=str(pair_file), drafter=name)
    with pytest.raises(HarnessError, match="pair 'tiny' has no memory"):
        config.check()
    config.replace(remember=True).check()
    with pytest.raises(HarnessError, match="pair 'tiny' has no memory"):
        CliRunner().invoke(app, ["memory", "show", str(pair_file)], catch_exceptions=False)


def test_another_targets_memory_is_refused_by_name(tmp_path: Path) -> None:
    """Ids of another tokenizer would be nonsense, counts of another target would never be accepted."""
    pair = toy_pair()
    with pytest.raises(HarnessError, match="pair 'toy' has no memory"):
        pair_memory(pair)
    write_memory(memory_path(pair.name), "qwen", "other-target", told(3))
    with pytest.raises(HarnessError, match=r"is of the target of 'qwen' \(other-target\), not of 'toy' \(toy-target\)"):
        generate(pair, [3, 4], drafter="memory", max_tokens=4)
    with pytest.raises(HarnessError, match="is of the target of 'qwen'"):
        grow_memory(memory_path(pair.name), pair.name, pair.target_hash, told(4))


def test_answers_to_test_prompts_are_refused(tmp_path: Path) -> None:
    """A memory that holds a test prompt's answer would measure itself; a near-duplicate is as bad."""
    test = Sample(id="t/1", domain="x", prompt="Write a poem about the sea and the ships on it.", split="test")
    near = answer(1, [5, 6, 7], prompt="Write a  poem about the sea and the ships on it.")
    with pytest.raises(HarnessError, match="s/1 and t/1 are near-duplicates"):
        build_memory(toy_pair(), [*told(2), near], [test], path=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert build_memory(toy_pair(), told(2), [test], path=tmp_path / "m").info.answers == 2


def spoil_header(data: bytes) -> bytes:
    return data.replace(b'"U16"', b'"I16"')


def spoil_links(data: bytes) -> bytes:
    base = 8 + int.from_bytes(data[:8], "little")
    start = base + json.loads(data[8:base])["links"]["data_offsets"][0]
    return data[:start] + b"\xff\xff\xff\x7f" + data[start + 4 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-5], "cannot read"),
        (lambda data: b"", "cannot read"),
        (spoil_header, "is no memory: it lacks shares of type uint16"),
        (spoil_links, "its counts do not fit each other"),
        (lambda data: data.replace(rb"\"schema_version\": 1", rb"\"schema_version\": 9"), "was written by a newer version"),
        (lambda data: data.replace(rb"\"tokens\"", rb"\"tokenz\""), "unknown field 'tokenz'"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    """Cut short, another file, links that lead nowhere, a newer version: said before anything drafts from it."""
    path = tmp_path / "m"
    write_memory(path, "p", "h", told(3))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(spoil(data))
    assert path.read_bytes() != data
    with pytest.raises(HarnessError, match=message):
        Memory(path)


# --- where answers come from ---


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    """A tiny pair with files."""
    return tiny_pair(tmp_path / "pair", max_position_embeddings=1024)


def test_collected_answers_become_a_memory(pair: Any, tmp_path: Path) -> None:
    """Tokens as they were collected, prompts without the chat template; the command says what it made."""
    samples = [Sample(id=f"s/{i}", domain="chat", prompt=f"what is {i * 31}, my friend number {i}?", split="train") for i in range(6)]
    answers = {t.sample_id: t.tokens for t in collect(pair, samples, max_tokens=20, out=tmp_path / "answers", decoder=Counting())}
    found = {a.sample_id: a for a in answers_in_folder(tmp_path / "answers", pair)}
    assert {i: a.tokens for i, a in found.items()} == answers
    assert {i: a.prompt for i, a in found.items()} == {s.id: s.prompt for s in samples}
    assert all(a.before == tuple(pair.encode(s.prompt)[-LONGEST:]) for s in samples for a in [found[s.id]])
    run = CliRunner().invoke(app, ["memory", "build", str(tmp_path / "pair/tiny.yaml"), "--from", str(tmp_path / "answers")])
    assert run.exit_code == 0, run.output
    assert run.output.startswith("tiny: 6 answers, ")
    assert pair_memory(pair).answers() == list(found.values())
    assert run.output in CliRunner().invoke(app, ["memory", "list"]).output
    memory_path("broken").write_bytes(b"nothing")
    assert CliRunner().invoke(app, ["memory", "list"]).output.startswith("broken: cannot read ")
    shown = CliRunner().invoke(app, ["memory", "show", str(tmp_path / "pair/tiny.yaml")]).output
    assert pair_memory(pair).hash in shown
    assert f"chat         6 answers, {sum(map(len, answers.values()))} tokens" in shown


def test_condensed_answers_become_the_base_of_a_memory(pair: Any, tmp_path: Path) -> None:
    """Counts without answers; what routers may be trained on is left out; own answers come on top and survive."""
    own = load_samples(DatasetSpec(dataset="chat", split="train", limit=2), domain="chat")
    samples = [Sample(id=f"s/{i}", domain="math", prompt=f"what is {i * 31}, my friend number {i}?", split="train") for i in range(6)]
    said = {t.sample_id: t.tokens for t in collect(pair, [*samples, *own], max_tokens=20, out=tmp_path / "answers", decoder=Counting())}
    build = ["memory", "build", str(tmp_path / "pair/tiny.yaml"), "--from", str(tmp_path / "answers")]
    run = CliRunner().invoke(app, [*build, "--condense", "1000"])
    assert run.exit_code == 0, run.output
    tokens = sum(len(said[s.id]) for s in samples)
    assert run.output.startswith(f"tiny: 0 answers, 0 tokens, on counts over 6 answers, {tokens} tokens, ")
    memory = pair_memory(pair)
    assert memory.answers() == []
    assert {s.id: s.prompt for s in memory.samples()} == {s.id: s.prompt for s in samples}
    assert "prompts: 6 math" in CliRunner().invoke(app, ["memory", "show", str(tmp_path / "pair/tiny.yaml")]).output
    words = list(said["s/3"])
    assert drafted(memory.walker, words[:3], 4, 0.0) == drafted(walker([said[s.id] for s in samples]), words[:3], 4, 0.0) != []
    with pytest.raises(HarnessError, match="answers to these prompts alone"):
        memory.without(frozenset({"s/3"}))
    grown = grow_memory(memory_path(pair.name), pair.name, pair.target_hash, [answer(7, [2, 3, 5, 7, 11])])
    assert [a.sample_id for a in grown.answers()] == ["s/7"]
    assert {s.id for s in grown.samples()} == {"s/7", *(s.id for s in samples)}
    assert drafted(grown.walker, [2, 3], 3, 0.0) == [5, 7, 11]
    assert drafted(grown.walker, words[:3], 4, 0.0) == drafted(memory.walker, words[:3], 4, 0.0)
    assert drafted(grown.without(frozenset({"s/3"})), words[:3], 4, 0.0) == []
    assert drafted(grown.without(frozenset({"s/7"})), words[:3], 4, 0.0) == drafted(memory.walker, words[:3], 4, 0.0)
    assert CliRunner().invoke(app, build).exit_code == 0, "answers themselves may be added to it"
    assert len(pair_memory(pair).answers()) == 9


def test_prompts_of_a_base_are_read_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that unpacks to more than any memory has, or is cut off, is one clear error."""
    base = memories.Base.of([answer(i, [1, 2, 3]) for i in range(9)], 100)
    memory = write_memory(tmp_path / "m", "p", "h", [], base=base)
    assert len(memory.samples()) == 9
    monkeypatch.setattr(memories, "_MOST_PROMPTS", 100)
    with pytest.raises(HarnessError, match="larger than a memory's prompts"):
        memory.samples()
    monkeypatch.undo()
    cut = write_memory(tmp_path / "m", "p", "h", [], base=dataclasses.replace(base, prompts=base.prompts[:-8]))
    for read in (cut.samples, cut.base_samples, lambda: cut.without(frozenset({"s/3"}))):
        with pytest.raises(HarnessError, match="cannot read"):
            read()


def test_the_command_refuses_test_prompts(pair: Any, tmp_path: Path) -> None:
    """Answers to the shipped datasets' test prompts never get in, whatever suite is run later."""
    samples = load_samples(DatasetSpec(dataset="chat", limit=3), domain="chat")
    list(collect(pair, samples, max_tokens=9, out=tmp_path / "answers", decoder=Counting()))
    run = CliRunner().invoke(app, ["memory", "build", str(tmp_path / "pair/tiny.yaml"), "--from", str(tmp_path / "answers")])
    assert isinstance(run.exception, HarnessError)
    assert "training data leaks into the evaluation" in str(run.exception)
    assert not memory_path("tiny").exists()
    with pytest.raises(HarnessError, match="nothing to remember"):
        CliRunner().invoke(app, ["memory", "build", "smollm2"], catch_exceptions=False)


def suite_file(folder: Path, split: str, **changes: Any) -> Path:
    """A suite of short prompts on the tiny pair of ``folder``."""
    lines = [json.dumps({"id": str(i), "prompt": f"tell me of topic{i * 7} and thing{i} or item{i + 3}"}) for i in range(20)]
    (folder / "p.jsonl").write_text("\n".join(lines))
    content = {
        "name": "t",
        "models": str(folder / "pair/tiny.yaml"),
        "max_tokens": 12,
        "domains": {"x": {"dataset": "local", "path": str(folder / "p.jsonl"), "split": split}},
        "experiments": [{"kind": "baseline"}],
        **changes,
    }
    path = folder / f"{split}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def go(suite: Path, **options: Any) -> Path:
    """Run a suite into a results folder beside it."""
    return run_suite(load_suite(suite), results_dir=suite.parent / "results", console=Console(file=io.StringIO()), **options)


def test_a_runs_training_answers_are_remembered_and_a_suite_drafts_from_them(pair: Any, tmp_path: Path) -> None:
    """From a run on training prompts to a run with the memory on test prompts; a run may not evaluate what its memory knows."""
    train = go(suite_file(tmp_path, "train"))
    said = answers_of_run(train, pair, load_samples)
    assert {a.sample_id: a.tokens for a in said} == {r.sample_id: r.tokens for r in read_records(train)}
    memory = build_memory(pair, said, [], path=memory_path(pair.name))
    kinds = [
        {"kind": "baseline"},
        {"kind": "drafters", "drafters": list(NAMES)},
        {"kind": "drafters", "name": "sure", "drafters": list(NAMES), "options": {"memory_threshold": 0.9}},
        {"kind": "dynamic_k", "drafters": ["memory"], "policies": ["auto"]},
        {"kind": "ablation_k", "drafters": list(NAMES), "k": [2]},
    ]
    folder = go(suite_file(tmp_path, "test", experiments=kinds))
    records = read_records(folder)
    assert {r.method for r in records if r.drafter in NAMES} == {"decode", "replay"}
    drafted = {r.experiment: r.drafted for r in records if r.drafter == "memory" and r.sample_id == records[0].sample_id}
    assert drafted["sure"] < drafted["drafters"]
    assert {r.settings.get("memory_threshold") for r in records if r.experiment == "sure"} == {0.9}
    assert all(r.divergence is None for r in records)
    assert all(check["equal"] for check in read_manifest(folder).measured.spot_checks)
    assert read_manifest(folder).models["memory"] == memory.hash
    with pytest.raises(HarnessError, match="has answers to evaluation prompts only"):
        answers_of_run(folder, pair, load_samples)
    with pytest.raises(HarnessError, match="training data leaks into the evaluation"):
        go(suite_file(tmp_path, "train", experiments=kinds))
    grow_memory(memory_path(pair.name), pair.name, pair.target_hash, told(1))
    with pytest.raises(HarnessError, match=r"cannot resume: models.memory was"):
        go(tmp_path / "test.yaml", resume=folder.name)


def test_a_session_remembers_and_drafts_from_it(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said becomes the memory once there is enough of it, also across openings; evaluation prompts do not."""
    monkeypatch.setattr(memory_sources, "FIRST_TOKENS", 40)
    write_pair(tmp_path / "s", max_position_embeddings=1024)
    config = session_file(tmp_path / "s", drafter="memory_hybrid", remember=True)
    prompts = [f"question number {i * 37} about topic {i}" for i in range(6)]
    with Session.from_config(config, pair=pair) as session:
        first = session.generate(prompts[0])
        assert first.drafter == "hybrid"
        held_out = load_samples(DatasetSpec(dataset="chat", limit=1), domain="chat")[0].prompt
        session.generate(held_out)
    with Session.from_config(config, pair=pair) as session:
        for prompt in prompts[1:]:
            last = session.generate(prompt)
        assert last.drafter == "memory_hybrid"
        assert last.tokens == api.generate(pair, prompts[-1], drafter=None, max_tokens=12).tokens
        known = pair_memory(pair)
        assert known.info.answers >= 3
        assert known.answers()[0].tokens == first.tokens
        assert held_out not in {a.prompt for a in known.answers()}
        again = session.generate(prompts[0])
        assert again.tokens == first.tokens
        assert again.accepted > first.accepted


def test_growth_survives_a_crash_before_its_journal_is_gone(pair: Any, tmp_path: Path) -> None:
    """An answer that was remembered and still waits is kept once."""
    path = tmp_path / "memory.jsonl"
    growth = Growth(pair, path)
    growth.add(told(1)[0])
    waiting = path.read_bytes()
    growth.finish()
    path.write_bytes(waiting + b'{"torn')
    again = Growth(pair, path)
    again.add(dataclasses.replace(told(1)[0], sample_id="s/other"))
    again.finish()
    assert [a.sample_id for a in pair_memory(pair).answers()] == ["s/0", "s/other"]
    assert not path.exists()


def test_failure_cases_of_a_session_are_remembered(pair: Any, tmp_path: Path) -> None:
    """What the draft got wrong is what a memory can give; cases of evaluation prompts stay out, other pairs' are refused."""
    folder = tmp_path / "session"
    with Session.from_config(session_file(tmp_path / "pair"), pair=pair, folder=str(folder)) as session:
        said = [session.generate(f"question number {i * 37} about topic {i}").tokens for i in range(3)]
        session.generate(load_samples(DatasetSpec(dataset="chat", limit=1), domain="chat")[0].prompt)
    assert [a.tokens for a in answers_of_session(folder, pair)] == said
    row = next(journal.read(folder / "failures.jsonl"))
    (folder / "failures.jsonl").write_bytes(journal.lines([{**row, "prompt_tokens": [*row["prompt_tokens"], 9, 9]}]))
    with pytest.raises(HarnessError, match="is of another pair than 'tiny'"):
        answers_of_session(folder, pair)


def test_user_words_come_back_without_the_template(pair: Any) -> None:
    """Prompts are compared by what the user wrote: the template's words would make all of them alike."""
    words = UserWords(pair)
    for text in ("a", "hello there", "two\nlines"):
        assert words(pair.encode(text)) == text


def test_the_shipped_memory_holds_no_answer_to_a_test_prompt() -> None:
    """What comes with the package is checked against every test prompt that comes with it."""
    (path,) = shipped_memories()
    memory = Memory(path)
    assert memory.info.pair == path.stem == "smollm2"
    assert memory.file_bytes < 8 * 2**20
    specs = [DatasetSpec(dataset=name) for name in ("humaneval", "chat", "wordproblems", "structured")]
    refuse_leaks(memory.samples(), [sample for spec in specs for sample in load_samples(spec, offline=True)])


def test_an_own_memory_begins_with_the_shipped_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the same target it is grown, of another it is left alone; the package's file stays as it is."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    (path,) = shipped_memories()
    before, memory = path.read_bytes(), Memory(path)
    answer = Answer(sample_id="x", domain="chat", prompt="mine", before=(1, 2), tokens=(3, 4, 5))
    assert found_memory("smollm2") == path
    grown = grow_memory(memory_path("smollm2"), "smollm2", memory.info.target_hash, [answer])
    assert found_memory("smollm2") == grown.path == memory_path("smollm2")
    assert grown.answers() == [*memory.answers(), answer]
    memory_path("smollm2").unlink()
    assert grow_memory(memory_path("smollm2"), "smollm2", "another", [answer]).answers() == [answer]
    assert path.read_bytes() == before
