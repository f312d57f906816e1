"""Scores of the answers: what is lossless scores like the target."""

from __future__ import annotations

from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import MISSING, Column, Table, cell_table, interval, name_in_words, number, timed_rows
from harness.results.summary import ALL

TITLE = "Quality"


def tables(run: Run) -> list[Table]:
    """Scores per cell."""
    shown = [row for row in timed_rows(run.shown) if row.quality and row.domain != ALL]
    columns: list[Column] = [
        ("metric", lambda r: r.quality.metric if r.quality else MISSING),
        ("score [95%]", lambda r: interval(r.quality.score if r.quality else None)),
        ("scored", lambda r: str(r.quality.scored if r.quality else 0)),
        ("unscored", lambda r: str(r.quality.unscored if r.quality else 0)),
        ("cut at the token limit", lambda r: str(r.quality.cut if r.quality else 0)),
    ]
    return [cell_table(TITLE, shown, columns)]


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """The target's score on each domain, and who scored otherwise."""
    found = []
    for domain in dict.fromkeys(row.domain for row in run.own):
        scored = [row for row in run.own if row.domain == domain and row.quality and row.quality.mean is not None and row.temperature == 0]
        base = next((row for row in scored if row.drafter is None), None)
        others = [row for row in scored if row.drafter is not None and not row.lossy]
        if base is None or base.quality is None or not others or base.quality.metric == "agreement":
            continue
        different = [row for row in others if row.quality and row.quality.mean != base.quality.mean]
        score = f"{base.quality.metric} on {domain} is {interval(base.quality.score)} for the target alone"
        if different:
            named = "; ".join(f"{name_in_words(row)} {number(row.quality.mean if row.quality else None)}" for row in different)
            found.append(f"{score} and differs for {named}.")
        else:
            found.append(f"{score} and for every lossless cell.")
        if base.quality.cut:
            cut = f"{base.quality.cut} of {base.quality.scored}"
            found[-1] += f" {cut} answers were cut at the token limit: raise max_tokens to judge quality."
    return found
