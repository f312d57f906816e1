"""Distilling a draft: the data, the loss, resuming, and one run from prompts to a draft that decodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_pair
from tiny_llama import TinyPair

from harness.answers import torch_llama
from harness.answers.collect import Stored, read_answers
from harness.answers.rollout import Rollout
from harness.cli import main
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.distill import cut_weights, fit, lessons, pipeline, prompts
from harness.distill.distill_config import CutConfig, DistillConfig, FitConfig, RolloutConfig, load_distill_config
from harness.distill.lessons import Lesson
from harness.models.blas import mx
from harness.models.cut import CutModel, load_cut
from harness.models.forward import PrunedHead

torch = pytest.importorskip("torch")

TINY = DistillConfig(
    name="tiny",
    pair="tiny",
    rollouts=RolloutConfig(prompts={"chat": 12, "code": 12}, max_tokens=8, batch=8, top_k=4),
    cut=CutConfig(layers=2, last=1, vocab=24, mlp_bits=4),
    fit=FitConfig(epochs=2.0, batch_tokens=60, warmup_steps=2, checkpoint_steps=3, eval_prompts=3, learning_rate=0.003),
)


def stored(n=20, k=4, vocab=96, seed=0):
    """Random trajectories with valid probabilities."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        length = int(rng.integers(1, 9))
        p = -np.sort(-rng.dirichlet(np.ones(k + 1), size=length)[:, :k], axis=1)
        top = np.stack([rng.permutation(vocab)[:k] for _ in range(length)]).astype(np.int32)
        rollout = Rollout(
            tokens=top[:, 0].tolist(),
            logprobs=np.log(p[:, 0]).astype(np.float32),
            top_tokens=top,
            top_logprobs=np.log(p).astype(np.float16),
        )
        prompt = rng.integers(0, vocab, size=int(rng.integers(1, 9))).tolist()
        found.append(
            Stored(sample_id=str(i), domain="chat", prompt_tokens=prompt, finish="length", rollout=rollout, max_tokens=8, temperature=0.0)
        )
    return found


@pytest.fixture
def target(tmp_path):
    """A tiny target on disk and in mlx."""
    return tmp_path / "target", tiny_llama.make(tmp_path / "target")


@pytest.mark.parametrize("context_tokens", [False, True])
def test_torch_and_mlx_cuts_agree(target, context_tokens):
    """Training runs in torch, decoding in mlx: the exported weights must give the same logits, last layers included."""
    folder, model = target
    shape, weights = torch_llama.load_llama(folder)
    vocab = np.array([0, 3, 5, 8, 20, 33, 50, 95], dtype=np.int32)
    example = Lesson(
        domain="chat",
        tokens=np.array([4, 8, 15, 16, 23, 42], dtype=np.int32),
        prompt=2,
        labels=np.zeros(4, np.int32),
        top=np.zeros((4, 1), np.int32),
        top_p=np.ones((4, 1), np.float32),
    )
    other = Lesson(**{**example.__dict__, "tokens": np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32), "prompt": 5})
    cut_shape, cut = fit.initial_weights(shape, weights, CutConfig(layers=2, last=1, vocab=8), vocab)
    batch = [example, other]
    head = lessons.vocabulary(vocab, 96, context_tokens=context_tokens).head(batch)
    with torch.no_grad():
        ours = fit.output_logits(cut_shape, cut, weights["embed"], batch, head).cpu().numpy()
    twin = CutModel(model, 2, 8)
    twin.load_weights(list(cut_weights.mlx_weights(cut_shape, cut).items()), strict=False)
    drafting = PrunedHead(twin, vocab.tolist(), own_head=True).widened(head.extra.tolist())
    assert [int(head.index[i]) for i in drafting.token_map.tolist()] == list(range(ours.shape[1]))
    parts = [np.array(drafting(mx.array(e.tokens[None, :-1])))[0, e.prompt - 1 :] for e in batch]
    assert ours.shape[1] == (11 if context_tokens else 8), "of the prompts 4 8 and 1 2 3 4 5 the trained head lacks 1, 2 and 4"
    np.testing.assert_allclose(ours, np.concatenate(parts), rtol=1e-3, atol=1e-2)
    assert np.array_equal(np.array(twin.model.layers[1].mlp.down_proj.weight), np.array(model.model.layers[2].mlp.down_proj.weight))


def test_vocabulary_keeps_likely_and_required_ids():
    """The head keeps what the target says most, and always the ids that end an answer."""
    trajectories = stored(200)
    mass = np.zeros(96)
    for s in trajectories:
        np.add.at(mass, s.rollout.top_tokens, np.exp(s.rollout.top_logprobs.astype(np.float64)))
    rare = int(np.argmin(mass))
    vocab = lessons.choose_vocab((s.rollout for s in trajectories), 20, 96, [rare])
    assert len(vocab) == 20
    assert rare in vocab
    assert (np.diff(vocab) > 0).all()
    assert set(np.argsort(-mass)[:19]) == set(vocab.tolist()) - {rare}


def test_too_few_tokens_for_the_head_are_refused():
    """A head larger than what was seen would hold rows nobody trained."""
    with pytest.raises(HarnessError, match="distinct tokens"):
        lessons.choose_vocab([stored(1)[0].rollout], 90, 96, [])


@pytest.mark.parametrize("context_tokens", [False, True])
def test_loss_is_the_mix_it_says(context_tokens):
    """Against a plain computation: top-k rescaled over what the draft can say, positions whose label it cannot say left out."""
    rng = np.random.default_rng(0)
    examples = lessons.prepare(stored(6))
    head = lessons.vocabulary(np.arange(0, 96, 2, dtype=np.int32), 96, context_tokens=context_tokens).head(examples)
    said = {*range(0, 96, 2), *(t for e in examples for t in e.tokens[: e.prompt].tolist() if context_tokens)}
    order = {t: i for i, t in enumerate([*range(0, 96, 2), *sorted(t for t in said if t % 2)])}
    n = sum(len(e.labels) for e in examples)
    logits = torch.from_numpy(rng.normal(size=(n, len(said))).astype(np.float32))
    logp = torch.log_softmax(logits, dim=-1).numpy()
    terms, i = [], 0
    for e in examples:
        for label, top, p in zip(e.labels.tolist(), e.top.tolist(), e.top_p, strict=True):
            known = {order[t]: q for t, q in zip(top, p, strict=True) if t in said}
            if label in said:
                share = {t: q / sum(known.values()) for t, q in known.items()}
                soft = sum(q * (np.log(q) - logp[i, t]) for t, q in share.items())
                terms.append(0.3 * -logp[i, order[label]] + 0.7 * soft)
            i += 1
    assert fit.batch_loss(logits, examples, head, 0.7).item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert any(label not in said for e in examples for label in e.labels.tolist())
    assert (len(said) > 48) == context_tokens


@given(st.integers(1, 60), st.integers(1, 80), st.sampled_from([0.3, 1.0, 2.5]))
@settings(max_examples=30, deadline=None)
def test_every_epoch_sees_every_example_once(n, budget, epochs):
    """The plan of updates loses nothing, repeats nothing within an epoch, and keeps to the token budget."""
    examples = lessons.prepare(stored(n))
    config = FitConfig(epochs=epochs, batch_tokens=budget)
    updates = lessons.plan_updates(examples, config)
    assert updates == lessons.plan_updates(examples, config)
    assert all(len(u) == 1 or len(u) * max(len(examples[i].tokens) for i in u) <= budget for u in updates)
    seen = [i for u in updates for i in u]
    whole = int(epochs)
    assert sorted(seen[: whole * n]) == sorted(list(range(n)) * whole)
    assert len(set(seen[whole * n :])) == len(seen[whole * n :])


def fitted(folder, where, report=None, *, ids=range(96), data=(30,), last=0, **changes):
    """Train the tiny cut on random data."""
    shape, weights = torch_llama.load_llama(folder)
    ids = np.array(ids, dtype=np.int32)
    cut_shape, cut = fit.initial_weights(shape, weights, CutConfig(layers=2, last=last, vocab=96), ids)
    examples, vocab = lessons.prepare(stored(*data)), lessons.vocabulary(ids, 96, context_tokens=True)
    config = TINY.fit.model_copy(update=changes)
    return fit.fit(cut_shape, cut, weights["embed"], examples, vocab, config, where, report), len(lessons.plan_updates(examples, config))


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7])
def test_killed_training_resumes_to_the_same_weights(target, tmp_path, stop_after):
    """Whatever the moment of the kill, the resumed run ends with the weights and the log of an uninterrupted one."""
    whole, steps = fitted(target[0], tmp_path / "whole")

    def kill(row):
        if row["step"] == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(target[0], tmp_path / "cut", kill)
    resumed, _ = fitted(target[0], tmp_path / "cut")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)
    logs = [[json.loads(line) for line in (tmp_path / run / "loss.jsonl").read_text().splitlines()] for run in ("whole", "cut")]
    assert [(r["step"], r["loss"]) for r in logs[0]] == [(r["step"], r["loss"]) for r in logs[1]]
    assert len(logs[0]) == steps > stop_after


@pytest.mark.parametrize("change", [{"learning_rate": 0.1}, {"ids": [*range(94), 95, 94]}, {"data": (30, 4, 96, 1)}, {"last": 1}])
def test_a_checkpoint_of_another_run_is_refused(target, tmp_path, change):
    """Other settings, another vocabulary of the same size, as many other answers, other blocks: one card would speak of two runs."""
    fitted(target[0], tmp_path / "run")
    with pytest.raises(HarnessError, match="other data, settings or models"):
        fitted(target[0], tmp_path / "run", **change)


def test_training_lowers_the_loss(target, tmp_path):
    """The plainest sign that gradients reach the weights: random labels are learned by heart."""
    rows = []
    fitted(target[0], tmp_path / "run", rows.append, epochs=60.0, learning_rate=0.01)
    assert np.mean([r["loss"] for r in rows[-5:]]) < 0.6 * np.mean([r["loss"] for r in rows[:5]])


def bank(n, domain, split="train"):
    """Prompts of a tiny domain."""
    return [Sample(id=f"{domain}/{split}/{i}", domain=domain, prompt=f"{domain} {i} " + "x" * (i % 7), split=split) for i in range(n)]


@pytest.mark.usefixtures("torch_stays_apart")
def test_a_whole_run_makes_a_draft(target, tmp_path, monkeypatch, notes):
    """collect -> train -> ship: a folder that loads, whose card and scores name what was done; a second run repeats nothing."""
    folder, model = target
    monkeypatch.setattr(pipeline, "training_samples", lambda config: bank(12, "chat") + bank(12, "code"))
    monkeypatch.setattr(pipeline, "held_out_samples", lambda config, n: bank(n, "chat", "validation") + bank(n, "code", "validation"))
    job = pipeline.Distillation(
        config=TINY,
        pair=TinyPair(target=model, eos_token_ids=frozenset({7})),
        folder=folder,
        work=tmp_path / "work",
        out=tmp_path / "draft",
        command="harness distill tiny.yaml",
    )
    scores = pipeline.distill(job)
    draft = load_cut(tmp_path / "draft", model)
    assert draft.model(mx.array([[1, 2, 3]])).shape == (1, 3, 24)
    text = (tmp_path / "draft/card.md").read_text()
    assert draft.hash in text
    assert "harness distill tiny.yaml" in text
    assert {(s.domain, s.k, s.prompts) for s in scores} == {(d, k, p) for d, p in (("chat", 3), ("code", 3), ("all", 6)) for k in (2, 4)}
    assert all(0 <= s.accepted <= s.drafted and s.emitted >= s.rounds for s in scores)
    steps = sum(n.startswith("step") for n in notes)
    before = (tmp_path / "draft/draft.safetensors").read_bytes()
    assert pipeline.distill(job) == scores
    assert sum(n.startswith("step") for n in notes) == steps
    assert (tmp_path / "draft/draft.safetensors").read_bytes() == before


@pytest.mark.usefixtures("torch_stays_apart")
def test_a_finished_draft_is_trained_on(target, tmp_path, monkeypatch):
    """Starting from a draft means its vocabulary and, up to the bits it was stored with, its weights; the card names it."""
    folder, model = target
    monkeypatch.setattr(pipeline, "training_samples", lambda config: bank(12, "chat"))
    monkeypatch.setattr(pipeline, "held_out_samples", lambda config, n: bank(n, "chat", "validation"))

    def job(name, **fit):
        config = TINY.model_copy(update={"fit": TINY.fit.model_copy(update=fit)})
        pair = TinyPair(target=model, eos_token_ids=frozenset({7}))
        return pipeline.Distillation(
            config=config, pair=pair, folder=folder, work=tmp_path / name, out=tmp_path / f"{name}-out", command=""
        )

    pipeline.distill(job("first"))
    first = load_cut(tmp_path / "first-out", model)
    pipeline.distill(job("second", start_from=str(tmp_path / "first-out"), learning_rate=1e-9, warmup_steps=0))
    second = load_cut(tmp_path / "second-out", model)
    assert second.token_map.tolist() == first.token_map.tolist()
    tokens = mx.array([[3, 9, 27]])
    want, got = np.array(first.model(tokens)), np.array(second.model(tokens))
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert first.hash in (tmp_path / "second-out/card.md").read_text()
    with pytest.raises(HarnessError, match=r"2 blocks, cut\.layers is 1"):
        cut_weights.read_start(str(tmp_path / "first-out"), 1)
    with pytest.raises(HarnessError, match=r"cannot read .*config.json"):
        cut_weights.read_start(str(tmp_path / "nowhere"), 2)


def test_prompts_of_an_earlier_run_are_skipped(monkeypatch):
    """A second collection must bring new answers; the skipped prompts are exactly the first ones of the same list."""
    monkeypatch.setattr(prompts, "_dataset_samples", lambda config, domain, split: [])
    whole = prompts.training_samples(RolloutConfig(prompts={"chat": 12, "code": 8}))
    rest = prompts.training_samples(RolloutConfig(prompts={"chat": 12, "code": 8}, skip={"chat": 5}))
    chat = [s.id for s in whole if s.domain == "chat"]
    assert [s.id for s in rest if s.domain == "chat"] == chat[5:]
    assert sum(s.domain == "code" for s in rest) == 8


def test_few_prompts_get_several_answers(target, tmp_path, monkeypatch, notes):
    """Each further answer has an id of its own, templates are left out, and all of them are sampled: no answer is a copy."""
    own = {"chat": bank(3, "chat", "train"), "code": bank(2, "code", "train")}
    monkeypatch.setattr(prompts, "_dataset_samples", lambda config, domain, split: own[domain] if split == "train" else [])
    config = RolloutConfig(prompts={"chat": 8, "code": 2}, skip={"chat": 8, "code": 2}, more_answers={"chat": 3, "code": 1})
    again = prompts.repeated_samples(config)
    wanted = {f"chat/train/{i}#{n}" for i in range(3) for n in (1, 2, 3)} | {"code/train/0#1", "code/train/1#1"}
    assert len(again) == len(wanted)
    assert {s.id for s in again} == wanted
    assert prompts.training_samples(config) == []
    assert prompts.repeated_samples(RolloutConfig(prompts={"chat": 3})) == []
    folder, model = target
    pair = TinyPair(target=model, eos_token_ids=frozenset({7}))
    settings = TINY.model_copy(update={"rollouts": config.model_copy(update={"max_tokens": 8, "batch": 4, "top_k": 4, "temperature": 2.0})})
    job = pipeline.Distillation(config=settings, pair=pair, folder=folder, work=tmp_path, out=tmp_path, command="")
    pipeline.collect_rollouts(job)
    assert notes[-1].startswith("collected 11 of 11 answers")
    stored = list(read_answers(job.rollouts, job.pair.target_hash))
    assert {s.temperature for s in stored} == {2.0}
    assert len({tuple(s.rollout.tokens) for s in stored if s.sample_id.startswith("chat/train/0#")}) == 3


def test_the_target_writes_prompts_of_its_own(target, tmp_path, monkeypatch, notes):
    """They are asked for without the ones known and the evaluation's, answered like the others, and not written twice."""
    monkeypatch.setattr(pipeline, "training_samples", lambda config: bank(3, "chat"))
    monkeypatch.setattr(pipeline, "evaluation_samples", lambda config, domains: bank(2, *domains, "test"))
    asked = []

    def write(pair, count, *, domain, known, evaluation, rows, seed, **rest):
        asked.append((count, domain, [s.id for s in known], [s.id for s in evaluation], rows))
        return [Sample(id=f"synthetic/{i}", domain=domain, prompt=f"own {i}", source="synthetic", split="train") for i in range(count)]

    monkeypatch.setattr(pipeline, "synthesise", write)
    folder, model = target
    settings = TINY.model_copy(update={"rollouts": RolloutConfig(prompts={"chat": 3}, written={"chat": 5}, max_tokens=4, batch=4, top_k=2)})
    pair = TinyPair(target=model, eos_token_ids=frozenset({7}))
    for work in (tmp_path / "work", tmp_path / "work"):
        job = pipeline.Distillation(config=settings, pair=pair, folder=folder, work=work, out=tmp_path, command="")
        pipeline.collect_rollouts(job)
    assert asked == [(5, "chat", ["chat/train/0", "chat/train/1", "chat/train/2"], ["chat/test/0", "chat/test/1"], 4)]
    assert notes[-1].startswith("collected 8 of 8 answers")
    stored = {s.sample_id: s.prompt_tokens for s in read_answers(job.rollouts, pair.target_hash)}
    assert stored["synthetic/4"] == pair.encode("own 4")
    assert len(stored) == 8


def test_a_target_that_cannot_be_cut_answers_all_the_same(target, tmp_path):
    """Answers of a Qwen2 train adapters; the stages that would cut it are refused before any answer."""
    folder, model = target
    (folder / "config.json").write_text(json.dumps({**tiny_llama.CONFIG, "model_type": "qwen2"}))
    pair = TinyPair(target=model, eos_token_ids=frozenset({7}))
    job = pipeline.Distillation(config=TINY, pair=pair, folder=folder, work=tmp_path / "w", out=tmp_path, command="")
    with pytest.raises(HarnessError, match="plain llama models"):
        pipeline.distill(job)
    assert not (tmp_path / "w").exists()


def test_stages_need_the_one_before(target, tmp_path):
    """Training without rollouts, shipping without training and a misspelt stage stop with advice."""
    job = pipeline.Distillation(
        config=TINY,
        pair=TinyPair(target=target[1]),
        folder=target[0],
        work=tmp_path / "work",
        out=tmp_path / "draft",
        command="",
    )
    with pytest.raises(HarnessError, match="no answers"):
        pipeline.distill(job, ["train"])
    with pytest.raises(HarnessError, match="no trained draft"):
        pipeline.distill(job, ["ship"])
    with pytest.raises(HarnessError, match="no stage 'fit'"):
        pipeline.distill(job, ["fit"])


def test_domains_are_mixed_from_the_start(monkeypatch):
    """A collection that is cut short has seen every domain in proportion."""
    sizes = {"chat": 40, "code": 20, "structured": 10}
    monkeypatch.setattr(prompts, "_dataset_samples", lambda config, domain, split: [])
    samples = prompts.training_samples(RolloutConfig(prompts=sizes))
    for length in (14, 35, 70):
        for domain, size in sizes.items():
            share = sum(s.domain == domain for s in samples[:length])
            assert abs(share - size * length / 70) <= 1
    assert len({s.id for s in samples}) == 70


def test_prompts_near_evaluation_are_dropped(monkeypatch):
    """A training prompt that repeats an evaluation prompt must not reach the target, let alone the draft."""
    bank_prompts = prompts.prompts("chat", 5, 0)
    leak = Sample(id="eval/0", domain="chat", prompt=bank_prompts[2].upper(), split="test")
    monkeypatch.setattr(prompts, "_dataset_samples", lambda config, domain, split: [leak] if split == "test" else [])
    got = prompts.training_samples(RolloutConfig(prompts={"chat": 5}))
    assert [s.prompt for s in got] == [p for i, p in enumerate(bank_prompts) if i != 2]


@given(st.integers(0, 300), st.floats(0, 1))
def test_sampled_share(n, share):
    """Every prompt is answered once, and about the wanted share of them is sampled."""
    greedy, sampled = prompts.split_by_temperature([Sample(id=str(i), domain="x", prompt="p") for i in range(n)], share)
    assert len(greedy) + len(sampled) == n
    assert abs(len(sampled) - n * share) <= 1


def test_the_shipped_config_is_valid():
    """The file that the shipped draft's card names must load, and flags must reach it."""
    config = load_distill_config("smollm2", ["rollouts.gsm8k_path=train.jsonl", "fit.epochs=1.0"])
    assert config.name == "smollm2"
    assert config.rollouts.gsm8k_path == "train.jsonl"
    assert config.fit.epochs == 1.0
    with pytest.raises(HarnessError, match="did you mean 'layers'"):
        load_distill_config("smollm2", ["cut.layer=3"])


@pytest.mark.parametrize("domain", ["math", "code", "chat"])
def test_the_adapters_answers_are_new(domain):
    """The shipped answer files ask for their domain alone; further answers to its prompts begin after those of the shipped draft."""
    wanted, shipped = load_distill_config(f"smollm2-{domain}").rollouts, load_distill_config("smollm2").rollouts
    assert set(wanted.prompts) == set(wanted.skip) == set(wanted.more_answers) == {domain}
    assert wanted.skip_answers.get(domain, 0) >= shipped.more_answers.get(domain, 0)


def test_other_architectures_are_refused():
    """A draft is cut from a plain Llama only; anything else would train garbage."""
    for change in (
        {"model_type": "qwen2"},
        {"tie_word_embeddings": False},
        {"rope_scaling": {"type": "yarn"}},
        {"quantization": {"bits": 4}},
    ):
        with pytest.raises(HarnessError, match="plain llama"):
            torch_llama.read_shape({**tiny_llama.CONFIG, **change}, ("llama",))


def test_the_command_says_what_a_stage_left(tmp_path, capsys):
    """Asked for answers only, it names their folder, which `harness train --from` takes, and no draft that was not built."""
    config = tmp_path / "tiny-draft.yaml"
    pair = write_pair(tmp_path / "pair", draft=False, max_position_embeddings=2048)
    text = f"name: tiny\npair: {pair}\nrollouts: {{prompts: {{chat: 3}}, max_tokens: 4, batch: 2, top_k: 2}}\n"
    config.write_text(text + "cut: {layers: 1, vocab: 16, group_size: 32}\nfit: {epochs: 1, eval_prompts: 2}\n", encoding="utf-8")
    arguments = ["distill", str(config), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "draft"), "--offline"]

    def run(*more):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *more])
        said = capsys.readouterr()
        return caught.value.code, said.out.splitlines(), said.err

    code, _, advice = run("--set", "cut.layers=9")
    assert code == 2
    assert "cannot take 9 layers" in advice
    code, _, advice = run()
    assert code == 2
    assert "cut.mlp_group_size is 64, which does not divide the target's width of 32" in advice
    assert "Set it to 32." in advice
    assert not (tmp_path / "work").exists(), "refused before the answers, not after the training"
    for stage, line in {"collect": "answers: {}/work/rollouts", "train": "checkpoint: {}/work/fit", "ship": "draft: {}/draft"}.items():
        code, out, _ = run("--stages", stage, "--set", "cut.mlp_group_size=32")
        place = line.format(tmp_path)
        assert (code or 0, out[-1]) == (0, place)
        assert any(Path(place.split(": ")[1]).iterdir())
