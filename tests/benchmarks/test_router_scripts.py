"""The routing scripts run on a tiny pair and report what they found, so that a long run on a real pair does not fail at its end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapters as adapter_table
import numpy as np
import pytest
import router_decode
import router_latency
import router_table
import switch
from routed import adapters, prompts, write_prompts
from tiny import tiny_pair

from harness.adapt.routers.fitting import RouterData
from harness.adapt.routers.routed import fit_router, hash_adapters, load_router_config, outcome_table, router_path, save_router
from harness.answers.collect import collect
from harness.models.pair import load_pair
from routing.routers import grouped_folds

K = 3


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A tiny pair with two installed adapters and a router."""
    root = tmp_path_factory.mktemp("routed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(root / "cache"))
        pair = tiny_pair(root / "pair", max_position_embeddings=4096)
        folders = adapters(root / "cache" / "adapters" / "tiny", pair.draft)
        config = load_router_config("tfidf", ["router=logistic", "components=4", "min_confidence=0.0", "familiar=null"])
        hashes = hash_adapters(folders)
        router = fit_router(planted(), config, k=K, adapter_hashes=hashes)
        save_router(router, router_path("tiny"), run_id="test", adapter_hashes=hashes)
        write_prompts(root / "p.jsonl", 80)
        yield ["--models", str(root / "pair" / "tiny.yaml"), "--tokens", "6"]


def planted() -> Any:
    """Each adapter is good on its own domain."""
    from harness.decode.replay import ReplayRow

    samples, rows = prompts(40), []
    for s in samples:
        for name in ("generic", "code", "chat"):
            rounds = 10 if name == "generic" else 8 if name == s.domain else 16
            counts = {"rounds": rounds, "drafted": rounds * K, "accepted": 20 - rounds, "rejected": 0, "emitted": 20}
            rows.append(ReplayRow(sample_id=s.id, domain=s.domain, drafter=name, k=K, **counts))
    return outcome_table(rows, samples)


def test_table_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All four tables come out, every kind of router in the first, and the shifted ones are judged on the shifted prompts only."""
    file = Path(options[1]).parent.parent / "p.jsonl"
    out = tmp_path / "table.json"
    settings = [*options, "--file", str(file), "--splits", "test", "validation", "--config", "tfidf", "-k", str(K)]
    settings += ["--set", "router=knn", "folds=3", "components=4", "--kinds", "knn", "logistic", "--mixed", "7", "--out", str(out)]
    router_table.main([*settings, "--replay-scrambled"])
    raw = json.loads(out.read_text())
    plain, scrambled, unseen, double = raw["sections"].values()
    assert [p["policy"] for p in plain["policies"]][:5] == ["knn", "logistic", "generic@3", "chat@3", "code@3"]
    assert plain["prompts"] == scrambled["prompts"] == unseen["prompts"] > 10
    assert double["prompts"] == 7
    assert unseen["folds"] == 2
    mean = [next(p["mean"]["value"] for p in part["policies"] if p["policy"] == "generic@3") for part in raw["sections"].values()]
    assert mean[0] == mean[2]
    assert mean[0] != mean[1]
    text = capsys.readouterr().out
    assert text.count("## ") == 4
    assert text.count("oracle gap ") == 8  # a column and a line each
    router_table.main(settings)
    again = json.loads(out.read_text())["sections"]
    assert again["Prompts as they are, every kind of router"] == plain
    assert "Exchanged wording, counts of the original" in again


def test_adapter_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences are those of the pooled counts, every adapter against the plain draft on the same prompts."""
    out = tmp_path / "adapters.json"
    adapter_table.main([*options, "--domains", "chat", "math", "--prompts", "6", "-k", str(K), "--out", str(out)])
    entries = json.loads(out.read_text())["entries"]
    assert {(e["adapter"], e["domain"]) for e in entries} == {(a, d) for a in ("generic", "code", "chat") for d in ("all", "chat", "math")}
    for e in entries:
        for metric in ("alpha", "rate", "tau"):
            found = e[metric]
            assert found["change"]["value"] == pytest.approx(found["own"] - found["plain"], abs=1e-9)
            assert found["change"]["low"] <= found["change"]["value"] <= found["change"]["high"]
            assert (e["adapter"] == "generic") <= (found["change"]["value"] == 0)
    assert any(e["alpha"]["change"]["value"] != 0 for e in entries)
    assert capsys.readouterr().out.count("\n| ") == 1 + 6
    asked = adapter_table.common.samples(argparse.Namespace(domains=["chat", "math"], gsm8k=None, prompts=6))
    list(collect(load_pair(options[1]), asked, max_tokens=6, out=tmp_path / "answers"))
    stored = ["--answers", str(tmp_path / "answers"), "--domains", "chat", "math", "-k", str(K), "--out", str(out)]
    adapter_table.main([*options, *stored])
    assert json.loads(out.read_text())["entries"] == entries


def test_a_switch_pays_where_answers_change_and_only_there() -> None:
    """Answers whose first half one draft foresees and whose second half another one does: following the leader beats either of them and
    the router, the best choice of every round beats all; where one draft foresees everything nothing is gained."""
    halves, whole = np.zeros((2, 128), dtype=bool), np.zeros((2, 128), dtype=bool)
    halves[0, :64] = halves[1, 64:] = whole[1] = True
    names = ["a", "b"]
    found = switch.policies([halves] * 8, [0] * 8, names, 3, [128] * 8)
    tau = {name: 128 * 8 / sum(rounds) for name, rounds in found.items()}
    assert tau["router"] == tau["a"] == tau["b"] == tau["best of every answer"] == 128 / 80
    assert tau["leader per 32"] == 128 / 56 < tau["leader per 16"] == 128 / 44 < tau["best of every round"] == 4
    entries = {e["policy"]: e for e in switch.compared(found, [128] * 8, names, 3)}
    assert entries["leader per 16"]["over router"].low > 0
    assert entries["router"]["over router"].value == 0
    found = switch.policies([whole] * 8, [1] * 8, names, 3, [128] * 8)
    assert {sum(found[name]) for name in ("b", "router", "leader per 16", "best of every round")} == {8 * 32}
    assert sum(found["hedge 0.5 per 16"]) >= 8 * 32


def test_switch_script(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A line per draft, router, switch and bound; the drafts' lines are their replayed counts."""
    asked = ["--domains", "chat", "--prompts", "12", "--tokens", "20", "-k", str(K), "--config", "tfidf", "--set", "folds=2"]
    switch.main([*options[:2], *asked])
    out = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("| ")}
    assert {"generic", "code", "chat", "router", "leader per 16", "hedge 2 per 32", "best of every round"} <= lines.keys()
    assert "above the router beyond the interval: " in out


def test_shifted_prompts_are_judged_by_routers_that_never_saw_their_tasks() -> None:
    """A scrambled prompt's original, and both tasks of a mixed one, must be outside the training part of its fold."""
    samples = prompts(30)
    folds = grouped_folds(np.arange(30), 3, 0)
    double, fold_of = router_table.mixed(samples, folds, 10, seed=0)
    assert len(double) == 10
    for text, f in zip(double, fold_of, strict=True):
        inside = [i for i, s in enumerate(samples) if f"task:\n{s.prompt}\n" in f"{text.prompt}\n"]
        assert len(inside) == 2
        assert len({samples[i].domain for i in inside}) == 2
        assert not set(inside) & set(folds[f][0].tolist())
    base, other = np.arange(30), np.arange(30, 60)
    marks = [next(f for f, (_, test) in enumerate(folds) if i in test) for i in range(30)]
    shifted = router_table.shifted_folds(base, folds, other, marks)
    for train, test in shifted:
        assert not set(test - 30) & set(train)
    assert sorted(np.concatenate([test for _, test in shifted])) == other.tolist()


def test_rows_of_a_subset_keep_their_prompts() -> None:
    """The tables of subsets rest on row numbers: counts, prompts and groups must move together."""
    table = planted()
    material = RouterData(table=table, groups=np.arange(len(table)), adapter_hashes={}, folders={}, k=K, run_id="x")
    picked = [prompts(40)[i] for i in (7, 3, 20)]
    rows = router_table.rows_of(material, picked)
    part = material.take(rows)
    assert part.table.prompts == tuple(s.prompt for s in picked)
    assert part.table.domains == tuple(s.domain for s in picked)
    assert part.groups.tolist() == rows.tolist()
    np.testing.assert_array_equal(part.table.rounds, table.rounds[rows])


def test_latency_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cold and warm times, swaps per policy and the share of decoding; a cold run is dearer than a warm one."""
    out = tmp_path / "latency.json"
    settings = ["--domains", "chat", "--prompts", "4", "--decode", "2", "--cold-runs", "1", "--swaps", "2", "--out", str(out)]
    router_latency.main([*options, *settings])
    raw = json.loads(out.read_text())
    assert len(raw["warm_s"]["embed"]) == 4
    assert raw["cold_s"][0][0] > max(raw["warm_s"]["embed + choose"])
    assert {policy: len(times) for policy, times in raw["swap_s"].items()} == {"unfused": 4, "cached": 4, "fuse": 4}
    assert len(raw["answers"]) == 2
    assert all(0 < a["route_s"] + a["swap_s"] < a["wall_s"] for a in raw["answers"])
    assert "routing" in capsys.readouterr().out


def test_decode_script(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every contender answers every prompt like the target; the router pays for its choices, fixed drafters never pay for a swap."""
    out = tmp_path / "decode.json"
    settings = [*options, "--domains", "chat", "structured", "--prompts", "3", "--out", str(out)]
    router_decode.main(settings)
    raw = json.loads(out.read_text())
    assert set(raw["contenders"]) == {"plain", "generic", "code", "chat", "router"}
    assert {c["different"] for c in raw["contenders"].values()} == {0}
    assert all(len(c["wall_s"]) == 6 for c in raw["contenders"].values())
    assert len(raw["route_s"]) == 6
    assert min(raw["route_s"]) > 0
    assert set(raw["choices"]) <= {"generic", "code", "chat"}
    text = capsys.readouterr().out
    assert "router over best fixed" in text
    assert "router over generic" in text or raw["best_fixed"] == "generic"
    router_decode.main([*settings[:-2], "--fixed", "--prompts", "1"])
    assert "best fixed (generic)" in capsys.readouterr().out
