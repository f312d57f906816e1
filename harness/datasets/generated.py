"""Generated word problems: the project's own templates, and ``gsm_symbolic`` of the optional package reasoning-gym."""

from __future__ import annotations

import importlib.util

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets.spec import Dataset, DatasetSpec
from harness.datasets.splits import GROUP_KEY, assign_splits
from harness.datasets.table import from_rows

DEFAULT_SIZE = 1000
"""Problems generated when ``size`` is absent."""
_INSTRUCTION = "Solve the problem step by step. End with one line: The answer is <number>."


def ask(question: str) -> str:
    """Return the user prompt for one word problem."""
    return f"{question.strip()}\n\n{_INSTRUCTION}"


def load(spec: DatasetSpec, seed: int, offline: bool) -> list[Sample]:
    """Return ``spec.size`` problems; ``reference`` has ``answer`` and ``template``, so that no template is in two splits.

    Raises:
        HarnessError: the optional package is not installed.
    """
    size = spec.size or DEFAULT_SIZE
    rows = _own(size, seed) if spec.dataset == "wordproblems" else _symbolic(size, seed)
    return assign_splits(
        [
            Sample(
                id=f"{spec.dataset}/{row['id']}",
                domain="math",
                prompt=ask(row["question"]),
                reference={key: row[key] for key in ("answer", "solution", GROUP_KEY) if row[key]},
                source=spec.dataset,
            )
            for row in from_rows(rows)
        ]
    )


def _own(size: int, seed: int) -> list[dict[str, str]]:
    from harness.datasets.wordproblems import generate

    return [
        {
            "id": problem.id.rpartition("/")[2],
            "question": problem.question,
            "solution": problem.solution,
            "answer": str(problem.answer),
            GROUP_KEY: str(problem.template),
        }
        for problem in generate(size, seed)
    ]


def _symbolic(size: int, seed: int) -> list[dict[str, str]]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise _missing() from error
    items = reasoning_gym.create_dataset("gsm_symbolic", size=size, seed=seed)
    return [
        {
            "id": f"{seed}-{i}",
            "question": item["question"],
            "solution": "",
            "answer": str(item["answer"]),
            GROUP_KEY: str(item["metadata"].get("source_index", "")),
        }
        for i, item in enumerate(items)
    ]


def _missing() -> HarnessError:
    return HarnessError("dataset gsm_symbolic needs the package reasoning-gym", "Run `pip install 'specdraft-harness[reasoning-gym]'`.")


def _check_symbolic(spec: DatasetSpec, domain: str | None) -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise _missing()


WORDPROBLEMS = Dataset(domain="math", load=load, takes={"size": False})
GSM_SYMBOLIC = Dataset(domain="math", load=load, check=_check_symbolic, takes={"size": False})
