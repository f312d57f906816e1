"""What made this machine, or this run, less than ideal."""

from __future__ import annotations

from harness.core import stats
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Table

TITLE = "Warnings"


def tables(run: Run) -> list[Table]:
    """None."""
    return []


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """Warnings of the run and of its clocks, and what was left out."""
    measured = run.manifest.measured
    found = [f"Warning: {text}" for text in measured.warnings]
    found += [f"Warning: {text}." for text in stats.instability(measured.reference_s)]
    found += [f"Warning: {text}." for text in stats.slower_verification(measured.verification)]
    for name, facts in measured.workers.items():
        texts = [*stats.instability(facts["reference_s"]), *stats.slower_verification(facts["verification"])]
        found += [f"Warning: worker {name}: {text}." for text in texts]
    if measured.without_memory:
        found.append(f"Not run: {', '.join(measured.without_memory)}. The pair has no memory yet: `harness memory build`.")
    if (differs := run.manifest.models.get("translated")) is not None:
        found.append(f"The draft is translated: it has another tokenizer, and its text is put into the target's tokens ({differs}).")
    if (most := run.manifest.models.get("draft_context")) is not None:
        found.append(f"The draft reads the last {most} tokens of a longer prompt.")
    if measured.without_draft is not None:
        found.append(f"Not run: everything that needs a draft model. The target went on alone: {measured.without_draft}.")
    if measured.skipped:
        found.append(f"Not run: {', '.join(measured.skipped)}. mlx-lm's loop needs a draft with the target's whole vocabulary.")
    return found
