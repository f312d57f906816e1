"""HumanEval pass@1: hand the answer to the sandbox, which finds the code in it, completes the problem and serves the tests."""

from __future__ import annotations

from collections.abc import Mapping

from harness.scoring.box import Limits
from harness.scoring.execute import Program
from harness.scoring.result import Score, unscored, verdict
from harness.scoring.sandbox import run_program
from harness.scoring.thinking import final_part

KEYS = ("prompt", "test", "entry_point")
"""What ``Sample.reference`` must hold."""
MAX_ANSWER = 200_000
"""Characters of an answer that are looked at."""


def score_code(reference: Mapping[str, str], text: str, *, limits: Limits | None = None) -> Score:
    """Score ``text``, a chat answer or a raw completion, against the problem in ``reference`` (see :data:`KEYS`)."""
    answer = final_part(text)[:MAX_ANSWER]
    if not answer.strip():
        return verdict("pass@1", False, "the answer is empty")
    outcome = run_program(Program(source=answer, **{key: reference[key] for key in KEYS}), limits=limits)
    if outcome.status == "unscored":
        return unscored("pass@1", outcome.reason, sandbox=outcome.sandbox)
    return verdict("pass@1", outcome.status == "passed", outcome.reason, sandbox=outcome.sandbox)
