"""Domain cues: how much a prompt looks like code, math or chat, from plain text patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

_MAX_CHARS = 4000

CUES: dict[str, re.Pattern[str]] = {
    "code": re.compile(
        r"```|\bdef \w+\(|\bclass \w+|\bimport \w+|\breturn\b|\bfunction\b|\bpython\b|\bjavascript\b|\bsql\b|\bcode\b|\balgorithm\b"
        r"|\bcompile|\bbug\b|\bregex\b|->|==|!=|\bdocstring\b|>>>|;\s*$|\{\s*$",
        re.IGNORECASE | re.MULTILINE,
    ),
    "math": re.compile(
        r"\bhow (?:many|much)\b|\bsolve\b|\bcalculate\b|\bequation\b|\bsum of\b|\bpercent|\btotal\b|\bprobability\b|\binteger\b|\bfraction"
        r"|\btwice\b|\beach\b|\$\s?\d|\d\s?%|\d\s?[-+*/×=^]\s?\d|\\frac|\bper (?:hour|day|week|month|year)\b",
        re.IGNORECASE,
    ),
    "chat": re.compile(
        r"\bplease\b|\bhello\b|\bhi\b|\bthanks?\b|\bwhat(?:'s| is| are)\b|\bexplain\b|\bdescribe\b|\btell me\b|\bwrite (?:a|an|me)\b"
        r"|\bstory\b|\bpoem\b|\bemail\b|\bopinion\b|\badvice\b|\brecommend|\bi(?:'m| am| feel| want)\b|\byour?\b",
        re.IGNORECASE,
    ),
}
"""One pattern per domain. Every alternative is bounded, so matching is linear in the text."""


def cue_scores(texts: Sequence[str]) -> np.ndarray:
    """(n, 3) float32 in [0, 1): 1 - exp(-hits / 2) over the first 4000 characters, columns in the order of ``CUES``."""
    rows = [[1 - math.exp(-len(p.findall(t[:_MAX_CHARS])) / 2) for p in CUES.values()] for t in texts]
    return np.array(rows, dtype=np.float32).reshape(len(texts), len(CUES))
