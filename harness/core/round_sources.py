"""Who proposed the tokens of a round, as one text: a source's name, or ``memory:3,draft:1`` where several took turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

LOOKED_UP = {"copy": "lookup"}
"""Sources that are told, and cost, as another."""
MODEL = "draft"
"""The source that runs a model, whose steps count where it took turns with others."""


def joined(sources: Sequence[str]) -> str:
    """The text for a round whose tokens are of these sources, in order; empty for none."""
    runs = [(source, len(list(group))) for source, group in groupby(sources)]
    return ",".join(f"{source}:{n}" for source, n in runs) if len(runs) > 1 else "".join(source for source, _ in runs)


def expanded(text: str, tokens: int) -> list[str]:
    """The source of each of the ``tokens`` first tokens of a round; the inverse of :func:`joined`."""
    if ":" not in text:
        return [text] * tokens
    return [source for source, n in _runs(text) for _ in range(n)][:tokens]


def model_steps(text: str, drafted: int) -> int:
    """How many of a round's drafted tokens a model proposed."""
    return expanded(text, drafted).count(MODEL)


def tokens_of(text: str) -> int | None:
    """Number of tokens that a text with several sources names; None where one source proposed all there were."""
    return sum(n for _, n in _runs(text)) if ":" in text else None


def accepted_by(rounds: Iterable[tuple[str, int]]) -> Counter[str]:
    """Accepted tokens by who proposed them, of rounds as their sources and how many tokens were accepted; a copy is a lookup."""
    found: Counter[str] = Counter()
    for (text, accepted), times in Counter(rounds).items():
        for source in expanded(text, accepted):
            found[LOOKED_UP.get(source, source)] += times
    return found


def _runs(text: str) -> list[tuple[str, int]]:
    found = [run.rpartition(":") for run in text.split(",")]
    return [(source, int(n) if n.isdecimal() else 0) for source, _, n in found]
