"""Chat has no right answer: compare an output with the target's own, in tokens or in words."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from harness.scoring.result import Score, unscored


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How an output relates to the target's output for the same prompt."""

    equal: bool
    """True when every item is the same: what a lossless greedy cell must show."""
    length: int
    """Items of the output."""
    target_length: int
    """Items of the target's output."""
    common_prefix: int
    """Items before the first difference."""
    overlap: float
    """Share of items in common subsequences, 0 to 1: 2 x matched / (length + target_length); 1 when both are empty."""


def agreement(output: Sequence[Hashable], target: Sequence[Hashable]) -> Agreement:
    """Compare two sequences of tokens or words."""
    pairs = zip(output, target, strict=False)
    shorter = min(len(output), len(target))
    prefix = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)
    return Agreement(
        equal=len(output) == len(target) == prefix,
        length=len(output),
        target_length=len(target),
        common_prefix=prefix,
        overlap=difflib.SequenceMatcher(None, list(output), list(target), autojunk=False).ratio(),
    )


def score_agreement(text: str, target_text: str | None) -> Score:
    """Overlap in words with the target's answer; only the length is known without one."""
    words = text.split()
    if target_text is None:
        return unscored("agreement", "no answer of the target to compare with", words=len(words))
    result = agreement(words, target_text.split())
    return Score(
        metric="agreement",
        status="passed" if text == target_text else "failed",
        value=result.overlap,
        reason="" if text == target_text else f"differs from the target after {result.common_prefix} words",
        details={"words": result.length, "target_words": result.target_length, "common_prefix_words": result.common_prefix},
    )
