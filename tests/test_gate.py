"""The gate finds regressions, stays quiet without one, and refuses comparisons that mean nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import baseline, cell
from test_store import make_manifest

from harness.core.errors import HarnessError
from harness.core.records import Divergence, Record, Score
from harness.decode.simulate import simulate_match
from harness.report.gate_output import junit, summary
from harness.results import speedup
from harness.results.gate import Verdict, check
from harness.results.reference import REFERENCE_VERSION, Prompt, Reference, cells_of, make_reference, read_reference, write_reference
from harness.results.store import RunStore
from harness.results.summary import summarise

MACHINE = {"processor": "cpu", "machine": "x86_64", "system": "Linux", "cores": 2, "device": "cpu", "blas": "mkl"}


def stored(folder: Path, records: list[Record], **changes: Any) -> Path:
    """A finished run with these records."""
    ids = {r.sample_id for r in records}
    measured = {"target_ties": dict.fromkeys(ids, 0), **changes.pop("measured", {})}
    values = {"machine": MACHINE, "prompts": {sample: f"hash of {sample}" for sample in ids}, **changes}
    with RunStore.create(folder, make_manifest(run=folder.name, **values)) as run:
        run.extend(records)
        (run.finish if measured.get("status", "finished") == "finished" else run.update)(**measured)
    return folder


def with_rounds(r: Record, accepted: Sequence[int], drafted: Sequence[int]) -> Record:
    """The record with other rounds that emit the same tokens."""
    return dataclasses.replace(
        r, accept_lengths=tuple(accepted), draft_lengths=tuple(drafted), rounds=len(accepted), accepted=sum(accepted), drafted=sum(drafted),
        rejected=sum(a < d for a, d in zip(accepted, drafted, strict=True)),
    )  # fmt: skip


def broken_up(r: Record, times: int = 1) -> Record:
    """The record with some round in two: one accepted token fewer, one round more, as one flip of the draft's favourite does."""
    accepted, drafted = list(r.accept_lengths), list(r.draft_lengths)
    for _ in range(times):
        i = next(i for i, n in enumerate(accepted) if n)
        accepted[i : i + 1], drafted[i : i + 1] = [accepted[i] - 1, 0], [drafted[i], drafted[i]]
    return with_rounds(r, accepted, drafted)


def refused(r: Record) -> Record:
    """The record with every drafted token rejected."""
    return with_rounds(r, [0] * r.emitted, [max(r.draft_lengths)] * r.emitted)


def draws(n: int, seed: int, drop: float = 0.0, temperature: float = 1.0, slow: float = 1.0, **changes: Any) -> list[Record]:
    """A baseline and one drafter over ``n`` prompts; prompts have their own acceptance, runs their own luck."""
    rng, records = np.random.default_rng(seed), []
    for i in range(n):
        own = 0.45 + 0.4 * random.Random(i).random() - drop
        lengths = [int(x) for x in np.minimum(rng.geometric(1 - own, size=40) - 1, 4)]
        emitted, wall = sum(lengths) + 40, random.Random(i).uniform(1, 3)
        tokens = tuple(range(emitted))
        base = baseline(f"s{i}", emitted, wall * rng.lognormal(0, 0.03) * emitted / 10, temperature=temperature, tokens=tokens)
        timed = wall * slow * rng.lognormal(0, 0.05) * emitted / 20
        own_changes = {"temperature": temperature, "wall_s": timed, "rule": "rejection", "tokens": tokens, **changes}
        records += [base, cell(f"s{i}", lengths, **own_changes)]
    return records


def replays(n: int, seed: int, ties: int = 0) -> list[Record]:
    """Greedy answers of fixed length and one replayed draft; another seed is another draft. ``ties`` near-ties on the first prompt."""
    records = []
    for i in range(n):
        tokens = tuple(random.Random(i).choices(range(50), k=32))
        match = np.random.default_rng((seed, i)).random(32) < 0.6
        counts = dataclasses.asdict(simulate_match(match, 4, 32))
        records.append(baseline(f"s{i}", 32, 1.0, tokens=tokens))
        records.append(
            cell(f"s{i}", [], drafter="generic", method="replay", wall_s=None, ttft_s=None, near_ties=ties if i == 0 else 0, **counts)
        )
    return records


def outcomes(tmp_path: Path, new: list[Record], old: list[Record], **options: Any) -> dict[str, Verdict]:
    """Verdicts by what was compared, for the drafting cell."""
    reference = make_reference(stored(tmp_path / "old", old))
    verdicts = check(stored(tmp_path / "new", new), reference, **options)
    return {v.what: v for v in verdicts if "target only" not in v.cell}


def elsewhere(reference: Reference, **changes: Any) -> Reference:
    """A reference as another machine would have made it."""
    return reference.model_copy(update={"machine": {**reference.machine, "processor": "other"}, **changes})


def test_equal_greedy_counts_pass(tmp_path: Path) -> None:
    """The same counts: nothing to report, and no number of prompts is too small for that."""
    for n in (1, 6):
        result = outcomes(tmp_path / str(n), replays(n, 0), replays(n, 0))
        assert result["counts"].outcome == "same"
        assert not any(v.failed or v.undecided for v in result.values())


@pytest.mark.parametrize("count", ["rounds", "drafted", "accepted", "rejected", "emitted"])
@pytest.mark.parametrize("any_machine", [False, True])
def test_one_changed_count_fails(tmp_path: Path, count: str, any_machine: bool) -> None:
    """Greedy float32 counts are deterministic, on every machine where no near-tie is, so one changed count of one prompt is a change."""
    folder = stored(tmp_path / "run", replays(6, 0))
    reference = make_reference(folder)
    key = next(key for key in reference.cells if "generic" in key)
    answer = reference.cells[key]["s5"]
    answer = answer.model_copy(update={count: getattr(answer, count) + 1})
    cells = {**reference.cells, key: {**reference.cells[key], "s5": answer}}
    reference = reference.model_copy(update={"cells": cells})
    verdicts = check(folder, elsewhere(reference) if any_machine else reference, any_machine=any_machine)
    (failed,) = [v for v in verdicts if v.failed]
    assert failed.what == "counts"
    assert f"first s5: {count}" in failed.detail


def test_only_near_ties_may_move_counts_on_another_machine(tmp_path: Path) -> None:
    """One near-tie explains one flip of the draft's favourite on that prompt, and nothing else; at home it explains nothing."""
    old = replays(6, 0, ties=1)
    (reference,) = [make_reference(stored(tmp_path / "old", old))]
    for name, rounds, home, fails in (("a", 1, False, False), ("b", 1, True, True), ("c", 2, False, True)):
        folder = stored(tmp_path / name, [old[0], broken_up(old[1], rounds), *old[2:]])
        verdicts = check(folder, reference if home else elsewhere(reference), any_machine=not home)
        assert any(v.failed for v in verdicts) is fails, name
        assert not any(v.undecided for v in verdicts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 8), st.data())
def test_a_flip_moves_counts_by_one_round(match: list[bool], k: int, data: st.DataObject) -> None:
    """What the gate allows a near-tie: rounds and accepted tokens move by one per flip, drafted tokens by K."""
    flipped = np.array(match)
    places = data.draw(st.sets(st.integers(0, len(match) - 1), min_size=1, max_size=3))
    flipped[list(places)] ^= True
    a, b = (simulate_match(np.array(m), k, len(match)) for m in (match, flipped))
    assert max(abs(a.rounds - b.rounds), abs(a.accepted - b.accepted), abs(a.drafted - b.drafted) / k) <= len(places)


@pytest.mark.parametrize(("ties", "outcome"), [({"s0": 0}, "changed"), ({"s0": 1}, "same"), ({}, "undecided")])
def test_other_answers_of_the_target(tmp_path: Path, ties: dict[str, int], outcome: str) -> None:
    """On another machine the target may answer otherwise where it has a near-tie, and only there; at home never."""
    old, new = replays(6, 0), replays(6, 0)
    new[0] = dataclasses.replace(new[0], tokens=(99,) * 32)
    folder, reference = (stored(tmp_path / name, r, measured={"target_ties": dict.fromkeys([f"s{i}" for i in range(1, 6)], 0) | ties})
                         for name, r in (("new", new), ("old", old)))  # fmt: skip
    at_home, abroad = check(folder, make_reference(reference)), check(folder, elsewhere(make_reference(reference)), any_machine=True)
    assert [v.outcome for v in at_home if v.what == "outputs"] == ["changed"]
    assert [v.outcome for v in abroad if v.what == "outputs"] == [outcome]


def drafted_by(records: list[Record], drafter: str) -> list[Record]:
    """The same counts under another drafter's name."""
    return [dataclasses.replace(r, drafter=drafter) if r.drafter else r for r in records]


def test_a_candidate_is_judged_by_paired_differences(tmp_path: Path) -> None:
    """Another draft is refused without the flag; with it, what drafts by a model goes by intervals, lookup and the target stay exact."""
    models = {"target": "t", "draft": "d", "dtype": "float32"}
    old = stored(tmp_path / "old", [*replays(12, 0), *drafted_by(replays(12, 0), "lookup")[1::2]], models=models)
    new = stored(
        tmp_path / "new", [*replays(12, 1), *drafted_by(replays(12, 1), "lookup")[1::2]], models={**models, "draft": "e"}, pair="p2"
    )
    reference = make_reference(old)
    with pytest.raises(HarnessError, match="cannot compare: pair is 'p2'"):
        check(new, reference)
    verdicts = {(v.cell.split()[1], v.what): v for v in check(new, reference, candidate=True)}
    assert {what for name, what in verdicts if name == "generic"} == {"rate", "tau"}
    assert verdicts["lookup", "counts"].outcome == "changed"
    assert verdicts["target", "outputs"].outcome == "same"
    rate = verdicts["generic", "rate"]
    assert rate.undecided
    assert rate.change is not None
    assert rate.change.low is not None
    assert rate.change.low < rate.change.value
    assert (rate.prompts_needed or 0) > 12
    with pytest.raises(HarnessError, match=r"cannot compare: questions_hash"):
        check(new, changed(reference, "questions_hash", "other"), candidate=True)


def test_answers_in_batches_are_what_replays_are_compared_by(tmp_path: Path) -> None:
    """A run that clocks few prompts: the target's batched answers are a cell of their own, and another one is a change."""
    untimed = dict.fromkeys(("wall_s", "ttft_s", "prefill_s", "verify_s", "draft_s"))
    whole = [r if r.drafter else dataclasses.replace(r, method="answer", **untimed) for r in replays(6, 0)]
    other = [dataclasses.replace(whole[0], tokens=(99,) * 32), *whole[1:]]
    old, new = make_reference(stored(tmp_path / "old", whole)), stored(tmp_path / "new", other)
    assert not any(v.failed or v.undecided for v in check(stored(tmp_path / "again", whole), old))
    assert [v.what for v in check(new, old) if v.failed] == ["outputs"]


def changed_greedy(**changes: Any) -> tuple[list[Record], list[Record]]:
    """Two runs of equal greedy answers whose drafts differ, so that no count is certain."""
    old, new = replays(6, 0), replays(6, 1)
    return [dataclasses.replace(r, **changes) if r.drafter else r for r in old], [
        dataclasses.replace(r, **changes) if r.drafter else r for r in new
    ]


def test_costs_decide_auto_so_it_is_not_exact(tmp_path: Path) -> None:
    """Draft lengths chosen by measured times may differ from run to run."""
    old, new = changed_greedy(k="auto")
    assert set(outcomes(tmp_path, new, old)) == {"rate", "tau"}


def test_other_number_formats_are_not_exact(tmp_path: Path) -> None:
    """With float16 the kernels may flip near-ties, so intervals are compared, unless nothing differs."""
    models = {"target": "t", "draft": "d", "dtype": "float16"}
    old, new = (stored(tmp_path / str(seed), replays(6, seed), models=models) for seed in (0, 1))
    assert {v.what for v in check(new, make_reference(old)) if "generic" in v.cell} == {"rate", "tau"}
    assert {v.outcome for v in check(old, make_reference(old))} == {"same"}


def test_a_hundred_and_thirty_two_collapsed_cells_fail(tmp_path: Path) -> None:
    """Every accepted count 0, in a format that is not exact: no number of comparisons hides it."""
    models = {"target": "t", "draft": "d", "dtype": "bfloat16"}

    def cells(zero: bool) -> list[Record]:
        drafted = [r for r in draws(30, 0) if r.drafter]
        if zero:
            drafted = [refused(r) for r in drafted]
        return [dataclasses.replace(r, experiment=f"e{i}", wall_s=None) for i in range(66) for r in drafted]

    old, new = (stored(tmp_path / str(zero), cells(zero), models=models) for zero in (False, True))
    verdicts = [v for v in check(new, make_reference(old)) if v.what == "rate"]
    assert len(verdicts) == 66
    assert all(v.outcome == "regression" for v in verdicts)


def test_slower_run_fails(tmp_path: Path) -> None:
    """Times count only as a ratio within the run: a slower drafter fails, a slower machine does not."""
    assert outcomes(tmp_path / "a", draws(20, 1, slow=1.4), draws(20, 0))["speedup"].outcome == "regression"
    slow_machine = [dataclasses.replace(r, wall_s=3 * (r.wall_s or 0)) for r in draws(20, 1)]
    assert not outcomes(tmp_path / "b", slow_machine, draws(20, 0))["speedup"].failed


def test_better_is_not_a_failure(tmp_path: Path) -> None:
    """Sampled acceptance that rises passes and is named."""
    assert outcomes(tmp_path, draws(30, 1, drop=-0.08), draws(30, 0))["rate"].outcome == "improved"


def test_too_few_prompts_are_undecided(tmp_path: Path) -> None:
    """Two sampled prompts show nothing, twenty too little; neither passes, and the verdict says how many would decide."""
    few, some = outcomes(tmp_path / "2", draws(2, 1), draws(2, 0))["rate"], outcomes(tmp_path / "20", draws(20, 1), draws(20, 0))["rate"]
    assert few.undecided
    assert some.undecided
    assert "too few prompts" in few.detail
    needed = re.search(r"about (\d+) prompts would decide", some.detail)
    assert needed is not None
    assert 100 < int(needed[1]) < 10000


def rates(runs: int, n: int, drop: float, base: Path) -> tuple[float, float]:
    """Part of simulated comparisons in which the gate fails, and the largest printed detectable difference."""
    failed, detectable = 0, 0.0
    for i in range(runs):
        result = outcomes(base / str(i), draws(n, 2 * i + 1, drop), draws(n, 2 * i))
        failed += result["rate"].failed or result["speedup"].failed
        detectable = max(detectable, float(re.search(r"detectable ([\d.]+)", result["rate"].detail)[1]))  # type: ignore[index]
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


def changed(reference: Reference, path: str, value: Any) -> Reference:
    """A copy of a reference with one field replaced."""
    name, _, inner = path.partition(".")
    return reference.model_copy(update={name: {**getattr(reference, name), inner: value} if inner else value})


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


def test_other_prompts_under_the_same_ids_are_refused(tmp_path: Path) -> None:
    """Another text, template or reference answer under an id is another prompt."""
    folder = stored(tmp_path / "run", replays(5, 0))
    reference = make_reference(folder)
    other = reference.model_copy(update={"prompts": {**reference.prompts, "s3": Prompt(hash="another hash", ties=0)}})
    with pytest.raises(HarnessError, match=r"cannot compare: prompts\.s3 is"):
        check(folder, other)


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    """Half a run must neither pass nor become a reference."""
    folder = stored(tmp_path / "run", draws(5, 0), measured={"status": "interrupted"})
    with pytest.raises(HarnessError, match="is not finished"):
        make_reference(folder)
    with pytest.raises(HarnessError, match="is not finished"):
        write_reference(folder, tmp_path / "reference.json")


def timed(records: list[Record]) -> list[Record]:
    """Greedy decoded records with a score."""
    return [dataclasses.replace(r, score=Score(metric="pass@1", status="passed", value=1.0)) for r in records]


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda r: None if r.drafter else r, "cell"),
        (lambda r: None if r.sample_id == "s4" else r, "cell"),
        (lambda r: dataclasses.replace(r, wall_s=None), "speedup"),
        (lambda r: dataclasses.replace(r, wall_s=None) if r.sample_id == "s1" and r.drafter else r, "speedup"),
        (lambda r: dataclasses.replace(r, score=None), "score"),
        (lambda r: dataclasses.replace(r, score=Score(metric="pass@1", status="unscored", value=None)), "score"),
    ],
)  # fmt: skip
def test_what_vanished_is_no_pass(tmp_path: Path, edit: Callable[[Record], Record | None], what: str) -> None:
    """Cells, prompts, times and scores that only one of the two has, whichever it is."""
    whole = timed(draws(5, 0, temperature=0.0))
    part = [edited for r in whole if (edited := edit(r)) is not None]
    for name, (new, old) in {"run": (part, whole), "reference": (whole, part)}.items():
        reference = make_reference(stored(tmp_path / name / "old", old))
        verdicts = check(stored(tmp_path / name / "new", new), reference)
        assert (what, "missing") in {(v.what, v.outcome) for v in verdicts}


def test_lower_scores_are_paired_by_prompt(tmp_path: Path) -> None:
    """An equal answer with a lower score is a fault of the scorer; other answers are compared by their mean."""
    old = timed(draws(6, 0, temperature=0.0))
    new = [dataclasses.replace(r, score=Score(metric="pass@1", status="failed", value=0.0)) if r.sample_id == "s2" else r for r in old]
    assert outcomes(tmp_path / "a", new, old)["score"].outcome == "regression"
    assert outcomes(tmp_path / "b", old, new)["score"].outcome == "same"
    sampled = [dataclasses.replace(r, temperature=1.0, tokens=(i, *(r.tokens or ())[1:])) for i, r in enumerate(new)]
    before = [dataclasses.replace(r, temperature=1.0) for r in old]
    assert outcomes(tmp_path / "c", sampled, before)["score"].outcome == "undecided"


@pytest.mark.parametrize("kind", ["bug", "unexplained", "tie"])
def test_answers_that_are_not_the_targets_fail(tmp_path: Path, kind: str) -> None:
    """A divergence of kind bug, one that nobody recorded, and one called a tie that is not in the reference."""
    old = draws(6, 0, temperature=0.0)
    divergence = None if kind == "unexplained" else Divergence(position=0, gap=1.0, kind=kind)  # type: ignore[arg-type]
    new = [dataclasses.replace(r, tokens=(7,) * r.emitted, divergence=divergence, compared=True) if r.drafter else r for r in old]
    assert outcomes(tmp_path, new, old)["outputs"].failed


@pytest.mark.parametrize(
    ("checks", "outcome"),
    [
        ([("generic", False, 0)], "regression"),
        ([("generic", False, 2)], "same"),
        ([("generic", True, 0), ("generic", False, 0)], "regression"),
        ([], "missing"),
    ],
)
def test_spot_checks_count(tmp_path: Path, checks: list[tuple[str, bool, int]], outcome: str) -> None:
    """Replay that decoding contradicts fails unless a near-tie explains it; so does a check that was not made."""

    def measured(found: list[tuple[str, bool, int]]) -> dict[str, Any]:
        return {"spot_checks": [{"drafter": d, "equal": e, "near_ties": n, "sample_id": "s0", "k": 2} for d, e, n in found]}

    old = stored(tmp_path / "old", replays(5, 0), measured=measured([("generic", True, 0)]))
    new = stored(tmp_path / "new", replays(5, 0), measured=measured(checks))
    assert [v.outcome for v in check(new, make_reference(old)) if v.what == "spot check"] == [outcome]


def test_reference_file_round_trip(tmp_path: Path) -> None:
    """Written, read, and equal; a run agrees with its own reference."""
    folder = stored(tmp_path / "run", draws(6, 0, temperature=0.0))
    write_reference(folder, tmp_path / "reference" / "tiny.json")
    reference = read_reference(tmp_path / "reference" / "tiny.json")
    assert reference == make_reference(folder)
    assert not any(v.failed for v in check(folder, reference))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), ("{", "not valid JSON"), ("[]", "a JSON object belongs"), ('{"cells": {}}', "no reference that can be used"),
     (json.dumps({"reference_version": REFERENCE_VERSION + 1}), "pip install -U"),
     (json.dumps({"reference_version": REFERENCE_VERSION}), "does not fit its schema")],
)  # fmt: skip
def test_unusable_reference_is_explained(tmp_path: Path, content: str | None, message: str) -> None:
    """Missing, broken, foreign, older and newer reference files."""
    path = tmp_path / "reference.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HarnessError, match=message) as caught:
        read_reference(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["NaN", "-1", "null", '"7"', "1e999", "true", None])
@pytest.mark.parametrize("count", ["accepted", "rounds", "cell_s"])
def test_impossible_values_in_a_reference_are_refused(tmp_path: Path, count: str, value: str | None) -> None:
    """A count or a cost that is no number, negative or absent compares with nothing."""
    folder = stored(tmp_path / "run", draws(5, 0, temperature=0.0))
    path = tmp_path / "reference.json"
    write_reference(folder, path)
    data = json.loads(path.read_text())
    answer = next(cell["s0"] for cell in data["cells"].values() if count in cell["s0"])
    del answer[count]
    answer |= {} if value is None else {count: "here"}
    path.write_text(json.dumps(data).replace('"here"', str(value)))
    with pytest.raises(HarnessError, match=r"reference\.json") as caught:
        check(folder, read_reference(path))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("field", ["cells", "prompts"])
def test_a_reference_of_nothing_is_refused(tmp_path: Path, field: str) -> None:
    """Deleting what fails must not make it pass."""
    path = tmp_path / "reference.json"
    write_reference(stored(tmp_path / "run", replays(5, 0)), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: {}}))
    with pytest.raises(HarnessError, match="does not fit its schema"):
        read_reference(path)


def test_junit_and_summary() -> None:
    """CI reads the XML; people read the Markdown, failures first. Odd characters of a cell's name break neither."""
    verdicts = [
        Verdict(cell="a|b \x01<&>", what="counts", outcome="same", detail="6 prompts equal"),
        Verdict(cell="code lookup", what="counts", outcome="changed", detail="1 of 6 prompts differ"),
        Verdict(cell="chat lookup", what="rate", outcome="undecided", detail="too few"),
    ]
    for allowed, (failures, skipped) in {False: ("2", "0"), True: ("1", "1")}.items():
        root = ET.fromstring(junit(verdicts, allow_undecided=allowed).split("\n", 1)[1])
        assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", failures, skipped)
        assert [len(case) for case in root] == [0, 1, 1]
    text = summary(verdicts, "run", "ref")
    assert "**1 of 3 comparisons failed, 1 undecided**" in text
    assert text.index("code lookup") < text.index("chat lookup") < text.index("a\\|b")
    assert "**1 comparison, no regression**" in summary(verdicts[:1], "run", "ref")


def exit_code(*arguments: str) -> int:
    """Run the command line and return its exit code."""
    from harness.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    return int(caught.value.code or 0)


def test_command_line_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 without a regression, 1 with one or undecided, 2 when nothing can be compared; the files for CI are written in every case."""
    records = replays(6, 0)
    stored(tmp_path / "old", records)
    stored(tmp_path / "new", [*records[:-1], broken_up(records[-1])])
    stored(tmp_path / "sampled", draws(6, 0))
    stored(tmp_path / "again", draws(6, 1))
    reference, results = str(tmp_path / "ref.json"), ["--results", str(tmp_path)]
    junit_file, summary_file = tmp_path / "ci" / "junit.xml", tmp_path / "ci" / "summary.md"
    files = ["--junit", str(junit_file), "--summary", str(summary_file)]
    assert exit_code("old", "--against", reference, *results, *files) == 2
    assert "ref.json" in capsys.readouterr().err
    assert ET.parse(junit_file).getroot().get("errors") == "1"
    assert "nothing was compared" in summary_file.read_text()
    assert exit_code("old", "--against", reference, "--update", *results) == 0
    assert exit_code("old", "--against", reference, *results) == 0
    assert exit_code("new", "--against", reference, *results, *files) == 1
    assert ET.parse(junit_file).getroot().get("failures") == "1"
    assert "1 of 3 comparisons failed" in summary_file.read_text()
    assert exit_code("sampled", "--against", reference, "--update", *results) == 0
    assert exit_code("again", "--against", reference, *results) == 1
    assert "would decide" in capsys.readouterr().out
    assert exit_code("again", "--against", reference, "--allow-undecided", *results) == 0
    capsys.readouterr()
    assert exit_code("again", "--against", reference, "--json", *results) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["failed"], found["error"]) == (False, 0, None)
    assert found["undecided"] == sum(c["prompts_needed"] is not None for c in found["comparisons"]) > 0
    assert exit_code("old", "--against", str(tmp_path / "none.json"), "--json", *results) == 2
    assert "none.json" in json.loads(capsys.readouterr().out)["error"]["problem"]


def test_prompts_of_two_runs_are_paired_by_what_they_are(tmp_path: Path) -> None:
    """``compare`` leaves out an id that stands for another prompt, and names it."""
    a = stored(tmp_path / "a", replays(6, 0))
    ids = [f"s{i}" for i in range(6)]
    b = stored(tmp_path / "b", replays(6, 1), prompts={s: f"hash of {'another' if s == 's2' else s}" for s in ids})
    old = [stored(tmp_path / name, replays(6, 0), prompts={}) for name in ("c", "d")]
    assert "| 6 |" in re.sub(" +", " ", compare(a, a))
    text = re.sub(" +", " ", compare(a, b))
    assert "| 5 |" in text
    assert "- s2" in text.split("## Other prompts under the same ids")[1]
    assert "| 6 |" in re.sub(" +", " ", compare(*old))
    assert "None that drafts" in compare(a, old[0])


def test_equal_cells_are_compared_whatever_their_experiment_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another label and a replay beside a decode: one row; the files hold what the screen says, and the intervals as numbers."""
    from harness.cli import main

    stored(tmp_path / "a", replays(6, 0))
    stored(tmp_path / "b", [dataclasses.replace(r, experiment="renamed") for r in replays(6, 1)])
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--results", str(tmp_path), "--out", str(tmp_path / "out"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "out" / "compare.json").read_text())
    assert compare(tmp_path / "a", tmp_path / "b") == (tmp_path / "out" / "compare.md").read_text()
    cell = next(c for c in shown["cells"] if c["cell"]["drafter"] == "generic")
    assert (cell["prompts"], shown["only_a"], shown["only_b"]) == (6, [], [])
    assert cell["rate"]["value"] == pytest.approx(cell["b"]["rate"] - cell["a"]["rate"])
    assert cell["rate"]["low"] < cell["rate"]["value"] < cell["rate"]["high"]


def test_report_gate_and_comparison_have_one_speedup(tmp_path: Path) -> None:
    """A long answer weighs more than a short one, everywhere the same."""
    records = []
    for i in range(6):
        tokens = tuple(range(10 * (i + 1)))
        base = baseline(f"s{i}", len(tokens), 1.0 + i, tokens=tokens)
        records += [base, dataclasses.replace(base, drafter="lookup", k=4, wall_s=(1.0 + i) / (1 + i), ttft_s=0.1)]
    row = next(r for r in summarise(records) if r.drafter)
    (answers,) = [cell for key, cell in cells_of(records).items() if "lookup" in key]
    assert row.speedup is not None
    assert row.speedup.value == pytest.approx(speedup.value(a.pair for a in answers.values() if a.pair)) == pytest.approx(21 / 6)
    assert speedup.value(p.pair for p in row.prompts if p.pair) == pytest.approx(21 / 6)
