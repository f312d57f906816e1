"""Scores: code by running it, numbers by their exact value, anything else by agreement with the target's own answer."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.records import Sample
from harness.scoring import agreement, final_number, sandbox_status, score
from harness.scoring.agreement import score_agreement
from harness.scoring.final_number import score_number

PROMPT = 'def solve(n):\n    """Return n + 1."""\n'
REFERENCE = {"prompt": PROMPT, "test": "def check(candidate):\n    assert candidate(1) == 2\n", "entry_point": "solve"}


@pytest.mark.skipif(not sandbox_status().available, reason=f"no sandbox here: {sandbox_status().reason}")
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Here:\n```python\ndef solve(n):\n    return n + 1\n```", "passed"),
        ("```python\ndef solve(n):\n    return n\n```", "failed"),
        ("I do not know.", "failed"),
    ],
)
def test_code_is_scored_by_running_it(text: str, status: str) -> None:
    """The whole way: sample, answer, sandbox, score."""
    sample = Sample(id="humaneval/x", domain="code", prompt="Write it", reference=REFERENCE)
    result = score(sample, text)
    assert (result.metric, result.status, result.value) == ("pass@1", status, float(status == "passed"))
    assert result.details["sandbox"] == sandbox_status().kind


ANSWERS: dict[str, str | None] = {
    "3/4": "3/4",
    "The answer is 3/4.": "3/4",
    "\\boxed{\\frac{1}{2}}": "1/2",
    "\\boxed{\\dfrac{3}{4}}": "3/4",
    "The answer is 2 1/2 cups.": "5/2",
    "The answer is 2 and 1/2 cups.": "5/2",
    "It is 1e6.": "1000000",
    "so 9\\,500 dollars": "9500",
    "\\boxed{9\\,500}": "9500",
    "Answer: She has 16 eggs and buys 10 more, so 16 + 10 = 26": "26",
    "Answer: Janet has 16 eggs. She buys 10. 16 + 10 = 26": "26",
    "Answer: 16 eggs + 10 eggs = 26": "26",
    "Answer: 16 eggs per day. She eats 3, so 16 - 3 = 13.": "13",
    "Answer:\nShe has 16 eggs.\nShe buys 10.\n16 + 10 = 26": "26",
    "Answer: 18\n\nShe has 16 eggs and so on, in 3 days.": "18",
    "Answer: 18. Because 9 * 2 = 18 and 3 more.": "18",
    "#### 42\n\nQuestion: more\n#### 3": "42",
    "#### 42 and then #### 3": "42",
    "#### Step 1: 3 * 4 = 12\n#### Step 2: 5\nThe answer is 17.": "17",
    "#### 1. Count\nfoo 5\n#### 2. Add\n\\boxed{17}": "17",
    "#### 5 + 3 = 8": "8",
    "#### $1,200.50": "2401/2",
    "#### **42**": "42",
    "####42": "42",
    "#### 42 eggs": "42",
    "#### -5": "-5",
    "##### 7\nso 9": "9",
    "#### Answer: 42": "42",
    "#### 18 (16 - 3 - 4 = 9 eggs)": "18",
    "<think>The answer is 7</think>It is 8": "8",
    "<think>#### 7": None,
    "It is 8 <think> the answer is 7": "8",
    "maybe 7\n</think>\n\nThe answer is 8.": "8",
    "[THINK]9[/THINK] 10": "10",
    "The area is 5 m2": "5",
    "The area is 5 m^2.": "5",
    "The area is 12 cm²": "12",
    "about 50%": "50",
    "half is .5": "1/2",
    "It fell by −7": "-7",
    "The answer is -5.": "-5",
    "The answer is (−5)": "-5",
    "The answer is 42.\n\nQuestion: How many?\nThe answer is 3.": "42",
    "The answer is 7. Wait, no: the answer is 9.": "9",
    "The answer is 5 + 3 = 8 apples. I checked it 3 times.": "8",
    "The answer is $18.50.": "18.5",
    "The answer is: 3.": "3",
    "**Answer:** 18 apples out of 20": "18",
    "Answer:\n18": "18",
    "So \\boxed{1{,}000} dollars, 12 times": "1000",
    "\\[\\boxed{\\$12.5}\\]": "12.5",
    "\\boxed{\\text{42 apples}}": "42",
    "\\boxed{x = 5}": "5",
    "\\boxed{5}\\text{ m}^2": "5",
    "\\boxed{42\\text{ m}^2}": "42",
    "\\boxed 42": "42",
    "\\boxed{3} then \\boxed{4}": "4",
    "\\boxed{\\frac{\\pi}{2}}": None,
    "The answer is x = 5 metres": "5",
    "The answer is $x = \\frac{7}{2}$.": "7/2",
    "The answer is approximately 12.5": "12.5",
    "The answer is that she has 18 eggs left.": "18",
    "The final answer is $\\boxed{18}$.": "18",
    "Final Answer\n18": "18",
    "Answer = 18": "18",
    "Answer → 18": "18",
    "1.5 x 10^3 in all": "1500",
    "The total is 5 million dollars.": "5000000",
    "$5k": "5000",
    "1,2,3": "3",
    "1,234,567.50 euros": "1234567.5",
    "10-5": "5",
    "pages 3–5": "5",
    "- 18 eggs": "18",
    "48/2 = <<48/2=24>>24\n#### 72": "72",
    "She pays 5 - 3 = 2.": "2",
    "6 / 2 = 3": "3",
    "Total: 2\\frac{1}{2}": "5/2",
    "**42**.": "42",
    "`42`": "42",
    "It is 42\n\nThe answer is correct.": "42",
    "The answer is 18 because 9 * 2 = 18.": "18",
    "She makes 9 * 2 = $18 every day": "18",
    "The answer is 1/0": None,
    "the answer is 1e99999": None,
    "It's 7-year-old": "7",
    "3pm": "3",
    "<answer>42</answer>": "42",
    "The answer is ١٢": "12",
    "H2O and CO2": None,
    "####\n42": "42",
    "#### = 42\nin 3 days": "42",
    "#### x = 42, as in 3": "42",
    "Answer:\n1. She has 16 eggs.\n2. She buys 10.\nTotal: 26": "26",
    "Answer: 1. She has 16 eggs. 2. She buys 10. That is 26": "26",
    "Answer: 1. There is one.": "1",
    "\\boxed{2\\,\\frac{1}{2}}": "5/2",
    "\\text{Answer: }18, of 20": "18",
    "Answer: 1 000 000": "1000000",
    "The answer is 12 (not 15).": "12",
    "7 1/2% of it": "15/2",
    "-0": "0",
    "2^10 bytes": "1024",
    "x2": None,
}


@pytest.mark.parametrize("text", ANSWERS)
def test_the_final_number_is_found(text: str) -> None:
    """The number a reader would call the answer, exactly; none where there is none."""
    value = ANSWERS[text]
    assert final_number(text) == (None if value is None else Fraction(value))


@given(
    value=st.decimals(min_value=-(10**9), max_value=10**9, places=2),
    shape=st.sampled_from(
        ["#### {}", "The answer is {}.", "so we get {}", "\\boxed{{{}}}", "The answer is: **{}**", "3 + 4 = {}", "it is {} apples"]
    ),
    style=st.sampled_from(["plain", "commas", "dollar", "percent", "trim", "latex", "minus"]),
)
def test_formatting_does_not_change_the_number(value: Decimal, shape: str, style: str) -> None:
    """Separators, currency, per cent, markup and trailing zeros are layout."""
    shown = {
        "plain": f"{value}",
        "commas": f"{value:,}",
        "dollar": f"-${-value:,}" if value < 0 else f"${value:,}",
        "percent": f"{value}%",
        "trim": f"{value}".rstrip("0").rstrip("."),
        "latex": f"{value:,}".replace(",", "\\,"),
        "minus": f"{value}".replace("-", "−"),
    }[style]
    assert final_number(shape.format(shown)) == Fraction(value)


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
