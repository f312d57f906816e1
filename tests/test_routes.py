"""The bridge to routing: the tables it makes, the routers it trains and stores, and answers decoded through one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from routed import K, adapters, prompts, random_adapter

from harness import api
from harness.adapt.memory_sources import HeldOut
from harness.adapt.routers.arms import GENERIC, Replaying, arm_drafter, arm_in, arm_names
from harness.adapt.routers.routed import (
    Routed,
    RouterConfig,
    fit_router,
    hash_adapters,
    load_router,
    load_router_config,
    make_router,
    outcome_table,
    route,
    route_and_decode,
    router_arms,
    router_path,
    routing_errors,
    save_router,
)
from harness.adapt.training.bank import AdapterBank, replay_bank
from harness.core.errors import HarnessError
from harness.core.paths import memory_path
from harness.core.records import Sample, Trajectory
from harness.decode.generation import generate
from harness.decode.length import Costs
from harness.decode.memory import Answer, Memory, write_memory
from harness.decode.replay import ReplayRow
from routing.outcomes import Arm
from routing.routing_error import RoutingError

QUICK = RouterConfig(encoder="tfidf", router="logistic", min_confidence=0.0, familiar=None)
HASHES = {"code": "a" * 64, "chat": "b" * 64}


def row(sample: Sample, drafter: str, rounds: int, k: int = K) -> ReplayRow:
    """20 emitted tokens in ``rounds`` rounds; what has a memory proposes from that alone."""
    full, rest = divmod(20 - rounds, k)
    accepts = ((k,) * full + (rest,) * (rest > 0) + (0,) * rounds)[:rounds]
    counts = {"rounds": rounds, "drafted": rounds * k, "accepted": 20 - rounds, "rejected": 0, "emitted": 20}
    lists = {"accept_lengths": accepts, "draft_lengths": (k,) * rounds, "sources": ("memory",) * rounds if "memory" in drafter else None}
    return ReplayRow(sample_id=sample.id, domain=sample.domain, drafter=drafter, k=k, **counts, **lists)


def planted(count: int = 60) -> tuple[list[ReplayRow], list[Sample]]:
    """Each adapter needs 8 rounds on its own domain and 16 on the other; the plain draft needs 10 everywhere."""
    samples = prompts(count)
    rows = [row(s, d, 10 if d == GENERIC else 8 if d == s.domain else 16) for s in samples for d in (GENERIC, "code", "chat")]
    return rows, samples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny pair, a bank of two adapters, and a router trained on planted outcomes."""
    from tiny import tiny_pair

    root = tmp_path_factory.mktemp("world")
    pair = tiny_pair(root / "pair")
    folders = adapters(root / "adapters", pair.draft)
    table = outcome_table(*planted())
    router = fit_router(table, QUICK, k=K, adapter_hashes=hash_adapters(folders))
    return pair, AdapterBank(pair.draft, folders), router, folders


def test_importing_the_bridge_is_light() -> None:
    """Suites check router configs: that must not load mlx, torch, scikit-learn or even numpy."""
    code = (
        "import sys\nfrom harness.adapt.routers.routed import load_router_config\nload_router_config('default')\n"
        "print([m for m in ('mlx', 'torch', 'sklearn', 'numpy', 'scipy', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["default", "tfidf"])
def test_shipped_configs_are_valid_and_say_what_the_defaults_are(name: str) -> None:
    """A shipped file must load, and the default one must not differ from the defaults in the code."""
    config = load_router_config(name)
    assert config.name == name
    if name == "default":
        assert config == RouterConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("router=forest", "'forest' is not allowed"),
        ("encodr=tfidf", "did you mean 'encoder'"),
        ("min_confidence=1.5", "min_confidence"),
        ("familiar=0", "familiar"),
        ("folds=1", "folds"),
        ("fallback=plain", "fallback plain needs reward speedup"),
    ],
)
def test_wrong_settings_are_refused(override: str, message: str) -> None:
    """Every wrong key or value is named before anything is trained."""
    with pytest.raises(HarnessError, match=message):
        load_router_config("default", [override])


def test_table_holds_the_replayed_counts() -> None:
    """The router's rewards are these counts: exact values per sample, drafter and K, in the samples' own words."""
    rows, samples = planted(6)
    table = outcome_table(rows, samples)
    assert table.drafters == (GENERIC, "code", "chat")
    assert table.prompts == tuple(s.prompt for s in samples)
    assert table.domains == tuple(s.domain for s in samples)
    i, j = table.sample_ids.index("code/2"), table.drafters.index("chat")
    assert (table.rounds[i, j, 0], table.drafted[i, j, 0], table.accepted[i, j, 0], table.emitted[i, j, 0]) == (16, 48, 4, 20)
    assert table.tau[i, j, 0] == 20 / 16
    with pytest.raises(HarnessError, match="no sample 'code/0'") as caught:
        outcome_table(rows, samples[1:])
    assert caught.value.advice
    with pytest.raises(HarnessError, match="no speculative records"):
        outcome_table([], samples)


def test_table_of_a_real_replay(world: Any) -> None:
    """Rows of an adapter bank go in as they are, and the plain draft's come out under its own name."""
    from harness.answers.collect import collect

    pair, bank, _, _ = world
    samples = prompts(4)
    answers = list(collect(pair, samples, max_tokens=8, batch=4, top_k=1))
    rows = replay_bank(bank, answers, [1, K])
    table = outcome_table(rows, samples)
    assert (set(table.drafters), table.ks) == ({GENERIC, "code", "chat"}, (1, K))
    for r in rows:
        at = table.sample_ids.index(r.sample_id), table.drafters.index(r.drafter), table.ks.index(r.k)
        assert (table.rounds[at], table.accepted[at]) == (r.rounds, r.accepted)


def test_router_learns_what_was_planted() -> None:
    """On domains a reader can tell apart, every prompt it has not seen must get its own domain's adapter, at the trained K."""
    router = fit_router(outcome_table(*planted()), QUICK, k=K, adapter_hashes=HASHES)
    assert router.arms_ == (Arm(GENERIC, K), Arm("chat", K), Arm("code", K))
    assert router.fallback == f"{GENERIC}@{K}"
    fresh = prompts(90)[60:]
    assert router.choose([s.prompt for s in fresh]) == [f"{s.domain}@{K}" for s in fresh]


@pytest.mark.parametrize("kind", ["logistic", "mlp", "boosting", "knn"])
def test_same_seed_same_router(kind: str) -> None:
    """A run must be repeatable, and the configured kind must be the one that is trained."""
    config = QUICK.model_copy(update={"router": kind})
    first, second = (fit_router(outcome_table(*planted()), config, k=K, adapter_hashes=HASHES) for _ in range(2))
    texts = [s.prompt for s in prompts(40)]
    assert type(first.router_).__name__.lower().startswith(kind)
    np.testing.assert_array_equal(first.scores(texts), second.scores(texts))
    assert first.choose(texts) == second.choose(texts)


def test_seed_reaches_folds_and_estimators() -> None:
    """A seed that is accepted but not used would make repeated runs look more certain than they are."""
    router = make_router(RouterConfig(router="auto", seed=7, folds=3), [Arm(GENERIC, K), Arm("code", K)])
    assert (router.random_state, router.n_splits) == (7, 3)
    assert (router.router.random_state, router.router.n_splits) == (7, 3)
    assert make_router(RouterConfig(router="mlp", seed=7), [Arm(GENERIC, K)]).router.random_state == 7


def test_speedup_weighs_costs() -> None:
    """With a draft as slow as the target, tokens per pass do not pay, and plain decoding must be chosen."""
    slow_table, fast_table = (outcome_table(*planted(), Costs(c=c, v=(1.0, 1.1, 1.2, 1.3))) for c in (1.0, 0.01))
    config = QUICK.model_copy(update={"reward": "speedup", "fallback": "plain"})
    texts = [s.prompt for s in prompts(8)]
    slow = fit_router(slow_table, config, k=K, adapter_hashes=HASHES)
    fast = fit_router(fast_table, config, k=K, adapter_hashes=HASHES)
    assert set(slow.choose(texts)) == {"plain"}
    assert "plain" not in fast.choose(texts)
    assert fast.scores(texts)[:, 0] == pytest.approx(20 / 10 / (3 * 0.01 + 1.3), rel=1e-9)
    with pytest.raises(HarnessError, match="needs what the answers take"):
        fit_router(outcome_table(*planted()), config, k=K, adapter_hashes=HASHES)


def test_a_memory_that_drafts_for_nothing_beats_a_dear_draft_with_more_tokens_a_pass() -> None:
    """By tokens per pass the draft behind the memory wins, by time the memory alone; who does not want it leaves it out."""
    rows, samples = planted()
    memory = [row(s, name, rounds) for s in samples for name, rounds in (("memory", 8), ("memory_hybrid", 7), ("memory_hybrid+code", 7))]
    behind = [dataclasses.replace(r, sources=("draft",) * r.rounds) if "hybrid" in r.drafter else r for r in memory]
    table = outcome_table([*rows, *behind], samples, Costs(c=0.3, v=(1.0, 1.1, 1.2, 1.3)))
    texts = [s.prompt for s in prompts(8)]
    names = [arm.drafter for arm in router_arms(table, QUICK, K, ["code", "chat"])]
    assert names == [GENERIC, "code", "chat", "memory", "memory_hybrid", "memory_hybrid+code"]
    assert set(fit_router(table, QUICK, k=K, adapter_hashes=HASHES).choose(texts)) <= {f"memory_hybrid@{K}", f"memory_hybrid+code@{K}"}
    by_time = fit_router(table, QUICK.model_copy(update={"reward": "speedup"}), k=K, adapter_hashes=HASHES)
    assert set(by_time.choose(texts)) == {f"memory@{K}"}
    assert by_time.shares_[f"memory@{K}"] == pytest.approx({"memory": 12 / 20, "target": 8 / 20})
    without = QUICK.model_copy(update={"memory": False})
    assert fit_router(table, without, k=K, adapter_hashes=HASHES).choose(texts) == [f"{s.domain}@{K}" for s in prompts(8)]
    assert [a.drafter for a in router_arms(table, QUICK, K, [])] == [GENERIC, "memory", "memory_hybrid"]


@pytest.mark.parametrize(
    ("hashes", "k", "message"),
    [
        ({}, K, "at least one adapter"),
        ({GENERIC: "a" * 64}, K, "at least one adapter"),
        ({"code": "a" * 64, "math": "c" * 64}, K, "no outcomes of 'math' at K = 3"),
        (HASHES, 8, "no outcomes of 'generic' at K = 8"),
    ],
)
def test_missing_adapters_and_outcomes_are_refused(hashes: dict[str, str], k: int, message: str) -> None:
    """A router over arms nobody measured would choose blindly."""
    with pytest.raises(HarnessError, match=message) as caught:
        fit_router(outcome_table(*planted()), QUICK, k=k, adapter_hashes=hashes)
    assert caught.value.advice


def test_errors_of_routing_cross_the_border_with_their_advice() -> None:
    """The command line catches one kind of error only; without the advice its message would be half a message."""
    with pytest.raises(HarnessError) as caught, routing_errors():
        raise RoutingError("the problem", "the advice")
    assert (caught.value.problem, caught.value.advice) == ("the problem", "the advice")


def test_saved_router_comes_back_only_with_its_adapters(world: Any, tmp_path: Path) -> None:
    """A retrained, re-scaled or missing adapter has other outcomes than the router learned from: refused, with what to do."""
    pair, _, router, folders = world
    path = save_router(router, tmp_path / "r.safetensors", run_id="run-1", adapter_hashes=hash_adapters(folders))
    back = load_router("tiny", folders, path=path)
    texts = [s.prompt for s in prompts(30)]
    np.testing.assert_array_equal(back.scores(texts), router.scores(texts))
    assert back.choose(texts) == router.choose(texts)

    changed = random_adapter(tmp_path / "code", pair.draft, seed=9)
    with pytest.raises(HarnessError, match="'code', which has changed") as caught:
        load_router("tiny", {**folders, "code": changed}, path=path)
    assert "Train the router again" in caught.value.advice
    rescaled = random_adapter(tmp_path / "again" / "code", pair.draft, seed=1)
    assert hash_adapters({"code": rescaled})["code"] == hash_adapters(folders)["code"]
    shape = json.loads((rescaled / "adapter_config.json").read_text())
    shape["lora_parameters"]["scale"] *= 2
    (rescaled / "adapter_config.json").write_text(json.dumps(shape))
    with pytest.raises(HarnessError, match="'code', which has changed"):
        load_router("tiny", {**folders, "code": rescaled}, path=path)
    with pytest.raises(HarnessError, match="'code', which does not exist here"):
        load_router("tiny", {"chat": folders["chat"]}, path=path)
    assert load_router("tiny", {**folders, "new": changed}, path=path).choose(texts) == router.choose(texts)
    with pytest.raises(HarnessError, match="cannot read"):
        hash_adapters({"x": tmp_path / "nowhere"})


def test_router_without_a_file_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says for which pair, where it looked, and what to run."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    with pytest.raises(HarnessError, match="no router for pair 'tiny'") as caught:
        load_router("tiny", {})
    assert str(router_path("tiny")) in caught.value.problem
    assert "harness train-router" in caught.value.advice


def test_routed_answers_are_the_targets(world: Any) -> None:
    """Whatever the router picks, greedy tokens equal plain decoding's, and the counts are the chosen adapter's own."""
    pair, bank, router, _ = world
    chosen = set()
    for sample in prompts(6):
        plain = generate(pair, sample.prompt, drafter=None, max_tokens=16)
        answer = route_and_decode(pair, sample.prompt, router=router, bank=bank, max_tokens=16)
        assert answer.tokens == plain.tokens
        assert (answer.drafter, answer.k) == (sample.domain, K)
        again = generate(pair, sample.prompt, drafter=bank.drafter(sample.domain), k=K, max_tokens=16)
        assert (answer.rounds, answer.accept_lengths) == (again.rounds, again.accept_lengths)
        chosen.add(answer.drafter)
    assert chosen == {"code", "chat"}
    bank.activate(None)


def test_routing_and_swapping_count_in_the_answer(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speedups must pay for the router: a slow choice and a slow swap show up in wall_s and ttft_s, and add up."""
    pair, bank, router, _ = world
    decide, activate = router.decide, bank.activate

    def slow_decide(*args: Any, **settings: Any) -> Any:
        time.sleep(0.05)
        return decide(*args, **settings)

    def slow_activate(name: str | None) -> Any:
        swap = activate(name)
        time.sleep(0.03)
        return dataclasses.replace(swap, swap_s=swap.swap_s + 0.03)

    monkeypatch.setattr(router, "decide", slow_decide)
    monkeypatch.setattr(bank, "activate", slow_activate)
    seen: list[Routed] = []
    start = time.perf_counter()
    answer = route_and_decode(pair, "def sort(a): 1", router=router, bank=bank, max_tokens=8, on_route=seen.append)
    elapsed = time.perf_counter() - start
    assert answer.route_s is not None
    assert answer.swap_s is not None
    assert answer.route_s >= 0.05
    assert answer.swap_s >= 0.03
    assert (answer.route_s, answer.swap_s) == (seen[0].route_s, seen[0].swap_s)
    decoding = answer.prefill_s + (answer.draft_s or 0) + (answer.verify_s or 0)
    assert answer.route_s + answer.swap_s + decoding <= answer.wall_s <= elapsed
    assert answer.route_s + answer.swap_s + answer.prefill_s <= answer.ttft_s <= answer.wall_s
    assert seen[0].decision.arm == Arm("code", K)
    activate(None)


def test_adapter_is_swapped_once_per_answer(world: Any) -> None:
    """The swap is paid where it is measured: the drafter must not swap a second time inside the decoding clock."""
    pair, bank, router, _ = world
    bank.activate(None)
    before = len(bank.swaps)
    route_and_decode(pair, "Tell me a story 0", router=router, bank=bank, max_tokens=4)
    assert [s.adapter for s in bank.swaps[before:]] == ["chat"]
    bank.activate(None)


def test_plain_choice_decodes_without_a_draft(world: Any) -> None:
    """Where speculation loses, the answer must come from the target alone, without touching the adapters."""
    pair, bank, _, _ = world
    config = QUICK.model_copy(update={"reward": "speedup", "fallback": "plain"})
    costs = Costs(c=1.0, v=(1.0, 1.1, 1.2, 1.3))
    router = fit_router(outcome_table(*planted(), costs), config, k=K, adapter_hashes=HASHES)
    swaps = len(bank.swaps)
    answer = route_and_decode(pair, "Tell me a story 0", router=router, bank=bank, max_tokens=8)
    assert (answer.drafter, answer.drafted, answer.swap_s) == (None, 0, 0.0)
    assert len(bank.swaps) == swaps


def test_settings_and_k_reach_the_decoder(world: Any) -> None:
    """Everything but the drafter stays the caller's choice."""
    pair, bank, router, _ = world
    answer = route_and_decode(pair, "Tell me a story 0", router=router, bank=bank, k=1, max_tokens=5, detailed=True)
    assert (answer.k, answer.emitted <= 5) == (1, True)
    assert max(answer.draft_lengths) == 1
    assert answer.positions is not None
    bank.activate(None)


def test_messages_are_routed_by_the_last_user_turn(world: Any) -> None:
    """In a chat the new question decides, not the earlier ones or the assistant's words."""
    pair, bank, router, _ = world
    messages = [
        {"role": "user", "content": "Tell me a story 0"},
        {"role": "assistant", "content": "Please write a letter"},
        {"role": "user", "content": "def sort(a): 3"},
    ]
    assert route(messages, router=router, bank=bank).drafter == "code"
    assert route("Tell me a story 0", router=router, bank=bank).drafter == "chat"
    plain = generate(pair, messages, drafter=None, max_tokens=8)
    assert route_and_decode(pair, messages, router=router, bank=bank, max_tokens=8).tokens == plain.tokens
    bank.activate(None)


def test_wrong_calls_are_refused(world: Any) -> None:
    """Token ids carry no text, a named drafter contradicts the router, and a foreign bank would change another draft."""
    from adapting import tiny_draft

    pair, bank, router, _ = world
    with pytest.raises(HarnessError, match="as text"):
        route_and_decode(pair, [1, 2, 3], router=router, bank=bank)
    with pytest.raises(HarnessError, match="takes no drafter"):
        route_and_decode(pair, "x", router=router, bank=bank, drafter="generic")
    with pytest.raises(HarnessError, match="another draft"):
        route_and_decode(pair, "x", router=router, bank=AdapterBank(tiny_draft(), {}))
    with pytest.raises(HarnessError, match="no adapter"):
        route("def sort(a): 3", router=router, bank=AdapterBank(pair.draft, {}))


# --- arms with a memory ---


def told(pair: Any, samples: list[Sample], tokens: int = 24) -> list[Trajectory]:
    """The target's answers."""
    found = []
    for s in samples:
        ids = pair.encode(s.prompt)
        said = generate(pair, ids, drafter=None, max_tokens=tokens)
        how: dict[str, Any] = {"tokens": said.tokens, "finish": said.finish, "max_tokens": tokens}
        found.append(Trajectory(sample_id=s.id, domain=s.domain, prompt_tokens=tuple(ids), **how))
    return found


def remember(pair: Any, samples: list[Sample]) -> Memory:
    """A memory of the pair that holds the answers to these prompts."""
    answers = [Answer.of(s, t.prompt_tokens, t.tokens) for s, t in zip(samples, told(pair, samples), strict=True)]
    return write_memory(memory_path(pair.name), pair.name, pair.target_hash, answers)


@pytest.fixture
def remembering(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pair with installed adapters in a bank and a memory of its answers to ten prompts; these prompts, and ten others."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    pair, _, _, folders = world
    for name, folder in folders.items():
        shutil.copytree(folder, tmp_path / "adapters" / pair.name / name)
    everything = prompts(20)
    remember(pair, everything[:10])
    bank = api.adapter_bank(pair, list(folders))
    yield pair, bank, everything[:10], everything[10:]
    bank.activate(None)


@pytest.mark.parametrize("k", [K, "auto"])
def test_every_arm_decodes_as_it_was_replayed_and_as_its_name_says(remembering: Any, k: int | str) -> None:
    """Outcomes that a router learns from must be those of its choices; each is also a name that ``generate`` takes."""
    pair, bank, _, everything = remembering
    fresh = everything[:4]
    costs, free = Costs(c=0.2, v=(1.0, 1.1, 1.2, 1.3, 1.4)), Costs(c=0.0, v=(1.0, 1.1, 1.2, 1.3, 1.4))
    rows = Replaying(k=k, costs=costs, memory=HeldOut.of(pair, fresh))(pair, bank, told(pair, fresh))
    names = arm_names(["chat", "code"], memory=True)
    assert sorted({row.drafter for row in rows}) == sorted(names)
    used = set()
    for row in rows:
        prompt = next(s.prompt for s in fresh if s.id == row.sample_id)
        how: dict[str, Any] = {"k": k, "costs": free if row.drafter == "memory" else costs, "max_tokens": 24}
        decoded = generate(pair, prompt, drafter=arm_drafter(pair, bank, row.drafter), **how)
        assert (decoded.accept_lengths, decoded.draft_lengths) == (row.accept_lengths, row.draft_lengths)
        if row.sample_id == fresh[0].id:
            assert api.generate(pair, prompt, drafter=arm_in(row.drafter, None), **how).accept_lengths == decoded.accept_lengths
            used.update(source for source in decoded.sources or () if "memory" in row.drafter)
    assert {"memory", "draft"} <= used


@pytest.mark.parametrize("fault", [False, True])
def test_a_router_learns_nothing_from_answers_that_the_memory_holds(remembering: Any, fault: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its training prompts a memory that knows their answers would look perfect. Injected fault: nothing is left out."""
    pair, bank, known, fresh = remembering
    if fault:
        monkeypatch.setattr("harness.adapt.memory_sources.leaks", lambda *_: [])
    rows = Replaying(k=K, memory=HeldOut.of(pair, known[:5]))(pair, bank, told(pair, known[:5]))
    learned = {row.sample_id: row.accept_lengths for row in rows if row.drafter == "memory"}
    remember(pair, known[5:])
    honest = Replaying(k=K, memory=HeldOut.of(pair, fresh))(pair, bank, told(pair, known[:5]))
    expected = {row.sample_id: row.accept_lengths for row in honest if row.drafter == "memory"}
    assert (learned == expected) is not fault


def test_a_memory_with_nothing_else_is_no_arm(remembering: Any) -> None:
    """Where all it knows are the router's own prompts, there is nothing to measure it by; another memory than the client's is refused."""
    pair, bank, known, fresh = remembering
    assert HeldOut.of(pair, known) is None
    stale = HeldOut.of(pair, fresh)
    remember(pair, known[:3])
    with pytest.raises(HarnessError, match="the memory of 'tiny' is not the client's"):
        Replaying(k=K, memory=stale)(pair, bank, [])


@pytest.mark.parametrize("around", [None, "hybrid"])
def test_a_routed_answer_runs_the_chosen_sources(remembering: Any, around: str | None) -> None:
    """The memory alone where it pays, the memory before an adapter elsewhere; inside a named drafter the choice is its draft's."""
    pair, bank, _, _ = remembering
    rows, samples = planted()
    extra = [row(s, name, 6 if s.domain == domain else 18) for s in samples for name, domain in MEMORY_ARMS.items()]
    router = fit_router(outcome_table([*rows, *extra], samples), QUICK, k=K, adapter_hashes=HASHES)
    for prompt, arm in (("def sort(a): 1", "memory_hybrid+code"), ("Tell me a story 0", "memory")):
        answer = route_and_decode(pair, prompt, router=router, bank=bank, around=around, max_tokens=16)
        assert answer.drafter == arm
        own = api.generate(pair, prompt, drafter=arm_in(arm, around), k=K, max_tokens=16)
        assert (answer.tokens, answer.accept_lengths, answer.sources) == (own.tokens, own.accept_lengths, own.sources)


MEMORY_ARMS = {"memory": "chat", "memory_hybrid+code": "code"}
"""Arm to the domain it is best on."""
