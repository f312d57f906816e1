"""Every prompt in the best cell, the slowest first; the page shows its text and who proposed which token of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from harness.core.records import Record
from harness.core.round_sources import LOOKED_UP, expanded
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import COLOURED, MISSING, Table, Text, number
from harness.results.summary import row_cells
from harness.results.texts import answer_key

TITLE = "Prompts"
MOST = 200
"""More prompts than this are not listed: the slowest are."""


def tables(run: Run) -> list[Table]:
    """Speedup and acceptance of the best cell on each prompt."""
    best = run.best_row
    if best is None:
        return []
    prompts = sorted(best.prompts, key=lambda p: (p.speedup is None, p.speedup or 0.0, p.rate or 0.0))[:MOST]
    rows = tuple((p.sample_id, p.domain, number(p.speedup, 2, "x"), number(p.rate), number(p.tau, 2), f"{p.emitted:.0f}") for p in prompts)
    own = run.groups.of(row_cells(run.groups)[best.cell], tokens=True)
    records = {r.sample_id: r for r in reversed(own)}
    alone = [cell for cell in run.groups.cells if cell.drafter is None and cell.temperature == 0]
    plain = {r.sample_id: r for r in reversed(run.groups.of(alone, tokens=True)) if r.tokens}
    texts = tuple(_text(run, records[p.sample_id], plain.get(p.sample_id)) for p in prompts)
    title = f"Every prompt: {run.recommendation.best.name}" if run.recommendation.best else TITLE
    return [Table(title, ("prompt", "domain", "speedup", "rate", "tau", "tokens"), rows, 2, texts=texts, open=True)]


def _text(run: Run, record: Record, plain: Record | None) -> Text | None:
    """Prompt and answer; a replayed cell's answer is the target's own."""
    tokens = record.tokens or (plain.tokens if plain and plain.emitted == record.emitted else None) or ()
    pieces = run.texts.answers.get(answer_key(tokens), ())
    prompt = run.texts.prompts.get(record.sample_id)
    if prompt is None and not pieces:
        return None
    return Text(prompt or MISSING, _by_proposer(pieces, record))


def _by_proposer(pieces: Sequence[str], record: Record) -> tuple[tuple[str, str], ...]:
    """Stretches of an answer, each with who proposed it: a round emits what was accepted, then a token of the target."""
    sources = record.sources or (record.drafter or "",) * len(record.accept_lengths)
    rounds = zip(sources, record.accept_lengths, strict=False)
    proposers = [name for source, accepted in rounds for name in (*map(_shown_as, expanded(source, accepted)), "")]
    runs = groupby(zip(pieces, proposers, strict=False), key=itemgetter(1))
    return tuple(("".join(piece for piece, _ in run), name) for name, run in runs)


def _shown_as(source: str) -> str:
    """One of the colours of the page for a source: what is neither copied nor remembered is a draft's."""
    source = LOOKED_UP.get(source, source)
    return source if source in COLOURED else "draft"


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """None."""
    return []
