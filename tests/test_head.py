"""The drafter ``head``: what it reads, what it proposes, its replay and its files, against a reference without cache or loop."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from enumerating import check_sampled_replay, softmax
from families import tiny_model
from heads import headed, proposals, said, toy_head, toy_info
from rich.console import Console
from scipy import stats
from tiny import write_pair
from toy import ToyPair, toy_model, toy_pair
from typer.testing import CliRunner

from harness import api
from harness.cli import app
from harness.core.drafter_kinds import find_kind
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.cached import CachedModel
from harness.decode.calibrate import calibrate
from harness.decode.drafters import Request
from harness.decode.generation import generate
from harness.decode.head import HeadDrafter
from harness.decode.kept import KeptCaches
from harness.decode.length import AutoK, Costs
from harness.decode.making import resolve_drafter
from harness.decode.replay import replay
from harness.decode.sampling import Sampling, processed_logprobs
from harness.decode.target_states import ReadTarget
from harness.models.blas import mx
from harness.models.head_config import check_head, read_head_config
from harness.models.naming import find_pair
from harness.models.opened import close, open_model
from harness.models.pair import load_pair
from harness.models.reading_head import load_head, save_head
from harness.models.taps import Tapped
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run.choose import entrants
from harness.run.runner import run_suite
from harness.suite.suite import load_suite

PAIRS = [
    headed(toy_pair(seed=0)),
    headed(toy_pair(seed=10), layers=2, taps=(2, 1, 2), ids=range(0, 64, 2)),
]
CHEAP = Costs(c=0.2, v=(1.0, 1.05, 1.1, 1.2, 1.3))


def known(prompt: list[int], plain: Any, limit: int, **more: Any) -> Trajectory:
    """A decoded answer as replay takes it."""
    return Trajectory(
        sample_id="a", domain="d", prompt_tokens=tuple(prompt), tokens=plain.tokens, finish=plain.finish, max_tokens=limit, **more
    )


class Watched(HeadDrafter):
    """Notes what it was asked and what it proposed."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        self.seen: list[tuple[list[int], list[int]]] = []

    def propose(self, context: list[int], request: Any) -> Any:
        proposal = super().propose(context, request)
        if proposal is not None:
            self.seen.append((list(context), proposal.tokens.tolist()))
        return proposal


def wrong_rounds(pair: Any, drafter: Watched) -> int:
    """Rounds of three answers in which the drafter proposed anything else than the reference."""
    for prompt in ([5], [9, 33, 9, 12], [3, 1, 4, 1, 5, 9, 2, 6]):
        generate(pair, prompt, drafter=drafter, k=3, max_tokens=14)
    assert len(drafter.seen) > 10
    return sum(proposals(pair.target, pair.head, context, len(tokens)) != tokens for context, tokens in drafter.seen)


@pytest.mark.parametrize("pair", PAIRS)
def test_proposals_are_the_references(pair: Any) -> None:
    """Round for round: accepted tokens are read with the target's states, guesses with the head's own, one place at a time."""
    assert wrong_rounds(pair, Watched(pair.head)) == 0


def stale(self: HeadDrafter, state: Any, context: list[int], true: int) -> None:
    """Bug: entries of accepted guesses keep the head's own states."""
    fresh = self._read + len([g for g, t in zip(self._guessed, context[self._read :], strict=False) if g.item() == t])
    if true > self._read and self._own:
        state.trim_to(min(fresh, state.offset))
        self._read = state.offset
        self._guessed = []
    self._take(state, context, true)


def other_place(self: HeadDrafter, head: Any) -> None:
    """Bug: every place is read one block too early."""
    SETTLED(self, dataclasses.replace(head, tapped=Tapped(head.tapped._model, [max(1, place - 1) for place in head.tapped.after])))


SETTLED, STATES = HeadDrafter.__init__, ReadTarget.states


def one_before(self: ReadTarget, start: int, end: int) -> mx.array:
    """Bug: every token is given the state of the one before the one before it."""
    found = STATES(self, start, end)
    return mx.concatenate([mx.zeros_like(found[:1]), found[:-1]]) if end - start > 1 else found * 0


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [(HeadDrafter, "_settle", stale), (HeadDrafter, "__init__", other_place), (ReadTarget, "states", one_before)],
    ids=["stale state", "layer off by one", "position off by one"],
)
def test_injected_faults_are_noticed(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any) -> None:
    """The check itself: the output stays the target's whatever is proposed, so only proposals tell."""
    monkeypatch.setattr(where, name, fault)
    assert wrong_rounds(PAIRS[0], Watched(PAIRS[0].head)) > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("drafter", ["head", "hybrid+head", "cascade+head"])
def test_output_is_the_targets_and_replay_counts_what_decoding_counts(pair: Any, drafter: str) -> None:
    """Over 200 random cases of the head alone, and more of drafters around it, under every kind of length."""
    rng = np.random.default_rng(3)
    ks: tuple[Any, ...] = (1, 2, 3, 5, 8) if drafter == "head" else (2, 5)
    accepted = 0
    for case in range(20 if drafter == "head" else 5):
        prompt, limit = rng.integers(2, 64, int(rng.integers(1, 12))).tolist(), int(rng.integers(1, 20))
        plain = generate(pair, prompt, drafter=None, max_tokens=limit)
        for row in replay(
            pair, [known(prompt, plain, limit)], [drafter], [*ks, *(("dynamic", "auto") if case % 4 == 0 else ())], costs=CHEAP
        ):
            k = AutoK(CHEAP) if row.k == "auto" else row.k
            real = generate(pair, prompt, drafter=drafter, k=k, max_tokens=limit)
            assert real.tokens == plain.tokens
            assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths), (case, row.k)
            accepted += sum(n > 1 for n in real.accept_lengths)
    assert accepted > (4 if drafter == "head" else 0), "rounds that go beyond the first step"


def test_answers_of_several_lengths_are_replayed_together() -> None:
    """Padding, and places that are followed in several parts, change nothing."""
    pair: Any = PAIRS[1]
    answers = []
    for i, length in enumerate((1, 40, 7)):
        prompt = [2 + (i * 7 + j) % 60 for j in range(1 + 3 * i)]
        answers.append(known(prompt, generate(pair, prompt, drafter=None, max_tokens=length), length))
    together = replay(pair, answers, ["head"], [3])
    assert together == [row for t in answers for row in replay(pair, [t], ["head"], [3])]


def test_long_answers_are_followed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many places at once as memory allows: their number has no say in the counts."""
    from harness.decode import head_chains

    pair: Any = PAIRS[0]
    t = known([4, 5], generate(pair, [4, 5], drafter=None, max_tokens=30), 30)
    whole = replay(pair, [t], ["head"], [1, 4])
    monkeypatch.setattr(head_chains, "ROWS", 7)
    assert replay(pair, [t], ["head"], [1, 4]) == whole


def test_the_drawn_distribution_is_the_one_reported() -> None:
    """Rejection sampling is exact for whatever distribution the tokens are really drawn from: row by row that of the reference."""
    pair: Any = PAIRS[1]
    drafter, context = HeadDrafter(pair.head), [9, 33, 9, 12]
    target = drafter.beside(CachedModel(pair.target), context)
    target.prefill(context[:-1])
    drafter.begin(context)
    sampling = Sampling(temperature=0.8, top_p=0.9)
    proposal = drafter.propose(context, Request(k=3, sampling=sampling, key=mx.random.key(4), with_logq=True))
    assert proposal is not None
    assert proposal.logq is not None
    for i, key in enumerate(mx.random.split(mx.random.key(4), 3)):
        logits, ids = said(pair.target, pair.head, context, proposal.tokens[:i].tolist())
        logq = processed_logprobs(mx.array(logits)[None], sampling)
        np.testing.assert_allclose(np.array(proposal.logq[i]), np.array(logq[0]), atol=1e-4)
        assert proposal.tokens[i].item() == ids[mx.random.categorical(logq, key=key).item()]


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_sampled_answers_follow_the_target(rule: Any) -> None:
    """Two tokens of many answers, drafted by the head, against the exact probabilities under the target."""
    pair = headed(ToyPair(toy_model(vocab=5, scale=6.0), eos_token_ids=frozenset()))
    prompt = [3, 1, 4]
    p = np.array(mx.softmax(pair.target(mx.array([[*prompt, t] for t in range(5)]))[:, -2:], axis=-1), dtype=np.float64)
    expected = (p[0, 0][:, None] * p[:, 1]).ravel()
    counts = np.zeros(25)
    for seed in range(150):
        a, b, _ = generate(pair, prompt, drafter="head", k=2, rule=rule, temperature=1.0, max_tokens=3, seed=seed).tokens
        counts[5 * a + b] += 1
    rare = expected * counts.sum() < 5
    observed, wanted = (np.append(x[~rare], x[rare].sum() + 1e-9) for x in (counts, expected * counts.sum()))
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_sampled_replay_expects_what_decoding_does_on_average() -> None:
    """By the probability of every answer under the target, and what the head says behind its own guesses."""
    pair: Any = headed(ToyPair(toy_model(vocab=4, scale=4.0)))
    prompt = (3, 1)

    def q(start: tuple[int, ...], guesses: tuple[int, ...]) -> np.ndarray:
        return softmax(said(pair.target, pair.head, [*prompt, *start], guesses)[0])

    check_sampled_replay(pair, "head", q, prompt=prompt, vocab=4)


def test_a_conversation_goes_on_from_what_was_read() -> None:
    """Kept caches of target and head: the next turn gives what a fresh one gives, and reads less."""
    pair: Any = PAIRS[0]
    caches, prompt = KeptCaches(), [7, 8, 9, 10, 11]
    for _ in range(3):
        kept = generate(pair, prompt, drafter="head", k=3, max_tokens=9, caches=caches)
        fresh = generate(pair, prompt, drafter="head", k=3, max_tokens=9)
        assert (kept.tokens, kept.accept_lengths) == (fresh.tokens, fresh.accept_lengths)
        prompt = [*prompt, *kept.tokens, 12]
    assert caches.reused > 10


@pytest.mark.parametrize("family", ["qwen3_next", "gemma3_text", "mistral3"])
def test_targets_of_other_families(family: str) -> None:
    """Windows, recurrent states that are put back, wrapped text models: the answer is the target's, replay counts the same."""
    target = tiny_model(family)
    pair = ToyPair(target, eos_token_ids=frozenset())
    args = getattr(target, "args", None)
    hidden = getattr(args, "hidden_size", None) or 32
    if not hasattr(args, "vocab_size"):
        target.args = dataclasses.make_dataclass("Args", ["vocab_size", "hidden_size"])(64, hidden)
    pair.head = toy_head(target, taps=(1, 3), said_tokens=0)  # type: ignore[attr-defined]
    for prompt in ([9, 33, 9, 12, 9, 33], [4]):
        plain = generate(pair, prompt, drafter=None, max_tokens=10)
        (row,) = replay(pair, [known(prompt, plain, 10)], ["head"], [3])
        real = generate(pair, prompt, drafter="head", k=3, max_tokens=10)
        assert real.tokens == plain.tokens
        assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "cohere", "hunyuan"])
def test_taps_hand_out_what_the_first_layers_give(family: str) -> None:
    """The logits stay the target's bit for bit; the state after n blocks, normed, is what the body over its first n blocks gives."""
    model, tokens = tiny_model(family), mx.array([[3, 9, 5, 1, 60, 2]])
    tapped, opened = Tapped(model, (1, 3, 4)), open_model(model)
    assert opened is not None
    np.testing.assert_array_equal(np.array(tapped(tokens)), np.array(model(tokens)))
    for place, state in zip(tapped.after, tapped.states, strict=True):
        assert close(opened.body.norm(state), opened.first_layers(place)(tokens))


def test_targets_without_states_are_refused() -> None:
    """In one sentence, before anything is decoded."""

    class Closed:
        layers = ()

        def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
            return mx.zeros((*tokens.shape, 9))

    with pytest.raises(HarnessError, match="a head on the hidden states of 'Closed' would not be that of the model"):
        Tapped(Closed(), (1,))
    with pytest.raises(HarnessError, match="reads the target after 3 blocks, it has 2"):
        Tapped(toy_model(), (1, 3))


def test_auto_measures_what_a_step_costs() -> None:
    """A head's step is timed as a draft's, alone and inside other drafters, and disturbs no answer."""
    pair: Any = PAIRS[0]
    for name in ("head", "hybrid+head"):
        assert calibrate(pair, resolve_drafter(pair, name), max_k=2, repeats=1).costs.c > 0
    plain = generate(pair, [5, 6], drafter=None, max_tokens=8)
    assert generate(pair, [5, 6], drafter="head", k="auto", max_tokens=8).tokens == plain.tokens


# --- files ---


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """A pair's file that names a head beside it, and the loaded pair."""
    path = write_pair(tmp_path, draft=False)
    path.write_text(path.read_text() + "head: head\n")
    pair = load_pair(str(path))
    head = toy_head(pair.target, taps=(1, 2, 3), ids=range(1, 200))
    quantised = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj", "join", "fuse"), (8, 32))
    info = toy_info(32, 199, taps=(1, 2, 3), target_hash=pair.target_hash, quantised=quantised)
    save_head(tmp_path / "head", info, head.model.own_weights(), head.token_map)
    return path, pair


def test_a_pairs_file_names_its_head(saved: tuple[Path, Any]) -> None:
    """It is read when it is asked for, close to what was written, and drafts by name, alone and inside other drafters."""
    path, pair = saved
    assert "head" not in vars(pair)
    plain = api.generate(pair, "abc", drafter=None, max_tokens=12)
    for name in ("head", "hybrid+head", "cascade+head"):
        found = api.generate(pair, "abc", drafter=name, k=3, max_tokens=12)
        assert (found.tokens, found.drafter) == (plain.tokens, name)
        assert found.drafted
    assert [row.drafter for row in api.replay(pair, [known([5, 6], plain, 12)], ["hybrid+head"], [2])] == ["hybrid+head"]
    named = find_pair(f"{path.parent / 'target'}+{path.parent / 'head'}")
    assert named.config.head == str(path.parent / "head")
    check_head(named, "hybrid+head")
    assert find_pair(f"{path}+{path.parent / 'target'}").config.head == str(path.parent / "head")


def test_the_command_takes_a_head(saved: tuple[Path, Any]) -> None:
    """By its drafter's name; without a head it says how to make one, before any model loads."""
    path, _ = saved
    command = ["generate", "abc", "--models", str(path), "--max-tokens", "6", "--drafter"]
    assert CliRunner().invoke(app, [*command, "hybrid+head"]).exit_code == 0
    path.write_text(path.read_text().replace("head: head\n", ""))
    refused = CliRunner().invoke(app, [*command, "head"])
    assert isinstance(refused.exception, HarnessError)
    assert "has no head that reads its target" in refused.exception.problem
    with pytest.raises(HarnessError, match="has no head"):
        resolve_drafter(toy_pair(), "head")
    with pytest.raises(HarnessError, match=r"head\+hybrid is no drafter"):
        api.generate(toy_pair(), [3], drafter="head+hybrid")
    assert find_kind("lookup+head") is None


def test_a_head_runs_in_a_suite(saved: tuple[Path, Any]) -> None:
    """Decoded with a clock, under ``auto`` and replayed, alone and inside hybrid; the manifest names its weights."""
    path, pair = saved
    root = path.parent
    (root / "p.jsonl").write_text("".join(json.dumps({"id": str(i), "prompt": f"abab {i}"}) + "\n" for i in range(2)))
    own = {"drafters": ["head", "hybrid+head"]}
    experiments = [
        {"kind": "baseline"},
        {"kind": "drafters", **own, "k": [2, "auto"]},
        {"kind": "drafters", "name": "counted", **own, "k": [3], "timed": False},
    ]
    content = {"name": "t", "models": str(path), "max_tokens": 8, "experiments": experiments}
    content["domains"] = {"x": {"dataset": "local", "split": "all", "path": str(root / "p.jsonl")}}
    (root / "s.yaml").write_text(yaml.safe_dump(content))
    folder = run_suite(load_suite(root / "s.yaml"), results_dir=root / "results", console=Console(file=io.StringIO()))
    records, manifest = read_records(folder), read_manifest(folder)
    assert {(r.drafter, r.k, r.method) for r in records if r.drafter} == {
        (name, k, "replay" if k == 3 else "decode") for name in own["drafters"] for k in (2, 3, "auto")
    }
    assert all(r.divergence is None for r in records)
    assert [check["equal"] for check in manifest.measured.spot_checks] == [True, True]
    assert manifest.models["head"] == pair.head.hash
    path.write_text(path.read_text().replace("head: head\n", ""))
    with pytest.raises(HarnessError, match="has no head that reads its target"):
        load_suite(root / "s.yaml")


def test_choosing_weighs_a_head(saved: tuple[Path, Any]) -> None:
    """Alone and in what runs a draft, also where the pair has no draft of its own; a pair without one is told so."""
    path, _ = saved
    found = entrants(str(path), [], offline=True)
    assert {"head", "hybrid+head", "cascade+head"} <= set(found.drafters)
    assert "generic" not in found.drafters
    alone = entrants(str(path.parent / "target"), [], offline=True)
    assert (alone.left_out["head"], [name for name in alone.drafters if "head" in name]) == ("the pair has no head", [])


def rewrite(folder: Path, **changes: Any) -> None:
    """Change entries of a head's config.json."""
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: rewrite(folder, target_hash="f" * 64), "reads another target"),
        (lambda folder: rewrite(folder, schema_version=99), "newer version"),
        (lambda folder: rewrite(folder, taps=[1, 2, 9]), "after 9 blocks, it has 3"),
        (lambda folder: rewrite(folder, taps=[1, 2]), "is \\(32, 96\\), the target's shape asks for \\(32, 64\\)"),
        (lambda folder: rewrite(folder, taps=[]), "describes no head"),
        (lambda folder: rewrite(folder, kv_heads=3), "describes no head"),
        (lambda folder: rewrite(folder, hidden=64, head_dim=16), "belongs to a target of width 64, not 32"),
        (lambda folder: rewrite(folder, vocab=7), "is not 7 token ids"),
        (lambda folder: rewrite(folder, layers=2), "lacks layers.1"),
        (lambda folder: rewrite(folder, quantised={}), "cannot read"),
        (lambda folder: (folder / "head.safetensors").write_bytes(b"x"), "damaged"),
        (lambda folder: (folder / "config.json").unlink(), "cannot read"),
    ],
)
def test_unusable_folders_are_refused(saved: tuple[Path, Any], spoil: Any, message: str) -> None:
    """A damaged or foreign head stops with one sentence and does not draft badly."""
    path, pair = saved
    spoil(path.parent / "head")
    with pytest.raises(HarnessError, match=message) as caught:
        load_head(path.parent / "head", pair.target, pair.target_hash)
    assert "\n" not in caught.value.problem


def test_what_is_written_is_read(saved: tuple[Path, Any]) -> None:
    """Sizes, places and ids travel in the folder."""
    path, pair = saved
    info = read_head_config(path.parent / "head")
    assert (info.taps, info.vocab, info.target_hash) == ((1, 2, 3), 199, pair.target_hash)
    assert pair.head.hash == info.sha256
    assert pair.head.vocab == tuple(range(1, 200))
