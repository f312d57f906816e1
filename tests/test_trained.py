"""Adapters and routers a suite asks for: trained inside the run, found again by content, and the same after a resume."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import tiny
import yaml
from adapting import put_adapter
from rich.console import Console
from serving import install_adapter

from harness.adapt.adapters.adapter_folder import weights_hash, write_prompts
from harness.adapt.routers import routed
from harness.adapt.routers.arms import arm_names
from harness.adapt.routers.routed import RouterConfig
from harness.adapt.training_config import TrainingConfig, load_training_config
from harness.cli import main
from harness.core import machine, paths
from harness.core.cell import record_key
from harness.core.errors import HarnessError
from harness.core.limits import TOP_K
from harness.core.paths import memory_path
from harness.core.progress import notes_to
from harness.core.records import Record, Sample
from harness.datasets import DatasetSpec, load_samples
from harness.decode.generation import generate
from harness.decode.memory import Answer, write_memory
from harness.models import blas
from harness.models.cache_key import answers_folder, cache_key, pair_facts
from harness.models.pair import load_pair
from harness.report import load_run
from harness.report.markdown import render
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run.engine import real_engine
from harness.run.runner import reports_folder, run_suite
from harness.run.trained import _address, _config
from harness.suite.cells import Cell, Recipe
from harness.suite.chains import Chain, adapter_names, needed_chains
from harness.suite.plan import foreign, recorded_plan
from harness.suite.suite import load_suite

RECIPE = Recipe(training="default", samples=20)
VERBS = ("add", "sort", "name", "count", "paint", "move", "open", "read", "lift", "draw")
NOUNS = ("cats", "boxes", "lamps", "rivers", "songs", "maps", "coins", "trees", "doors", "ships")


def cell(**changes: Any) -> Cell:
    """An adapter cell."""
    values = {"experiment": "e", "kind": "k", "domain": "code", "drafter": "adapter", "k": 2, "adapter_domain": "code", "recipe": RECIPE}
    return Cell(**{**values, **changes})


def test_a_chain_is_trained_once_for_all_cells_that_share_it() -> None:
    """Cells over K, domains and earlier rounds must not train again; another rank or recipe must."""
    cells = [cell(), cell(k=4), cell(domain="math"), cell(round=3), cell(round=1), cell(rank=4), cell(drafter="generic", recipe=None)]
    chains = needed_chains(cells, ["code", "math"])
    assert chains == {
        Chain(domain="code", rank=None, training="default", samples=20): 3,
        Chain(domain="code", rank=4, training="default", samples=20): 1,
    }


def test_a_router_needs_an_adapter_of_every_domain() -> None:
    """Its arms are the adapters of its recipe, shared with the entries that ask for the same ones."""
    router = cell(drafter="router", adapter_domain=None, recipe=dataclasses.replace(RECIPE, router="knn", router_samples=5))
    assert needed_chains([cell(), router], ["code", "math"]) == {
        Chain(domain=d, rank=None, training="default", samples=20): 1 for d in ("code", "math")
    }


def test_adapter_names_are_unique_and_say_what_differs() -> None:
    """Two adapters under one name would be one row of the report."""
    chains = {
        Chain(domain="code", rank=None, training="default", samples=20): 3,
        Chain(domain="code", rank=None, training="configs/training/dora.yaml", samples=20): 1,
        Chain(domain="code", rank=8, training="default", samples=20): 1,
        Chain(domain="math", rank=None, training="default", samples=20): 1,
        Chain(domain="math", rank=None, training="default", samples=40): 1,
    }
    names = adapter_names(chains)
    assert len(set(names.values())) == len(names) == 7
    assert names[next(iter(chains)), 3] == "code-default-round3"
    assert "math-40prompts" in names.values()


def test_what_comes_with_the_package_is_not_trained() -> None:
    """Only where the entry takes it, for the domains that have one and no rank of their own; its name stays the domain's."""
    along = dataclasses.replace(RECIPE, shipped=True)
    cells = [cell(recipe=along), cell(recipe=along, rank=4), cell(recipe=along, adapter_domain="math"), cell(round=2)]
    names = adapter_names(needed_chains(cells, ["code", "math"], {"code"}))
    assert {name: chain.shipped for (chain, _), name in names.items()} == {
        "code": True, "code-rank4": False, "math": False, "code-trained": False, "code-trained-round2": False
    }  # fmt: skip
    router = cell(recipe=along, drafter="router", adapter_domain=None)
    assert [chain.shipped for chain in needed_chains([router], ["code", "math"], {"code"})] == [True, False]
    without = adapter_names(needed_chains(cells, ["code", "math"]))
    assert set(without.values()) == {"code", "code-rank4", "math", "code-round2"}, "one chain where nothing comes along"


INPUTS: dict[str, Any] = {
    "target": "t", "draft": "d", "chat_template": "c", "k": 4, "rule": "match", "seed": 0, "kwargs": {"top_p": 1.0, "min_p": 0.0},
    "config": {"lora": {"rank": 8}}, "train": [["id", "code", "prompt"]], "max_tokens": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", list(INPUTS))
def test_any_changed_input_misses_the_cache(name: str) -> None:
    """One field changed, dropped or added at a time: a hit would be a stale result."""
    before = cache_key(**INPUTS)
    assert cache_key(**dict(reversed(INPUTS.items()))) == before
    for other in ("other", None, 5, {"top_p": 0.9, "min_p": 0.0}, [["id", "code", "prompt "]]):
        assert cache_key(**{**INPUTS, name: other}) != before
    assert cache_key(**{k: v for k, v in INPUTS.items() if k != name}) != before
    assert cache_key(**INPUTS, more=1) != before


def test_code_and_packages_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed bug or an upgraded package must not meet results from before."""
    before = cache_key(**INPUTS)
    versions = machine.package_versions()
    for package in ("mlx", "mlx-lm", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(machine, "package_versions", lambda package=package: {**versions, package: "0.0.0"})
            assert cache_key(**INPUTS) != before
    monkeypatch.setattr(machine, "source_hash", lambda: "other")
    assert cache_key(**INPUTS) != before


def test_answers_are_kept_by_what_decides_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, BLAS, target and template decide the target's answers; the draft does not."""
    pair = tiny.tiny_pair(tmp_path)
    before = answers_folder(pair)
    assert answers_folder(dataclasses.replace(pair, draft=None)) == before
    assert answers_folder(dataclasses.replace(pair, target_hash="other")) != before
    for place, change in ((machine, "source_hash"), (blas, "blas_name")):
        with monkeypatch.context() as patch:
            patch.setattr(place, change, lambda: "other")
            assert answers_folder(pair) != before


def test_a_suites_seed_reaches_training() -> None:
    """Two seeds must not give one adapter or one router."""
    chain = Chain(domain="code", rank=4, training="default", samples=20)
    seeds = [_config(chain, seed).optim.seed for seed in (0, 1, 2**32 - 1)]
    assert len(set(seeds)) == 3
    assert _config(chain, 0) == load_training_config().replace(lora={"rank": 4})
    assert RouterConfig().seeded(1).seed == 1
    assert RouterConfig(seed=2).seeded(2**32 - 1).seed == 1


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("training", "lora: {rnk: 4}\n", "did you mean 'rank'?"),
        ("training", "lora: {rank: many}\n", "training.yaml:1"),
        ("router", "folds: 1\n", "router.yaml:1"),
        ("router", "reward: speedup\n", "has reward speedup, which needs costs"),
    ],
)
def test_configs_that_a_suite_names_are_checked_before_anything_loads(
    tmp_path: Path, suite_file: Path, capsys: pytest.CaptureFixture[str], key: str, text: str, message: str
) -> None:
    """By ``harness validate`` and at the start of a run, not after hours of training."""
    (tmp_path / f"{key}.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["validate", str(suite_file)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    engine = dataclasses.replace(real_engine(), load_pair=lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(HarnessError) as refused:
        go(tmp_path, suite_file, engine=engine)
    assert message in str(refused.value)


def test_installed_adapters_are_looked_for_first(tmp_path: Path, suite_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not there is named before anything loads; one with the name of an adapter that the suite trains, before it trains."""
    suite = yaml.safe_load(suite_file.read_text())
    for name in ("coed", "code"):
        entry = {"kind": "adapters", "adapters": [name], "k": [2]}
        suite_file.write_text(yaml.safe_dump({**suite, "experiments": [*suite["experiments"], entry]}))
        if name == "coed":
            install_adapter(load_pair(str(tmp_path / "pair/tiny.yaml")), "code")
            with pytest.raises(SystemExit, match="2"):
                main(["validate", str(suite_file)])
            assert "no adapter 'coed' for pair 'tiny': did you mean 'code'" in capsys.readouterr().err
    with pytest.raises(HarnessError, match="trains an adapter 'code', and one of that name is installed"):
        go(tmp_path, suite_file)


def test_the_chat_template_is_part_of_a_pairs_facts(tmp_path: Path) -> None:
    """The same weights under another template answer other prompts."""
    pair = tiny.tiny_pair(tmp_path)
    before = pair_facts(pair)
    pair.tokenizer.chat_template = pair.tokenizer.chat_template.replace("assistant", "helper")
    assert pair_facts(pair) != before


def test_adapters_are_kept_under_the_token_ids_of_their_prompts(tmp_path: Path) -> None:
    """A template that prints the date, on another date: the same template and weights, other prompts, another adapter."""
    path, addresses = tiny.write_pair(tmp_path), []
    settings = tmp_path / "target" / "tokenizer_config.json"
    template = "{{ strftime_now('%d %b %Y') }}" + tiny.TEMPLATE
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": template}))
    text, samples = path.read_text(), [Sample(id="a", domain="d", prompt="Name a fruit.")]
    for date in ("2026-02-03", "2026-02-03", "2026-02-04"):
        path.write_text(f"{text}template_date: {date}\n")
        material: Any = SimpleNamespace(pair=load_pair(str(path)), suite=SimpleNamespace(max_tokens=8))
        addresses.append(_address(material, "d", TrainingConfig(), samples, samples))
    assert addresses[0] == addresses[1] != addresses[2]


@pytest.fixture
def suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two domains of short prompts, a draft that agrees now and then, and every kind of entry that trains."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    tiny.write_pair(tmp_path / "pair", noise=0.3)
    for domain in ("code", "math"):
        prompts = [{"id": f"{domain}/{v}-{n}", "prompt": f"{domain}: {v} the {n}"} for v in VERBS for n in NOUNS]
        (tmp_path / f"{domain}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    training = {
        "lora": {"rank": 4}, "optim": {"learning_rate": 0.01, "epochs": 3, "batch_size": 8, "warmup_steps": 1},
        "stop": {"every": 4, "k": 2}, "adapt": {"threshold": 1.0, "top_k": 8, "min_failure_cases": 4},
    }  # fmt: skip
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(training))
    (tmp_path / "router.yaml").write_text("encoder: none\nrouter: knn\nfolds: 2\n")
    recipe = {"training": str(tmp_path / "training.yaml"), "train_samples": 16}
    suite = {
        "name": "trained",
        "models": str(tmp_path / "pair" / "tiny.yaml"),
        "max_tokens": 10,
        "domains": {d: {"dataset": "local", "path": str(tmp_path / f"{d}.jsonl"), "limit": 3} for d in ("code", "math")},
        "experiments": [
            {"kind": "baseline"},
            {"kind": "generic_draft", "k": [2]},
            {"kind": "domain_adapters", "k": [2], "around": ["generic", "hybrid"], **recipe},
            {
                "kind": "router",
                "k": [2],
                "around": ["generic", "cascade"],
                "router": str(tmp_path / "router.yaml"),
                "router_samples": 12,
                **recipe,
            },
            {"kind": "ablation_rank", "ranks": [2], "k": [2], "domains": ["code"], **recipe},
            {"kind": "adaptive_rounds", "rounds": 2, "k": [2], "domains": ["code"], **recipe},
        ],
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def go(tmp_path: Path, suite_file: Path, *, whole: bool = False, **options: Any) -> tuple[Path, str]:
    """Run the suite, clocks and report only where all of it is wanted; return the run folder and what was printed."""
    console = Console(file=io.StringIO(), width=200)
    with nullcontext() if whole else patch("harness.run.runner._report"):
        folder = run_suite(load_suite(suite_file), results_dir=tmp_path / "results", console=console, clock=whole, **options)
    return folder, console.file.getvalue()  # type: ignore[attr-defined]


def counts(records: list[Record]) -> list[Any]:
    """What training must reproduce."""
    keep = [(r.experiment, r.sample_id, r.adapter, r.accept_lengths, r.choice) for r in records]
    return sorted(keep, key=str)


def test_adapters_rounds_ranks_and_router_in_one_run(tmp_path: Path, suite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that needs training runs, is lossless, beats the plain draft where it claims to, and is found again by the next run."""
    groups: list[Any] = []
    fit = routed.fit_router
    monkeypatch.setattr(routed, "fit_router", lambda *args, **settings: groups.append(settings["groups"]) or fit(*args, **settings))
    pair = load_pair(str(tmp_path / "pair/tiny.yaml"))
    talk = [Sample(id=f"m/{i}", domain="talk", prompt=f"tell me of topic{i} and thing{i * 7} or item{i}") for i in range(12)]
    said = [Answer.of(s, pair.encode(s.prompt), generate(pair, s.prompt, drafter=None, max_tokens=10).tokens) for s in talk]
    memory = write_memory(memory_path(pair.name), pair.name, pair.target_hash, said)
    folder, printed = go(tmp_path, suite_file, whole=True)
    records, measured = read_records(folder), read_manifest(folder).measured
    assert {r.experiment for r in records} == {
        "baseline", "generic_draft", "domain_adapters", "router", "ablation_rank", "adaptive_rounds"
    }  # fmt: skip
    assert all(r.compared and r.divergence is None for r in records if r.method == "decode" and r.drafter)
    assert set(measured.adapters) == {"code", "code-round2", "math", "code-rank2"}
    accepted = {name: a["rounds"][-1]["accepted"] for name, a in measured.adapters.items() if a["rounds"]}
    assert any(accepted.values()), measured.adapters
    for check in measured.spot_checks:
        assert check["equal"] or check["near_ties"], check
    assert [len(g) for g in groups] == [24], "near-copies of a prompt stay on one side of the folds"
    kept = {json.loads(path.read_text().splitlines()[0])["top_k"] for path in (tmp_path / "cache/trajectories").rglob("*.jsonl")}
    assert kept == {8, TOP_K}, "as many probabilities as the training settings say; the router needs none"
    inside = {(r.drafter, r.settings["around"]) for r in records if "around" in r.settings}
    assert inside == {("adapter", "hybrid"), ("router", "cascade")}
    routed_records = [r for r in records if r.drafter == "router"]
    (facts,) = measured.routers.values()
    assert {r.choice for r in routed_records} <= set(facts["arms"]) == set(arm_names(["code", "math"], memory=True))
    assert read_manifest(folder).models["memory"] == memory.hash, "nothing that it knows may be evaluated"
    assert all(r.route_s is not None and r.swap_s is not None and r.wall_s is not None for r in routed_records)
    assert all(r.route_s + r.swap_s < r.wall_s for r in routed_records if r.route_s is not None and r.swap_s is not None and r.wall_s)
    zero = [r for r in records if r.experiment == "adaptive_rounds" and r.settings["round"] == 0]
    generic = {r.sample_id: r.accept_lengths for r in records if r.experiment == "generic_draft"}
    assert zero
    assert all(r.accept_lengths == generic[r.sample_id] for r in zero)
    assert "update" in printed
    assert (reports_folder(folder) / "report.md").read_text() == render(load_run(folder)), "what is in memory is what is on disk"
    again, printed = go(tmp_path, suite_file)
    assert counts(read_records(again)) == counts(records)
    assert "update" not in printed


def test_a_run_takes_what_comes_with_the_package(tmp_path: Path, suite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code adapter is not trained, the other domain's is, adaptive rounds train all the same; the router never learns from prompts
    that an adapter knows; the report says so, and its plan is found again."""
    monkeypatch.setattr(paths, "SHIPPED_ADAPTERS", tmp_path / "package")
    folder = tmp_path / "package/tiny/code"
    put_adapter(folder, load_pair(str(tmp_path / "pair/tiny.yaml")).draft, domain="code")
    spec = DatasetSpec(dataset="local", path=str(tmp_path / "code.jsonl"), split="train", limit=100)
    write_prompts(folder, [s.prompt for s in load_samples(spec, domain="code")])
    asked: list[Sample] = []
    rows = routed.outcome_table
    monkeypatch.setattr(routed, "outcome_table", lambda found, prompts: asked.extend(prompts) or rows(found, prompts))
    suite = yaml.safe_load(suite_file.read_text())
    suite["experiments"] = [entry for entry in suite["experiments"] if entry["kind"] != "ablation_rank"]
    suite_file.write_text(yaml.safe_dump(suite))
    place, _ = go(tmp_path, suite_file)
    records, measured = read_records(place), read_manifest(place).measured
    assert set(measured.adapters) == {"code", "code-trained", "code-trained-round2", "math"}
    assert measured.installed == {"code": weights_hash(folder)}
    assert not measured.adapters["code"]["rounds"]
    assert {r.adapter for r in records if r.settings.get("adapter_domain") == "code" and "round" not in r.settings} == {"code"}
    assert {s.split for s in asked if s.domain == "code"} == {"validation"}
    assert {s.split for s in asked if s.domain == "math"} == {"train", "validation"}
    assert "Of the package, not trained here: code." in render(load_run(place))
    plan = recorded_plan(read_manifest(place), [Sample(id=r.sample_id, domain=r.domain, prompt="") for r in records])
    assert foreign(plan, map(record_key, records)) == []
    write_prompts(folder, [s.prompt for s in load_samples(spec.model_copy(update={"split": "test"}), domain="code")])
    with pytest.raises(HarnessError, match="adapter 'code' was trained on 3 of these prompts"):
        go(tmp_path, suite_file)


def test_an_interrupted_training_goes_on(tmp_path: Path, suite_file: Path) -> None:
    """A crash in the middle of training loses no finished adapter, and the resumed run has the records of an unbroken one."""
    suite = yaml.safe_load(suite_file.read_text())
    suite["experiments"] = [entry for entry in suite["experiments"] if entry["kind"] in ("baseline", "domain_adapters")]
    suite_file.write_text(yaml.safe_dump(suite))
    whole, _ = go(tmp_path / "whole", suite_file)
    engine = real_engine()

    class Boom(Exception):
        pass

    def failing(pair: Any, suite: Any, cells: Any, samples: Any, load_samples: Any, check: Any) -> Any:
        def listen(line: str) -> None:
            if line.startswith("training math"):
                raise Boom

        with notes_to(listen):
            return engine.train(pair, suite, cells, samples, load_samples, check)

    shutil.rmtree(tmp_path / "cache" / "trained")
    with pytest.raises(Boom):
        go(tmp_path, suite_file, engine=dataclasses.replace(engine, train=failing))
    (broken,) = (tmp_path / "results").iterdir()
    assert not read_records(broken)
    resumed, printed = go(tmp_path, suite_file, resume=broken.name)
    assert "training code: round" not in printed
    assert "training math: round" in printed
    assert counts(read_records(resumed)) == counts(read_records(whole))


def test_training_without_a_draft_says_so(tmp_path: Path, suite_file: Path) -> None:
    """A pair without a draft has nothing to adapt; the advice names the way out."""
    (tmp_path / "pair" / "tiny.yaml").write_text("target:\n  sources: ['path:target']\n")
    with pytest.raises(HarnessError, match="domain_adapters needs a draft model"):
        go(tmp_path, suite_file)


def test_evaluation_prompts_never_train(tmp_path: Path, suite_file: Path) -> None:
    """A suite that evaluates on its own train split is refused, with both ids."""
    suite = yaml.safe_load(suite_file.read_text())
    for spec in suite["domains"].values():
        spec["split"] = "train"
    suite_file.write_text(yaml.safe_dump(suite))
    with pytest.raises(HarnessError, match="code/"):
        go(tmp_path, suite_file)
