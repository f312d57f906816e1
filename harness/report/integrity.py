"""What a run's manifest and records must say about each other, whoever wrote them: its suite, its plan, its tokens, its scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from harness.core.cell import record_key
from harness.core.records import Record, Sample, Score
from harness.results.manifest import Manifest
from harness.suite.plan import foreign, recorded_plan
from harness.suite.suite import recorded_suite, resolved_hash


def contradictions(manifest: Manifest, records: Sequence[Record]) -> list[str]:
    """Everything in the records that the manifest or another record belies, a line each.

    Raises:
        HarnessError: the manifest's suite is none of this version.
    """
    suite = recorded_suite(manifest.suite)
    facts = {
        "suite_hash is not its suite's": manifest.suite_hash != resolved_hash(manifest.suite),
        "seeds are not its suite's": manifest.seeds != (suite.seed,),
        "code.hash is no SHA-256": not re.fullmatch("[0-9a-f]{64}", str(manifest.code.get("hash"))),
        "models.target or models.dtype is missing": not all(manifest.models.get(name) for name in ("target", "dtype")),
        "started is no time": not _is_time(manifest.started),
    }
    longest = max(record.emitted for record in records)
    found = [f"the manifest's {fact}" for fact, wrong in facts.items() if wrong]
    found += [f"an answer has {longest} tokens, the suite allows {suite.max_tokens}"] if longest > suite.max_tokens else []
    return [*found, *_against_plan(manifest, records), *_against_baselines(records), *_against_each_other(records)]


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _against_plan(manifest: Manifest, records: Sequence[Record]) -> Iterator[str]:
    """Records that the run cannot have made, and records that a finished run must have."""
    domains = {record.sample_id: record.domain for record in reversed(records)}
    plan = recorded_plan(manifest, [Sample(id=sample, domain=domain, prompt="") for sample, domain in domains.items()])
    keys = {record_key(record) for record in records}
    yield from foreign(plan, map(record_key, records))
    missing = [job for key, job in plan.jobs.items() if key not in keys]
    if missing and manifest.finished:
        yield f"{len(missing)} records of a finished run are missing, such as {missing[0].sample.id} in {missing[0].cell.experiment}"
    if manifest.prompts:
        yield from (f"{sample} is none of the run's prompts" for sample in domains if sample not in manifest.prompts)
        unused = [sample for sample in manifest.prompts if sample not in domains]
        if unused and manifest.finished:
            yield f"{len(unused)} prompts of a finished run have no record, such as {unused[0]}"


def _against_baselines(records: Sequence[Record]) -> Iterator[str]:
    """What an answer says of itself beside the target's own tokens."""
    own: dict[str, Record] = {}
    for record in records:
        if record.drafter is None and record.temperature == 0 and record.method == "decode":
            own.setdefault(record.sample_id, record)
    answers = {(record.sample_id, record.temperature): record for record in records if record.method == "answer"}
    for record in records:
        name, base = _name(record), own.get(record.sample_id)
        if record.method == "answer":
            continue
        if record.method == "replay":
            base = answers.get((record.sample_id, record.temperature), None if record.temperature else base)
            if base is None or (record.emitted, record.finish) != (base.emitted, base.finish):
                yield f"{name} was not replayed from the target's own answer"
            continue
        if record.tokens is None or record.wall_s is None:
            yield f"{name} was decoded, but has no tokens or no wall_s"
            continue
        comparable = record.drafter is not None and record.temperature == 0 and not record.lossy and base is not None
        if record.compared != comparable:
            yield f"{name} says compared {record.compared}, which is {comparable}"
        if comparable and base is not None:
            at = first_difference(base.tokens or (), record.tokens)
            said = record.divergence.position if record.divergence else None
            if at != said:
                yield f"{name} first differs from the target's own tokens at {at}, the record says {said}"
            if at is None and record.finish != base.finish:
                yield f"{name} ended by {record.finish}, the same tokens of the target by {base.finish}"


def first_difference(a: Sequence[Any], b: Sequence[Any]) -> int | None:
    """Index of the first item that differs, the shorter length where one begins the other, None when equal."""
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _against_each_other(records: Sequence[Record]) -> Iterator[str]:
    """One prompt has one length, one answer one score."""
    lengths: dict[str, int] = {}
    scores: dict[Any, Score] = {}
    for record in records:
        if lengths.setdefault(record.sample_id, record.prompt_tokens) != record.prompt_tokens:
            yield f"{_name(record)} has {record.prompt_tokens} prompt tokens, another record of the prompt {lengths[record.sample_id]}"
        score = record.score
        if score and scores.setdefault((record.sample_id, record.tokens), score) != score:
            yield f"{_name(record)} scored otherwise than the same answer elsewhere"


def _name(record: Record) -> str:
    return f"{record.sample_id} in {record.experiment} {record.drafter or 'target only'} k={record.k}"
