"""The long-lived loop: answers are counted and learned from, a round improves the draft, and reopening goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import PROMPTS, install_adapter, session_file
from tiny import tiny_pair, write_pair

from harness import Session, api
from harness.adapt.adapters.adapter_folder import adapter_folder, read_info
from harness.core.errors import HarnessError
from harness.datasets import DatasetSpec, load_samples
from harness.models.pair import load_pair
from harness.session.session_config import SessionConfig, load_session_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny pair and the folder it lies in."""
    folder = tmp_path_factory.mktemp("session")
    return folder, tiny_pair(folder, noise=0.3, max_position_embeddings=1024)


@pytest.fixture
def opened(home: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens sessions on the tiny pair, in a cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    folder, pair = home
    sessions: list[Session] = []

    def open_session(**changes: Any) -> Session:
        session = Session.from_config(session_file(folder, **changes), pair=pair)
        sessions.append(session)
        return session

    yield open_session
    for session in sessions:
        session.close()
    api.adapter_bank(pair).activate(None)


def test_answers_are_counted_and_kept(opened: Any) -> None:
    """The statistics are sums of the answers' raw counts, and survive closing."""
    session = opened()
    assert session.stats().rate is None
    answers = [session.generate(prompt) for prompt in PROMPTS[:4]]
    answers.append(session.generate(PROMPTS[4], drafter=None))
    stats = session.stats()
    drafted = answers[:4]
    assert stats.generations == 5
    assert stats.tokens == sum(a.emitted for a in answers)
    assert stats.tokens_per_s == pytest.approx(stats.tokens / sum(a.wall_s for a in answers))
    assert stats.rate == sum(a.accepted for a in drafted) / sum(a.drafted for a in drafted)
    accepted = sum(a.accepted for a in drafted)
    assert stats.alpha == accepted / (accepted + sum(a.rejected for a in drafted))
    assert stats.tau == sum(a.emitted for a in drafted) / sum(a.rounds for a in drafted)
    assert stats.rolling_rate == pytest.approx(stats.rate)
    assert (stats.failures, stats.pending, stats.needed, stats.due) == (4, 4, 20, False)
    session.close()
    assert opened().stats() == stats


def test_cases_keep_as_many_probabilities_as_training_asks_for(opened: Any, home: tuple[Path, Any]) -> None:
    """``adapt.top_k`` of the training settings, which is what the losses read."""
    session = opened()
    config = session.learner.config.replace(adapt={"top_k": 5})
    session.learner.config = config
    session.generate(PROMPTS[0])
    (case,) = session.learner.store
    assert {len(d.top_tokens) for d in case.disagreements} == {5}


def test_the_seed_decides_generated_evaluation_prompts_and_training(opened: Any) -> None:
    """Two seeds are two sessions."""
    problems = {"math": {"dataset": "wordproblems", "size": 60, "limit": 4}}
    held_out = [tuple(s.prompt for s in opened(name=f"s{seed}", seed=seed, evaluation=problems).held_out()) for seed in (0, 1)]
    assert held_out[0] != held_out[1]
    assert opened(name="s2", seed=2).learner.config.optim.seed == 2


def test_a_round_raises_acceptance_and_the_adapter_stays(opened: Any, home: tuple[Path, Any]) -> None:
    """Failures become training; the new adapter drafts better, is installed by name, and is in use after reopening."""
    session = opened()
    for prompt in PROMPTS:
        session.generate(prompt)
    assert session.due
    assert session.stats().drafter == "generic"
    record = session.train()
    assert record.accepted, "the tiny draft learns this easily"
    stats = session.stats()
    assert (stats.rounds, stats.rounds_accepted, stats.pending, stats.due, stats.drafter) == (1, 1, 0, False, "session")
    pair = home[1]
    assert read_info(adapter_folder(pair.name, "session"), pair.draft.hash).name == "session"
    better = [session.generate(prompt) for prompt in PROMPTS[:6]]
    assert {g.drafter for g in better} == {"session"}
    plain = [api.generate(pair, prompt, k=3, max_tokens=12) for prompt in PROMPTS[:6]]
    assert [g.tokens for g in better] == [g.tokens for g in plain]
    assert sum(g.accepted for g in better) > 2 * sum(g.accepted for g in plain)
    rows = session.evaluate([*PROMPTS[:6]])
    assert [row.domain for row in rows] == ["chat", "all"]
    assert rows[-1].rate.change is not None
    assert rows[-1].rate.change.value > 0
    session.close()
    again = opened()
    assert again.stats().drafter == "session"
    assert again.generate(PROMPTS[0]).accept_lengths == better[0].accept_lengths
    assert again.learner.records == [record]


def test_training_starts_by_itself(opened: Any) -> None:
    """With ``train_automatically`` the answer that makes a round due is followed by it, and only that one."""
    session = opened(train_automatically=True, min_failure_cases=12)
    rounds = []
    for prompt in PROMPTS[:14]:
        session.generate(prompt)
        rounds.append(session.stats().rounds)
    assert rounds.count(0) == 11
    assert rounds[-3:] == [1, 1, 1]
    quiet = opened(name="quiet", train_automatically=True, min_failure_cases=3)
    for prompt in PROMPTS[:5]:
        quiet.generate(prompt, train=False)
    assert quiet.due
    assert quiet.stats().rounds == 0


def test_a_refused_round_is_explained_and_not_tried_at_every_answer(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure case cannot be split into training and validation: the loop goes on and says why."""
    session = opened(train_automatically=True, min_failure_cases=1)
    session.generate(PROMPTS[0])
    assert session.stats().rounds == 0
    assert session.stats().refusal is not None
    assert not session.due
    tries = []
    monkeypatch.setattr(session, "train", lambda **_: tries.append(1))
    session.generate(PROMPTS[0])  # the same case again: nothing new to train on
    assert not tries
    session.generate(PROMPTS[1])
    assert tries == [1]


def test_conversations_are_observed_as_they_were_answered(opened: Any, home: tuple[Path, Any]) -> None:
    """A stored case holds the whole conversation's tokens, so that training sees what the target saw."""
    session = opened(system="Be brief.")
    messages = [
        {"role": "user", "content": "first question about rivers"},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": "second question about lakes"},
    ]
    answer = session.generate(messages)
    (case,) = session.learner.store.cases()
    with_system = [{"role": "system", "content": "Be brief."}, *messages]
    assert list(case.prompt_tokens) == home[1].encode(with_system)
    assert case.output_tokens == answer.tokens
    assert (case.prompt, case.domain, case.split) == ("second question about lakes", "chat", "train")


def test_evaluation_prompts_never_train(opened: Any) -> None:
    """A user who types a held-out prompt, in any turn, must not spoil the evaluation or block training."""
    session = opened(min_failure_cases=1)
    held_out = load_samples(DatasetSpec(dataset="chat", split="test"))[7].prompt
    session.generate(held_out)
    session.generate(
        [{"role": "user", "content": held_out}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "and again"}]
    )
    assert [case.split for case in session.learner.store.cases()] == ["test", "test"]
    assert not session.due
    session.generate(PROMPTS[0])
    assert session.stats().pending == 1


def test_drafters_can_be_switched(opened: Any, home: tuple[Path, Any]) -> None:
    """Names are checked, installed adapters are offered, and only what the draft proposed is learned from."""
    install_adapter(home[1], "poems")
    session = opened()
    assert {"adaptive", "generic", "lookup", "router", "poems"} <= session.drafters().keys()
    with pytest.raises(HarnessError, match="did you mean 'poems'"):
        session.use("poem")
    session.use("poems")
    assert session.generate(PROMPTS[0]).drafter == "poems"
    assert session.stats().failures == 1
    for name in ("lookup", "hybrid", None):
        session.use(name)
        assert session.generate(PROMPTS[1]).drafter == name
    assert session.stats().failures == 1
    with pytest.raises(HarnessError, match="no draft to evaluate"):
        session.evaluate()
    session.use("adaptive")
    assert session.stats().drafter == "generic"


def test_evaluation_counts_equal_decoding(opened: Any, home: tuple[Path, Any]) -> None:
    """The evaluation's numbers are those that decoding the same prompts gives, for the plain draft and an adapter."""
    pair = home[1]
    install_adapter(pair, "poems")
    session = opened()
    session.use("poems")
    rows = session.evaluate()
    samples = load_samples(session.config.evaluation["chat"], domain="chat")
    for name, side in (("generic", "generic"), ("poems", "current")):
        answers = [api.generate(pair, s.prompt, drafter=name, k=3, max_tokens=12) for s in samples]
        assert getattr(rows[-1].rate, side).value == pytest.approx(sum(a.accepted for a in answers) / sum(a.drafted for a in answers))
        assert getattr(rows[-1].tau, side).value == pytest.approx(sum(a.emitted for a in answers) / sum(a.rounds for a in answers))
    change = rows[-1].alpha.change
    assert change is not None
    assert change.low <= change.value <= change.high
    assert rows[-1].prompts == 6
    session.use("generic")
    assert session.evaluate()[-1].rate.change.value == 0


def test_old_turns_are_dropped_to_fit(opened: Any, home: tuple[Path, Any]) -> None:
    """A long chat goes on: whole turns go, the oldest first, the system message and the last question stay."""
    session, pair = opened(max_tokens=40), home[1]
    turns: list[dict] = [{"role": "system", "content": "Be brief."}]
    for i in range(16):
        turns += [{"role": "user", "content": f"question {i} " * 3}, {"role": "assistant", "content": f"answer {i} " * 3}]
    turns.append({"role": "user", "content": "the last question"})
    kept, dropped = session.fit(turns)
    assert dropped > 0
    assert dropped % 2 == 0
    assert kept == [turns[0], *turns[1 + dropped :]]
    assert len(pair.encode(kept)) + 40 <= pair.context_tokens
    longer = [turns[0], *turns[dropped - 1 :]]
    with contextlib.suppress(HarnessError):  # it may not even fit without an answer
        assert len(pair.encode(longer)) + 40 > pair.context_tokens, "no more turns are dropped than needed"
    assert session.fit(turns[-1:]) == (turns[-1:], 0)
    with pytest.raises(HarnessError, match="Shorten"):
        session.fit([{"role": "user", "content": "x" * 1100}])


def test_two_processes_cannot_share_a_session(opened: Any) -> None:
    """The second one is told who has it; after closing it is free."""
    session = opened()
    with pytest.raises(HarnessError, match=r"open in another process \(pid \d+\)"):
        opened()
    session.close()
    opened().close()


def test_damaged_state_is_named(opened: Any) -> None:
    """The file and the way out, not a traceback; the lock is not left behind."""
    session = opened()
    session.generate(PROMPTS[0])
    session.close()
    path = session.folder / "session.json"
    for text in ("{", '{"schema_version": 1, "generation": 3}', "[]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(HarnessError, match=r"session\.json"):
            opened()
    path.write_text(json.dumps({"schema_version": 99}), encoding="utf-8")
    with pytest.raises(HarnessError, match="newer version"):
        opened()
    path.unlink()
    assert opened().stats().failures == 1


def test_another_draft_starts_anew(opened: Any, home: tuple[Path, Any]) -> None:
    """Cases of one draft are no failures of another: a new draft has a new folder."""
    session = opened()
    pair = home[1]
    other = dataclasses.replace(pair, draft=dataclasses.replace(pair.draft, hash="f" * 64))
    with Session(other, session.config) as second:
        assert second.folder != session.folder
        assert second.folder.parent == session.folder.parent


def test_routes_without_decoding(opened: Any) -> None:
    """Without a router the message names the command that trains one."""
    with pytest.raises(HarnessError, match="train-router"):
        opened().route("a prompt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drafter": "genric"}, "did you mean 'generic'"),
        ({"drafter": "adaptiv"}, "did you mean 'adaptive'"),
        ({"models": "smolm2"}, "did you mean 'smollm2'"),
        ({"training": "defaul"}, "did you mean 'default'"),
        ({"kk": 3}, "kk"),
        ({"k": 0}, "k"),
        ({"rule": "rejection"}, "temperature above 0"),
        ({"evaluation": {"chat": {"dataset": "chat", "split": "train"}}}, "test or validation"),
        ({"name": "../x"}, "name"),
    ],
)
def test_mistakes_show_before_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str) -> None:
    """Loading takes seconds to minutes; a typing error must not cost that."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.session.session.load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    path = session_file(tmp_path, **{"models": "smollm2", **changes})
    with pytest.raises(HarnessError, match=message):
        Session.from_config(path)


def test_the_shipped_file_is_complete() -> None:
    """The default session file names things that exist, from any working directory, and is read without mlx."""
    config = load_session_config()
    config.check()
    assert set(config.evaluation) == {"chat", "code", "math"}
    code = (
        "import os, sys; os.chdir('/'); from harness.session.session_config import load_session_config; load_session_config().check();"
        "print([m for m in ('mlx', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(HarnessError, match="no session file 'nope'"):
        load_session_config("nope")
    assert load_session_config(overrides=["k=8"]).k == 8
    assert SessionConfig().replace(threshold=0.3).training_config().adapt.threshold == 0.3


def test_the_draft_length_is_the_pairs_where_no_one_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call and a session: a pair is tuned once, in its file."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    path = write_pair(tmp_path, max_position_embeddings=1024)
    path.write_text(path.read_text() + "k: 2\n")
    pair = load_pair(str(path))
    assert max(api.generate(pair, "count to ten", max_tokens=12).draft_lengths) == 2
    with Session.from_config(session_file(tmp_path, k=None), pair=pair) as session:
        assert max(session.generate("count to ten").draft_lengths) == 2
        assert session.k == 2
        assert max(session.generate("count to ten", k=3).draft_lengths) == 3
