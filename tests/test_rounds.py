"""Rounds, studies, synthetic prompts and the whole campaign on tiny models."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import forward, quick_config, target_trajectories, tiny_draft
from tiny import tiny_pair

import harness.core.progress
from harness.adapt.training import hidden, rounds, trainer
from harness.adapt.training.bank import AdapterBank, replay_bank
from harness.adapt.training.campaign import Prompts, train_pair
from harness.adapt.training.examples import data_hash, from_case, from_stored, from_trajectory
from harness.adapt.training.failures import FailureStore
from harness.adapt.training.hidden import fill, prefix_cache
from harness.adapt.training.rounds import Known, RoundRecord, cases_from_replay, install, read_rounds, run_rounds
from harness.adapt.training.synth import synthesise, user_turn_prefix
from harness.adapt.training.trainer import train_adapter
from harness.adapt.training_config import load_training_config
from harness.answers.collect import collect, read_answers
from harness.cli.train import summary
from harness.core import machine
from harness.core.errors import HarnessError
from harness.core.progress import counted
from harness.core.records import Sample
from harness.core.stats import Estimate
from harness.decode.replay import replay_model

QUICK = {"optim": {"epochs": 2}, "adapt": {"threshold": 0.3}}


def data() -> tuple[Any, Any]:
    """Code and math trajectories: training, validation."""
    train = [*target_trajectories(32), *target_trajectories(16, first=200, domain="math")]
    return train, [*target_trajectories(16, first=500), *target_trajectories(12, first=700, domain="math")]


def comparable(records: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in dataclasses.asdict(r).items() if k not in ("train_s", "adapter")} for r in records]


def test_cases_agree_with_replay_and_the_model() -> None:
    """Counts equal the decode package's replay; disagreements are exactly the positions where the draft's favourite is wrong."""
    draft = tiny_draft()
    trajectories = target_trajectories(8)
    cases = cases_from_replay(draft, trajectories, k=3, prompts={"code/0": "hello"}, synthetic=frozenset({"code/1"}))
    rows = replay_model("generic", draft.model, None, trajectories, [3])
    assert [(c.accepted, c.drafted, c.rejected) for c in cases] == [(r.accepted, r.drafted, r.rejected) for r in rows]
    assert (cases[0].prompt, cases[0].synthetic, cases[1].synthetic) == ("hello", False, True)
    for case in cases:
        logits = forward(draft.model, (*case.prompt_tokens, *case.output_tokens[:-1]))[len(case.prompt_tokens) - 1 :]
        wrong = np.flatnonzero(logits.argmax(-1) != np.array(case.output_tokens))
        assert [d.position for d in case.disagreements] == wrong.tolist()
        assert [d.draft_token for d in case.disagreements] == logits.argmax(-1)[wrong].tolist()


@pytest.mark.parametrize("adapted", [False, True])
def test_cases_from_cached_states_are_the_same(tmp_path: Path, adapted: bool) -> None:
    """The search for mistakes shares the states below the trained blocks with training, also under an adapter of an earlier round."""
    draft, (train, validation) = tiny_draft(), data()
    config = quick_config(lora={"num_layers": 1}, cache={"dtype": "float32"})
    adapter = None
    if adapted:
        out = tmp_path / "round-1"
        assert train_adapter(draft, train, config, validation=validation, out=out, cache_folder=tmp_path / "other").accepted
        adapter = out
    shared = prefix_cache(draft, config, tmp_path / "h")
    assert shared.depth == len(draft.model.layers) - 1
    plain, cached = (cases_from_replay(draft, train, k=3, adapter=adapter, cache=cache) for cache in (None, shared))
    assert [(c.accepted, c.rejected, c.disagreements) for c in plain] == [(c.accepted, c.rejected, c.disagreements) for c in cached]
    assert fill(prefix_cache(draft, config, tmp_path / "h"), [from_case(c, 2.0) for c in cached]) == 0, "training finds all of them"


def test_cached_states_are_kept_by_what_computes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library, another package or other sources round otherwise: their states lie elsewhere."""
    draft, config = tiny_draft(), quick_config(lora={"num_layers": 1})
    folders = {prefix_cache(draft, config, tmp_path).folder}
    monkeypatch.setattr(hidden, "blas_name", lambda: "another")
    folders.add(prefix_cache(draft, config, tmp_path).folder)
    monkeypatch.setattr(machine, "package_versions", lambda: {"mlx": "another"})
    folders.add(prefix_cache(draft, config, tmp_path).folder)
    assert len(folders) == 3


def test_rounds_never_fall_back_and_resume(tmp_path: Path) -> None:
    """Each round starts from the last kept adapter; acceptance never falls; a resumed series equals an uninterrupted one."""
    train, validation = data()
    config = quick_config(**QUICK)
    common: dict[str, Any] = {"rounds": 3, "cache_folder": tmp_path / "h"}
    records = run_rounds(tiny_draft(), train, validation, config, out=tmp_path / "a", **common)
    assert records[0].accepted
    values = [sum(r.after.values()) for r in records]
    for before, after in itertools.pairwise(records):
        assert after.before == pytest.approx(before.after)
        if not after.accepted:
            assert (after.adapter, after.after) == (before.adapter, after.before)
    assert values[-1] > sum(records[0].before.values())
    assert {c.round for c in FailureStore(tmp_path / "a/failures.jsonl")} == {0, 1, 2}

    def interrupt(number: int, progress: Any) -> None:
        if (number, progress.step) == (2, 6):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(tiny_draft(), train, validation, config, out=tmp_path / "b", progress=interrupt, **common)
    resumed = run_rounds(tiny_draft(), train, validation, config, out=tmp_path / "b", resume=True, **common)
    assert comparable(resumed) == comparable(records)
    assert read_rounds(tmp_path / "b/rounds.json") == resumed, "gains with their intervals included"
    assert len(FailureStore(tmp_path / "b/failures.jsonl")) == len(FailureStore(tmp_path / "a/failures.jsonl"))


@pytest.mark.parametrize(
    ("gain", "text"),
    [
        (None, "accepted"),
        (Estimate(value=0.02, low=0.01, high=0.03, n=9), "accepted (+0.020 [+0.010, +0.030] on validation prompts)"),
        (Estimate(value=0.02, low=-0.01, high=0.05, n=9), "accepted (+0.020 [-0.010, +0.050] on validation prompts, within noise)"),
        (Estimate(value=0.02, n=2), "accepted (+0.020 on validation prompts, within noise)"),
    ],
)
def test_verdict_says_what_the_gain_rests_on(gain: Estimate | None, text: str) -> None:
    record = RoundRecord(
        round=1, accepted=True, failures=0, replayed=4, before={}, after={}, steps=1, tokens=1, train_s=1.0, adapter=None, gain=gain
    )
    assert record.verdict == text
    assert dataclasses.replace(record, accepted=False).verdict == text.replace("accepted", "rejected, the old draft stays")


def test_known_replays_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that share what is known replay a draft once, within a chain whose round was rejected too, and give the same records."""
    train, validation = data()
    calls = []
    real = rounds.favourites
    monkeypatch.setattr(rounds, "favourites", lambda *a, **k: calls.append("mined") or real(*a, **k))
    validated = trainer.acceptance
    monkeypatch.setattr(trainer, "acceptance", lambda *a: calls.append("validated") or validated(*a))
    known, found = Known(), {}
    idle = quick_config(optim={"learning_rate": 1e-12, "max_steps": 2}, adapt={"threshold": 1.0})
    for name, shared in (("alone", None), ("first", known), ("second", known)):
        calls.clear()
        common: dict[str, Any] = {"rounds": 2, "out": tmp_path / name, "cache_folder": tmp_path / "h", "known": shared}
        records = run_rounds(tiny_draft(), train, validation, idle, **common)
        found[name] = comparable(records), calls.count("mined"), calls.count("validated")
        assert [r.accepted for r in records] == [False, False]
    assert found["alone"] == found["first"]
    assert found["second"][0] == found["first"][0]
    # Two rounds end with one validation each; the start is mined and validated once, by the first chain.
    assert found["first"][1:] == (1, 3)
    assert found["second"][1:] == (0, 2)


def test_a_round_begins_with_what_the_last_one_measured(tmp_path: Path) -> None:
    """The adapter that a round ends with is not validated again by the next one, whose records are the same."""

    class Forgets(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    found = {}
    for name, validations in (("kept", {}), ("anew", Forgets())):
        known = Known(validations=validations)
        common: dict[str, Any] = {"rounds": 2, "out": tmp_path / name, "cache_folder": tmp_path / "h", "known": known}
        found[name] = comparable(run_rounds(tiny_draft(), *data(), quick_config(**QUICK), **common))
        assert len(known.validations) == (0 if name == "anew" else 1 + sum(r["accepted"] for r in found[name]))
    assert found["kept"][0]["accepted"]
    assert found["kept"] == found["anew"]


def test_records_find_their_adapters_where_the_folder_is_now(tmp_path: Path) -> None:
    """A moved cache; records of earlier versions hold whole paths. An adapter that lies elsewhere stays where it is."""
    there, now, elsewhere = tmp_path / "there", tmp_path / "now", tmp_path / "elsewhere/round-1"
    for folder in (there / "round-1", there / "round-2", elsewhere):
        folder.mkdir(parents=True)
    known = {"accepted": True, "failures": 1, "replayed": 1, "before": {}, "after": {}, "steps": 1, "tokens": 1, "train_s": 0.1}
    paths = [str(there / "round-1"), str(elsewhere.with_name("x")), None]
    records = [RoundRecord(round=i, adapter=path, **known) for i, path in enumerate(paths, start=1)]
    rounds.write_rounds(there / "rounds.json", records)
    assert read_rounds(there / "rounds.json") == records
    assert str(there) not in (there / "rounds.json").read_text()
    there.rename(now)
    assert [r.adapter for r in read_rounds(now / "rounds.json")] == [str(now / "round-1"), paths[1], None]
    older = json.loads((now / "rounds.json").read_text())
    older["rounds"][0]["adapter"] = str(there / "round-2")
    (now / "rounds.json").write_text(json.dumps(older))
    assert read_rounds(now / "rounds.json")[0].adapter == str(now / "round-2")


def test_domain_round_mixes_and_is_replayed_alike(tmp_path: Path) -> None:
    """A round for one domain trains on its failures alone, with accepted cases of all; the bank replays what validation saw."""
    train = [*target_trajectories(16), *target_trajectories(64, first=200, domain="math")]
    validation = data()[1]
    config = quick_config(optim={"epochs": 6}, adapt={"threshold": 0.2})
    draft = tiny_draft()
    record = run_rounds(draft, train, validation, config, rounds=1, out=tmp_path / "r", domain="math", cache_folder=tmp_path / "h")[0]
    cases = cases_from_replay(draft, train, k=config.stop.k)
    failures = sum(c.domain == "math" and (c.rate or 0) < 0.2 for c in cases)
    assert record.failures == failures > 0
    assert record.replayed == min(round(failures / 4), sum((c.rate or 0) >= 0.2 for c in cases))
    assert record.adapter is not None
    install(Path(record.adapter), tmp_path / "math", "math")
    bank = AdapterBank(draft, {"math": tmp_path / "math"})
    rows = [r for r in replay_bank(bank, validation, [2, 3]) if r.k == 3 and r.domain == "math"]
    for drafter, alpha in (("generic", record.before["math"]), ("math", record.after["math"])):
        own = [r for r in rows if r.drafter == drafter]
        accepted = sum(r.accepted for r in own)
        assert accepted / (accepted + sum(r.rejected for r in own)) == pytest.approx(alpha)
    assert bank.active is None


def test_nothing_to_train_on(tmp_path: Path) -> None:
    """A perfect draft has no failure case: no round runs and nothing is written."""
    train, validation = data()
    few: dict[str, Any] = {"rounds": 1, "out": tmp_path / "few", "cache_folder": tmp_path / "h", "min_failures": len(train) + 1}
    assert run_rounds(tiny_draft(), train, validation, quick_config(), **few) == []
    records = run_rounds(tiny_draft(noise=0.0), train, validation, quick_config(), rounds=2, out=tmp_path, cache_folder=tmp_path / "h")
    assert records == []
    with pytest.raises(HarnessError, match="rounds is 0"):
        run_rounds(tiny_draft(), train, validation, quick_config(), rounds=0, out=tmp_path)


def prompts(kind: str, count: int, word: str) -> list[Sample]:
    return [
        Sample(id=f"{kind}/{i}", domain="chat", prompt=f"{word} {i} {kind} question {i * 7} about {word}{i}", split=kind)
        for i in range(count)
    ]


def test_campaign_from_prompts_to_installed_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    """What ``harness train`` runs: the adapter lands in the cache under its name, and leaking prompts are refused before any work."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = tiny_pair(tmp_path / "pair", noise=0.3)
    split = Prompts(train=prompts("train", 24, "apple"), validation=prompts("validation", 10, "pear"), test=prompts("test", 4, "plum"))
    config = quick_config(optim={"epochs": 6, "max_tokens": 512}, adapt={"threshold": 1.0}, stop={"every": 3, "patience": 20})
    result = train_pair(pair, split, config, name="chat", domain="chat", max_tokens=12)
    assert result.trained_prompts == 24
    assert result.records[0].accepted
    assert result.adapter == tmp_path / "cache/adapters/tiny/chat"
    AdapterBank(pair.draft, {"chat": result.adapter})
    assert len(notes) == 3
    assert list(counted(range(3), 3, "answers")) == [0, 1, 2]
    assert len(notes) == 3, "what goes fast says nothing"
    monkeypatch.setattr(harness.core.progress, "NOTE_EVERY_S", 0.0)
    assert list(counted(iter("abc"), 3, "answers")) == ["a", "b", "c"]
    assert notes[3:] == ["  1 of 3 answers", "  2 of 3 answers"]
    leaking = dataclasses.replace(split, test=[dataclasses.replace(split.train[0], id="test/copy", split="test")])
    with pytest.raises(HarnessError, match="train/0 and test/copy"):
        train_pair(pair, leaking, config, name="chat", max_tokens=12)
    with pytest.raises(HarnessError, match="no training prompts of domain"):
        train_pair(pair, split, config, name="x", domain="law", max_tokens=12)


def test_campaign_on_answers_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    """Stored answers, sampled ones too, train without decoding; those to prompts near evaluation prompts are left out."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = tiny_pair(tmp_path / "pair", noise=0.3)
    own, validation, test = prompts("train", 24, "apple"), prompts("validation", 10, "pear"), prompts("test", 4, "plum")
    copy = dataclasses.replace(test[0], id="train/copy", split="train")
    list(collect(pair, [*own, copy], max_tokens=12, out=tmp_path / "answers"))
    list(collect(pair, prompts("hot", 6, "fig"), max_tokens=12, temperature=1.0, out=tmp_path / "answers"))
    split = Prompts(train=prompts("other", 3, "cherry"), validation=validation, test=test)
    config = quick_config(optim={"epochs": 6, "max_tokens": 512}, adapt={"threshold": 1.0}, stop={"every": 3, "patience": 20})
    result = train_pair(pair, split, config, name="chat", domain="chat", max_tokens=12, answers=tmp_path / "answers")
    assert result.trained_prompts == 30
    assert result.records[0].accepted
    assert "left out 1 answers" in notes[0]
    assert "train/copy near test/0" in notes[0]
    assert not any("training prompts" in line for line in notes)
    cases = list(FailureStore(tmp_path / "cache/adapters/tiny/chat/rounds/failures.jsonl"))
    used = [*own, *prompts("hot", 6, "fig")]
    assert {c.sample_id for c in cases} <= {s.id for s in used}
    assert {c.prompt for c in cases} <= {s.prompt for s in used}
    alike = config.replace(adapt={"mine": False})
    plain = train_pair(pair, split, alike, name="plain", domain="chat", max_tokens=12, answers=tmp_path / "answers")
    assert plain.records[0].accepted
    assert (plain.records[0].failures, plain.records[0].replayed) == (0, 30), "every answer, whatever the draft makes of it"
    assert not list(FailureStore(tmp_path / "cache/adapters/tiny/plain/rounds/failures.jsonl"))
    gain = plain.records[0].gain
    assert gain is not None
    assert f"accepted ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on validation prompts); 30 answers" in summary(plain, "alpha")
    with pytest.raises(HarnessError, match="another target"):
        train_pair(dataclasses.replace(pair, target_hash="x"), split, config, name="y", answers=tmp_path / "answers")
    with pytest.raises(HarnessError, match="no answers in"):
        train_pair(pair, split, config, name="y", answers=tmp_path / "nothing")


def test_examples_of_stored_answers_are_those_of_their_records(tmp_path: Path) -> None:
    """Two ways from a shard to training: through records, and straight from the arrays."""
    pair = tiny_pair(tmp_path / "pair")
    list(collect(pair, prompts("train", 6, "apple"), max_tokens=12, temperature=1.0, out=tmp_path / "answers"))
    stored = list(read_answers(tmp_path / "answers", pair.target_hash))
    assert len(stored) == 6
    direct, through_records = [from_stored(s) for s in stored], [from_trajectory(s.trajectory()) for s in stored]
    assert data_hash(direct) == data_hash(through_records)
    for one, other in zip(direct, through_records, strict=True):
        assert (one.id, one.domain, one.start, one.max_tokens) == (other.id, other.domain, other.start, other.max_tokens)


class Scripted:
    """Decoder that writes given texts as user turns."""

    def __init__(self, pair: Any, texts: list[str], ended: bool = True) -> None:
        self.pair, self.texts, self.ended, self.seeds = pair, texts, ended, []

    def __call__(self, prefixes: Any, *, max_tokens: int, temperature: float, top_k: int, seed: int) -> list[Any]:
        from harness.answers.rollout import Rollout

        self.seeds.append(seed)
        end = [min(self.pair.eos_token_ids)] if self.ended else []
        none = np.zeros((0, 1))
        return [
            Rollout(tokens=[*self.pair.tokenizer.encode(t), *end], logprobs=none, top_tokens=none, top_logprobs=none)
            for t in self.texts[: len(prefixes)]
        ]


def test_synthetic_prompts(tmp_path: Path) -> None:
    """Duplicates, prompts too short, cut ones and near-duplicates of evaluation prompts are dropped; the rest is tagged."""
    pair = tiny_pair(tmp_path, draft=False)
    prefix = pair.decode(user_turn_prefix(pair, "Be brief.")).strip()
    assert prefix.startswith("system\nBe brief.")
    assert prefix.endswith("user")
    held = [Sample(id="t/0", domain="chat", prompt="how many stars are in the milky way galaxy tonight")]
    known = [Sample(id="k/0", domain="chat", prompt="tell me how to bake a loaf of bread", split="train")]
    texts = [
        "How many stars are in the Milky Way galaxy tonight",
        "write a poem about the old sea",
        "Write a poem about  the old sea",
        "hi there",
        "tell me how to bake a loaf of bread",
        "which planet has the longest year of all",
    ]
    config = quick_config().synth
    decoder = Scripted(pair, texts)
    made = synthesise(pair, 5, domain="chat", config=config, known=known, evaluation=held, decoder=decoder)
    assert [s.prompt for s in made] == [texts[1], texts[5]]
    assert {(s.source, s.split, s.domain) for s in made} == {("synthetic", "train", "chat")}
    assert len(set(decoder.seeds)) == len(decoder.seeds) == 12
    assert synthesise(pair, 5, domain="chat", config=config, decoder=Scripted(pair, texts, ended=False)) == []
    assert synthesise(pair, 0, domain="chat", config=config) == []


@pytest.mark.parametrize("name", ["default", "top8", "dora", "answers"])
def test_shipped_configs_load(name: str) -> None:
    """Every file in configs/training is valid, and flags override it."""
    config = load_training_config(name, ["lora.rank=3"])
    assert (config.name, config.lora.rank) == (name, 3)


def test_config_errors_name_the_place(tmp_path: Path) -> None:
    """Unknown keys, wrong types and impossible values name file, line and key."""
    path = tmp_path / "bad.yaml"
    for text, message in (
        ("lora:\n  rnk: 3\n", "bad.yaml:2: lora.rnk"),
        ("lora:\n  num_layers: 0\n", "num_layers must be"),
        ("loss:\n  weights: {ce: 0.0}\n", "positive weight"),
    ):
        path.write_text(text)
        with pytest.raises(HarnessError, match=message):
            load_training_config(str(path))
