"""Keep what a run's ids stand for: prompts, and the text of every distinct answer, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.core.records import Record, Sample
from harness.decode.pieces import TextPieces
from harness.results.texts import MOST, Texts, answer_key, write_texts


def keep_texts(folder: Path, samples: Sequence[Sample], records: Iterable[Record], decode: Callable[[Any], str]) -> None:
    """Write ``texts.json`` of a run.

    Args:
        folder: of the run.
        samples: its prompts; those beyond the first :data:`harness.results.texts.MOST` are left out.
        records: its records; sampled answers are left out where there are greedy ones.
        decode: token ids to text.
    """
    prompts = {sample.id: sample.prompt for sample in samples[:MOST]}
    answers = [r for r in records if r.tokens and r.sample_id in prompts]
    lowest = min((r.temperature for r in answers), default=0.0)
    distinct = {answer_key(r.tokens or ()): r.tokens or () for r in answers if r.temperature == lowest}
    write_texts(folder, Texts(prompts=prompts, answers={key: _pieces(tokens, decode) for key, tokens in distinct.items()}))


def _pieces(tokens: Sequence[int], decode: Callable[[Any], str]) -> tuple[str, ...]:
    """What each token adds to the text; what an incomplete last character would be goes to the last token."""
    pieces = TextPieces(decode)
    found = [pieces.add(token) for token in tokens]
    return (*found[:-1], found[-1] + pieces.rest())
