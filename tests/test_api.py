"""The public calls: names become drafters, adapters of one pair never mix, and mistakes show before anything loads."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import install_adapter
from tiny import tiny_pair

import harness
from harness import api
from harness.adapt.adapters.adapter_folder import METADATA, WEIGHTS
from harness.adapt.training.bank import AdapterBank
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.model_drafter import ModelDrafter

PROMPT = "tell me about the sea and the wind"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny pair with a cache of its own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tiny_pair(tmp_path, noise=0.1)


def decode(pair: Any, drafter: Any, **settings: Any) -> Any:
    return api.generate(pair, PROMPT, drafter=drafter, k=3, max_tokens=32, **settings)


def counts(generation: Any) -> tuple[int, ...]:
    return generation.accept_lengths


def test_import_is_light() -> None:
    """``import harness`` must work where mlx is broken; the five public names are there all the same."""
    code = (
        "import sys, harness; print([m for m in ('mlx', 'torch', 'numpy', 'pydantic') if m in sys.modules]);"
        "print(all(name in dir(harness) or name in harness.__all__ for name in ['load_pair', 'generate', 'stream', 'replay', 'Session']))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["[]", "True"]
    assert harness.generate is api.generate
    assert harness.replay is api.replay
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        harness.nope  # noqa: B018


def test_adapters_change_the_draft_and_not_the_answer(pair: Any) -> None:
    """Every drafter gives the target's tokens; the adapter's acceptance differs from the plain draft's, which comes back unharmed."""
    install_adapter(pair, "code", seed=1)
    install_adapter(pair, "math", seed=2)
    plain, generic = decode(pair, None), decode(pair, "generic")
    code, math = decode(pair, "code"), decode(pair, "math")
    again, hybrid = decode(pair, "generic"), decode(pair, "hybrid")
    assert {g.tokens for g in (generic, code, math, again, hybrid)} == {plain.tokens}
    assert counts(generic) == counts(again)
    assert counts(code) != counts(generic) != counts(math) != counts(code)
    assert (code.drafter, generic.drafter, plain.drafter) == ("code", "generic", None)
    reference = AdapterBank(pair.draft, {"code": api.installed(pair.name)["code"]})
    assert counts(api.decoding.generate(pair, PROMPT, drafter=reference.drafter("code"), k=3, max_tokens=32)) == counts(code)
    reference.activate(None)


def test_hybrid_after_an_adapter_drafts_with_the_plain_draft(pair: Any) -> None:
    """A built-in drafter must not inherit the weights that the answer before it left in the draft."""
    install_adapter(pair, "code")
    before = [counts(decode(pair, name)) for name in ("generic", "hybrid")]
    for i, name in enumerate(("generic", "hybrid")):
        decode(pair, "code")
        assert counts(decode(pair, name)) == before[i]


def test_swap_time_counts(pair: Any) -> None:
    """Speedups must pay for the swap: it is in the wall time, and None where nothing was swapped."""
    install_adapter(pair, "code")
    assert decode(pair, "generic").swap_s is None
    swapped = decode(pair, "code")
    assert swapped.swap_s == api.adapter_bank(pair).swaps[-1].swap_s > 0
    assert swapped.wall_s > swapped.swap_s + swapped.prefill_s
    assert swapped.ttft_s > swapped.swap_s


def test_streams_keep_their_own_adapter(pair: Any) -> None:
    """Streams made in one order and read in another each draft with their own weights."""
    install_adapter(pair, "code")
    expected = {name: counts(decode(pair, name)) for name in ("generic", "code")}
    settings = {"k": 3, "max_tokens": 32}
    streams = {name: api.stream(pair, PROMPT, drafter=name, **settings) for name in ("code", "generic")}
    for name in ("generic", "code"):
        assert tuple(step.accepted for step in streams[name]) == expected[name]


def test_fast_mode_uses_the_adapter(pair: Any) -> None:
    """mlx-lm's loop takes a model, not a drafter: the adapter must be in its weights before."""
    install_adapter(pair, "code")
    fast = {name: decode(pair, name, loop="mlx-lm") for name in ("generic", "code")}
    slow = {name: decode(pair, name) for name in ("generic", "code")}
    assert fast["code"].tokens == slow["code"].tokens
    assert fast["code"].accepted == slow["code"].accepted
    assert fast["generic"].accepted == slow["generic"].accepted != fast["code"].accepted


def test_replay_follows_adapters(pair: Any) -> None:
    """Replay by name equals decoding by name, adapter by adapter."""
    install_adapter(pair, "code")
    plain = decode(pair, None)
    trajectory = Trajectory(
        sample_id="s", domain="chat", prompt_tokens=tuple(pair.encode(PROMPT)), tokens=plain.tokens, finish=plain.finish, max_tokens=32
    )
    names = ["code", "generic", "lookup", "hybrid", "hybrid+code", "cascade+code", "cascade"]
    rows = api.replay(pair, [trajectory], names, [3])
    for name, row in zip(names, rows, strict=True):
        answer = decode(pair, name)
        assert answer.tokens == plain.tokens
        assert row.accept_lengths == counts(answer)
    accepted = {name: row.accept_lengths for name, row in zip(names, rows, strict=True)}
    assert accepted["hybrid+code"] != accepted["hybrid"], "the adapter shows inside other drafters too"
    with pytest.raises(HarnessError, match="not the router"):
        api.replay(pair, [trajectory], ["router"], [3])


def test_a_new_version_of_an_adapter_is_used(pair: Any) -> None:
    """Training again under the same name must not leave the old weights in a running program."""
    install_adapter(pair, "code", seed=1)
    first = decode(pair, "code")
    install_adapter(pair, "code", seed=5)
    assert counts(decode(pair, "code")) != counts(first)
    assert decode(pair, "generic").tokens == first.tokens


def test_unknown_names_say_what_there_is(pair: Any) -> None:
    """Built-in names and installed adapters are both offered; nothing was touched."""
    install_adapter(pair, "cooking")
    for call in (
        lambda name: decode(pair, name),
        lambda name: api.stream(pair, PROMPT, drafter=name),
        lambda name: api.replay(pair, [], [name], [2]),
    ):
        with pytest.raises(HarnessError, match="did you mean 'cooking'"):
            call("coking")
        with pytest.raises(HarnessError, match="did you mean 'generic'"):
            call("genric")
        with pytest.raises(HarnessError, match=r"known: .*cooking.*router"):
            call("zzz")
        for name in ("lookup+cooking", "hybrid+generic", "hybrid+hybrid"):
            with pytest.raises(HarnessError, match=f"{name.replace('+', '.')} is no drafter"):
                call(name)
        with pytest.raises(HarnessError, match="did you mean 'cooking'"):
            call("hybrid+coking")


def test_bad_adapters_are_refused_and_harm_no_other(pair: Any) -> None:
    """A damaged or foreign adapter stops its own answer with a clear message, and no other drafter."""
    install_adapter(pair, "good")
    install_adapter(pair, "foreign", draft_hash="0" * 64)
    damaged, empty = install_adapter(pair, "damaged"), install_adapter(pair, "empty")
    (damaged / WEIGHTS).write_bytes(b"not weights")
    (empty / WEIGHTS).unlink()
    broken = install_adapter(pair, "broken")
    (broken / METADATA).write_text("{", encoding="utf-8")
    good, generic = decode(pair, "good"), decode(pair, "generic")
    for name, message in (
        ("foreign", "trained on draft"),
        ("damaged", "cannot read"),
        ("empty", "cannot read"),
        ("broken", "not valid JSON"),
    ):
        with pytest.raises(HarnessError, match=message):
            decode(pair, name)
        assert counts(decode(pair, "good")) == counts(good)
        assert counts(decode(pair, "generic")) == counts(generic)


def test_pairs_have_banks_of_their_own(tmp_path: Path, pair: Any) -> None:
    """Two pairs in one process share nothing, and a pair's bank goes with it."""
    other = tiny_pair(tmp_path / "b", noise=0.2)
    install_adapter(pair, "code")
    assert api.adapter_bank(pair) is api.adapter_bank(pair) is not api.adapter_bank(other)
    key = id(other)
    assert key in api._BANKS
    del other
    gc.collect()
    assert key not in api._BANKS
    assert id(pair) in api._BANKS


def test_a_pair_without_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookup works, adapters say what is missing."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = tiny_pair(tmp_path, draft=False)
    assert decode(pair, "lookup").tokens == decode(pair, None).tokens
    folder = tmp_path / "cache" / "adapters" / pair.name / "code"
    folder.mkdir(parents=True)
    (folder / METADATA).write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(HarnessError, match="no draft to adapt"):
        decode(pair, "code")


def test_drafter_objects_pass_through(pair: Any) -> None:
    """Callers with drafters of their own keep them."""
    own = ModelDrafter(pair.draft.model, name="mine")
    assert decode(pair, own).drafter == "mine"


def test_stop_ends_an_answer_early(pair: Any) -> None:
    """Ctrl-C in a chat keeps what was said so far: a prefix of the whole answer, marked as stopped."""
    import threading

    whole, stop = decode(pair, "generic"), threading.Event()
    short = decode(pair, "generic", stop=stop, on_step=lambda step: stop.set())
    assert short.finish == "stopped"
    assert short.rounds == 1 < whole.rounds
    assert whole.tokens[: short.emitted] == short.tokens
    assert decode(pair, "generic", stop=threading.Event()).finish == whole.finish


@pytest.fixture
def routed(pair: Any) -> Any:
    """A router that knows two adapters; prompts with 'alpha' go to one, others to the other."""
    import numpy as np

    from harness.adapt.routers import routed
    from routing.features import PromptFeatures
    from routing.outcomes import Arm
    from routing.policy import PromptRouter
    from routing.routers import KNNRouter

    folders = {name: install_adapter(pair, name, seed=seed) for name, seed in (("one", 1), ("two", 2))}
    prompts = [f"alpha words number {i}" if i % 2 else f"beta sums item {i}" for i in range(24)]
    rewards = np.array([[1.0, 2.0, 0.5] if "alpha" in p else [1.0, 0.5, 2.0] for p in prompts])
    router = PromptRouter(
        PromptFeatures("tfidf"),
        KNNRouter(),
        arms=(Arm("generic", 3), Arm("one", 3), Arm("two", 3)),
        fallback="generic@3",
        min_confidence=0.0,
    ).fit(prompts, rewards)
    routed.save_router(router, routed.router_path(pair.name), run_id="test", adapter_hashes=routed.hash_adapters(folders))
    return pair


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_router_chooses_by_prompt(routed: Any) -> None:
    """Each prompt decodes with its adapter; the times of choosing and swapping are in the record; streams agree."""
    for prompt, name in (
        ("alpha words number 99", "one"),
        ("beta sums item 98", "two"),
        ([{"role": "user", "content": "alpha words"}], "one"),
    ):
        answer = api.generate(routed, prompt, drafter="router", max_tokens=24)
        own = api.generate(routed, prompt, drafter=name, k=3, max_tokens=24)
        assert answer.drafter == name
        assert counts(answer) == counts(own)
        assert answer.route_s is not None
        assert answer.route_s > 0
        assert answer.wall_s > answer.route_s + answer.swap_s
        steps = api.stream(routed, prompt, drafter="router", max_tokens=24)
        assert tuple(s.accepted for s in steps) == counts(own)
        inside = api.generate(routed, prompt, drafter="cascade+router", max_tokens=24)
        assert inside.drafter == name
        assert counts(inside) == counts(api.generate(routed, prompt, drafter=f"cascade+{name}", k=3, max_tokens=24))
        assert counts(inside) == tuple(s.accepted for s in api.stream(routed, prompt, drafter="cascade+router", max_tokens=24))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_router_of_other_adapters_is_refused(routed: Any) -> None:
    """An adapter trained again under its old name is not what the router knows: refused in a running program too."""
    api.generate(routed, "alpha words", drafter="router", max_tokens=4)
    install_adapter(routed, "one", seed=9)
    with pytest.raises(HarnessError, match="one"):
        api.generate(routed, "alpha words", drafter="router", max_tokens=4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("around", [None, "cascade"])
def test_the_router_may_choose_the_memory(routed: Any, around: str | None) -> None:
    """Alone, or before an adapter; whole answers and streams decode what the choice's name says, also inside a named drafter."""
    from harness.adapt.routers import routed as routers
    from harness.adapt.routers.arms import arm_in
    from harness.core.paths import memory_path
    from harness.decode.memory import Answer, write_memory
    from routing.outcomes import Arm

    said = decode(routed, None).tokens
    answer = Answer(sample_id="m", domain="x", prompt="other words", before=(), tokens=said)
    write_memory(memory_path(routed.name), routed.name, routed.target_hash, [answer])
    known = routers.load_router(routed.name)
    known.arms_ = (Arm("generic", 3), Arm("memory", 3), Arm("memory_hybrid+two", 3))
    hashes = routers.hash_adapters(api.installed(routed.name))
    routers.save_router(known, routers.router_path(routed.name), run_id="test", adapter_hashes=hashes)
    for prompt, arm in (("alpha words number 99", "memory"), ("beta sums item 98", "memory_hybrid+two")):
        name = "router" if around is None else f"{around}+router"
        own = api.generate(routed, prompt, drafter=arm_in(arm, around), k=3, max_tokens=24)
        chosen = api.generate(routed, prompt, drafter=name, max_tokens=24)
        assert (chosen.drafter, counts(chosen), chosen.sources) == (arm, counts(own), own.sources)
        assert tuple(s.accepted for s in api.stream(routed, prompt, drafter=name, max_tokens=24)) == counts(own)


def test_no_router_yet(pair: Any) -> None:
    """The message names the command that makes one."""
    with pytest.raises(HarnessError, match="train-router"):
        decode(pair, "router")
