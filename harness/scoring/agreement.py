"""Chat has no right answer: compare an output with the target's own, in tokens or in words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from harness.scoring.result import Score, unscored
from harness.scoring.thinking import final_part


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
    """ROUGE-L, 0 to 1: 2 x longest common subsequence / (length + target_length); 1 when both are empty."""


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
        overlap=2 * _common(output, target) / (len(output) + len(target)) if output or target else 1.0,
    )


def _common(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, one row at a time as the bits of one integer (Crochemore et al. 2001)."""
    places: dict[Hashable, int] = {}
    for at, item in enumerate(theirs):
        places[item] = places.get(item, 0) | 1 << at
    row = every = (1 << len(theirs)) - 1
    for item in ours:
        matches = row & places.get(item, 0)
        row = (row + matches | row - matches) & every
    return (row ^ every).bit_count()


def score_agreement(text: str, target_text: str | None) -> Score:
    """Overlap in words with the target's answer, what both thought before left out; only the length is known without one."""
    if target_text is None:
        return unscored("agreement", "no answer of the target to compare with", words=len(text.split()))
    ours, theirs = final_part(text), final_part(target_text)
    if not theirs.strip():  # it was cut off while it thought
        ours, theirs = text, target_text
    result = agreement(ours.split(), theirs.split())
    return Score(
        metric="agreement",
        status="passed" if ours == theirs else "failed",
        value=result.overlap,
        reason="" if ours == theirs else f"differs from the target after {result.common_prefix} words",
        details={"words": result.length, "target_words": result.target_length, "common_prefix_words": result.common_prefix},
    )
