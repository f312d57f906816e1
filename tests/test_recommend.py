"""The recommendation says "use" only for what is shown to be faster, and says in words what is not known."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_report import baseline, cell, made

from harness.core.records import Record
from harness.core.settings_file import load_settings
from harness.report import Run, show_recommendation, write_reports
from harness.report.sections.prompts import tables as prompt_tables
from harness.report.sections.recommendation import paragraph, recommendation_json, sentences, settings_yaml
from harness.report.sections.result import first_rows, first_table
from harness.results.texts import Texts, answer_key

COSTS = {name: {"c": 0.1, "v": [1, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3]} for name in ("lookup", "generic")}


def clocked(gains: dict[str, Sequence[float]], n: int = 12, noise: float = 0.03, **changes: Any) -> list[Record]:
    """A target and drafters over ``n`` prompts of each domain; ``gains`` are a drafter's speedups on the domains a, b, ..."""
    rng = random.Random(1)
    records = []
    for d in range(len(next(iter(gains.values())))):
        domain = "abc"[d]
        for i in range(n):
            wall = rng.uniform(1, 3)
            records.append(baseline(f"{domain}{i}", 10, wall, domain=domain))
            for name, speedups in gains.items():
                own = wall / speedups[d] * math.exp(rng.gauss(0, noise))
                records.append(cell(f"{domain}{i}", [4, 4], domain=domain, drafter=name, wall_s=own, **changes))
    return records


def test_a_clear_winner_is_to_be_used() -> None:
    """Speed with interval, every domain, the next best and how far behind, the command line."""
    run = made(clocked({"generic": [1.6, 1.4], "lookup": [1.2, 1.1]}))
    r = run.recommendation
    assert (r.verdict, r.use.drafter, r.use.k, r.next_best and r.next_best.drafter) == ("faster", "generic", 4, "lookup")
    assert (r.use.domains["a"], r.use.domains["b"]) == pytest.approx((1.6, 1.4), abs=0.05)
    assert r.lead is not None
    assert r.lead.excludes(1.0)
    assert r.question is None
    text = paragraph(run)
    assert text.startswith("Use generic with K = 4: 1.49x [")
    assert "over the target alone on 24 prompts (a 1.59x, b 1.40x)" in text
    assert "Next best: lookup with K = 4, 1.1" in text
    assert "which takes 1.29 times as long." in text
    assert r.command == "harness generate PROMPT --models tiny --drafter generic -k 4"
    assert first_table(run).rows[0][1] == "★\u00a0generic"
    assert [row[0] for row in first_table(run).rows] == ["all"] * 3


def test_a_tie_asks_for_prompts() -> None:
    """Two drafters that these prompts cannot tell apart: the faster one is named, and how many more prompts would decide."""
    run = made(clocked({"generic": [1.5], "lookup": [1.45]}, noise=0.2))
    r = run.recommendation
    assert r.verdict == "faster"
    assert r.question is not None
    assert r.question.more is not None
    assert r.question.more > 12
    assert "not shown to be slower" in paragraph(run)
    assert f"About {r.question.more} more prompts like these would show which is faster" in paragraph(run)
    same = made(clocked({"generic": [1.5], "lookup": [1.5]}, noise=0.002))
    assert same.recommendation.question is None


def test_nothing_faster_is_the_target_alone() -> None:
    """Slower drafters are not used, and the table stars none of them."""
    run = made(clocked({"generic": [0.8, 0.7], "lookup": [0.9, 0.9]}))
    r = run.recommendation
    assert (r.verdict, r.use.drafter, r.best and r.best.drafter) == ("target", None, "lookup")
    assert sentences(run)[0].startswith("Use the target alone: nothing ran faster. lookup with K = 4 came closest: 0.90x [")
    assert r.command == "harness generate PROMPT --models tiny --drafter none"
    assert "★" not in str(first_table(run))
    assert "drafter: null" in settings_yaml(run)


def test_what_may_be_chance_is_not_shown() -> None:
    """Above 1, but not beyond noise: nothing is shown, and the number of prompts that would decide is given."""
    run = made(clocked({"generic": [1.25]}, noise=0.3))
    r = run.recommendation
    assert (r.verdict, r.use.drafter) == ("unclear", None)
    assert r.question is not None
    assert paragraph(run).startswith("Nothing is shown to be faster than the target alone. generic with K = 4 came closest: 1.")
    assert f"About {r.question.more} more prompts" in paragraph(run)


def test_what_ran_slower_by_chance_is_open_too() -> None:
    """Below 1, but not beyond noise: that the target alone is best is not shown either."""
    run = made(clocked({"generic": [0.9]}, noise=0.3))
    assert run.recommendation.best is not None
    assert run.recommendation.best.speedup is not None
    assert run.recommendation.best.speedup.value < 1
    assert run.recommendation.verdict == "unclear"
    assert paragraph(run).startswith("Nothing is shown to be faster than the target alone. generic with K = 4 came closest: 0.")


def test_the_best_of_many_can_be_chance() -> None:
    """An interval without 1 is not enough where many were tried: one of them reaches it by chance."""
    records, seed = [], random.Random(14)
    walls = {f"s{i}": seed.uniform(1, 3) for i in range(10)}
    records += [baseline(s, 10, wall) for s, wall in walls.items()]
    for k in range(4, 24):
        rng = random.Random(k)
        records += [cell(s, [4, 4], k=k, wall_s=wall * math.exp(rng.gauss(0, 0.15))) for s, wall in walls.items()]
    run = made(records)
    best = run.recommendation.best
    assert best is not None
    assert best.speedup is not None
    assert best.speedup.excludes(1.0)
    assert run.recommendation.verdict == "unclear"
    assert "which the best of 20 can reach by chance" in paragraph(run)


def test_what_is_shown_comes_before_what_only_ran_faster() -> None:
    """A drafter with one lucky prompt, and one whose times scatter, do not stand before one that is surely faster."""
    records = clocked({"generic": [1.4]})
    walls = {r.sample_id: r.wall_s or 0.0 for r in records if r.drafter is None}
    rng = random.Random(3)
    records.append(cell("a0", [4, 4], domain="a", drafter="lookup", wall_s=walls["a0"] / 4))
    records += [cell(s, [4, 4], domain="a", drafter="hybrid", wall_s=wall / 1.9 * math.exp(rng.gauss(0, 1.2))) for s, wall in walls.items()]
    run = made(records)
    assert first_rows(run.shown)[0].drafter != "lookup"
    assert (run.recommendation.verdict, run.recommendation.use.drafter) == ("faster", "generic")
    assert (run.recommendation.next_best or run.recommendation.use).drafter == "hybrid"


def test_one_prompt_is_too_few() -> None:
    """No interval, no claim; the text says how many prompts an interval takes."""
    run = made([baseline("a", 10, 4.0), cell("a", [4, 4], wall_s=1.0)])
    assert run.recommendation.verdict == "unclear"
    assert paragraph(run) == (
        "Nothing is shown to be faster than the target alone. lookup with K = 4 came closest: 4.00x on 1 code prompt. "
        "For an interval run at least 5 prompts."
    )


def replayed(drafter: str, k: int, lengths: list[int]) -> list[Record]:
    """Six prompts of a replayed cell."""
    return [
        cell(f"s{i}", lengths, k=k, drafter=drafter, method="replay", wall_s=None, ttft_s=None, experiment="ablation_k") for i in range(6)
    ]


def test_a_run_that_only_replays_recommends_by_prediction() -> None:
    """What acceptance and costs promise, said to be a prediction; where none promises more than 1 the target alone is."""
    target = [baseline(f"s{i}", 10, 4.0) for i in range(6)]
    run = made([*target, *replayed("generic", 4, [4, 4]), *replayed("lookup", 2, [1, 1])], calibration=COSTS)
    r = run.recommendation
    assert (r.verdict, r.use.drafter, r.use.k) == ("predicted", "generic", 4)
    assert r.use.predicted == pytest.approx(5 / (0.4 + 1.2))
    assert paragraph(run).startswith("By prediction, use generic with K = 4: 3.12x (predicted) over the target alone. No drafter was timed")
    poor = made([*target, *replayed("generic", 4, [0, 0])], calibration=COSTS)
    assert sentences(poor)[0].startswith("Use the target alone: no drafter is predicted to be faster.")
    own = [dataclasses.replace(r, domain="code") for r in clocked({"lookup": [1.3]})]
    timed = made([*own, *replayed("generic", 4, [4, 4])], calibration={"generic": COSTS["generic"]})
    assert timed.recommendation.untimed is not None
    assert "Not timed, but predicted to be faster: generic with K = 4, 3.12x." in paragraph(timed)
    both = made([*own, *replayed("lookup", 4, [4, 4])], calibration=COSTS)
    assert both.recommendation.untimed is None


def test_a_run_without_a_clock_knows_no_speed() -> None:
    """Counts alone recommend nothing; decoded without a warm-up, the speeds are not to be relied on."""
    counted = made([baseline(f"s{i}", 10, 4.0) for i in range(6)] + replayed("generic", 4, [4, 4]), {"calibration": {}})
    assert counted.recommendation.verdict == "nothing"
    assert paragraph(counted).startswith("No speed is known, so nothing is recommended")
    assert paragraph(made(clocked({"generic": [1.5]}), {"calibration": {}})).endswith("time it again before relying on its speeds.")


def test_a_killed_run_says_so_far() -> None:
    """A partial run recommends by what there is, and says that it is partial."""
    run = made(clocked({"generic": [1.5]}), {"status": "interrupted"})
    assert paragraph(run).startswith("So far: use generic with K = 4: 1.")
    assert json.loads(recommendation_json(run))["finished"] is False


def test_pairs_without_a_draft_and_runs_without_drafters() -> None:
    """Lookup and early exit need no draft; the options of early exit go into the settings file."""
    run = made(clocked({"early_exit": [1.5]}, settings={"layers": 4}))
    assert run.recommendation.command == "harness generate PROMPT --models tiny --settings settings.yaml"
    assert "layers: 4" in settings_yaml(run)
    alone = made([baseline("a", 10, 4.0)])
    assert (alone.recommendation.verdict, alone.recommendation.command[-4:]) == ("nothing", "none")
    assert "nothing to recommend" in paragraph(alone)


def test_another_drafter_may_be_faster_on_a_domain() -> None:
    """The best over all domains need not be the best on each, and may lose on one."""
    run = made(clocked({"generic": [2.0, 1.3, 0.9], "lookup": [0.9, 1.7, 0.8]}))
    assert run.recommendation.use.drafter == "generic"
    assert list(run.recommendation.better_on) == ["b"]
    text = paragraph(run)
    assert "On b, lookup with K = 4 is faster still: 1.7" in text
    assert "Not on c (0.89x): there the target alone ran faster." in text


def test_adapters_and_router_are_weighed_against_the_plain_draft() -> None:
    """Each domain's own adapter, all together, at the same K; a difference within noise is called so."""
    records = clocked({"generic": [1.4, 1.2], "router": [1.41, 1.2]})
    for r in clocked({"adapter": [1.6, 1.5]}):
        if r.drafter:
            records.append(cell(r.sample_id, [4, 4], domain=r.domain, drafter="adapter", adapter=r.domain, wall_s=r.wall_s,
                                settings={"adapter_domain": r.domain}))  # fmt: skip
    rng = random.Random(2)
    walls = {r.sample_id: r.wall_s for r in records if r.drafter == "generic"}
    for i, r in enumerate(records):
        if r.drafter == "router":
            noisy = (walls[r.sample_id] or 0.0) * math.exp(rng.gauss(0, 0.1))
            records[i] = cell(r.sample_id, [4, 4], domain=r.domain, drafter="router", wall_s=noisy)
        elif r.drafter == "adapter":
            records[i] = cell(r.sample_id, [4, 4], domain=r.domain, drafter="adapter", adapter=r.domain,
                              wall_s=(walls[r.sample_id] or 0.0) / 1.2, settings=r.settings)  # fmt: skip
    run = made(records)
    adapters, router = run.recommendation.adapters, run.recommendation.router
    assert adapters is not None
    assert adapters.ratio.value == pytest.approx(1.2)
    assert router is not None
    assert not router.ratio.excludes(1.0)
    text = paragraph(run)
    assert f"Adapters add {adapters.speedup:.2f}x to the plain draft with K = 4." in text
    assert "The router changes the plain draft with K = 4 by" in text


def test_what_a_run_trained_for_itself_is_trained_for_use_first() -> None:
    """The command line of an adapter or of the router needs what ``harness train`` installs."""
    adapter = made(clocked({"adapter": [1.6]}, adapter="a"))
    assert adapter.recommendation.command.endswith("--adapter a -k 4")
    assert "Train the adapter for use first: harness train quick --models tiny --domain a." in paragraph(adapter)
    assert "drafter: a\n" in settings_yaml(adapter)
    router = made(clocked({"router": [1.6]}))
    assert router.recommendation.command.endswith("--route -k 4")
    assert "harness train-router quick --models tiny." in paragraph(router)


def test_cells_of_untrained_adapters_are_one_line() -> None:
    """An adapter that was not kept is the plain draft: no row, no chart, and the router that had no choice neither."""
    records = clocked({"generic": [1.5], "router": [1.5]})
    more = [cell(r.sample_id, [4, 4], domain="a", drafter="adapter", settings={"adapter_domain": "a"}) for r in records[::3]]
    measured = {"adapters": {"a": {"rounds": []}}, "routers": {"default K=4": {"prompts": 9, "arms": ["generic"]}}}
    run = made([*records, *more], measured)
    assert {row.drafter for row in run.shown} == {None, "generic"}
    assert {row.drafter for row in run.rows} == {None, "generic", "router", "adapter"}
    assert run.recommendation.tried == 1


def test_json_and_settings_say_the_same(tmp_path: Path) -> None:
    """``recommendation.json`` has the numbers and the text; ``settings.yaml`` is read back as the same choice."""
    run = made(clocked({"generic": [1.6]}, k=3, draft_lengths=(3, 3), accept_lengths=(3, 3), drafted=6, accepted=6, emitted=10, rejected=0))
    write_reports(run, tmp_path)
    data = json.loads((tmp_path / "recommendation.json").read_text())
    assert (data["verdict"], data["use"]["drafter"], data["use"]["k"], data["text"]) == ("faster", "generic", 3, paragraph(run))
    assert data["use"]["speedup"]["low"] > 1
    settings = load_settings(tmp_path / "settings.yaml")
    assert (settings.models, settings.drafter, settings.k, settings.temperature) == ("tiny", "generic", 3, 0.0)


def test_the_terminal_ends_with_the_recommendation_and_the_page(tmp_path: Path) -> None:
    """Paragraph, command line, path: the last three lines."""
    from test_runner import quiet

    run, console = made(clocked({"generic": [1.6]})), quiet()
    show_recommendation(run, tmp_path / "report.html", console)
    *_, first, command, page = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == paragraph(run)
    assert command.strip() == run.recommendation.command
    assert page.endswith("report.html")


def test_prompts_come_worst_first_with_texts() -> None:
    """Speedup per prompt ascending; the answer in stretches by who proposed them; what was not kept is left out."""
    records = [baseline("a", 5, 2.0, tokens=(1, 2, 3, 4, 5)), cell("a", [2, 1], wall_s=1.0, tokens=(1, 2, 3, 4, 5))]
    records += [baseline("b", 5, 2.0, tokens=(1, 2, 3, 4, 6)), cell("b", [2, 1], wall_s=4.0, tokens=(1, 2, 3, 4, 6))]
    texts = Texts(prompts={"a": "<b>Hi</b>"}, answers={answer_key((1, 2, 3, 4, 5)): ("A", "B", "C", "D", "E")})
    plain = made(records)
    (table,) = prompt_tables(Run(plain.manifest, plain.records, plain.rows, texts))
    assert [(row[0], row[2]) for row in table.rows] == [("b", "0.50x"), ("a", "2.00x")]
    assert table.texts[0] is None
    assert table.texts[1] is not None
    assert (table.texts[1].prompt, table.texts[1].answer) == ("<b>Hi</b>", (("AB", "lookup"), ("C", ""), ("D", "lookup"), ("E", "")))


def test_every_token_is_told_by_its_source() -> None:
    """Copies count as lookups, a foreign source as a draft; a source that ran on a token which did not stand is not told."""
    tokens = (1, 2, 3, 4, 5)
    drafted = cell("a", [3, 0], wall_s=1.0, tokens=tokens, drafter="cascade", sources=("memory:1,draft:1,copy:2", "mine"))
    plain = made([baseline("a", 5, 2.0, tokens=tokens), drafted])
    texts = Texts(prompts={"a": "Hi"}, answers={answer_key(tokens): tuple("ABCDE")})
    (table,) = prompt_tables(Run(plain.manifest, plain.records, plain.rows, texts))
    assert table.texts[0] is not None
    assert table.texts[0].answer == (("A", "memory"), ("B", "draft"), ("C", "lookup"), ("DE", ""))
