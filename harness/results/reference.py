"""What the regression gate compares: a run's identity and, per cell and prompt, counts, answers and scores; as a file, a reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.core.cell import cell_of, from_key
from harness.core.counts import COUNTS, Rates
from harness.core.drafter_kinds import find_kind
from harness.core.errors import HarnessError
from harness.core.files import read_json, typed, write_atomic
from harness.core.records import Record
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.results.speedup import Baselines, Pair, base_key, baselines, pair_of
from harness.results.summary import longest_draft

REFERENCE_VERSION = 4
"""Version of the files written here."""
TIMES = ("base_s", "base_tokens", "cell_s", "cell_tokens")
HARDWARE = ("processor", "machine", "system", "cores", "device", "blas")


class _Model(BaseModel):
    """Nothing unknown, nothing converted, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Count = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)] | None
Ties = Annotated[int, Field(ge=0)] | None


class Answer(_Model, Rates):
    """One prompt in one cell."""

    rounds: Count
    drafted: Count
    accepted: Count
    rejected: Count
    emitted: Count
    longest: Annotated[int, Field(ge=0)]
    """Tokens that a round can draft."""
    near_ties: Ties = None
    """Positions where the draft's favourite may differ on another machine; None where nothing says."""
    output: str | None = None
    """Hash of the emitted tokens; of the target's, where the counts were replayed from them."""
    bugs: Annotated[int, Field(ge=0)] = 0
    """Greedy answers that are not the target's own, and no near-tie explains it."""
    score: float | None = None
    """Mean score; None unless every answer was scored."""
    base_s: Positive = None
    """Seconds of the target alone, over the answers that a speedup compares."""
    base_tokens: Positive = None
    cell_s: Positive = None
    """Seconds of this cell."""
    cell_tokens: Positive = None

    @model_validator(mode="after")
    def _possible(self) -> Answer:
        slack = 1e-6  # expected counts of a sampled replay are no whole numbers
        fits = self.accepted <= min(self.drafted, self.emitted) + slack and self.rejected - slack <= self.rounds <= self.emitted + slack
        if not fits:
            raise ValueError("counts contradict each other")
        times = [getattr(self, name) for name in TIMES]
        if any(times) and None in times:
            raise ValueError("a time is missing")
        return self

    @property
    def pair(self) -> Pair | None:
        """What the speedup reads; None where the cell has no clock."""
        values = (self.base_s, self.base_tokens, self.cell_s, self.cell_tokens)
        return None if None in values else values  # type: ignore[return-value]

    @property
    def counts(self) -> tuple[float, ...]:
        """What an exact comparison reads."""
        return tuple(getattr(self, name) for name in COUNTS)


class Prompt(_Model):
    """What stands behind a sample's id."""

    hash: Annotated[str, Field(min_length=8)]
    """Hash of its token ids and its reference answer."""
    ties: Ties = None
    """Positions where the target's own favourite may differ on another machine; None where nothing says."""


Cells = dict[str, dict[str, Answer]]
"""Cell key to sample id to answer."""


class Reference(_Model):
    """A run as the gate reads it."""

    reference_version: Literal[4] = 4
    run: str
    started: str
    pair: str
    suite_hash: str
    questions_hash: str
    """Of the suite without its models: what a candidate is asked too."""
    models: dict[str, str | None]
    machine: dict[str, Any]
    packages: dict[str, str]
    code: dict[str, Any]
    prompts: dict[str, Prompt]
    spot_checks: dict[str, str]
    """Drafter to what decoding one of its replayed answers showed; empty where the counts are equal or a near-tie explains them."""
    cells: Annotated[Cells, Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Reference:
        for key, answers in self.cells.items():
            name = from_key(key)
            if not answers:
                raise ValueError(f"{name} has no prompts")
            for sample, answer in answers.items():
                if sample not in self.prompts:
                    raise ValueError(f"nothing says what prompt {sample!r} is")
                if name.method in ("decode", "answer") and not name.lossy and name.temperature == 0 and answer.output is None:
                    raise ValueError(f"{name} has no output of {sample!r}")
        return self


def make_reference(folder: Path) -> Reference:
    """What a finished run is compared by.

    Raises:
        HarnessError: the run is not finished, cannot be read, or holds what cannot be.
    """
    manifest = read_manifest(folder)
    if manifest.measured.status != "finished":
        raise HarnessError(f"run {manifest.run} is not finished", f"Finish it with --resume {manifest.run}.")
    ties = manifest.measured.target_ties
    machine = manifest.measured.machines.get(manifest.measured.reference_machine or "", manifest.machine)
    try:
        return Reference(
            run=manifest.run, started=manifest.started, pair=manifest.pair, suite_hash=manifest.suite_hash,
            questions_hash=_questions_hash(manifest.suite), models=dict(manifest.models),
            machine={name: machine.get(name) for name in HARDWARE}, packages=dict(manifest.packages), code=dict(manifest.code),
            prompts={sample: Prompt(hash=text, ties=ties.get(sample)) for sample, text in manifest.prompts.items()},
            spot_checks=_spot_checks(manifest.measured.spot_checks),
            cells=cells_of(read_records(folder), manifest.measured.reference_machine),
        )  # fmt: skip
    except ValidationError as error:
        raise HarnessError(f"run {manifest.run} cannot be compared: {_first(error)}", "Restore the run, or run the suite again.") from None


def _questions_hash(suite: Mapping[str, Any]) -> str:
    asked = {name: value for name, value in suite.items() if name not in ("models", "description") and value is not None}
    asked["domains"] = {name: {key: v for key, v in spec.items() if key != "path"} for name, spec in suite.get("domains", {}).items()}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _spot_checks(checks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for check in checks:
        wrong = not check["equal"] and not check["near_ties"]
        text = f"replay and decoding differ on {check['sample_id']}, K = {check['k']}" if wrong else ""
        found[str(check["drafter"])] = found.get(str(check["drafter"])) or text
    return found


def write_reference(folder: Path, path: Path) -> None:
    """Write the reference of a finished run, one line per cell and prompt.

    Raises:
        HarnessError: as :func:`make_reference`, or the file cannot be written.
    """
    data = make_reference(folder).model_dump(exclude_defaults=True) | {"reference_version": REFERENCE_VERSION}
    try:
        write_atomic(path, _text(data, depth=3) + "\n")
    except OSError as error:
        raise HarnessError(f"cannot write {path}: {error.strerror or error}", "Choose a file that can be written.") from error


def read_reference(path: Path) -> Reference:
    """Read a reference file.

    Raises:
        HarnessError: missing, damaged, with an impossible value, or of another version.
    """
    advice = "Restore the file, or write one from a run you trust: harness check RUN --against FILE --update."
    data = read_json(path, advice=advice)
    version = data.get("reference_version")
    if version != REFERENCE_VERSION:
        newer = isinstance(version, int) and version > REFERENCE_VERSION
        what = f"version {version}, this program reads {REFERENCE_VERSION}" if newer else "written by an older version"
        advice = "Upgrade the harness: pip install -U specdraft-harness." if newer else advice
        raise HarnessError(f"{path} is no reference that can be used: {what}", advice)
    reference: Reference = typed(Reference, data, str(path), advice=advice)
    return reference


def cells_of(records: Iterable[Record], machine: str | None = None) -> Cells:
    """Answers of every cell, paired with the target's own where there is one; times of one kind of machine where several are in a run.

    Raises:
        HarnessError: counts that contradict each other.
    """
    records = list(records)
    base, answers = baselines(records), {base_key(r): r for r in records if r.method == "answer"}
    groups: dict[str, dict[str, list[Record]]] = {}
    for r in records:
        groups.setdefault(cell_of(r).key, {}).setdefault(r.sample_id, []).append(r)
    cells: Cells = {}
    for key, samples in groups.items():
        for sample, own in samples.items():
            try:
                cells.setdefault(key, {})[sample] = _answer(own, base, answers, machine)
            except ValidationError as error:
                problem = f"the records of {sample} in {from_key(key)} are impossible: {_first(error)}"
                raise HarnessError(problem, "Restore records.jsonl from a copy, or run the suite again.") from None
    return cells


def _answer(records: Sequence[Record], base: Baselines, answers: Baselines, machine: str | None) -> Answer:
    """One prompt in one cell, over its seeds; times where they are of this kind of machine."""
    first = records[0]
    pairs = [(r, base.get(base_key(r))) for r in records]
    known: list[int | None] = [0 if (kind := find_kind(r.drafter)) is not None and kind.model_free else r.near_ties for r in records]
    sources = [answers.get(base_key(r), b) if r.method == "replay" else r for r, b in pairs]
    outputs = [source and source.tokens for source in sources]
    times: Any = pair_of([r for r in records if machine in (None, r.machine)], base) or (None,) * len(TIMES)
    return Answer(
        **{name: sum(float(getattr(r, name)) for r in records) for name in COUNTS},
        longest=longest_draft(records), near_ties=None if None in known else sum(n or 0 for n in known),
        output=None if None in outputs else hashlib.sha256(json.dumps(outputs).encode()).hexdigest()[:16],
        bugs=0 if first.temperature or first.lossy else sum(_is_bug(r, b) for r, b in pairs), score=_score(records),
        **dict(zip(TIMES, times, strict=True)),
    )  # fmt: skip


def _is_bug(r: Record, baseline: Record | None) -> bool:
    """Whether a lossless greedy answer is not the target's and no near-tie is recorded."""
    if r.divergence is not None:
        return r.divergence.kind == "bug"
    return bool(r.method == "decode" and baseline is not None and r.tokens != baseline.tokens)


def _score(records: Sequence[Record]) -> float | None:
    values = [r.score.value for r in records if r.score and r.score.value is not None]
    return float(sum(values) / len(values)) if len(values) == len(records) else None


def _first(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = " > ".join(map(str, first["loc"]))
    return f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}".splitlines()[0]


def _text(value: Any, depth: int, indent: str = "") -> str:
    """JSON with one line per item down to ``depth``, keys sorted."""
    if not depth or not isinstance(value, dict) or not value:
        return json.dumps(value, sort_keys=True)
    inner = indent + " "
    items = (f"{inner}{json.dumps(key)}: {_text(item, depth - 1, inner)}" for key, item in sorted(value.items()))
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
