"""Scores of answers: HumanEval in a sandbox, GSM8K by final number, chat by agreement with the target."""

from __future__ import annotations

from collections.abc import Iterable

from harness.core.records import Sample
from harness.scoring.agreement import Agreement, agreement, score_agreement
from harness.scoring.box import Limits
from harness.scoring.code_tests import KEYS, score_code
from harness.scoring.final_number import final_number, score_number
from harness.scoring.result import Score
from harness.scoring.sandbox import SandboxStatus, sandbox_status

__all__ = [
    "Agreement",
    "Limits",
    "SandboxStatus",
    "Score",
    "agreement",
    "final_number",
    "sandbox_status",
    "score",
    "warning",
]


def score(sample: Sample, text: str, *, target_text: str | None = None, limits: Limits | None = None) -> Score:
    """Score one answer to ``sample``. Its reference decides how: tests to run, an ``answer`` with a number, or else agreement.

    Args:
        sample: the prompt and what its scorer needs.
        text: the detokenised answer.
        target_text: the target's own answer, for samples that have no right one.
        limits: what a program may use; the defaults suit HumanEval.

    Without a sandbox no program is run and code answers are ``unscored``; :func:`warning` tells before the work starts.
    """
    reference = sample.reference or {}
    if _is_code(sample):
        return score_code(reference, text, limits=limits)
    if "answer" in reference:
        return score_number(reference["answer"], text)
    return score_agreement(text, target_text)


def warning(samples: Iterable[Sample]) -> str:
    """What to tell before a run of ``samples`` starts: that code answers will not be scored, why and what to install; else nothing."""
    if not any(map(_is_code, samples)) or (status := sandbox_status()).available:
        return ""
    return f"code answers will be unscored, since no sandbox works here: {status.reason}"


def _is_code(sample: Sample) -> bool:
    return all(key in (sample.reference or {}) for key in KEYS)
