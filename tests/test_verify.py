"""``report --verify`` says yes to what a run wrote and to nothing else: every injected fault is found, repaired checksums or not."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.core.errors import CheckFailed, HarnessError
from harness.report import load_run, report_texts, write_reports
from harness.report.verify import differences, verify
from harness.run.runner import reports_folder

ROOT = Path(__file__).parent.parent
Rows = list[dict[str, Any]]
Fault = Callable[[dict[str, Any], Rows], object]


def exit_code(*arguments: str) -> int:
    """Run the command line and return its exit code; it ends without one where all is well."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def edited(folder: Path, to: Path, fault: Fault, *, sealed: bool = True) -> Path:
    """A copy of a run with a fault in it, checksums and (where ``sealed``) the seal made to fit again."""
    shutil.copytree(folder, to)
    manifest = json.loads((to / "manifest.json").read_text())
    rows = [json.loads(line) for line in (to / "records.jsonl").read_text().splitlines()]
    fault(manifest, rows)
    bodies = [json.dumps({k: v for k, v in row.items() if k != "checksum"}, separators=(",", ":")).encode()[:-1] for row in rows]
    content = b"".join(b'%s,"checksum":"%08x"}\n' % (body, zlib.crc32(body)) for body in bodies)
    (to / "records.jsonl").write_bytes(content)
    if sealed and manifest["seal"]:
        manifest["seal"] |= {"sha256": hashlib.sha256(content).hexdigest(), "records": len(rows)}
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def drafted(rows: Rows, method: str = "decode") -> dict[str, Any]:
    """The first greedy drafted record."""
    return next(r for r in rows if r["drafter"] and r["method"] == method and r["temperature"] == 0)


def record(**changes: Any) -> Fault:
    """Change fields of one drafted record; a function gets the record."""
    return lambda manifest, rows: (row := drafted(rows)).update({k: v(row) if callable(v) else v for k, v in changes.items()})


def manifest(**changes: Any) -> Fault:
    """Change fields of the manifest."""
    return lambda manifest, rows: manifest.update({k: v(manifest) if callable(v) else v for k, v in changes.items()})


def score(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A record's score, changed."""
    return lambda row: {**row["score"], **changes}


def spliced(**changes: Any) -> Fault:
    """One more record, a copy of a drafted one."""
    return lambda manifest, rows: rows.append({**drafted(rows), **changes})


def all_tokens(manifest: dict[str, Any], rows: Rows) -> None:
    """Replace the answers of all drafted cells."""
    for row in rows:
        if row["drafter"] and row["tokens"]:
            row["tokens"] = [7] * row["emitted"]


def without_a_prompt(manifest: dict[str, Any], rows: Rows) -> None:
    """Drop every record of one prompt."""
    rows[:] = [row for row in rows if row["sample_id"] != "code/0"]


FAULTS: dict[str, tuple[Fault, str]] = {
    "ten times the drafted": (record(accepted=lambda r: 10 * r["drafted"]), "accept_lengths adds up to"),
    "negative": (record(accepted=-5), "accepted must be greater than or equal to 0"),
    "negative round": (
        record(accept_lengths=lambda r: [-1, r["accept_lengths"][0] + 1 + r["accept_lengths"][1], *r["accept_lengths"][2:]]),
        "accept_lengths.0 must be greater than or equal to 0",
    ),
    "more than drafted": (record(accept_lengths=lambda r: [r["accepted"], *[0] * (r["rounds"] - 1)]), r"accept_lengths\[0\] is \d+ of 4"),
    "a round less": (record(rounds=lambda r: r["rounds"] - 1), "accept_lengths has .* entries for"),
    "no round": (record(rounds=0), "rounds is 0, below 1"),
    "drafted": (record(drafted=lambda r: r["drafted"] + 1), "draft_lengths adds up to"),
    "rejected": (record(rejected=lambda r: r["rejected"] + 1), "rejected is .* the rounds give"),
    "emitted": (record(emitted=lambda r: r["emitted"] + 1), "emitted is .* after"),
    "token lost": (record(tokens=lambda r: r["tokens"][1:]), "tokens has 11 ids for 12"),
    "token below 0": (record(tokens=lambda r: [-1, *r["tokens"][1:]]), "or one below 0"),
    "k": (record(k=2), "more than k = 2"),
    "k true": (record(k=True), "does not fit its schema: k"),
    "k a word": (record(k="many"), "k is 'many' with drafter"),
    "k missing": (record(k=None), "k is None with drafter"),
    "k of the target": (lambda m, rows: rows[0].update(k=4), "k is 4 with drafter None"),
    "target drafts": (record(drafter=None, k=None, compared=False), "drafted is .* without a drafter"),
    "text for a number": (record(wall_s="fast"), "schema: wall_s must be a valid number"),
    "text for a count": (record(rounds="3"), "schema: rounds must be a valid integer"),
    "half a token": (record(accepted=2.5), "schema: accepted"),
    "null count": (record(emitted=None), "schema: emitted"),
    "no list": (record(accept_lengths=4), "schema: accept_lengths"),
    "loop": (record(loop="quick"), "schema: loop"),
    "method": (record(method="guess"), "schema: method"),
    "unknown field": (record(speed=1), "schema: unknown field 'speed'"),
    "not a number": (record(wall_s=float("nan")), "line .* is not valid JSON: NaN"),
    "no end": (record(ttft_s=float("inf")), "line .* is not valid JSON: Infinity"),
    "negative time": (record(draft_s=-0.1), "draft_s must be greater than or equal to 0"),
    "temperature": (record(temperature=-1.0), "temperature is -1.0, below 0"),
    "replay with a clock": (lambda m, rows: drafted(rows, "replay").update(wall_s=1.0), "method is replay, but"),
    "divergence out of range": (record(divergence={"position": 99, "gap": 0.1, "kind": "tie"}), "divergence is at 99 of 12"),
    "score out of range": (record(score=score(value=7)), "does not fit its schema: score.value"),
    "score not a number": (record(score=score(value=float("nan"))), "is not valid JSON"),
    "score of text": (record(score=score(value="1")), "does not fit its schema: score.value"),
    "score unscored": (record(score=score(status="unscored")), "score has status unscored and value"),
    "duplicate": (spliced(), "repeats an earlier one"),
    "all answers replaced": (all_tokens, "first differs from the target's own tokens at 0, the record says None"),
    "one answer replaced": (record(tokens=lambda r: [*r["tokens"][:-1], 7]), "own tokens at 11, the record says None"),
    "divergence invented": (record(divergence={"position": 2, "gap": 0.1, "kind": "tie"}), "own tokens at None, the record says 2"),
    "not compared": (record(compared=False), "says compared False, which is True"),
    "answer without tokens": (record(tokens=None), "has no tokens"),
    "answer without a clock": (record(wall_s=None), "or no wall_s"),
    "finish": (record(finish="stopped"), "ended by stopped"),
    "score": (record(score=score(value=0.5)), "scored otherwise"),
    "prompt length": (record(prompt_tokens=99), "has 99 prompt tokens"),
    "replay of another answer": (lambda m, rows: drafted(rows, "replay").update(finish="stopped"), "was not replayed from"),
    "another experiment": (spliced(experiment="mine"), "is not of this run's plan"),
    "another K": (spliced(k=5), "is not of this run's plan"),
    "another drafter": (spliced(drafter="hybrid"), "is not of this run's plan"),
    "another adapter": (spliced(adapter="code"), "is not of this run's plan"),
    "another seed": (spliced(seed=1), "is not of this run's plan"),
    "another domain": (record(domain="chat"), "is not of this run's plan"),
    "another setting": (spliced(settings={"lenience": 2}), "is not of this run's plan"),
    "another prompt": (spliced(sample_id="code/99"), "is none of the run's prompts"),
    "lossy": (record(lossy=True, compared=False), "is not of this run's plan"),
    "record gone": (lambda m, rows: rows.remove(drafted(rows)), "1 records of a finished run are missing"),
    "prompt gone": (without_a_prompt, "1 prompts of a finished run have no record"),
    "prompts": (manifest(prompts=lambda m: {k: v for k, v in m["prompts"].items() if k != "code/0"}), "code/0 is none of the run's"),
    "suite": (manifest(suite=lambda m: {**m["suite"], "max_tokens": 11}), "an answer has 12 tokens"),
    "suite hash": (manifest(suite_hash="0" * 64), "suite_hash is not its suite's"),
    "suite of nothing": (manifest(suite={}), "suite is none of this version"),
    "suite with text for domains": (manifest(suite=lambda m: {**m["suite"], "domains": "all"}), "suite is none of this version"),
    "seeds": (manifest(seeds=[7]), "seeds are not its suite's"),
    "code hash": (manifest(code=lambda m: {**m["code"], "hash": "abc"}), "code.hash is no SHA-256"),
    "code hash gone": (manifest(code={}), "code.hash is no SHA-256"),
    "dtype gone": (manifest(models={"target": "t"}), "models.target or models.dtype"),
    "started": (manifest(started="yesterday"), "started is no time"),
    "status": (manifest(measured=lambda m: {**m["measured"], "status": "fine"}), "does not fit its schema: measured.status"),
    "seal gone": (manifest(seal=None), "its seal is missing"),
    "seal of text": (manifest(seal=lambda m: {"records": "many", "sha256": ""}), "schema: seal.records"),
    "cores": (manifest(machine=[]), "schema: machine"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(finished: Path, tmp_path: Path, name: str) -> None:
    """The edit is found although checksums and seal fit it: a report made again would fit it too."""
    fault, expected = FAULTS[name]
    folder = edited(finished, tmp_path / "run", fault, sealed=not name.startswith("seal"))
    with pytest.raises(HarnessError, match=expected):
        verify(folder, reports_folder(finished))


UNSEALED: dict[str, Callable[[bytes], bytes]] = {
    "one time changed": lambda content: b"",
    "last record gone": lambda content: content[: content[:-1].rindex(b"\n") + 1],
    "record twice": lambda content: content + content[: content.index(b"\n") + 1],
    "emptied": lambda content: b"",
    "half a record more": lambda content: content + b'{"schema_version"',
    "a blank at the end": lambda content: content + b" ",
}


@pytest.mark.parametrize("name", UNSEALED)
def test_records_other_than_sealed_are_refused(finished: Path, tmp_path: Path, name: str) -> None:
    """A finished run is what it finished with: reports, the gate and comparisons read nothing else."""
    folder = tmp_path / "run"
    if name == "one time changed":
        edited(finished, folder, record(wall_s=0.001), sealed=False)
    else:
        shutil.copytree(finished, folder)
        (folder / "records.jsonl").write_bytes(UNSEALED[name]((finished / "records.jsonl").read_bytes()))
    reference = tmp_path / "reference.json"
    assert exit_code("check", str(finished), "--against", str(reference), "--update") == 0
    for command in (["report"], ["report", "--verify"], ["check", "--against", str(reference)], ["compare", str(finished)]):
        assert exit_code(command[0], str(folder), *command[1:]) == 2, command
    with pytest.raises(HarnessError, match="was changed after the run finished"):
        load_run(folder)


def test_report_verifies(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every value of the report recomputes from the records, by a second computation too."""
    assert verify(finished, reports_folder(finished)) > 150
    assert exit_code("report", str(finished), "--verify") == 0
    assert "sealed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "results" / "reference").iterdir() if path.is_dir()])
def test_reference_report_follows_from_its_records(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The checked-in report is what today's code writes: ``harness report results/reference/NAME --out reports/reference/NAME``."""
    folder, written = ROOT / "results" / "reference" / name, ROOT / "reports" / "reference" / name
    assert exit_code("report", str(folder), "--out", str(written), "--verify") == 0
    assert "the records are not sealed" in capsys.readouterr().out
    assert 500_000 < (written / "report.html").stat().st_size < 5_000_000


def test_changed_report_files_are_caught(finished: Path, tmp_path: Path) -> None:
    """A changed digit of any of the three files, charts and scripts included, is found; so is an emptied and a deleted file."""
    texts = report_texts(load_run(finished))
    write_reports(load_run(finished), tmp_path)
    assert differences(texts, tmp_path) == []
    for name, text in texts.items():
        digits = [m.start() for m in re.finditer(r"(?<![\d.])\d|(?<=\.)\d", text)]
        digit = [text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :] for at in random.Random(0).sample(digits, 4)]
        for edit in (*digit, "", text[:-1], text + " ", "x" + text):
            (tmp_path / name).write_text(edit)
            (found,) = differences(texts, tmp_path)
            assert f"{name} line" in found
        if name == "report.md":
            with pytest.raises(CheckFailed, match=r"does not follow from .*\n.*report.md line"):
                verify(finished, tmp_path)
        (tmp_path / name).unlink()
        assert differences(texts, tmp_path) == [f"cannot read {tmp_path / name}: no such file or directory"]
        (tmp_path / name).write_text(text)


def test_second_computation_catches_a_wrong_summary(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the summary itself were wrong, the report would still render alike; the plain recomputation must notice."""
    from harness.core import stats

    real = stats.ratio
    monkeypatch.setattr(stats, "ratio", lambda top, bottom, **k: real([t * 1.01 for t in top], bottom, **k))
    write_reports(load_run(finished), tmp_path)
    with pytest.raises(CheckFailed, match="rate: report"):
        verify(finished, tmp_path)
