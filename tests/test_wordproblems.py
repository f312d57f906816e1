"""Generated word problems: every shown calculation is true, every answer is found twice, and the set is reproducible."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import HarnessError
from harness.datasets.arithmetic import Draw, fill_steps, money, number, value_of
from harness.datasets.wordproblems import TEMPLATES, WordProblem, generate

MANY = generate(len(TEMPLATES) * 12, seed=5)
_EQUATION = re.compile(r"((?:[\d.()]+ ?[-+*/] ?)+[\d.()]+)(?: \* 100)? = (\d+(?:\.\d+)?)")


def shown_equations(solution: str) -> list[tuple[str, str]]:
    """Every ``expression = value`` in a solution."""
    return [(m.group(0).rsplit(" = ", 1)[0], m.group(2)) for m in _EQUATION.finditer(solution)]


def test_enough_templates() -> None:
    """The offline math set promises varied structure: many templates, each registered once."""
    assert len(TEMPLATES) >= 44
    assert len({function.__code__.co_code + repr(function.__code__.co_consts).encode() for function in TEMPLATES.values()}) == len(
        TEMPLATES
    )


def test_covers_all_templates_evenly() -> None:
    """Templates take turns, so a small sample is never dominated by a few of them."""
    assert {p.template for p in generate(len(TEMPLATES), seed=1)} == set(TEMPLATES)
    counts = Counter(p.template for p in generate(len(TEMPLATES) * 2 + 5, seed=1))
    assert set(counts.values()) == {2, 3}


@pytest.mark.parametrize("problem", MANY[: len(TEMPLATES)], ids=lambda p: p.template)
def test_no_leftover_marks(problem: WordProblem) -> None:
    """A question is a full question and a solution is plain text without template marks."""
    assert problem.question.endswith("?")
    assert 60 <= len(problem.question) <= 420
    assert not re.search(r"[\[\]{}]|None|Fraction|Infinity", problem.question + problem.solution)


def test_shown_equations_are_true() -> None:
    """Recompute each shown equation with decimals and Python's own parser, independent of the module's evaluator."""
    getcontext().prec = 40
    for problem in MANY:
        equations = shown_equations(problem.solution)
        assert equations, problem.solution
        assert problem.solution.count(" = ") == len(equations), "an equation was not recognised"
        for expression, value in equations:
            exact = eval(re.sub(r"\d+(?:\.\d+)?", lambda m: f"Decimal('{m.group(0)}')", expression), {"Decimal": Decimal})
            assert abs(exact - Decimal(value)) < Decimal("1e-20"), f"{problem.template}: {expression} = {value}"


def test_last_step_is_the_answer() -> None:
    """The answer comes from a closed formula; the last shown step must arrive at the same number."""
    for problem in MANY:
        last = shown_equations(problem.solution)[-1][1]
        assert Decimal(last) == Decimal(problem.answer), (problem.template, problem.question, problem.solution)
        assert problem.solution.endswith(f"The answer is {problem.answer}.")
        assert Decimal(problem.answer) >= 0


def test_numbers_of_the_question_are_used() -> None:
    """The first step of a solution starts from numbers that the question states."""
    for problem in MANY:
        given_numbers = {Decimal(v) for v in re.findall(r"\d+(?:\.\d+)?", problem.question)}
        used = {Decimal(v) for v in re.findall(r"\d+(?:\.\d+)?", shown_equations(problem.solution)[0][0])}
        assert used & given_numbers, (problem.template, problem.question, problem.solution)


def test_formula_and_steps_agree_on_many_draws() -> None:
    """Two independent computations per template agree over hundreds of draws, so ranges hide no bad corner."""
    for name, template in TEMPLATES.items():
        for attempt in range(150):
            raw = template(Draw(random.Random(f"{name}{attempt}")))
            steps = fill_steps(raw.solution)
            assert Fraction(shown_equations(steps)[-1][1]) == raw.answer >= 0, (name, raw.question, steps)


def _brute(name: str, found: list[int]) -> Fraction:
    """Answers by search or simulation for templates whose formula is easy to get wrong."""
    if name == "bus_seats":
        groups, size, extra, seats = found
        return Fraction(next(b * seats for b in range(1, 99) if b * seats >= groups * size + extra) - groups * size - extra)
    if name == "round_robin":
        players, done, minutes = found
        return Fraction((sum(1 for a in range(players) for b in range(a)) - done) * minutes)
    if name == "heads_and_legs":
        heads, legs = found
        return Fraction(next(x for x in range(heads + 1) if 4 * x + 2 * (heads - x) == legs))
    if name == "garden_path":
        a, b, w = found
        return Fraction(sum(not (w <= x < w + a and w <= y < w + b) for x in range(a + 2 * w) for y in range(b + 2 * w)))
    minutes_one, minutes_two = found
    return 1 / (Fraction(1, minutes_one) + Fraction(1, minutes_two))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("bus_seats", r"^(\d+) classes of (\d+) pupils and (\d+) .* (\d+) seats"),
        ("round_robin", r"tournament (\d+) players .* (\d+) games are over.* (\d+) minutes and"),
        ("heads_and_legs", r"have (\d+) heads and (\d+) legs"),
        ("garden_path", r"measures (\d+) by (\d+) meters.* (\d+) meters wide"),
        ("work_together", r" in (\d+) minutes, \w+ needs (\d+) minutes"),
    ],
)
def test_answers_by_brute_force(name: str, order: str) -> None:
    """Read the numbers back out of the question text and solve it another way: text and answer must belong together."""
    seen = 0
    for attempt in range(60):
        raw = TEMPLATES[name](Draw(random.Random(attempt)))
        match = re.search(order, raw.question)
        if match:
            seen += 1
            assert _brute(name, [int(v) for v in match.groups()]) == raw.answer, raw.question
    assert seen >= 10


def test_distinct_questions_and_ids() -> None:
    """A repeated question would count twice in a result."""
    problems = generate(3000, seed=2)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 3000


def test_deterministic_and_extending() -> None:
    """The same seed gives the same problems and a longer set starts with the shorter one, so results can be compared."""
    assert generate(70, seed=9)[:30] == generate(30, seed=9)
    assert {p.question for p in generate(60, seed=9)}.isdisjoint(p.question for p in generate(60, seed=10))


def test_known_problems() -> None:
    """Pin one problem of every template: a difference between Python versions or platforms, or an unnoticed rewording, shows here."""
    problems = generate(len(TEMPLATES), seed=0)
    assert (problems[0].id, problems[0].template, problems[0].answer) == ("wordproblems/0-00000", "cubes_in_box", "18")
    digest = hashlib.sha256(repr([(p.question, p.solution) for p in problems]).encode()).hexdigest()
    assert digest.startswith("e3bc424c63b5c241")


@pytest.mark.parametrize("n", [-1, -100])
def test_negative_count(n: int) -> None:
    """A negative count is a mistake of the caller, not an empty set."""
    with pytest.raises(HarnessError):
        generate(n)


def test_exhausted_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that can make nothing new must end in an error instead of repeating a question."""
    name = next(iter(TEMPLATES))
    fixed = TEMPLATES[name](Draw(random.Random(0)))
    monkeypatch.setattr("harness.datasets.wordproblems.TEMPLATES", {name: lambda d: fixed})
    assert len(generate(1)) == 1
    with pytest.raises(HarnessError):
        generate(2)


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.sampled_from(list(TEMPLATES)))
def test_any_seed_makes_a_valid_problem(seed: int, name: str) -> None:
    """No seed may crash a template or give a number that cannot be written as a short decimal."""
    raw = TEMPLATES[name](Draw(random.Random(seed)))
    assert re.fullmatch(r"\d+(\.\d{1,3})?", number(raw.answer))
    fill_steps(raw.solution)


def test_number_formats() -> None:
    """Answers are compared as text by scorers, so the format of numbers is fixed."""
    assert [number(v) for v in (12, Fraction(15, 2), Fraction(1, 8), 100)] == ["12", "7.5", "0.125", "100"]
    assert [money(v) for v in (4, Fraction(9, 2), Fraction(1, 4))] == ["$4", "$4.50", "$0.25"]
    with pytest.raises(ValueError, match="no decimal number"):
        number(Fraction(1, 3))


def test_values_are_plain_arithmetic() -> None:
    """The evaluator knows numbers, four operators and parentheses, nothing else."""
    assert value_of("2 * (3 + 0.5) - 7 / 4") == Fraction(21, 4)
    with pytest.raises(ValueError, match="plain arithmetic"):
        value_of("abs(3)")
