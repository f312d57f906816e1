"""Collecting trajectories: what is stored, what a kill costs, and that both decoders say the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_llama
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny_llama import TinyPair
from toy import toy_model

from harness.answers import torch_batch, torch_llama
from harness.answers.collect import collect, default_decoder, plan_batches, read_shard, shard_names
from harness.answers.memory_fit import Fitting
from harness.answers.mlx_batch import BatchedTarget
from harness.answers.rollout import Rollout
from harness.answers.torch_batch import TorchTarget
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.models.blas import mx, nn

EOS = frozenset({7})


def samples(n, domain="chat"):
    """Prompts of different lengths."""
    return [Sample(id=f"s/{i}", domain=domain, prompt="abc" * (1 + i % 5) + chr(97 + i % 26)) for i in range(n)]


@dataclasses.dataclass
class Counting:
    """A decoder without a model: the answer depends on the prompt and the seed alone. Dies after ``lives`` batches."""

    lives: int = 10**9
    batches: int = 0

    def __call__(self, prompts, *, max_tokens, temperature, top_k, seed):
        """Answer one batch."""
        if self.batches == self.lives:
            raise KeyboardInterrupt
        self.batches += 1
        return [self.answer(p, max_tokens, temperature, top_k, seed) for p in prompts]

    def answer(self, prompt, max_tokens, temperature, top_k, seed):
        """A short answer that sometimes ends with the end-of-sequence token."""
        rng = np.random.default_rng([*prompt, seed if temperature else 0])
        tokens = rng.integers(8, 60, size=rng.integers(1, max_tokens + 1)).tolist()
        if len(tokens) < max_tokens:
            tokens[-1] = 7
        n = len(tokens)
        return Rollout(
            tokens=tokens,
            logprobs=rng.normal(size=n).astype(np.float32),
            top_tokens=rng.integers(0, 60, size=(n, top_k)).astype(np.int32),
            top_logprobs=rng.normal(size=(n, top_k)).astype(np.float16),
        )


def pair():
    """A pair that only encodes."""
    return TinyPair(target=None, eos_token_ids=EOS)


def run(out, decoder, n=23, **options):
    """Collect ``n`` prompts into ``out``."""
    return list(collect(pair(), samples(n), max_tokens=6, batch=4, top_k=3, out=out, decoder=decoder, **options))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("lives", range(6))
def test_a_killed_run_resumes_to_the_same_result(tmp_path, lives, temperature):
    """Nothing finished is decoded again, and the outcome equals that of a run that was never killed."""
    whole = run(tmp_path / "whole", Counting(), temperature=temperature)
    first, second = Counting(lives=lives), Counting()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", first, temperature=temperature)
    resumed = run(tmp_path / "cut", second, temperature=temperature)
    assert resumed == whole
    assert first.batches + second.batches == 6
    for name in shard_names(tmp_path / "whole"):
        for suffix in (".jsonl", ".safetensors"):
            assert (tmp_path / "whole" / (name + suffix)).read_bytes() == (tmp_path / "cut" / (name + suffix)).read_bytes()


def test_half_written_shards_do_not_count(tmp_path):
    """A kill between the two files, or in the middle of one, leaves no jsonl: the batch is decoded again."""
    whole = run(tmp_path, Counting())
    name = shard_names(tmp_path)[0]
    (tmp_path / f"{name}.jsonl").rename(tmp_path / f".{name}.jsonl.123")
    (tmp_path / f"{name}.safetensors").write_bytes(b"torn")
    again = Counting()
    assert run(tmp_path, again) == whole
    assert again.batches == 1


def test_stored_equals_yielded(tmp_path):
    """What training reads from disk is what the caller saw, float16 top-k included."""
    seen = run(tmp_path, Counting())
    stored = [s.trajectory() for name in shard_names(tmp_path) for s in read_shard(tmp_path, name)]
    assert sorted(stored, key=lambda t: t.sample_id) == sorted(seen, key=lambda t: t.sample_id)
    assert {t.finish for t in seen} == {"eos", "length"}
    assert all((t.tokens[-1] in EOS) == (t.finish == "eos") for t in seen)


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 1}])
def test_other_settings_do_not_reuse_shards(tmp_path, change):
    """Shards answer for the settings they were made with, never for others."""
    run(tmp_path, Counting())
    again = Counting()
    run(tmp_path, again, **change)
    assert again.batches == 6


@given(st.lists(st.integers(1, 30), max_size=80), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_every_sample_is_planned_once(lengths, batch):
    """No prompt may be lost or answered twice, whatever the lengths."""
    given_samples = [Sample(id=str(i), domain="x", prompt="p") for i in range(len(lengths))]
    encoded = {str(i): [1] * n for i, n in enumerate(lengths)}
    groups = plan_batches(given_samples, encoded, batch)
    assert sorted(s.id for g in groups for s in g) == sorted(s.id for s in given_samples)
    assert all(0 < len(g) <= batch for g in groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    """Before anything is decoded."""
    with pytest.raises(HarnessError, match=message):
        list(collect(pair(), samples(2), decoder=Counting(), **options))


def test_repeated_ids_are_refused():
    """Two answers under one id could not be told apart later."""
    with pytest.raises(HarnessError, match="share an id"):
        list(collect(pair(), [*samples(2), *samples(1)], decoder=Counting()))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A tiny target on disk and in mlx."""
    folder = tmp_path_factory.mktemp("target")
    return folder, tiny_llama.make(folder)


def reference(model, prompt, n):
    """Greedy answer one token at a time without a cache, with log p of every choice."""
    tokens, logps = list(prompt), []
    for _ in range(n):
        logits = model(mx.array([tokens]))[0, -1]
        logp = logits - mx.logsumexp(logits)
        tokens.append(int(mx.argmax(logp)))
        logps.append(float(logp.max()))
        if tokens[-1] in EOS:
            break
    return tokens[len(prompt) :], logps


@pytest.mark.usefixtures("torch_stays_apart")
@pytest.mark.parametrize("kind", ["torch", "mlx", "torch, qwen2 loaded by mlx"])
def test_decoders_equal_plain_greedy_decoding(target, kind):
    """Padding, batching and dropping finished rows must not change any answer, its log p, or the top-k order."""
    folder, model = target
    decoder = TorchTarget(folder, EOS, "float32") if kind == "torch" else BatchedTarget(model, EOS)
    if "qwen2" in kind:
        model = tiny_llama.make_qwen2()
        decoder = TorchTarget(model, EOS, "float32")
    texts = samples(9)
    one = TinyPair(target=model, eos_token_ids=EOS)
    got = {t.sample_id: t for t in collect(one, texts, max_tokens=12, batch=9, top_k=4, decoder=decoder)}
    for sample in texts:
        tokens, logps = reference(model, one.encode(sample.prompt), 12)
        t = got[sample.id]
        assert list(t.tokens) == tokens
        np.testing.assert_allclose(t.logprobs, logps, atol=1e-3)
        assert [row[0] for row in t.top_tokens] == tokens
        assert all(list(row) == sorted(row, reverse=True) for row in t.top_logprobs)


@pytest.mark.usefixtures("torch_stays_apart")
@pytest.mark.parametrize("copies", [(0, 1, 0, 2, 2, 0), (1, 1, 1), (2,)])
def test_equal_prompts_are_read_once_and_prompts_in_parts(target, monkeypatch, copies):
    """Copies of a prompt are answered as each alone would be, in their places, whatever is read or chosen together."""
    folder, model = target
    monkeypatch.setattr(torch_batch, "_PROMPT_TOKENS", 8)
    monkeypatch.setattr(torch_batch, "_CHOICES", 2)
    prompts = [[3, 4, 5, 6], [3, 4, 9], [3, 4, 7, 8, 9, 11]]
    got = TorchTarget(folder, EOS, "float32")([prompts[i] for i in copies], max_tokens=40, temperature=0.0, top_k=2, seed=0)
    assert [r.tokens for r in got] == [reference(model, prompts[i], 40)[0] for i in copies]
    free = TorchTarget(folder, frozenset(), "float32")([prompts[0]] * 3, max_tokens=10, temperature=3.0, top_k=2, seed=0)
    assert len({tuple(r.tokens) for r in free}) == 3


def test_answers_on_disk_read_no_weights(target, tmp_path):
    """A second copy of the target is made for the first missing batch, not before."""
    first, again = (TorchTarget(target[1], EOS, "float32") for _ in range(2))
    one = TinyPair(target=target[1], eos_token_ids=EOS)
    got = [list(collect(one, samples(5), max_tokens=4, batch=2, top_k=2, out=tmp_path / "shards", decoder=d)) for d in (first, again)]
    assert got[0] == got[1]
    assert "weights" in vars(first)
    assert "weights" not in vars(again)


def test_answers_come_from_the_faster_decoder(target, monkeypatch):
    """On a CPU torch answers; a copy too large for that, or a model it does not cover, leaves it to mlx."""
    one = TinyPair(target=target[1], eos_token_ids=EOS)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    assert isinstance(torch_batch.torch_decoder(one), TorchTarget) == on_cpu
    scaled = tiny_llama.make_qwen2()
    scaled.args.tie_word_embeddings = False
    assert torch_batch.torch_decoder(TinyPair(target=scaled)) is None
    nn.quantize(scaled, group_size=32)
    scaled.args.tie_word_embeddings = True
    assert torch_batch.torch_decoder(TinyPair(target=scaled)) is None
    assert isinstance(default_decoder(TinyPair(target=scaled)), BatchedTarget)
    assert isinstance(default_decoder(one), TorchTarget) == on_cpu
    monkeypatch.setattr(torch_llama, "MEMORY_SHARE", 0.0)
    assert torch_batch.torch_decoder(one) is None


@pytest.mark.usefixtures("torch_stays_apart")
@pytest.mark.parametrize("kind", ["torch", "mlx"])
def test_sampling_is_seeded(target, kind):
    """The same seed gives the same sampled answers, another seed others."""
    folder, model = target
    decoder = TorchTarget(folder, frozenset(), "float32") if kind == "torch" else BatchedTarget(model, frozenset())
    one = TinyPair(target=model)

    def tokens(seed):
        return [t.tokens for t in collect(one, samples(4), max_tokens=10, temperature=3.0, top_k=2, seed=seed, decoder=decoder)]

    assert tokens(0) == tokens(0)
    assert tokens(0) != tokens(1)


def choose(head, hidden, temperature=0.0, top_k=1, seed=0):
    """One step of the torch decoder with this output head."""
    return torch_batch._choose({"embed": head}, hidden, temperature, top_k, torch.Generator().manual_seed(seed))


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.0, 0.7]))
@settings(max_examples=80, deadline=None)
def test_going_through_the_vocabulary_in_blocks_changes_nothing(vocab, top_k, seed, temperature):
    """Top-k, its log p and the drawn token's log p are those of the whole row, whatever the vocabulary's size."""
    rng = torch.Generator().manual_seed(seed)
    head, hidden = torch.randn(vocab, 8, generator=rng), torch.randn(3, 8, generator=rng)
    top_k = min(top_k, vocab)
    logits = hidden @ head.T
    picked, logp, ids, top = choose(head, hidden, temperature, top_k, seed)
    expected = torch.log_softmax(logits, -1).topk(top_k)
    torch.testing.assert_close(top, expected.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.log_softmax(logits, -1).gather(1, ids), top, atol=1e-5, rtol=1e-5)
    assert ((picked >= 0) & (picked < vocab)).all()
    own = torch.log_softmax(logits / (temperature or 1.0), -1).gather(1, picked[:, None])[:, 0]
    torch.testing.assert_close(logp, own, atol=1e-5, rtol=1e-5)
    if temperature == 0:
        assert (picked == logits.argmax(-1)).all()


@pytest.mark.parametrize("vocab", [5, 64, 200])
def test_tokens_are_drawn_by_their_probability(vocab):
    """Chi-square of 40,000 draws; a block never drawn from, or one favoured, would show."""
    rng = torch.Generator().manual_seed(vocab)
    head, hidden = torch.randn(vocab, 4, generator=rng), torch.randn(1, 4, generator=rng)
    p = torch.softmax(hidden @ head.T / 1.3, -1)[0].double().numpy()
    picked = choose(head, hidden.expand(40_000, -1), 1.3, 1, seed=3)[0].numpy()
    seen = np.bincount(picked, minlength=vocab)
    rare = p * len(picked) < 10
    seen, p = np.append(seen[~rare], seen[rare].sum()), np.append(p[~rare], p[rare].sum())
    keep = p > 0
    assert chisquare(seen[keep], p[keep] * len(picked) / p[keep].sum()).pvalue > 1e-3


def test_ties_of_rounded_logits_are_broken_by_exact_ones():
    """bfloat16 rounds logits of 20 to eighths; the order of the first candidates must not be left to that, nor p exceed 1."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 16, generator=rng).bfloat16()
    head = torch.randn(1000, 16, generator=rng).bfloat16() + 4 * hidden[0]
    exact = hidden.float() @ head.float().T
    picked, logp, ids, top = choose(head, hidden, top_k=8)
    assert (picked == exact.argmax(-1)).all()
    assert ((hidden @ head.T).argmax(-1) != exact.argmax(-1)).any(), "the rounded logits do tie"
    ours = exact.gather(1, ids)
    assert (ours[:, :-1] >= ours[:, 1:]).all()
    assert (top.exp().sum(1) <= 1 + 1e-5).all()
    torch.testing.assert_close(logp, torch.log_softmax(exact, -1).max(-1).values, atol=0.02, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_does_not_fit_is_decoded_in_parts(monkeypatch, temperature):
    """A batch too large for the free memory becomes several, the first under the batch's own seed; greedy answers stay what they are."""
    whole, parts = Counting(), Counting()
    expected = run(None, whole, temperature=temperature)
    monkeypatch.setattr(Fitting, "rows", lambda self, tokens: 3)
    found = run(None, parts, temperature=temperature)
    assert (whole.batches, parts.batches) == (6, 11)
    assert [t.sample_id for t in found] == [t.sample_id for t in expected]
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if temperature == 0 or i % 4 < 3:
            assert ours.tokens == theirs.tokens


def test_rows_follow_from_the_models_keys_and_values(monkeypatch):
    """2 layers of 2 key heads of 8 numbers, twice, in 4 bytes; and the logits of 64 ids."""
    fitting = Fitting(toy_model())
    assert fitting.token_bytes == 2 * 2 * 8 * 2 * 4
    monkeypatch.setattr("harness.answers.memory_fit.free_bytes", lambda: 2 * 10 * (100 * 256 + 4 * 4 * 64))
    assert fitting.rows(100) == 10
    assert fitting.rows(10**9) == 1
