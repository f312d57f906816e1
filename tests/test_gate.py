"""The gate finds regressions, stays quiet without one, and refuses comparisons that mean nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import baseline, cell
from test_store import make_manifest

from harness.errors import HarnessError
from harness.gate import Verdict, check, make_reference, read_reference, write_reference
from harness.records import SCHEMA_VERSION, Record
from harness.report.gate_output import junit, summary
from harness.store import RunStore

MACHINE = {"processor": "cpu", "machine": "x86_64", "system": "Linux", "cores": 2, "device": "cpu", "blas": "mkl"}


def stored(folder: Path, records: list[Record], **changes: Any) -> Path:
    """A finished run with these records."""
    values = {"machine": MACHINE, "measured": {"status": "finished"}, **changes}
    with RunStore.create(folder, make_manifest(run=folder.name, **values)) as run:
        run.extend(records)
    return folder


def draws(n: int, seed: int, drop: float = 0.0, temperature: float = 1.0, slow: float = 1.0) -> list[Record]:
    """A baseline and one drafter over ``n`` prompts; prompts have their own acceptance, runs their own luck."""
    rng, records = np.random.default_rng(seed), []
    for i in range(n):
        own = 0.45 + 0.4 * random.Random(i).random() - drop
        lengths = [int(x) for x in np.minimum(rng.geometric(1 - own, size=40) - 1, 4)]
        wall = random.Random(i).uniform(1, 3)
        base = baseline(f"s{i}", 10, wall * rng.lognormal(0, 0.03), temperature=temperature)
        timed = wall * slow * rng.lognormal(0, 0.05) * (sum(lengths) + 40) / 20
        records += [base, cell(f"s{i}", lengths, temperature=temperature, wall_s=timed, rule="rejection")]
    return records


def outcomes(tmp_path: Path, new: list[Record], old: list[Record], **options: Any) -> dict[str, Verdict]:
    """Verdicts by what was compared, for the drafting cell."""
    reference = make_reference(stored(tmp_path / "old", old))
    verdicts = check(stored(tmp_path / "new", new), reference, **options)
    return {v.what: v for v in verdicts if "lookup" in v.cell}


def test_equal_greedy_counts_pass(tmp_path: Path) -> None:
    """The same counts with other times: nothing to report."""
    old, new = draws(6, 0, temperature=0.0), draws(6, 0, temperature=0.0)
    result = outcomes(tmp_path, new, old)
    assert result["counts"].outcome == "same"
    assert not any(v.failed for v in result.values())


@pytest.mark.parametrize("count", ["rounds", "drafted", "accepted", "rejected", "emitted"])
def test_one_changed_count_fails(tmp_path: Path, count: str) -> None:
    """Greedy float32 counts are deterministic, so a single changed count of a single prompt is a change of behaviour."""
    old = draws(6, 0, temperature=0.0)
    new = list(old)
    new[-1] = dataclasses.replace(new[-1], **{count: getattr(new[-1], count) + 1})
    result = outcomes(tmp_path, new, old)["counts"]
    assert result.failed
    assert f"first s5: {count}" in result.detail


def test_costs_decide_auto_so_it_is_not_exact(tmp_path: Path) -> None:
    """Draft lengths chosen by measured times may differ from run to run."""
    records = [dataclasses.replace(r, k="auto") if r.drafter else r for r in draws(6, 0, temperature=0.0)]
    assert set(outcomes(tmp_path, records, records)) == {"rate", "speedup"}


def test_other_number_formats_are_not_exact(tmp_path: Path) -> None:
    """With float16 the kernels may flip near-ties, so intervals are compared."""
    records = draws(6, 0, temperature=0.0)
    models = {"target": "t", "draft": "d", "dtype": "float16"}
    old, new = (stored(tmp_path / name, records, models=models) for name in ("old", "new"))
    assert {v.what for v in check(new, make_reference(old)) if "lookup" in v.cell} == {"rate", "speedup"}


def test_slower_run_fails(tmp_path: Path) -> None:
    """Times count only as a ratio within the run: a slower drafter fails, a slower machine does not."""
    assert outcomes(tmp_path / "a", draws(20, 1, slow=1.4), draws(20, 0))["speedup"].outcome == "regression"
    slow_machine = [dataclasses.replace(r, wall_s=3 * (r.wall_s or 0)) for r in draws(20, 1)]
    assert not outcomes(tmp_path / "b", slow_machine, draws(20, 0))["speedup"].failed


def test_better_is_not_a_failure(tmp_path: Path) -> None:
    """Sampled acceptance that rises passes and is named."""
    assert outcomes(tmp_path, draws(30, 1, drop=-0.08), draws(30, 0))["rate"].outcome == "improved"


def test_too_few_prompts_say_so(tmp_path: Path) -> None:
    """Two sampled prompts show nothing, and the verdict does not pretend otherwise."""
    assert "too few prompts" in outcomes(tmp_path, draws(2, 1), draws(2, 0))["rate"].detail


def rates(runs: int, n: int, drop: float, base: Path) -> tuple[float, float]:
    """Part of simulated comparisons in which the gate fails, and the largest printed detectable difference."""
    failed, detectable = 0, 0.0
    for i in range(runs):
        result = outcomes(base / str(i), draws(n, 2 * i + 1, drop), draws(n, 2 * i))
        failed += result["rate"].failed or result["speedup"].failed
        detectable = max(detectable, float(result["rate"].detail.rsplit(" ", 1)[1]))
    return failed / runs, detectable


def test_false_alarms_and_power_quickly(tmp_path: Path) -> None:
    """A quick look: no storm of false alarms, and a large drop is always caught."""
    assert rates(25, 30, 0.0, tmp_path / "same")[0] <= 0.2
    assert rates(10, 60, 0.10, tmp_path / "drop")[0] == 1.0


@pytest.mark.slow
def test_false_alarms_are_rare(tmp_path: Path) -> None:
    """1,000 A/A comparisons of sampled runs: at most 5% fail."""
    assert rates(1000, 30, 0.0, tmp_path)[0] <= 0.05


@pytest.mark.slow
def test_three_points_are_caught(tmp_path: Path) -> None:
    """A drop of 3 points of acceptance is caught in at least 90% of runs at 164 prompts."""
    share, detectable = rates(200, 164, 0.03, tmp_path)
    assert share >= 0.9
    assert detectable < 0.03


def changed(reference: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a reference with one field replaced."""
    copy = json.loads(json.dumps(reference))
    *parents, last = path.split(".")
    place = copy
    for name in parents:
        place = place[name]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    "field",
    ["suite_hash", "pair", "models.target", "models.draft", "models.draft_vocab", "models.dtype", *(f"machine.{name}" for name in MACHINE)],
)
def test_incomparable_runs_are_refused_by_field(tmp_path: Path, field: str) -> None:
    """Other suite, models or hardware: no verdict, exit code 2, and the field is named."""
    folder = stored(tmp_path / "run", draws(5, 0))
    with pytest.raises(HarnessError, match=f"cannot compare: {field} is") as caught:
        check(folder, changed(make_reference(folder), field, "other"))
    assert caught.value.exit_code == 2


def test_any_machine_compares_acceptance_by_intervals(tmp_path: Path) -> None:
    """On other hardware a near-tie may flip: no exact counts and no times, but a fall of acceptance is still found."""
    folder = stored(tmp_path / "run", draws(60, 1, drop=0.1, temperature=0.0))
    reference = changed(make_reference(stored(tmp_path / "old", draws(60, 0, temperature=0.0))), "machine.processor", "other")
    verdicts = check(folder, reference, any_machine=True)
    assert [(v.what, v.outcome) for v in verdicts] == [("rate", "regression")]


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    """Half a run must neither pass nor become a reference."""
    folder = stored(tmp_path / "run", draws(5, 0), measured={"status": "interrupted"})
    with pytest.raises(HarnessError, match="is not finished"):
        check(folder, make_reference(folder))
    with pytest.raises(HarnessError, match="is not finished"):
        write_reference(folder, tmp_path / "reference.json")


def test_missing_cells_and_samples_are_refused(tmp_path: Path) -> None:
    """A cell that vanished is no pass."""
    records = draws(5, 0)
    reference = make_reference(stored(tmp_path / "old", records))
    with pytest.raises(HarnessError, match="the run has no cell code lookup"):
        check(stored(tmp_path / "a", [r for r in records if r.drafter is None]), reference)
    with pytest.raises(HarnessError, match="sample s4 of"):
        check(stored(tmp_path / "b", records[:-1]), reference)


def test_reference_file_round_trip(tmp_path: Path) -> None:
    """Written, read, and equal; a run agrees with its own reference."""
    folder = stored(tmp_path / "run", draws(6, 0, temperature=0.0))
    write_reference(folder, tmp_path / "reference" / "tiny.json")
    reference = read_reference(tmp_path / "reference" / "tiny.json")
    assert reference == make_reference(folder)
    assert not any(v.failed for v in check(folder, reference))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no reference"), ("{", "is not valid JSON"), ("[]", "holds a list where"), ('{"cells": {}}', "no schema_version"),
     ('{"schema_version": 1}', "does not fit its schema: run is missing"),
     (json.dumps({"cells": {}, "schema_version": SCHEMA_VERSION + 1}), "pip install -U")],
)  # fmt: skip
def test_unusable_reference_is_explained(tmp_path: Path, content: str | None, message: str) -> None:
    """Missing, broken, foreign and newer reference files."""
    path = tmp_path / "reference.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HarnessError, match=message):
        read_reference(path)


def test_junit_and_summary(tmp_path: Path) -> None:
    """CI reads the XML; people read the Markdown, failures first. Odd characters of a cell's name break neither."""
    verdicts = [
        Verdict(cell="a|b \x01<&>", what="counts", outcome="same", detail="6 prompts equal"),
        Verdict(cell="code lookup", what="counts", outcome="changed", detail="1 of 6 prompts differ"),
    ]
    root = ET.fromstring(junit(verdicts).split("\n", 1)[1])
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in root] == [False, True]
    text = summary(verdicts, "run", "ref")
    assert "**1 of 2 comparisons failed**" in text
    assert text.index("code lookup") < text.index("a\\|b")
    assert "**1 comparison, no regression**" in summary(verdicts[:1], "run", "ref")


def exit_code(*arguments: str) -> int:
    """Run the command line and return its exit code."""
    from harness.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    return int(caught.value.code or 0)


def test_command_line_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 without a regression, 1 with one, 2 when nothing can be compared; the files for CI are written before the verdict."""
    records = draws(6, 0, temperature=0.0)
    stored(tmp_path / "old", records)
    stored(tmp_path / "new", [*records[:-1], dataclasses.replace(records[-1], accepted=records[-1].accepted + 1)])
    reference, results = str(tmp_path / "ref.json"), ["--results", str(tmp_path)]
    assert exit_code("old", "--against", reference, *results) == 2
    assert "there is no reference" in capsys.readouterr().err
    assert exit_code("old", "--against", reference, "--update", *results) == 0
    assert exit_code("old", "--against", reference, *results) == 0
    junit_file, summary_file = tmp_path / "ci" / "junit.xml", tmp_path / "ci" / "summary.md"
    assert exit_code("new", "--against", reference, "--junit", str(junit_file), "--summary", str(summary_file), *results) == 1
    assert ET.parse(junit_file).getroot().get("failures") == "1"
    assert "1 of 3 comparisons failed" in summary_file.read_text()
