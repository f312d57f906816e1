"""Every prompt in the best cell, the slowest first; the page shows its text and who proposed which token of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.records import Record
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import MISSING, Table, Text, number
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
    return Text(prompt or MISSING, _by_proposer(pieces, record.accept_lengths))


def _by_proposer(pieces: Sequence[str], accept_lengths: Sequence[int]) -> tuple[tuple[str, bool], ...]:
    """Stretches of an answer, each with whether the draft proposed it: a round emits what was accepted, then a token of the target."""
    drafted = [by_draft for accepted in accept_lengths for by_draft in (*[True] * accepted, False)]
    found: list[tuple[str, bool]] = []
    for piece, by_draft in zip(pieces, drafted, strict=False):
        if found and found[-1][1] == by_draft and by_draft:
            found[-1] = (found[-1][0] + piece, by_draft)
        else:
            found.append((piece, by_draft))
    return tuple(found)


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """None."""
    return []
