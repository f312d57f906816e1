"""``harness train-router`` and ``harness route``: tables, files, answers, and refusals before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from routed import WORDS, adapters, random_adapter, write_prompts

from harness.adapt.routers.judging import report, show
from harness.adapt.routers.routed import RouterConfig, load_router
from harness.cli import COMMANDS, main
from harness.cli import route as commands
from harness.core.records import Record, Sample
from harness.core.schema import Measured
from harness.datasets.splits import assign_splits
from harness.models.naming import read_pair_config
from harness.results.manifest import Manifest
from harness.results.store import RunStore
from routing.evaluate import evaluate_routers
from routing.outcomes import Arm

HEAVY = ("mlx", "torch", "transformers", "datasets", "sklearn", "numpy", "scipy")
QUICK = ["--config", "tfidf", "--set", "router=logistic", "--set", "components=8", "--set", "folds=3"]
K, TOKENS = 3, 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cache of its own with a tiny pair's two adapters installed, a file of prompts, and a router trained on it."""
    from tiny import tiny_pair, write_pair

    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(root / "cache"))
        pair = tiny_pair(root / "pair")
        folders = adapters(root / "cache" / "adapters" / "tiny", pair.draft)
        here = SimpleNamespace(
            root=root, models=str(root / "pair" / "tiny.yaml"), draft=pair.draft, folders=folders, prompts=write_prompts(root / "p.jsonl")
        )
        bare = write_pair(root / "bare").rename(root / "bare" / "bare.yaml")
        here.bare = str(bare)
        here.arguments = [str(here.prompts), "--models", here.models, "-k", str(K), "--max-tokens", str(TOKENS), *QUICK]
        here.trained = json.loads(invoke("train-router", *here.arguments, "--json"))
        yield here


def invoke(*arguments: str) -> str:
    """Run a command that must succeed; return its standard output."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert not caught.value.code
    return out.getvalue()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; return its message."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert "Traceback" not in err
    assert err.count("error:") == 1
    return err


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a pair fails the test."""
    import harness.models.pair

    def load_pair(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(harness.models.pair, "load_pair", load_pair)


@pytest.mark.parametrize("name", ["train-router", "route"])
def test_help_is_light_and_has_an_example(name: str) -> None:
    """Help must answer at once on any machine, start with the line of the command table, and show a call."""
    code = (
        f"import sys\nfrom harness.cli import main\ntry:\n    main([{name!r}, '--help'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    assert out.stdout.splitlines()[-1] == "HEAVY []"
    assert f"Example: harness {name}" in out.stdout
    assert COMMANDS[name][1] in out.stdout
    assert getattr(commands, name.replace("-", "_")).__doc__.splitlines()[0] == COMMANDS[name][1]


def test_table_compares_the_router_with_every_baseline(home: Any) -> None:
    """All baselines stand beside the router, with the values that define them: no regret for the oracle, no gain for the best fixed."""
    found = home.trained
    by_name = {p["policy"]: p for p in found["policies"]}
    assert list(by_name)[:4] == ["router", "generic@3", "chat@3", "code@3"]
    assert set(by_name) >= {"best fixed", "random", "domain label", "domain best", "oracle"}
    assert by_name["oracle"]["regret"]["value"] == 0
    assert by_name["best fixed"]["gain"]["value"] == 0
    mean = {name: p["mean"]["value"] for name, p in by_name.items()}
    assert mean["oracle"] >= max(mean.values())
    assert mean["random"] == pytest.approx(sum(mean[a] for a in found["arms"]) / 3)
    gap = mean["oracle"] - mean["best fixed"]
    assert found["oracle_gap"]["value"] == pytest.approx(gap)
    assert by_name["router"]["recovery"]["value"] == pytest.approx((mean["router"] - mean["best fixed"]) / gap)
    assert found["folds"] == 3
    assert found["prompts"] > 20


def test_table_counts_are_those_of_decoding(home: Any) -> None:
    """The table's tau per adapter must be what decoding with that adapter gives, pooled over the same prompts."""
    from harness.adapt.training.bank import AdapterBank
    from harness.cli.generate import read_samples
    from harness.decode.generation import generate
    from harness.models.pair import load_pair

    pair = load_pair(home.models)
    bank = AdapterBank(pair.draft, home.folders)
    samples = read_samples(str(home.prompts), split="train", limit=100, seed=0, offline=True)
    assert len(samples) == home.trained["prompts"]
    answers = [generate(pair, s.prompt, drafter=bank.drafter("chat"), k=K, max_tokens=TOKENS) for s in samples]
    chat = next(p for p in home.trained["policies"] if p["policy"] == "chat@3")
    assert chat["mean"]["value"] == pytest.approx(sum(g.emitted / g.rounds for g in answers) / len(answers))
    assert chat["pooled"] == pytest.approx(sum(g.emitted for g in answers) / sum(g.rounds for g in answers))


def test_training_again_gives_the_same_router_from_the_cache(home: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Same prompts, same seed: same file to the byte, and the target answers nothing twice."""
    import harness.answers.collect

    def decoder(_: Any) -> None:
        raise AssertionError("the target was asked again")

    first = Path(home.trained["router"]).read_bytes()
    again = invoke("train-router", *home.arguments, "--router", str(tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == first
    assert "oracle gap" in again
    assert "LogisticRouter, saved to" in again
    monkeypatch.setattr(harness.answers.collect, "default_decoder", lambda pair: decoder)
    assert "not saved" in invoke("train-router", *home.arguments, "--table-only")
    own = [a for a in home.arguments if a not in ("-k", str(K))]
    assert json.loads(invoke("train-router", *own, "--table-only", "--json"))["k"] == read_pair_config(home.models).k != K


def test_route_says_what_why_and_how_long(home: Any) -> None:
    """Choice, scores per arm, nearest training prompts in order, and the cost of a cold and of a warm choice."""
    found = json.loads(invoke("route", "def sort(a): 1000", "--models", home.models, "--json", "--nearest", "4"))
    router = load_router("tiny", home.folders)
    decision = router.decide("def sort(a): 1000", n_nearest=4)
    assert (found["drafter"], found["k"]) == (decision.arm.drafter, decision.arm.k)
    assert found["scores"] == decision.scores
    assert [n["prompt"] for n in found["nearest"]] == [n.prompt for n in decision.nearest]
    assert found["confidence"] == decision.confidence
    assert found["cold_s"] >= found["warm"]["embed_s"] > 0
    assert found["warm"]["choose_s"] > 0
    text = invoke("route", "def sort(a): 1000", "--models", home.models)
    assert text.startswith(decision.arm.drafter)
    assert all(part in text for part in ("scores:", "nearest training prompts:", "cold ", "warm ", "ms embed", *decision.scores))


def test_a_memory_is_a_choice_and_its_share_is_told(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any adapter too, judged as ``auto`` decodes and charged for choosing; file, table and ``route`` say who proposes."""
    from harness.answers.collect import collect
    from harness.core.paths import memory_path
    from harness.decode.memory import Answer, write_memory
    from harness.models.pair import load_pair

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    pair = load_pair(home.models)
    samples = [Sample(id=f"m/{i}", domain="talk", prompt=f"def sort(a): {i} and class Queue: {i * 7}") for i in range(200, 220)]
    answers = {t.sample_id: t for t in collect(pair, samples, max_tokens=TOKENS)}
    told = [Answer.of(s, answers[s.id].prompt_tokens, answers[s.id].tokens) for s in samples]
    write_memory(memory_path("tiny"), "tiny", pair.target_hash, told)
    arguments = [*home.arguments[:3], "--max-tokens", str(TOKENS), *QUICK, "-k", "auto", "--set", "reward=speedup"]
    found = json.loads(invoke("train-router", *arguments, "--json"))
    assert found["arms"] == ["generic@auto", "memory@auto", "memory_hybrid@auto"]
    by_name = {p["policy"]: p for p in found["policies"]}
    assert by_name["memory@auto"]["sources"].keys() <= {"memory", "lookup", "target"}
    assert sum(by_name["router"]["sources"].values()) == pytest.approx(1)
    assert found["charged_steps"] > 0
    assert by_name["oracle"]["mean"]["value"] > by_name["router"]["mean"]["value"], "a choice is not free"
    shown = json.loads(invoke("route", "def sort(a): 7", "--models", home.models, "--json"))
    arm = f"{shown['drafter']}@auto"
    assert shown["sources"] == load_router("tiny", {}).shares_[arm]
    assert "its tokens on the training prompts: " in invoke("route", "def sort(a): 7", "--models", home.models)
    text = invoke("train-router", *arguments, "--table-only")
    assert "tokens from" in text
    assert "which the router's line pays" in text
    without = ["train-router", *arguments, "--set", "memory=false"]
    assert "no adapters installed for pair 'tiny'" in refused(capsys, *without)
    assert "does not learn at draft length dynamic" in refused(capsys, *without, "-k", "dynamic")


def test_route_says_when_a_prompt_is_unfamiliar(home: Any, tmp_path: Path) -> None:
    """A user who sees the fallback must learn whether the router was unsure or had never seen such a prompt."""
    out = ["--router", str(tmp_path / "narrow.safetensors")]
    invoke("train-router", *home.arguments, "--set", "familiar=0.1", *out)
    odd = ["route", "Zwei Jahre lang schwieg er " * 20, "--models", home.models, *out]
    found = json.loads(invoke(*odd, "--json"))
    assert found["unfamiliar"]
    assert found["drafter"] == "generic"
    known = json.loads(home.prompts.read_text().splitlines()[0])["prompt"]
    assert not json.loads(invoke("route", known, "--models", home.models, "--json"))["unfamiliar"]
    if found["abstained"]:
        assert "unlike the training prompts" in invoke(*odd)


def test_prompt_from_standard_input(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts come through a pipe; they are routed like an argument."""
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("class Queue: 7"))
    piped = json.loads(invoke("route", "-", "--models", home.models, "--json"))
    assert piped["scores"] == json.loads(invoke("route", "class Queue: 7", "--models", home.models, "--json"))["scores"]


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["route", "x", "--models", "smolm2"], "did you mean 'smollm2'"),
        (["route", " ", "--models", "{models}"], "the prompt is empty"),
        (["route", "x", "--models", "{bare}"], "no adapters installed for pair 'bare'"),
        (["route", "x", "--models", "{bare}", "--adapters", "{installed}"], "no router for pair 'bare'"),
        (["route", "x", "--models", "{models}", "--adapters", "{root}"], "no adapters in"),
        (["route", "x", "--models", "{models}", "--router", "{prompts}"], "not a router file"),
        (["train-router", "{prompts}", "--models", "smolm2"], "did you mean 'smollm2'"),
        (["train-router", "{prompts}", "--models", "{bare}"], "no adapters installed for pair 'bare'"),
        (["train-router", "none.jsonl", "--models", "{models}"], "cannot read none.jsonl: no such file"),
        (["train-router", "no-suite", "--models", "{models}"], "no suite file 'no-suite'"),
        (["train-router", "{prompts}", "--models", "{models}", "--config", "defalt"], "did you mean 'default'"),
        (["train-router", "{prompts}", "--models", "{models}", "--set", "router=tree"], "'tree' is not allowed"),
        (["train-router", "{prompts}", "--models", "{models}", "--split", "test"], "evaluation prompts"),
        (["train-router", "{prompts}", "--models", "{models}", "--split", "all"], "evaluation prompts"),
        (["train-router", "{prompts}", "--models", "{models}", "--skip", "500"], "Lower --skip"),
    ],
)
def test_wrong_input_is_refused_before_a_model_loads(
    home: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear message, exit code 2, and nothing loaded."""
    places = {"models": home.models, "bare": home.bare, "root": home.root, "prompts": home.prompts}
    places["installed"] = home.root / "cache" / "adapters" / "tiny"
    assert message in refused(capsys, *(a.format(**places) for a in arguments))


def test_router_of_other_adapters_is_refused(home: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After an adapter was trained again, the router's knowledge is about another one."""
    others = {name: random_adapter(tmp_path / name, home.draft, seed=20 + i) for i, name in enumerate(WORDS)}
    assert set(others) == set(home.folders)
    err = refused(capsys, "route", "x", "--models", home.models, "--adapters", str(tmp_path))
    assert "has changed since" in err
    assert "Train the router again" in err


def test_prompts_close_to_evaluation_prompts_are_refused(home: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training prompt that is a near-copy of a test prompt in another domain's file would flatter the router."""
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
    split_a, split_b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    learn = next(f"{text} x{i}" for i in range(99) if split_of(f"{text} x{i}") == "train")
    judge = next(f"{text} x{i}" for i in range(99) if split_of(f"{text} x{i}") == "test")
    split_a.write_text(json.dumps({"prompt": learn}) + "\n")
    split_b.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (judge, _other("train"))))
    suite = tmp_path / "s.yaml"
    suite.write_text(
        f"name: s\nmodels: {home.models}\ndomains:\n  a: {{dataset: local, path: {split_a}, split: all}}\n"
        f"  b: {{dataset: local, path: {split_b}, split: all}}\nexperiments:\n  - kind: baseline\n"
    )
    assert "leaks into the evaluation" in refused(capsys, "train-router", str(suite), "--models", home.models)


def split_of(prompt: str) -> str:
    """The split of a prompt that is alone in its dataset."""
    return str(assign_splits([Sample(id="s", domain="d", prompt=prompt)])[0].split)


def _other(split: str) -> str:
    return next(f"something else {i}" for i in range(99) if split_of(f"something else {i}") == split)


def _run(home: Any, folder: Path, *, split: str = "train", hashes: dict[str, str] | None = None, leave_out: str = "") -> Path:
    """A finished run over the file's prompts: the plain draft needs 10 rounds for 20 tokens, an adapter 8 on its domain, else 16."""
    from harness.cli.generate import read_samples

    spec = {"dataset": "local", "path": str(home.prompts), "split": split, "limit": None, "size": None}
    data = home.prompts.read_bytes()
    manifest = Manifest(
        run=folder.name,
        started="2026-01-01T00:00:00+00:00",
        pair="tiny",
        suite={"seed": 0, "domains": {"code": {**spec, "sha256": hashlib.sha256(data).hexdigest()}}},
        suite_hash="",
        models={"target": "t", "draft": home.draft.hash},
        code={},
        packages={},
        machine={},
        measured=Measured(adapters={n: {"hash": h, "domain": n, "metric": "alpha", "rounds": []} for n, h in (hashes or {}).items()}),
    )
    with RunStore.create(folder, manifest) as store:
        for i, s in enumerate(read_samples(str(home.prompts), split=split, limit=None, seed=0, offline=True)):
            store.append(_record(s.id, s.domain, None, None, 20))
            store.append(_record(s.id, s.domain, "generic", None, 10))
            store.append(_record(s.id, s.domain, "generic", None, 19, temperature=1.0))
            store.append(_record(s.id, s.domain, "lookup", None, 19))
            if s.domain == "code":
                store.append(_record(s.id, s.domain, "adapter", "ablation", 9))  # measured on one domain only: no choice for the rest
            for name in WORDS:
                if not (i == 0 and name == leave_out):
                    rounds = 8 if s.id.split("/")[1].startswith(name) else 16
                    store.append(_record(s.id, s.domain, "adapter", name, rounds))
    return folder


def _record(sample_id: str, domain: str, drafter: str | None, adapter: str | None, rounds: int, **changes: Any) -> Record:
    k = None if drafter is None else K
    drafts = (0 if drafter is None else K,) * rounds
    full, rest = divmod(20 - rounds, K)
    accepts = ((K,) * full + (rest,) * (rest > 0) + (0,) * rounds)[:rounds]
    values: dict[str, Any] = {
        "experiment": "e",
        "method": "replay" if adapter else "decode",
        "loop": "own",
        "sample_id": sample_id,
        "domain": domain,
        "drafter": drafter,
        "adapter": adapter,
        "k": k,
        "prompt_tokens": 5,
        "rounds": rounds,
        "drafted": sum(drafts),
        "accepted": 20 - rounds,
        "rejected": sum(a < d for a, d in zip(accepts, drafts, strict=True)),
        "accept_lengths": accepts,
        "draft_lengths": drafts,
        "emitted": 20,
        "finish": "length",
    }
    return Record(**{**values, **changes})


@pytest.mark.usefixtures("no_models")
def test_router_from_a_run(home: Any, tmp_path: Path) -> None:
    """Records of several adapters on the same prompts are enough: exact means, no model loaded, the run's name in the file."""
    from routing.persist import load_router as load_file

    run = _run(home, tmp_path / "run-1", leave_out="chat")
    out = tmp_path / "r.safetensors"
    found = json.loads(invoke("train-router", str(run), "-k", str(K), *QUICK, "--router", str(out), "--json"))
    mean = {p["policy"]: p["mean"]["value"] for p in found["policies"]}
    assert mean["generic@3"] == pytest.approx(2.0)
    assert mean["oracle"] == pytest.approx(2.5)
    assert found["pair"] == "tiny"
    assert found["run_id"] == "run-1"
    file = load_file(out)
    assert file.run_id == "run-1"
    assert set(file.adapter_hashes) == set(WORDS)
    full = json.loads(invoke("train-router", str(_run(home, tmp_path / "run-2")), "-k", str(K), *QUICK, "--table-only", "--json"))
    assert full["prompts"] == found["prompts"] + 1  # the prompt without all adapters was left out


@pytest.mark.usefixtures("no_models")
def test_run_over_test_prompts_is_for_the_table_only(home: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation prompts may judge a router in cross-validation, but a saved router must not know them unless asked to."""
    run = str(_run(home, tmp_path / "run", split="test"))
    out = tmp_path / "r.safetensors"
    common = ["train-router", run, "-k", str(K), *QUICK, "--router", str(out)]
    assert "evaluation prompts (split test)" in refused(capsys, *common)
    assert "not saved" in invoke(*common, "--table-only")
    assert not out.exists()
    invoke(*common, "--evaluation-prompts")
    assert out.exists()


@pytest.mark.usefixtures("no_models")
def test_runs_that_do_not_fit_are_refused(home: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other weights under the same name, another K, a missing adapter, changed prompts: each would train on false outcomes."""
    wrong = str(_run(home, tmp_path / "wrong", hashes={"code": "0" * 64}))
    assert "adapter 'code' is not the one of run wrong" in refused(capsys, "train-router", wrong, "-k", str(K))
    digest = hashlib.sha256((home.folders["code"] / "adapters.safetensors").read_bytes()).hexdigest()
    right = str(_run(home, tmp_path / "right", hashes={"code": digest}))
    invoke("train-router", right, "-k", str(K), *QUICK, "--table-only")
    assert json.loads(invoke("train-router", right, *QUICK, "--table-only", "--json"))["k"] == K
    assert "no adapter measured on every domain at K = 4" in refused(capsys, "train-router", right, "-k", "4")
    only = tmp_path / "only"
    random_adapter(only / "code", home.draft, seed=1)
    assert "'chat', which is not here" in refused(capsys, "train-router", right, "-k", str(K), "--adapters", str(only))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path / "empty"))
        assert "used adapter 'chat', which is not here" in refused(capsys, "train-router", right, "-k", str(K))
    data = home.prompts.read_bytes()
    try:
        home.prompts.write_bytes(data + b'{"prompt": "new"}\n')
        assert "has changed since the run right" in refused(capsys, "train-router", right, "-k", str(K))
    finally:
        home.prompts.write_bytes(data)


def test_adapters_trained_inside_a_run_are_found_and_installed(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run knows its adapters by their weights: they come from the cache, become installed, and never replace a user's own."""
    import shutil

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    hashes = {}
    for i, (name, folder) in enumerate(home.folders.items()):
        place = tmp_path / "cache" / "trained" / "tiny" / f"key{i}" / "round-1"
        shutil.copytree(folder, place)
        hashes[name] = hashlib.sha256((place / "adapters.safetensors").read_bytes()).hexdigest()
    run = str(_run(home, tmp_path / "run", hashes=hashes))
    invoke("train-router", run, "-k", str(K), *QUICK, "--table-only")
    installed = tmp_path / "cache" / "adapters" / "tiny"
    assert not installed.exists()
    invoke("train-router", run, "-k", str(K), *QUICK)
    assert {p.name for p in installed.iterdir()} == set(WORDS)
    assert load_router("tiny", {n: installed / n for n in WORDS}).arms_
    assert json.loads(invoke("route", "def sort(a): 7", "--models", home.models, "--json"))["pair"] == "tiny"
    before = {p: p.read_bytes() for p in random_adapter(installed / "code", home.draft, seed=50).iterdir()}
    assert "another adapter is installed as 'code'" in refused(capsys, "train-router", run, "-k", str(K), *QUICK)
    assert {p: p.read_bytes() for p in (installed / "code").iterdir()} == before


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("learnable", [False, True])
def test_a_gap_that_nothing_foresees_is_called_luck(learnable: bool, seed: int) -> None:
    """The best of four equal drafters is above each of them after the fact; where the domain tells which, the table says no such thing."""
    rng = np.random.default_rng(seed)
    domains = ["code", "math", "chat"] * 40
    rewards = 3 + rng.normal(0, 0.3, (120, 4))
    if learnable:
        rewards[np.arange(120), [1 + i % 3 for i in range(120)]] += 0.5
    arms = [Arm(name, 4) for name in ("generic", "code", "math", "chat")]
    prompts = [f"prompt {i} of {domain}" for i, domain in enumerate(domains)]
    evaluation = evaluate_routers(prompts, rewards, arms, {}, domains=domains)
    assert evaluation.oracle_gap.low > 0
    assert not evaluation.gap_is_noise
    assert ("luck after the fact" in show(report(evaluation, RouterConfig(), 4))) is not learnable
