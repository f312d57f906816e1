"""The speculative loop against plain decoding, hand-written counts and injected bugs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ToyPair, toy_draft, toy_model, toy_pair

import harness.decode.replay as replay_module
from harness.answers.collect import collect, shard_names
from harness.answers.mlx_batch import BatchedTarget
from harness.core.errors import HarnessError
from harness.core.records import Sample, Trajectory
from harness.decode import passes, speculative
from harness.decode.cached import CachedModel
from harness.decode.drafters import Drafter, HybridDrafter, LookupDrafter, Proposal, Request
from harness.decode.forced import forced_passes
from harness.decode.generation import generate
from harness.decode.length import FREE, AutoK, Costs
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.replay import replay
from harness.decode.sampling import Sampling
from harness.models.blas import mx
from harness.models.forward import PrunedHead, useful_vocab

PAIRS = [toy_pair(seed=s, noise=n) for s, n in ((0, 0.1), (10, 0.3), (20, 1.0))]
DRAFTERS = ("generic", "lookup", "early_exit", "hybrid")
CHEAP = Costs(c=0.2, v=(1.0, 1.05, 1.1, 1.2, 1.3))


def greedy(pair: ToyPair, prompt: list[int], drafter: str | Drafter | None, k: object = 4, **kwargs):
    """Greedy generation; ``auto`` uses fixed costs so that tests do not depend on the clock."""
    return generate(pair, prompt, drafter=drafter, k=AutoK(CHEAP) if k == "auto" else k, **kwargs)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_output_is_the_targets(pair: ToyPair, drafter: str) -> None:
    """The promise of speculative decoding, over 768 (prompt, K, drafter) cases with end-of-sequence tokens and odd limits."""
    mx.random.seed(7)
    for p in range(8):
        prompt = mx.random.randint(2, 64, (1 + p % 9,)).tolist()
        limit = (1, 2, 7, 24)[p % 4]
        plain = greedy(pair, prompt, None, max_tokens=limit)
        for k in (0, 1, 2, 3, 5, 8, "dynamic", "auto"):
            fast = greedy(pair, prompt, drafter, k, max_tokens=limit)
            assert fast.tokens == plain.tokens, (p, k)
            assert fast.finish == plain.finish


@pytest.mark.parametrize("drafter", ["generic", "lookup", "early_exit", "hybrid"])
def test_replay_equals_decoding(drafter: str) -> None:
    """Replay stands in for decoding in every ablation, so all its counts must be the loop's, K by K."""
    pair = PAIRS[1]
    for p in range(0, 10, 2):
        prompt = [2 + (p * 7 + i * 3) % 60 for i in range(2 + p)]
        plain = greedy(pair, prompt, None, max_tokens=23)
        t = Trajectory(
            sample_id=str(p),
            domain="x",
            prompt_tokens=tuple(prompt),
            tokens=plain.tokens,
            finish=plain.finish,
            max_tokens=23,
        )
        for row in replay(pair, [t], [drafter], [1, 2, 3, 4, 6, 8, "dynamic", "auto"], costs=CHEAP):
            real = greedy(pair, prompt, drafter, row.k, max_tokens=23)
            known = tuple("lookup" if s == "copy" else s for s in real.sources or ())
            assert row.sources is None or tuple("lookup" if s == "copy" else s for s in row.sources) == known
            assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)
            assert (row.rounds, row.drafted, row.accepted, row.rejected) == (real.rounds, real.drafted, real.accepted, real.rejected)


@pytest.mark.parametrize("room", [10_000, 60, 0])
def test_replays_of_one_draft_run_it_once(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Other lengths and other drafters around a draft need no further pass of it, nor what it says behind its own mistakes once more; the
    rows are those of replays that know nothing. Where there is no room for all answers, the first stay."""
    monkeypatch.setattr(passes, "KEPT_TOKENS", room)
    pair, answers = PAIRS[1], []
    for p in range(8):
        prompt = [2 + (p * 7 + i * 3) % 60 for i in range(2 + p)]
        plain = greedy(pair, prompt, None, max_tokens=23)
        facts: dict[str, Any] = {"sample_id": str(p), "domain": "x", "prompt_tokens": tuple(prompt), "max_tokens": 23}
        answers.append(Trajectory(tokens=plain.tokens, finish=plain.finish, **facts))
    cells: list[tuple[str, list[int | str]]] = [("generic", [1, 4]), ("generic", ["auto", "dynamic"])]
    cells += [("hybrid", [4]), ("hybrid", ["dynamic"])]
    alone = [replay(pair, answers, [drafter], ks, costs=CHEAP) for drafter, ks in cells]
    read, asked = [], []
    forced, propose = replay_module.forced_passes, ModelDrafter.propose
    monkeypatch.setattr(replay_module, "forced_passes", lambda m, ids, ts, *rest: read.append(len(ts)) or forced(m, ids, ts, *rest))
    monkeypatch.setattr(ModelDrafter, "propose", lambda *given: asked.append(1) or propose(*given))
    known: passes.Passes[Any] = passes.Passes()
    assert [replay(pair, answers, [drafter], ks, costs=CHEAP, known=known) for drafter, ks in cells] == alone
    before = len(asked)
    assert before > 0
    replay(pair, answers, ["generic"], ["dynamic"], known=known)
    assert read[0] == 8
    if room == 10_000:
        assert (read, len(asked)) == ([8], before)
    else:
        assert set(read[1:]) == {8} if room == 0 else max(read[1:]) < 8


def test_target_as_its_own_draft_accepts_everything() -> None:
    """A perfect draft leaves no rejection, at any K."""
    target = toy_model(seed=3, scale=4.0)
    pair = ToyPair(target, toy_draft(target))
    for k in (1, 3, 8):
        g = greedy(pair, [5, 6, 7], "generic", k, max_tokens=30)
        assert g.accepted == g.drafted
        assert g.rejected == 0
        assert g.accepted + g.rounds == g.emitted == 30


class Scripted:
    """A target that always continues 10, 11, 12, ... whatever it is fed (the token after x is x + 1)."""

    layers = ()

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        return mx.where(mx.arange(100)[None, None] == tokens[..., None] + 1, 5.0, 0.0)

    def make_cache(self) -> list:
        return []


class ScriptedDrafter:
    """Proposes a hand-written list per round."""

    name = "scripted"

    def __init__(self, script: list[list[int]]) -> None:
        self.script = list(script)

    def begin(self, prompt: list[int]) -> None:
        pass

    def propose(self, context: list[int], request: object) -> Proposal | None:
        tokens = self.script.pop(0)[: request.k]
        return Proposal(mx.array(tokens, dtype=mx.int32)) if tokens else None


def test_scripted_pair_gives_hand_written_counts() -> None:
    """Counts are what a person counts by hand: accepted per round, drafted after a rejection included, bonus excluded."""
    pair = ToyPair(Scripted(), eos_token_ids=frozenset({21}))
    script = [[11, 12, 99, 14], [14, 15, 16, 17], [], [99, 99, 99, 99], [21, 22, 23, 24]]
    g = generate(pair, [10], drafter=ScriptedDrafter(script), k=4, max_tokens=50)
    assert g.tokens == tuple(range(11, 22))
    assert g.accept_lengths == (2, 4, 0, 0, 1)
    assert g.draft_lengths == (4, 4, 0, 4, 4)
    assert (g.rounds, g.drafted, g.accepted, g.rejected, g.finish) == (5, 16, 7, 2, "eos")


def test_draft_shortens_near_the_limit() -> None:
    """With r tokens left only r - 1 can be drafted usefully: the target's own token takes the last place."""
    pair = ToyPair(Scripted())
    g = generate(pair, [10], drafter=ScriptedDrafter([[11, 12, 13, 14]] * 2), k=4, max_tokens=3)
    assert (g.tokens, g.draft_lengths, g.accept_lengths) == ((11, 12, 13), (2,), (2,))
    g = generate(pair, [10], drafter=ScriptedDrafter([[11, 12]]), k=4, max_tokens=1)
    assert (g.tokens, g.draft_lengths) == ((11,), (0,))


def test_details_explain_every_decided_position() -> None:
    """The failure store is built from these: they must agree with the counts and with a fresh forward pass."""
    pair = PAIRS[1]
    prompt = [3, 9, 27, 41]
    g = greedy(pair, prompt, "generic", 4, max_tokens=24, detailed=True)
    assert g.positions
    assert sum(p.agrees for p in g.positions) == g.accepted
    assert sum(not p.agrees for p in g.positions) == g.rejected
    logits = pair.target(mx.array([[*prompt, *g.tokens]]))[0]
    q = pair.draft.model(mx.array([[*prompt, *g.tokens]]))[0]
    for p in g.positions:
        row, draft_row = logits[len(prompt) - 1 + p.position], q[len(prompt) - 1 + p.position]
        assert g.tokens[p.position] == p.target_token == p.top_tokens[0]
        assert p.target_p == pytest.approx(mx.softmax(row)[p.target_token].item(), rel=1e-4)
        assert p.draft_p == pytest.approx(mx.softmax(draft_row)[p.draft_token].item(), rel=1e-4)
        assert p.target_rank == int((draft_row > draft_row[p.target_token]).sum())
        assert list(p.top_logprobs) == sorted(p.top_logprobs, reverse=True)


def test_pruned_head_changes_proposals_not_output() -> None:
    """A restricted draft vocabulary may cost acceptance, never a token of output."""
    pair = PAIRS[0]
    for prompt in ([4, 5], [33, 2, 17, 8]):
        plain = greedy(pair, prompt, None, max_tokens=20)
        g = greedy(pair, prompt, "generic", 3, max_tokens=20, options=DrafterOptions(vocab=32), detailed=True)
        assert g.tokens == plain.tokens
        known = [{*range(32), *prompt, *plain.tokens[: p.position]} for p in g.positions]
        assert all(p.draft_token in ids for p, ids in zip(g.positions, known, strict=True))
        assert all((p.target_rank is None) == (p.target_token not in ids) for p, ids in zip(g.positions, known, strict=True))


@given(
    prompt=st.lists(st.integers(2, 63), min_size=1, max_size=12),
    kept=st.sets(st.integers(0, 63), min_size=2, max_size=10),
    k=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("kind", ["generic", "hybrid"])
def test_pruned_head_follows_the_context(kind: str, prompt: list[int], kept: set[int], k: int) -> None:
    """Tokens of prompt and answer can be proposed once they stand there, a second prompt forgets them, and replay knows all of it."""
    pair = PAIRS[0]
    drafter = resolve_drafter(pair, kind, DrafterOptions(vocab=tuple(kept)))
    draft = drafter.draft if isinstance(drafter, HybridDrafter) else drafter
    assert isinstance(draft, ModelDrafter)
    for ids in (prompt, [5, 61, 3]):
        plain = greedy(pair, ids, None, max_tokens=16)
        g = greedy(pair, ids, drafter, k, max_tokens=16, detailed=True)
        assert g.tokens == plain.tokens
        assert kept | set(ids) <= set(draft.token_map.tolist()) <= kept | set(ids) | set(g.tokens[:-1])
        for p in g.positions:
            assert p.draft_token in kept | {*ids, *g.tokens[: p.position]}
        t = Trajectory(sample_id="a", domain="d", prompt_tokens=tuple(ids), tokens=g.tokens, finish=g.finish, max_tokens=16)
        (row,) = replay(pair, [t], [drafter], [k])
        assert (row.accept_lengths, row.draft_lengths) == (g.accept_lengths, g.draft_lengths)


def test_forced_pass_normalises_over_what_is_known_at_each_position() -> None:
    """Under sampling a token that the answer has not brought yet has no share of the probability, later it has."""
    pair, prompt, answer, kept = PAIRS[0], (4, 5), (40, 41, 40, 2, 41, 7), (2, 3, 4)
    head = PrunedHead(pair.draft.model, kept)
    t = Trajectory(sample_id="a", domain="d", prompt_tokens=prompt, tokens=answer, finish="length", max_tokens=6)
    (forced,) = forced_passes(head, head.token_map, [t], Sampling(temperature=1.0))
    logits = np.array(pair.draft.model(mx.array([[*prompt, *answer[:-1]]]))[0, 1:].astype(mx.float32))
    for i, token in enumerate(answer):
        known = sorted({*kept, *prompt, *answer[:i]})
        expected = logits[i, token] - np.log(np.exp(logits[i, known]).sum()) if token in known else -np.inf
        assert forced.logq is not None
        assert forced.logq[i] == pytest.approx(expected, abs=1e-4)
    assert [i for i in range(6) if np.isinf(forced.logq[i])] == [0, 1, 5]


def test_fast_mode_takes_the_whole_head_of_a_pruned_draft() -> None:
    """mlx-lm's loop knows no token map; a pair whose file restricts the draft must not lose that loop."""
    pair = PAIRS[0]
    pruned = dataclasses.replace(pair, draft=dataclasses.replace(pair.draft, vocab=(4, 5, 6)))
    assert greedy(pruned, [4, 5], "generic", 3, max_tokens=12, loop="mlx-lm").tokens == greedy(pair, [4, 5], None, max_tokens=12).tokens
    proposed = greedy(pruned, [9], "generic", 3, max_tokens=12, detailed=True)
    assert {p.draft_token for p in proposed.positions} <= {4, 5, 6, 9, *proposed.tokens}


def test_vocabulary_from_trajectories_costs_no_acceptance() -> None:
    """Ids that the target uses must be kept before rare low ones: that is the point of choosing from trajectories."""
    pair, prompts = PAIRS[0], ([4, 5], [33, 2, 17, 8], [9])
    answers = [greedy(pair, p, None, max_tokens=20).tokens for p in prompts]
    used = {token for tokens in answers for token in tokens}
    trajectories = [
        Trajectory(sample_id=str(i), domain="d", prompt_tokens=tuple(p), tokens=t, finish="length", max_tokens=20)
        for i, (p, t) in enumerate(zip(prompts, answers, strict=True))
    ]
    size = pair.target.args.vocab_size
    ids = useful_vocab(trajectories, len(used), size)
    assert set(ids) == used
    assert set(useful_vocab(trajectories, len(used) + 3, size)) > used
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = greedy(pair, prompt, "generic", 3, max_tokens=20)
        pruned = greedy(pair, prompt, "generic", 3, max_tokens=20, options=DrafterOptions(vocab=ids))
        assert pruned.tokens == answer
        assert pruned.accepted >= whole.accepted
    for wrong in (0, size + 1):
        with pytest.raises(HarnessError, match="cannot keep"):
            useful_vocab(trajectories, wrong, size)
    with pytest.raises(HarnessError, match="unknown ones"):
        greedy(pair, [4, 5], "generic", 3, options=DrafterOptions(vocab=(1, size)))


def test_seed_reproduces_sampling() -> None:
    """Two runs with one seed give one answer; another seed gives another."""
    pair = PAIRS[1]
    kwargs = {"drafter": "generic", "k": 3, "rule": "rejection", "temperature": 1.0, "max_tokens": 20}
    runs = [generate(pair, [3, 4], seed=s, **kwargs).tokens for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"rule": "mach"}, "did you mean 'match'"),
        ({"loop": "quick"}, "unknown loop"),
        ({"lenience": 0.5}, "lenience"),
        ({"lenience": 2.0}, "rejection rule"),
        ({"k": -1}, "k is -1"),
        ({"k": "autto"}, "k is 'autto'"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"drafter": "genric"}, "did you mean 'generic'"),
        ({"loop": "mlx-lm", "k": "auto"}, "mlx-lm's loop"),
        ({"drafter": "early_exit", "options": DrafterOptions(layers=9)}, "early exit"),
    ],
)
def test_bad_settings_say_what_to_do(settings_: dict, message: str) -> None:
    """Every wrong argument is one clear error, not a traceback from the depths."""
    with pytest.raises(HarnessError, match=message):
        generate(PAIRS[0], [2, 3], **settings_)


@given(
    context=st.integers(4, 40),
    prompt=st.lists(st.integers(2, 63), min_size=1, max_size=24),
    k=st.integers(1, 9),
    limit=st.integers(1, 48),
    drafter=st.sampled_from(DRAFTERS),
)
@settings(max_examples=30, deadline=None)
def test_near_the_contexts_end_everything_counts_alike(context: int, prompt: list[int], k: int, limit: int, drafter: str) -> None:
    """Decoding, replay of what was asked for and of what was collected: no token beyond the context, the same drafts in each round."""
    pair = dataclasses.replace(PAIRS[1], context_tokens=context)
    if len(prompt) >= context:
        for refused in (lambda: generate(pair, prompt, drafter=None), lambda: list(collect(pair, [sample_of(prompt)]))):
            with pytest.raises(HarnessError, match=f"context {context}"):
                refused()
        return
    room = min(limit, context - len(prompt))
    g = greedy(pair, prompt, drafter, k, max_tokens=limit)
    assert g.emitted == room or g.finish == "eos"
    (collected,) = collect(pair, [sample_of(prompt)], max_tokens=limit, decoder=BatchedTarget(pair.target, pair.eos_token_ids))
    assert (collected.tokens, collected.finish, collected.max_tokens) == (g.tokens, g.finish, room)
    long = greedy(PAIRS[1], prompt, None, max_tokens=limit)  # collected for a pair with more context
    asked = dataclasses.replace(collected, tokens=long.tokens, max_tokens=limit, top_tokens=None, top_logprobs=None, logprobs=None)
    for row in replay(pair, [collected, asked], [drafter], [k]):
        assert (row.accept_lengths, row.draft_lengths) == (g.accept_lengths, g.draft_lengths)


def sample_of(prompt: list[int]) -> Sample:
    """A sample whose prompt is token ids, which the toy pair passes through."""
    return Sample(id="a", domain="d", prompt=prompt)  # type: ignore[arg-type]


def test_collected_answers_near_the_contexts_end_keep_their_limit(tmp_path: Path) -> None:
    """Answers of one batch end where each one's context does; on disk they keep it, and another context decodes them again."""
    samples = [Sample(id=str(n), domain="d", prompt="x" * n) for n in (4, 9, 20)]
    for context, rooms in ((24, [20, 15, 4]), (64, [30, 30, 30]), (24, [20, 15, 4])):
        pair = ToyPair(PAIRS[0].target, context_tokens=context)
        found = list(collect(pair, samples, max_tokens=30, out=tmp_path, decoder=BatchedTarget(pair.target, frozenset())))
        assert [(len(t.tokens), len(t.logprobs), t.max_tokens) for t in found] == [(n, n, n) for n in rooms]
    assert len(shard_names(tmp_path)) == 2


def test_prompt_longer_than_the_context() -> None:
    """The context limit is checked before anything runs."""
    pair = ToyPair(toy_model(), context_tokens=8)
    with pytest.raises(HarnessError, match="context 8"):
        generate(pair, list(range(2, 10)), drafter=None)
    cut = generate(pair, [2, 3, 4, 5], drafter=None, max_tokens=99)
    assert (cut.emitted, cut.finish) == (4, "context")
    assert generate(pair, [2, 3, 4, 5], drafter=None, max_tokens=3).finish == "length"


def test_fast_mode_counts_mlx_lms_rounds() -> None:
    """Fast mode must give the same tokens, and counts that add up, from mlx-lm's own loop."""
    pair = PAIRS[1]
    for prompt in ([2, 3], [9, 10, 11, 12]):
        plain = greedy(pair, prompt, None, max_tokens=20)
        ours = greedy(pair, prompt, "generic", 3, max_tokens=20)
        fast = greedy(pair, prompt, "generic", 3, max_tokens=20, loop="mlx-lm")
        assert fast.tokens == plain.tokens == greedy(pair, prompt, None, max_tokens=20, loop="mlx-lm").tokens
        assert fast.accept_lengths[:-1] == ours.accept_lengths[: len(fast.accept_lengths) - 1]
        assert fast.draft_s is None
        assert fast.prefill_s is None, "mlx-lm's loop reads the prompt inside its first round"


@pytest.mark.parametrize("drafter", [None, "generic"])
def test_the_callers_time_between_rounds_is_not_the_answers(drafter: str | None) -> None:
    """Printing one token or four at a time must not decide which decoding is faster."""
    waited: list[float] = []

    def slow(_: Any) -> None:
        began = time.perf_counter()
        time.sleep(0.02)
        waited.append(time.perf_counter() - began)

    began = time.perf_counter()
    answer = generate(PAIRS[1], [2, 3], drafter=drafter, max_tokens=12, on_step=slow)
    whole = time.perf_counter() - began
    assert len(waited) == answer.rounds > 1
    assert answer.wall_s <= whole - sum(waited)
    assert sum(answer.verify_times_s or ()) <= answer.wall_s


def test_the_device_is_asked_for_when_decoding_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that chooses its device after the import must get the loop for it: on a GPU verification is queued ahead."""
    queued = []
    for device in (mx.cpu, mx.gpu):
        calls: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(speculative.mx, "default_device", lambda device=device: mx.Device(device))
            patch.setattr(speculative.mx, "async_eval", lambda *arrays, calls=calls: calls.append(arrays))
            rounds = generate(PAIRS[1], [2, 3], drafter="generic", k=3, max_tokens=8).rounds
        queued.append(len(calls))
    assert queued[1] == queued[0] + rounds


def drop_trim(self: CachedModel, length: int, *, settled: bool = True) -> None:
    """Injected bug: the cache keeps rejected tokens."""
    self.offset = length


def trim_one_short(self: CachedModel, length: int, *, settled: bool = True, real=CachedModel.trim_to) -> None:
    """Injected bug: one rejected token stays in the cache."""
    real(self, min(length + 1, self.offset))
    self.offset = length


def verdict_first_unchecked(logits, proposal, rule, sampling, lenience, key):
    """Injected bug: the first draft token is taken unverified."""
    best = mx.argmax(logits, axis=-1)
    return mx.concatenate([proposal.tokens[:1], best[1:]]) if proposal.k else best


def read_bonus_from_draft(verdict, draft, rule, sampling):
    """Injected bug: after a rejection the draft's own token is emitted."""
    values = verdict.tolist()
    n = next((i for i, token in enumerate(draft) if token != values[i]), len(draft))
    return n, draft[n] if n < len(draft) else values[n]


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [
        (CachedModel, "trim_to", drop_trim),
        (CachedModel, "trim_to", trim_one_short),
        (speculative, "_verdict", verdict_first_unchecked),
        (speculative, "_read", read_bonus_from_draft),
    ],
)
def test_greedy_equality_catches_injected_bugs(monkeypatch: pytest.MonkeyPatch, owner, name: str, bug) -> None:
    """A check that cannot fail is no check: each classic bug of a speculative loop changes some output here."""
    pair = PAIRS[2]
    prompts = [[2 + i, 9, 30 - i] for i in range(4)]
    plain = [greedy(pair, p, None, max_tokens=24).tokens for p in prompts]
    monkeypatch.setattr(owner, name, bug)
    assert [greedy(pair, p, "generic", 4, max_tokens=24).tokens for p in prompts] != plain


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(1, 6))
def test_lookup_proposes_what_followed_the_latest_match(context: list[int], k: int) -> None:
    """The incremental index must equal a brute-force search from the end."""
    lookup = LookupDrafter(ngram=3, min_ngram=1)
    lookup.begin(context)
    for end in range(1, len(context) + 1):
        seen = context[:end]
        expected: list[int] = []
        for n in (3, 2, 1):
            starts = [i for i in range(len(seen) - n) if seen[i : i + n] == seen[-n:]] if len(seen) > n else []
            if starts:
                expected = seen[starts[-1] + n : starts[-1] + n + k]
                break
        assert lookup.search(seen, Request(k=k)).tokens == expected


class Cautious:
    """Decodes plainly for two rounds, then drafts: what ``auto`` does when it tries again."""

    needs_confidence = False

    def __init__(self) -> None:
        self.rounds = 0

    def max_k(self) -> int:
        return 3 if self.rounds > 2 else 0

    def free_k(self) -> dict[str, int]:
        return dict.fromkeys(FREE, 0)

    def worth(self, confidences: tuple[float, ...]) -> int:
        return 0

    def keep_going(self, confidences: tuple[float, ...]) -> bool:
        return True

    def update(self, **outcome: object) -> None:
        self.rounds += 1


def test_a_draft_that_starts_late_knows_the_prompt() -> None:
    """One drafter serves many answers: drafting that begins in the middle of one must not go on from the cache of the one before."""
    target = toy_model(seed=3)
    pair = ToyPair(target, toy_draft(target))
    drafter = resolve_drafter(pair, "generic")
    generate(pair, [5, 9, 33, 2], drafter=drafter, k=3, max_tokens=16)
    g = generate(pair, [40, 7, 21], drafter=drafter, k=Cautious(), max_tokens=24)
    assert g.tokens == greedy(pair, [40, 7, 21], None, max_tokens=24).tokens
    assert g.drafted > 0
    assert g.accepted == g.drafted  # the target as its own draft


def test_lookup_length_follows_the_match() -> None:
    """Short matches and matches of the longest suffix have limits of their own; a limit of 0 leaves the round to the draft."""
    lookup = LookupDrafter(ngram=3, min_ngram=1)
    context = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    lookup.begin(context)
    assert lookup.propose(context, Request(k=9, free_k={"lookup": 0, "copy": 2})).tokens.tolist() == [4, 5]
    assert lookup.propose(context, Request(k=9, free_k={"lookup": 0, "copy": 2})).source == "copy"
    assert lookup.propose([*context, 7], Request(k=9, free_k={"lookup": 0, "copy": 2})) is None
    short = lookup.propose([*context, 7], Request(k=0, free_k={"lookup": 1, "copy": 0}))
    assert (short.tokens.tolist(), short.source) == ([1], "lookup")


def test_a_hopeless_draft_never_reads_the_prompt() -> None:
    """Its prompt pass alone would break the promise that auto is hardly slower than plain decoding."""
    drafter = ScriptedDrafter([])
    drafter.begin = lambda prompt: pytest.fail("the draft was started")  # type: ignore[method-assign]
    policy = AutoK(Costs(c=0.9, v=(1.0, 1.8, 2.6, 3.4, 4.2)))
    pair = PAIRS[0]
    g = generate(pair, [4, 5], drafter=drafter, k=policy, max_tokens=6)
    assert g.tokens == greedy(pair, [4, 5], None, max_tokens=6).tokens
