"""Failure cases: generations the draft predicted badly, kept as training material in an append-only JSONL file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core import journal
from harness.core.counts import quotient
from harness.core.errors import HarnessError
from harness.core.files import typed
from harness.core.machine import utc_now
from harness.core.records import Generation, Sample, to_dict

CONTEXT_TOKENS = 16
"""Tokens kept before a disagreement."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One position where the draft proposed another token than the target emitted."""

    position: int
    """Index into ``Case.output_tokens``."""
    draft_token: int
    """What the draft proposed (target vocabulary)."""
    target_token: int
    """What the target emitted."""
    draft_p: float | None
    """Draft probability of its own proposal; None for drafters without one."""
    target_p: float | None
    """Target probability of the emitted token; None where it was not recorded."""
    context_tokens: tuple[int, ...]
    """Up to 16 token ids before the position, prompt included."""
    top_tokens: tuple[int, ...] = ()
    """Top-k target token ids at the position."""
    top_logprobs: tuple[float, ...] = ()
    """Their log p."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One generation as training material: a failure case, or an accepted case in the replay buffer.

    One that was replayed refers to its trajectory by ``sample_id`` and ``output_tokens``: the target's probabilities stay there.
    """

    id: str
    """Hash of prompt, output, drafter and round: the same generation is stored once."""
    sample_id: str
    """``Sample.id``."""
    domain: str
    """``Sample.domain``."""
    prompt: str
    """The user turn."""
    prompt_tokens: tuple[int, ...]
    """Prompt ids, chat template applied."""
    output_tokens: tuple[int, ...]
    """Ids the target emitted."""
    accepted: int
    """Draft tokens emitted."""
    drafted: int
    """Draft tokens verified."""
    rejected: int
    """Rounds ended by a rejection."""
    timestamp: str
    """ISO 8601, UTC."""
    drafter: str
    """Drafter that ran."""
    round: int = 0
    """Training round the draft came from; 0 is the untrained one."""
    synthetic: bool = False
    """True when the target wrote the prompt."""
    split: str = "train"
    """``Sample.split``; cases of ``test`` are kept for analysis and never trained on."""
    disagreements: tuple[Disagreement, ...] = ()
    """Where the draft was wrong."""

    @property
    def rate(self) -> float | None:
        """Draft acceptance rate, accepted / drafted; None when nothing was drafted."""
        return quotient(self.accepted, self.drafted)


def is_failure(case: Case, threshold: float) -> bool:
    """True when the acceptance rate is known and below the threshold."""
    return case.rate is not None and case.rate < threshold


def case_id(prompt_tokens: Sequence[int], output_tokens: Sequence[int], drafter: str, round_: int) -> str:
    """Return a 16-digit hash that names the generation."""
    text = f"{list(prompt_tokens)}|{list(output_tokens)}|{drafter}|{round_}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def case_from_generation(sample: Sample, prompt_tokens: Sequence[int], generation: Generation, *, round_: int = 0, now: str = "") -> Case:
    """Build a case from a detailed generation.

    Raises:
        HarnessError: the generation has no per-position details or was not drafted.
    """
    if generation.positions is None or generation.drafter is None:
        raise HarnessError("only a drafted generation in detailed mode can become a case", "Generate with detailed=True and a drafter.")
    sequence = (*prompt_tokens, *generation.tokens)
    start = len(prompt_tokens)
    disagreements = tuple(
        Disagreement(
            position=p.position,
            draft_token=p.draft_token,
            target_token=p.target_token,
            draft_p=p.draft_p,
            target_p=p.target_p,
            context_tokens=tuple(sequence[max(0, start + p.position - CONTEXT_TOKENS) : start + p.position]),
            top_tokens=p.top_tokens,
            top_logprobs=p.top_logprobs,
        )
        for p in generation.positions
        if not p.agrees
    )
    return Case(
        id=case_id(prompt_tokens, generation.tokens, generation.drafter, round_),
        sample_id=sample.id,
        domain=sample.domain,
        prompt=sample.prompt,
        prompt_tokens=tuple(prompt_tokens),
        output_tokens=generation.tokens,
        accepted=generation.accepted,
        drafted=generation.drafted,
        rejected=generation.rejected,
        timestamp=now or utc_now(),
        drafter=generation.drafter,
        round=round_,
        synthetic=sample.source == "synthetic",
        split=sample.split,
        disagreements=disagreements,
    )


def case_to_dict(case: Case) -> dict[str, Any]:
    """Return the case as JSON types."""
    return to_dict(case)


def case_from_dict(row: dict[str, Any], where: str = "a case") -> Case:
    """Rebuild a case from :func:`case_to_dict` output.

    Raises:
        HarnessError: a field is missing, unknown or of another type; ``where`` begins the sentence.
    """
    row = {key: value for key, value in row.items() if key not in ("top_tokens", "top_logprobs")}  # of earlier versions
    case: Case = typed(Case, row, where, advice="Delete that line.")
    return case


class FailureStore:
    """Failure cases in one JSONL file, oldest first. Opening repairs a torn tail; a case is stored once.

    Args:
        path: the file; created on the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.repaired_bytes = journal.repair_tail(self.path)
        self._ids = {str(row.get("id")) for row in journal.read(self.path)}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Case]:
        for number, row in enumerate(journal.read(self.path), start=1):
            yield case_from_dict(row, f"{self.path}:{number}")

    def append(self, case: Case) -> bool:
        """Store the case on disk before returning; False when it is there already."""
        if case.id in self._ids:
            return False
        journal.append(self.path, [case_to_dict(case)])
        self._ids.add(case.id)
        return True

    def cases(self, *, domain: str | None = None, round_: int | None = None) -> list[Case]:
        """Return the cases of a domain and a round (None: all)."""
        return [c for c in self if (domain is None or c.domain == domain) and (round_ is None or c.round == round_)]
