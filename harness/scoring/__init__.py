"""Scores of answers: HumanEval in a sandbox, GSM8K by final number, chat by agreement with the target."""

from __future__ import annotations

from harness.records import Sample
from harness.scoring.agreement import Agreement, agreement, score_agreement
from harness.scoring.box import Limits
from harness.scoring.gsm8k import final_number, score_number
from harness.scoring.humaneval import KEYS, score_code
from harness.scoring.result import Score
from harness.scoring.sandbox import SandboxStatus, require_sandbox, sandbox_status

__all__ = [
    "Agreement",
    "Limits",
    "SandboxStatus",
    "Score",
    "agreement",
    "final_number",
    "require_sandbox",
    "sandbox_status",
    "score",
]


def score(sample: Sample, text: str, *, target_text: str | None = None, limits: Limits | None = None, unsafe: bool = False) -> Score:
    """Score one answer to ``sample``. Its reference decides how: tests to run, an ``answer`` with a number, or else agreement.

    Args:
        sample: the prompt and what its scorer needs.
        text: the detokenised answer.
        target_text: the target's own answer, for samples that have no right one.
        limits: what a program may use; the defaults suit HumanEval.
        unsafe: run programs without a sandbox where none works. Without it such answers are ``unscored`` and nothing is run;
            :func:`require_sandbox` tells before the work starts.
    """
    reference = sample.reference or {}
    if all(key in reference for key in KEYS):
        return score_code(reference, text, limits=limits, unsafe=unsafe)
    if "answer" in reference:
        return score_number(reference["answer"], text)
    return score_agreement(text, target_text)
