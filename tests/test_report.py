"""Every number of a report follows from the raw records; missing values stay missing; the page needs no network."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparing import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runner import make_suite, quiet, run
from test_store import make_manifest, make_record

from harness.core.records import Divergence, Load, Record, Score, Try
from harness.core.schema import Measured
from harness.core.walltime import Stages, own_share
from harness.report import Run, load_run, make_run, report_texts, show_table, summarise, write_reports
from harness.report.cells_csv import render_csv
from harness.report.html import render_html
from harness.report.markdown import render
from harness.report.sections import clock, figures, findings
from harness.report.sections.adapters import training_table
from harness.report.sections.domains import tables as domain_tables
from harness.report.sections.result import first_table
from harness.report.sections.time import stage_table
from harness.report.tables import MISSING
from harness.results.router_rows import compare_router, oracle_gap_recovery
from harness.results.summary import ALL
from harness.run.runner import reports_folder

ROOT = Path(__file__).parent.parent


def made(records: Sequence[Record], measured: dict[str, Any] | None = None, calibration: Any = None, **changes: Any) -> Run:
    """A finished run of these records."""
    known = {"status": "finished", "calibration": {"lookup": {"c": 0.0, "v": [1.0]}}}
    return Run(
        make_manifest(**{"measured": Measured(**{**known, **(measured or {})}), **changes}),
        records,
        summarise(records, calibration),
    )


def cell(sample: str, lengths: list[int], k: int = 4, **changes: Any) -> Record:
    """A record whose counts follow from its accept lengths; every round drafts ``k``."""
    values: dict[str, Any] = {
        "sample_id": sample, "k": k, "accept_lengths": tuple(lengths), "draft_lengths": (k,) * len(lengths), "rounds": len(lengths),
        "drafted": k * len(lengths), "accepted": sum(lengths), "rejected": sum(n < k for n in lengths),
        "emitted": sum(lengths) + len(lengths), "divergence": None, "compared": False, "wall_s": 1.0, "ttft_s": 0.1, "tokens": None,
    }  # fmt: skip
    return make_record(0, **{**values, **changes})


def baseline(sample: str, emitted: int, wall_s: float, **changes: Any) -> Record:
    """A target-only record."""
    zeros = {"accept_lengths": (0,) * emitted, "draft_lengths": (0,) * emitted, "drafted": 0, "accepted": 0, "rejected": 0}
    values = {**zeros, "drafter": None, "rounds": emitted, "emitted": emitted, "wall_s": wall_s, **changes}
    return dataclasses.replace(cell(sample, [], **values), k=None)


lengths = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(st.lists(lengths, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_counts_match_brute_force(prompts: list[list[int]]) -> None:
    """Rate, alpha, tau, per-prompt rate and positions against the definitions written out with loops."""
    (row,) = summarise([cell(f"s{i}", p) for i, p in enumerate(prompts)])
    rounds = [n for p in prompts for n in p]
    assert row.rate is not None
    assert row.tau is not None
    assert row.rate.value == pytest.approx(sum(rounds) / (4 * len(rounds)))
    assert row.tau.value == pytest.approx((sum(rounds) + len(rounds)) / len(rounds))
    tried = sum(rounds) + sum(n < 4 for n in rounds)
    assert row.alpha is not None
    assert row.alpha.value == pytest.approx(sum(rounds) / tried)
    assert row.rate_per_prompt == pytest.approx(sum(sum(p) / (4 * len(p)) for p in prompts) / len(prompts))
    for j in range(1, 5):
        assert row.marginal[j - 1] == pytest.approx(sum(n >= j for n in rounds) / len(rounds))
        before = sum(n >= j - 1 for n in rounds)
        assert row.conditional[j - 1] == (pytest.approx(sum(n >= j for n in rounds) / before) if before else None)


def test_pooled_and_per_prompt_can_differ() -> None:
    """A long bad prompt and a short good one: the two averages must not be mixed up."""
    (row,) = summarise([cell("long", [0] * 9), cell("short", [4])])
    assert row.rate is not None
    assert row.rate.value == pytest.approx(0.1)
    assert row.rate_per_prompt == pytest.approx(0.5)


def test_positions_of_cut_drafts() -> None:
    """A round that drafted two tokens says nothing about position three."""
    (row,) = summarise([cell("s", [3, 2], draft_lengths=(4, 2), drafted=6)])
    assert row.marginal == (1, 1, 1, 0)
    assert row.conditional == (1, 1, 1, 0)


def test_speedup_is_paired_and_a_ratio_of_sums() -> None:
    """Sum of baseline times over sum of cell times, over prompts that have both and equal lengths."""
    records = [baseline("a", 10, 4.0), baseline("b", 10, 2.0), baseline("d", 9, 100.0)]
    records += [cell("a", [4, 4], wall_s=1.0), cell("b", [4, 4], wall_s=2.0), cell("c", [4, 4], wall_s=50.0), cell("d", [4, 4], wall_s=1.0)]
    row = summarise(records)[1]
    assert row.speedup is not None
    assert row.speedup.value == pytest.approx(6 / 3)
    assert (row.speedup.n, row.unpaired) == (2, 2)


def test_sampled_speedup_compares_time_per_token() -> None:
    """At temperature 1 the outputs have different lengths; the time per token is compared."""
    records = [baseline("a", 10, 5.0, temperature=1.0), cell("a", [4, 4, 4, 4], wall_s=5.0, temperature=1.0)]
    row = summarise(records)[1]
    assert row.speedup is not None
    assert row.speedup.value == pytest.approx((5 / 10) / (5 / 20))


def test_baseline_of_another_temperature_does_not_count() -> None:
    """A sampled cell without a sampled baseline has no speedup."""
    row = summarise([baseline("a", 10, 5.0), cell("a", [4, 4], temperature=1.0)])[1]
    assert row.speedup is None


def test_prediction_follows_the_formula() -> None:
    """tau / (K c + v(K + 1)), and efficiency as measured over predicted."""
    records = [baseline("a", 10, 4.0), cell("a", [4, 4], wall_s=2.0)]
    row = summarise(records, {"lookup": {"c": 0.25, "v": [1, 1.1, 1.2, 1.3, 1.5]}})[1]
    assert row.predicted == pytest.approx(5 / (4 * 0.25 + 1.5))
    assert row.efficiency == pytest.approx(2.0 / 2.0)


def test_a_prediction_charges_the_draft_for_its_own_tokens_alone() -> None:
    """A round of four copied tokens costs its verification; of two remembered and two drafted ones, two steps of the draft."""
    records = [cell("a", [4, 4], drafter="cascade", sources=("lookup", "memory:2,draft:2"))]
    row = summarise(records, {"cascade": {"c": 0.25, "v": [1, 1.1, 1.2, 1.3, 1.5]}})[0]
    assert row.predicted == pytest.approx(10 / (1.5 + (2 * 0.25 + 1.5)))


def test_missing_is_empty_not_zero() -> None:
    """A replayed cell has no times, an undrafted one no rate: CSV fields are empty, Markdown shows the sign."""
    timeless = dict.fromkeys(("wall_s", "ttft_s"), None)
    records = [baseline("a", 3, 1.0), cell("a", [0], method="replay", drafted=0, draft_lengths=(0,), rejected=0, **timeless)]
    lines = list(csv.DictReader(io.StringIO(render_csv(summarise(records)))))
    assert lines[1]["tok_s"] == lines[1]["speedup"] == lines[1]["rate"] == lines[1]["ttft_s_p50"] == lines[1]["divergences"] == ""
    assert lines[0]["rate"] == lines[0]["drafter"] == ""
    assert lines[0]["tok_s"] == "3.0"
    assert first_table(made(records)).rows[0][3:6] == (MISSING,) * 3


def test_several_domains_get_a_pooled_row() -> None:
    """All domains together once, one domain alone not twice."""
    records = [cell("a", [1], domain="x"), cell("b", [2], domain="y")]
    assert [row.domain for row in summarise(records)] == ["x", "y", ALL]
    assert [row.domain for row in summarise(records[:1])] == ["x"]


def test_seeds_of_a_prompt_are_one_cluster() -> None:
    """Two seeds of one prompt are not two independent prompts."""
    (row,) = summarise([cell("a", [1], seed=0), cell("a", [3], seed=1)])
    assert row.n == 1


def timed(pairs: int, gain: float, noise: float, seed: int = 0) -> list[Record]:
    """Baseline and one cell over ``pairs`` prompts with a given speedup."""
    rng = random.Random(seed)
    records = []
    for i in range(pairs):
        wall = rng.uniform(1, 3)
        records += [baseline(f"s{i}", 10, wall), cell(f"s{i}", [4, 4], wall_s=wall / gain * math.exp(rng.gauss(0, noise)), compared=True)]
    return records


@pytest.mark.parametrize(
    ("gain", "noise", "n", "expected"),
    [
        (1.5, 0.05, 12, "lookup (K = 4) is faster than the target alone: 1.5"),
        (0.6, 0.05, 12, "lookup (K = 4) is slower than the target alone: 0.6"),
        (1.0, 0.20, 12, "no difference in speed between lookup (K = 4) and the target alone could be shown at n = 12"),
        (1.5, 0.05, 2, "n = 2 is too few for an interval"),
    ],
)
def test_findings_say_what_the_data_shows(gain: float, noise: float, n: int, expected: str) -> None:
    """Faster, slower, not shown, and too few prompts are four different sentences."""
    sentences = findings(made(timed(n, gain, noise)))
    assert expected in sentences[0]
    assert ("detectable" in sentences[0]) == (gain == 1.0)
    assert "greedy outputs equal" in sentences[1]


def test_one_good_cell_among_many_may_be_chance() -> None:
    """An interval without 1 that the correction for the number of cells does not confirm is not called faster."""
    records = timed(12, 1.2, 0.25, seed=2)
    assert "lookup (K = 4) is faster" in findings(made(records))[0]
    walls = {r.sample_id: r.wall_s or 0.0 for r in records if r.drafter is None}
    for k in range(5, 16):
        rng = random.Random(k)
        records += [cell(s, [4, 4], k=k, wall_s=wall * math.exp(rng.gauss(0, 0.3)), compared=True) for s, wall in walls.items()]
    (sentence,) = [text for text in findings(made(records)) if "lookup (K = 4)" in text]
    assert "may be chance (p = " in sentence
    assert "among 12 cells" in sentence


def test_divergences_are_counted_and_listed() -> None:
    """A near-tie is listed with position and gap; a bug is called a bug."""
    tie = Divergence(position=7, gap=1.5e-6, kind="tie")
    records = [cell("a", [1], compared=True), cell("b", [1], compared=True, divergence=tie)]
    text = render(made(records))
    assert "1 of 2 greedy outputs equal the target's own; 1 differ from a near-tie on (listed below)" in text
    assert re.search(r"\| lookup +\| 4 +\| b +\| +7 +\| +1.50e-06 +\| +tie", text)
    records[1] = dataclasses.replace(records[1], divergence=dataclasses.replace(tie, kind="bug"))
    assert "a bug in the decoding" in render(made(records))


def test_quality_difference_is_reported() -> None:
    """A lossless drafter with another score than the target is named."""
    good, bad = (Score(metric="pass@1", status=s, value=v) for s, v in (("passed", 1.0), ("failed", 0.0)))
    records = [baseline("a", 10, 1.0, score=good), cell("a", [4, 4], score=bad)]
    assert any("differs for lookup (K = 4) 0.000" in s for s in findings(made(records)))
    records[1] = dataclasses.replace(records[1], score=good)
    assert any("for every lossless cell" in s for s in findings(made(records)))


def test_unscored_is_not_wrong() -> None:
    """A sandbox failure changes the number of scored answers, not their mean."""
    scores = [Score(metric="pass@1", status="passed", value=1.0), Score(metric="pass@1", status="unscored", value=None)]
    (row,) = summarise([cell(f"s{i}", [1], score=s) for i, s in enumerate(scores)])
    assert row.quality is not None
    assert (row.quality.mean, row.quality.scored, row.quality.unscored) == (1.0, 1, 1)


def test_a_score_comes_with_its_interval() -> None:
    """Six of twelve answers pass: the mean, and how far the truth may be from it; too few answers give the mean alone."""
    scores = [Score(metric="pass@1", status="passed", value=float(i % 2)) for i in range(12)]
    records = [baseline(f"s{i}", 4, 1.0, score=s) for i, s in enumerate(scores)]
    records += [cell(f"s{i}", [1, 1], score=s) for i, s in enumerate(scores)]
    (text,) = [t for t in findings(made(records)) if t.startswith("pass@1")]
    assert re.match(r"pass@1 on code is 0\.500 \[0\.2\d\d, 0\.7\d\d\] for the target alone and for every lossless cell\.", text)
    assert [t for t in findings(made(records[:2] + records[12:14])) if t.startswith("pass@1 on code is 0.500 for the target alone")]


def routed_records() -> list[Record]:
    """Two prompts, two adapters each best on one of them, and a router that is right once."""
    rates = {("a", "code"): 4, ("a", "math"): 1, ("b", "code"): 1, ("b", "math"): 3}
    records = [cell(s, [n], drafter="adapter", adapter=adapter, experiment="domain_adapters") for (s, adapter), n in rates.items()]
    records += [cell("a", [4], drafter="router", adapter="code"), cell("b", [1], drafter="router", adapter="code")]
    return records


def test_router_against_best_fixed_and_oracle() -> None:
    """Best fixed 3.5 tokens a pass, oracle 4.5, router 3.5: no gap recovered; a perfect router recovers all."""
    comparison = compare_router(routed_records())
    assert {e["choice"]: e["tau"] for e in comparison} == {"best fixed": 3.5, "router": 3.5, "oracle": 4.5}
    assert oracle_gap_recovery(comparison, "code") == 0
    perfect = [*routed_records()[:-1], cell("b", [3], drafter="router", adapter="math")]
    assert oracle_gap_recovery(compare_router(perfect), "code") == 1


def test_router_is_not_compared_with_other_loops_or_untrained_adapters() -> None:
    """mlx-lm's own loop counts differently; an adapter without weights is the plain draft and goes by its name."""
    fast = [cell(s, [4], loop="mlx-lm") for s in ("a", "b")]
    plain = [cell(s, [3], drafter=drafter) for drafter in ("adapter", "generic") for s in ("a", "b")]
    best = compare_router([*fast, *plain, *routed_records()])[0]
    assert (best["choice"], best["name"], best["tau"]) == ("best fixed", "generic", 4)


def test_a_memory_that_the_router_takes_is_one_of_its_rivals() -> None:
    """Alone or before an adapter, where its choices name it; a run whose router has no memory is compared with drafts alone."""
    memory = [cell(s, [4], drafter="memory") for s in ("a", "b")]
    behind = [cell(s, [n], drafter="adapter", adapter="math", settings={"around": "memory_hybrid"}) for s, n in (("a", 4), ("b", 3))]
    chosen = [dataclasses.replace(r, choice="memory") if r.drafter == "router" else r for r in routed_records()]
    best, _, oracle = compare_router([*chosen, *memory, *behind])
    assert (best["name"], best["tau"], oracle["tau"]) == ("memory", 5, 5)
    assert compare_router([*routed_records(), *memory, *behind]) == compare_router(routed_records())
    best = compare_router([*chosen, *behind])[0]
    assert (best["name"], best["tau"]) == ("memory_hybrid+math", 4.5)


def test_who_proposed_is_told_of_cells_with_several_sources() -> None:
    """Of ten tokens the memory gave three, the draft two and a copy one, the target the rest; a draft alone needs no line."""
    several = cell("a", [3, 2, 1, 0], drafter="cascade", sources=("memory", "draft", "copy", ""))
    mixed = cell("a", [3, 2, 1, 0], drafter="cascade", sources=("memory:2,draft:2", "draft", "lookup", ""))
    alone = cell("a", [3, 2, 1, 0], drafter="generic", k=3)
    unknown = cell("a", [3, 2, 1, 0], drafter="hybrid")
    rows = summarise([several, alone, unknown])
    assert [row.sources for row in rows] == [{"memory": 0.3, "draft": 0.2, "lookup": 0.1}, {"draft": 0.6}, {}]
    assert summarise([mixed])[0].sources == {"draft": 0.3, "memory": 0.2, "lookup": 0.1}
    table = render(made([several, alone, unknown])).partition("## Who proposed")[2].partition("\n##")[0]
    assert re.findall(r"\d+%", table) == ["30%", "20%", "10%", "40%"]
    assert "Who proposed" not in render(made([alone]))


def test_cells_without_an_adapter_are_named() -> None:
    """Whether nothing was trained or nothing was kept: the reader must know that the plain draft ran."""
    adapters = {"code": {"rounds": []}, "chat": {"rounds": [{"accepted": False}]}, "math": {"rounds": [{"accepted": True}]}}
    (text,) = findings(made([], {"adapters": adapters}))
    assert text == (
        "Too few failure cases to train code on; no round of chat raised validation acceptance: "
        "these cells ran with the plain draft and are left out."
    )


def test_training_table_names_a_gain_within_noise() -> None:
    """Old records have no interval; a new one that contains 0 is said so."""
    one = {"round": 1, "accepted": True, "before": {"x": 0.5}, "after": {"x": 0.51}, "steps": 3, "tokens": 9, "train_s": 1.0}
    noise, sure = {"value": 0.01, "low": -0.01, "high": 0.03}, {"value": 0.01, "low": 0.005, "high": 0.02}
    extra: list[dict[str, Any]] = [{}, {"gain": None}, {"gain": noise}, {"gain": sure}]
    adapters = {str(i): {"domain": "x", "metric": "alpha", "rounds": [{**one, **more}]} for i, more in enumerate(extra)}
    table = training_table(Measured(adapters=adapters), [])
    assert table is not None
    assert [row[2] for row in table.rows] == ["round 1: kept", "round 1: kept", "round 1: kept, gain within noise", "round 1: kept"]


def full_records() -> list[Record]:
    """Records that every chart has data for."""
    rng = random.Random(5)
    records = []
    for domain in ("code", "math"):
        for i in range(6):
            sample = f"{domain}/{i}"
            records.append(baseline(sample, 10, rng.uniform(2, 3), domain=domain))
            draws = [[rng.randint(0, 4), rng.randint(0, 4)] for _ in range(20)]
            for k in (4, 5):
                records.append(cell(sample, [4, 4], k=k, domain=domain, wall_s=rng.uniform(1, 2)))
            for adapter in ("code", "math"):
                settings = {"adapter_domain": adapter}
                records.append(
                    cell(sample, draws.pop(), domain=domain, drafter="adapter", adapter=adapter, settings=settings, experiment="ad")
                )
            for rank in (2, 8):
                settings = {"adapter_domain": domain, "rank": rank}
                records.append(
                    cell(sample, draws.pop(), domain=domain, drafter="adapter", adapter=f"r{rank}", settings=settings, experiment="ra")
                )
            for done in (0, 1):
                settings = {"adapter_domain": domain, "round": done}
                records.append(
                    cell(sample, draws.pop(), domain=domain, drafter="adapter", adapter=f"n{done}", settings=settings, experiment="ro")
                )
            records.append(cell(sample, draws.pop(), domain=domain, drafter="router", adapter=domain))
    return records


def test_html_is_self_contained() -> None:
    """No outside request, at most 5 MB, every chart present, and hostile text from a model cannot become markup."""
    records = full_records()
    costs = {"lookup": {"c": 0.1, "v": [1, 1.1, 1.2, 1.3, 1.4, 1.5]}}
    run = made(records, calibration=costs, suite={"name": "</script><script>alert(1)</script>"})
    page = render_html(run)
    assert len(page.encode()) < 5_000_000
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    assert "<script>alert(1)" not in page
    assert page.count("<script>") == page.count("</script>") == 2
    for title in (
        "Speedup", "Acceptance", "Acceptance by position", "Tokens per target pass over the draft length", "Speedup over the draft length",
        "Adapter rank", "Training rounds", "Forgetting", "Router", "Latency",
    ):  # fmt: skip
        assert f">{title}</h" in page
    links = re.findall(r'<a href="#([^"]*)">', page)
    assert links[:4] == ["recommendation", "result", "findings", "legend"]
    assert all(page.count(f'<section id="{link}">') == 1 for link in links)
    assert all(f"<dt>{name}</dt>" in page for name in ("rate", "alpha", "tau"))
    assert render_html(run) == page


def test_charts_appear_only_with_data() -> None:
    """A run without adapters shows no empty adapter charts."""
    titles = [f.title for f in figures(made(timed(6, 1.2, 0.1)))]
    assert titles == ["Speedup", "Acceptance", "Acceptance by position", "Latency"]


def test_reports_are_written_and_shown(finished: Path, tmp_path: Path) -> None:
    """All files; every chart as SVG and as PNG, and none that the run no longer has; the same texts a second time."""
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/forgetting.svg").write_text("old")
    run = load_run(finished)
    written = {path.name: path.read_bytes().decode() for path in write_reports(run, tmp_path)}
    assert set(written) == {"report.md", "cells.csv", "report.html", "recommendation.json", "settings.yaml"}
    assert report_texts(run) == written
    names = {figure.name for figure in figures(run)}
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert (tmp_path / "charts/speedup.svg").read_text().startswith("<svg")
    assert (tmp_path / "charts/speedup.png").read_bytes().startswith(b"\x89PNG")
    console = quiet()
    show_table(run, console)
    assert "| all" in console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_starts_with_the_recommendation(finished: Path) -> None:
    """First screen: the title, what to use, its command line, one table, then the sentences."""
    blocks = (reports_folder(finished) / "report.md").read_text().split("\n\n")
    assert blocks[0].startswith("# ")
    assert re.match(r"(Use |Nothing is shown|By prediction)", blocks[1])
    assert blocks[2].startswith("Command: `harness generate PROMPT --models ")
    assert blocks[3].startswith("| domain")
    assert blocks[4].startswith("- On all domains together, ")


def test_first_table_ranks_cells_and_shows_their_domains() -> None:
    """The fastest pooled cell first with its speedup on each domain, then cells of one domain, the target alone last."""
    records = []
    for domain, slow in (("x", 2.0), ("y", 4.0)):
        records += [baseline(domain, 4, 4.0, domain=domain), cell(domain, [1, 1], domain=domain, k=2, wall_s=slow)]
        records.append(cell(domain, [1, 1], domain=domain, k=4, wall_s=1.0))
    records.append(cell("x", [1, 1], domain="x", k=8, wall_s=0.5))
    table = first_table(made(records))
    own = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
    assert [(r["domain"], r["K"], r["speedup [95%]"], r["on x"], r["on y"]) for r in own] == [
        (ALL, "4", "4.00x", "4.00x", "4.00x"),
        (ALL, "2", "1.33x", "2.00x", "1.00x"),
        ("x", "8", "8.00x", "8.00x", MISSING),
        (ALL, MISSING, MISSING, MISSING, MISSING),
    ]
    (by_domain,) = domain_tables(made(records))
    assert [row[0] for row in by_domain.rows] == ["x"] * 4 + ["y"] * 3
    assert [row[2] for row in by_domain.rows] == ["8", "4", "2", MISSING, "4", "2", MISSING]
    assert domain_tables(made(timed(3, 1.0, 0.1))) == []


def test_replay_is_weighed_against_decoding_the_same_cells() -> None:
    """Two prompts of 8 s each at a predicted 1 (unknown) would be 16 s of decoding; 2 s of replay are an eighth."""
    records = [baseline("a", 8, 8.0), baseline("b", 8, 8.0)]
    records += [cell(s, [1, 1, 1, 1], experiment="ablation_k", method="replay", wall_s=None) for s in "ab"]

    def boast(records: list[Record], **measured: Any) -> list[str]:
        return [t for t in findings(made(records, measured)) if "came from replay" in t]

    text = "The counts of 1 cell came from replay in 2.0 s; decoding it would take about 16 s, 8 times as long."
    assert boast(records, replayed={"records": 2, "seconds": 2.0}) == [text]
    assert boast(records, replayed={"records": 1, "seconds": 2.0}) == [], "a killed process took a clock with it"
    assert boast(records) == boast(records[:2], replayed={"records": 0, "seconds": 0.0}) == []
    many = [baseline(s, 8, 8.0, method="answer") for s in "abcd"]
    many += [cell(s, [1] * 4, method="replay", wall_s=None) for s in "abcd"] + [cell("a", [1] * 4, wall_s=4.0)]
    (text,) = boast([*records[:2], *many], replayed={"records": 4, "seconds": 2.0})
    assert "about 16 s, 8 times" in text, "four answers of 8 s, two times as fast by the clock"


def test_a_report_says_why_the_clock_and_the_rounds_disagree() -> None:
    """Cells whose two speedups lie beyond each other's intervals are named, with what else the machine did; and answers decoded again."""
    busy, calm = Load(average=5.0, pressure=60.0, steal=0.1), Load(average=1.0, pressure=0.0, steal=0.0)

    def sentences(load: Load, slow: float = 1.0, tries: tuple[Try, ...] = (), copies: int = 0) -> list[str]:
        records = [baseline(f"c{i}", 10, 1.1, method="answer") for i in range(copies)]
        records += [cell(f"c{i}", [4, 4], method="replay", wall_s=None) for i in range(copies)]
        for i in range(6):
            plain = {"verify_times_s": (0.1,) * 10, "prefill_s": 0.1, "load": load}
            records.append(baseline(f"s{i}", 10, 1.1, **plain))
            own = {
                "verify_times_s": (0.1,) * 4,
                "draft_times_s": (0.0,) * 4,
                "prefill_s": 0.1,
                "load": load,
                "tries": tries if i < 2 else (),
            }
            disturbed = {"verify_times_s": (0.1, 0.1, 0.1, 0.1 * slow), "wall_s": 0.4 + 0.1 * slow}
            records.append(cell(f"s{i}", [2, 2, 1, 1], **{**own, **disturbed}))
        return clock.sentences(made(records))

    assert sentences(busy) == []
    (text,) = sentences(busy, slow=20.0)
    assert re.match(
        r"lookup \(K = 4\) on code has 2\.\d\dx \[.*\] by the medians of the rounds, n = 6, and 0\.\d\dx \[.*\] by the wall", text
    )
    assert text.endswith("60% of the time, the host gave 10% of the processors away, 5.0 processes ran or waited on 2 cores.")
    assert sentences(calm, slow=20.0)[0].endswith("no other load was seen, so perhaps heat.")
    (unlike,) = sentences(busy, copies=40)
    assert unlike.endswith("n = 6: the clocked prompts are unlike the others, 2.20x by the medians too.")
    (again,) = sentences(calm, tries=(Try(wall_s=3.0, expected_s=1.0, load=busy),))
    assert again.startswith("2 of 12 timed answers were decoded again, as their clock was disturbed: processes waited for a processor 60%")


def test_routing_is_told_once() -> None:
    """Several routers have one sentence, from the least time to the most; one router without a swap has no range."""

    def told(*cells: dict[str, Any]) -> list[str]:
        records = [cell("a", [1], drafter="router", **settings) for settings in cells]
        return [text for text in findings(made(records)) if text.startswith("Routing")]

    two = told({"route_s": 0.002, "swap_s": 0.001}, {"route_s": 0.03, "swap_s": 0.001, "settings": {"around": "hybrid"}})
    assert two == ["Routing took 2.0 to 30.0 ms per prompt, adapter swap 1.0 ms, counted in the router's speedup."]
    assert told({"route_s": 0.002}) == ["Routing took 2.0 ms per prompt, counted in the router's speedup."]


def test_domains_stand_in_the_order_of_the_suite() -> None:
    """Answers come in the order of their batches; tables do not."""
    records = [r for d in "xyz" for r in (baseline(d, 4, 1.0, domain=d), cell(d, [1, 1], domain=d, wall_s=0.5))]
    run = make_run(make_manifest(suite={"name": "q", "domains": {"z": {}, "x": {}, "y": {}}}), records)
    assert list(dict.fromkeys(row.domain for row in run.rows)) == ["z", "x", "y", ALL]


def test_slower_is_never_called_fastest() -> None:
    """Where every drafter loses, the report says so and names the one that came closest."""
    records = [r for d in "xy" for r in (baseline(d, 4, 1.0, domain=d), cell(d, [1, 1], domain=d, wall_s=1.25 if d == "x" else 0.5))]
    texts = findings(made(records))
    assert "On x, nothing ran faster than the target alone: lookup (K = 4) came closest at 0.80x, n = 1." in texts
    assert [t.split(",")[0] for t in texts if " ran at " in t] == ["On all domains together", "On y"]


def test_a_suite_that_only_replays_shows_its_acceptance() -> None:
    """The table at the end of such a run has the rate of every replayed cell."""
    records = [baseline("a", 4, 1.0), cell("a", [1, 1], method="replay", wall_s=None, ttft_s=None)]
    console = quiet()
    show_table(made(records), console)
    assert re.search(r"lookup +\| 4 +\| +1 \| +replay \| +8 \| +2 \| +0.250", console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("measured", "part"), [({"status": "interrupted", "planned": 90}, "2 of 90 records"), ({}, "2 records")])
def test_an_unfinished_run_says_so_first(measured: dict[str, Any], part: str) -> None:
    """Killed or interrupted: the report's and the terminal's first lines say how far it got and how to go on."""
    records, console = [baseline("a", 4, 1.0), cell("a", [1, 1])], quiet()
    unfinished = Run(make_manifest(measured=Measured(**measured)), records, summarise(records))
    texts, said = report_texts(unfinished), f"Unfinished: {part}; resume with: harness run ... --resume quick-tiny"
    show_table(unfinished, console)
    assert texts["report.md"].split("\n\n")[1] == f"**{said}**"
    assert texts["report.html"].index(said) < texts["report.html"].index("<table>")
    assert console.file.getvalue().startswith(said)  # type: ignore[attr-defined]
    assert "Unfinished" not in report_texts(dataclasses.replace(unfinished, manifest=make_manifest()))["report.md"]


def test_stages_add_up_and_an_inner_one_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s of decoding with 2 s of checking inside, 5 s of replay that an interrupted run had before, 1 s of nothing."""
    clock = iter([0.0, 0.0, 1.0, 3.0, 3.0, 4.0])
    monkeypatch.setattr("harness.core.walltime.time.perf_counter", lambda: next(clock))
    stages = Stages({"replay": 5.0, "total": 6.0})
    with stages("decode"), stages("check"):
        pass
    seconds = stages.seconds()
    assert seconds == {"replay": 5.0, "decode": 1.0, "check": 2.0, "total": 10.0}
    assert own_share(seconds) == pytest.approx(0.2)
    table = stage_table(Measured(time_s=seconds))
    assert table is not None
    assert table.rows[-1] == ("planning, records, everything else", "2.0 s", "20.0%")
    assert stage_table(Measured()) is None


def test_compare_names_what_changed(finished: Path, tmp_path: Path) -> None:
    """Two runs of different suites: the changed key, the shared cells and the cells of one side only."""
    experiments = [{"kind": "baseline"}, {"kind": "drafters", "drafters": ["lookup"]}]
    other = run(tmp_path, suite=make_suite(limit=6, max_tokens=14, experiments=experiments))
    text = compare(finished, other)
    assert re.search(r"suite.max_tokens +\| 12 +\| 14", text)
    assert "| code lookup K=4 " in text
    assert "## Only in A" in text
    assert "Same suite" in compare(finished, finished)
