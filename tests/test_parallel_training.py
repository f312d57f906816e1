"""Training of masks: torch computes what mlx decodes, gradients are right, acceptance rises, a resumed run is the uninterrupted one."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
from adapting import VOCAB, difference, forward, quick_config, target_trajectories, tiny_draft
from families import tiny_model
from masks import random_masks

from harness.adapt.adapters.adapter_folder import read_info
from harness.adapt.training import parallel_mlx, parallel_step
from harness.adapt.training.examples import Example, from_trajectory, truncate
from harness.adapt.training.parallel_lessons import Groups, plan_groups
from harness.adapt.training.parallel_mlx import MlxStep
from harness.adapt.training.parallel_step import ParallelStep
from harness.adapt.training.parallel_training import step_for, train_parallel
from harness.adapt.training_config import TrainingConfig
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.parallel_drafter import parallel_drafter
from harness.decode.parallel_replay import parallel_passes
from harness.decode.simulate import simulate_runs
from harness.models.mlx_names import mx, nn, tree_flatten, tree_map
from harness.models.opened import hidden_states
from harness.models.parallel_masks import with_masks

K = 4


def settings(**changes: Any) -> TrainingConfig:
    """Few updates of masks, high rate."""
    own = {"parallel": {"k": K, "keep": 0.8}, "adapt": {"mine": False}, "stop": {"metric": "tau"}, "lora": {"rank": 3, "scale": 1.0}}
    return quick_config(**{**own, **changes})


def draft_of(kind: str) -> Any:
    """A tiny draft: llama, Qwen2 with biases, a head of its own, a head restricted to some ids; the last two take the prompt's too."""
    if kind == "qwen2":
        draft = tiny_draft()
        draft.model = tiny_llama.make_qwen2()
        draft.model.update(tree_map(lambda w: w / 6 if w.ndim == 2 else w, draft.model.parameters()))
        return draft
    if kind == "quantised":
        return tiny_draft(quantised="affine 8")
    kept = np.arange(0, VOCAB, 2)
    draft = tiny_draft(token_map=kept if kind == "own head" else None)
    return draft if kind == "llama" else dataclasses.replace(draft, vocab=tuple(kept.tolist()))


def example(index: int = 0) -> Example:
    """An answer of 16 tokens."""
    return from_trajectory(target_trajectories(1, first=index)[0])


def answers(count: int) -> list[Example]:
    """Some, each shorter than the one before."""
    cut = [truncate(example(i), 21 - 4 * i) for i in range(count)]
    return [known for known in cut if known is not None]


def test_groups_are_those_of_decoding() -> None:
    """Every group stands behind an answer token, its masks in order, none predicts beyond the end, and lengths vary as asked."""
    known, lengths = example(), []
    for seed in range(40):
        groups = plan_groups(known, K - 1, 0.5, np.random.default_rng(seed))
        predicted = groups.starts + groups.steps + 1
        assert predicted.max() <= len(known.tokens) - 1
        assert groups.starts.min() == known.start
        for start in np.unique(groups.starts):
            steps = groups.steps[groups.starts == start]
            assert steps.tolist() == list(range(len(steps)))
            lengths.append(len(steps))
        assert len(np.unique(groups.starts)) == len(known.answer) - 1
    assert np.mean(np.array(lengths) > 1) == pytest.approx(0.5, abs=0.08)
    chances = np.linspace(0, 1, len(known.answer) - 1)
    drawn = [plan_groups(known, K - 1, 0.5, np.random.default_rng(seed), chances).starts - known.start for seed in range(200)]
    there = np.mean([np.isin(np.arange(len(chances)), starts) for starts in drawn], axis=0)
    np.testing.assert_allclose(there, chances, atol=0.12)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "own head"])
def test_torch_trains_what_mlx_decodes(kind: str) -> None:
    """States of every mask of two answers are those of decoding passes that end with it: a mask off by one would show, padding too."""
    import torch

    draft = draft_of(kind)
    weights = random_masks(draft.model, K - 1)
    step = ParallelStep(draft, settings(), torch.float32)
    planned = [(e, plan_groups(e, K - 1, 0.8, np.random.default_rng(0))) for e in answers(2)]
    ours = step.states(planned, {name: np.array(w) for name, w in weights.items()})
    masked, off, seen = with_masks(draft, weights, 1.0), 0, 0
    for known, groups in planned:
        for start in np.unique(groups.starts):
            rows = np.flatnonzero(groups.starts == start)
            with masked.gate.of(len(rows)):
                tokens = [*known.tokens[:start].tolist(), *[0] * len(rows)]
                theirs = np.array(hidden_states(masked.draft.model, mx.array([tokens]))[0, -len(rows) :])
            np.testing.assert_allclose(ours[seen + rows], theirs, rtol=2e-3, atol=2e-4)
            off += np.abs(ours[seen + rows] - np.roll(theirs, 1, axis=0)).max() > 0.1
        seen += len(groups.steps)
    assert seen == len(ours)
    assert off > 3, "neighbouring masks must differ, or the comparison could not fail"


def test_answers_together_are_trained_as_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of an update and its gradients are sums over its answers, however many go through the draft together."""
    import torch

    draft, rng = draft_of("restricted"), np.random.default_rng(2)
    weights = random_masks(draft.model, K - 1, size=0.3)
    step = ParallelStep(draft, settings(parallel={"k": K, "by_length": 0.5}), torch.float32)
    lessons = [step.vocab.lesson(e, plan_groups(e, K - 1, 0.8, rng)) for e in answers(3)]
    alone = [step([lesson], 0.1, weights) for lesson in lessons]
    together = [step(lessons, 0.1, weights)]
    monkeypatch.setattr(parallel_step, "MASKS_AT_ONCE", len(lessons[0].groups.steps) + len(lessons[1].groups.steps))
    together.append(step(lessons, 0.1, weights))
    summed = {name: sum(np.array(gradients[name]) for _, gradients in alone) for name in weights}
    for loss, gradients in together:
        assert loss == pytest.approx(sum(loss for loss, _ in alone), rel=1e-4)
        assert difference({name: np.array(array) for name, array in gradients.items()}, summed) < 1e-4


def test_masks_weigh_what_they_add_to_a_round() -> None:
    """By length, a mask's loss counts by the slope of the round's expected length along its chance, in between by the mixture; more in
    proportion to how seldom its group is there.
    """
    import torch

    draft, known = draft_of("llama"), example()
    weights = random_masks(draft.model, K - 1, size=0.3)
    groups = plan_groups(known, K - 1, 0.8, np.random.default_rng(1))

    def loss(by_length: float) -> float:
        config = settings(loss={"kind": "ce"}, parallel={"k": K, "by_length": by_length})
        step = ParallelStep(draft, config, torch.float32)
        return step([step.vocab.lesson(known, groups)], 1.0, weights)[0]

    def logp(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return logits[np.arange(len(tokens)), tokens] - np.log(np.exp(logits).sum(axis=1))

    z = ParallelStep(draft, settings(), torch.float32).states([(known, groups)], {name: np.array(w) for name, w in weights.items()})
    said = logp(z @ np.array(draft.model.model.embed_tokens.weight).T, known.tokens[groups.starts + groups.steps + 1])
    first = np.exp(logp(forward(draft.model, known.tokens[:-1])[known.start - 1 :], known.answer))
    for share in (1.0, 0.25):
        expected = 0.0
        for start in np.unique(groups.starts):
            own, chance = said[groups.starts == start], first[start - known.start]
            for j, value in enumerate(own):
                lengths = [chance * np.cumprod(np.exp([*own[:j], end, *own[j + 1 :]])).sum() for end in (0, -np.inf)]
                expected -= value * (1 - share + share * (lengths[0] - lengths[1])) / (1 - share + share * chance)
        assert loss(share) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "own head", "restricted"])
def test_mlx_computes_what_torch_does(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The same loss and gradients, by length or not, whether the groups of an answer go through the draft together or in parts."""
    import torch

    draft, rng = draft_of(kind), np.random.default_rng(5)
    weights = random_masks(draft.model, K - 1, size=0.3)
    for by_length, memory in ((0.0, 2**28), (0.7, 3 * 21 * 3 * 2 * 16 * 4)):
        monkeypatch.setattr(parallel_mlx, "TRAINED_BYTES", memory)
        config = settings(parallel={"k": K, "by_length": by_length})
        ours, theirs = ParallelStep(draft, config, torch.float32), MlxStep(draft, config)
        lessons = [ours.vocab.lesson(e, plan_groups(e, K - 1, 0.8, rng)) for e in answers(2)]
        (loss, gradients), (other, others) = ours(lessons, 0.1, weights), theirs(lessons, 0.1, weights)
        assert other == pytest.approx(loss, rel=1e-4)
        assert difference(*({name: np.array(array) for name, array in g.items()} for g in (gradients, others))) < 1e-3


def slopes(step: Any, weights: dict[str, Any]) -> tuple[float, float]:
    """Slope of the loss of one answer along a random direction: by its gradients, and by its two ends."""
    rng, known, size = np.random.default_rng(1), example(), 1e-3
    lessons = [step.vocab.lesson(known, plan_groups(known, K - 1, 0.8, rng))]
    _, gradients = step(lessons, 0.1, weights)
    direction = {name: rng.normal(0, 1, w.shape).astype(np.float32) for name, w in weights.items()}
    slope = sum(float((np.array(gradients[name]) * d).sum()) for name, d in direction.items())
    ends = [step(lessons, 0.1, {name: w + sign * size * mx.array(direction[name]) for name, w in weights.items()})[0] for sign in (1, -1)]
    return slope, (ends[0] - ends[1]) / (2 * size)


@pytest.mark.parametrize("kind", ["llama", "own head", "restricted", "quantised", "qwen3"])
def test_gradients_are_the_slope_of_the_loss(kind: str) -> None:
    """Along a random direction, in float32; in mlx those of drafts that are not trained in torch, too."""
    import torch

    other = kind in ("quantised", "qwen3")
    draft = dataclasses.replace(tiny_draft(), model=tiny_model(kind)) if kind == "qwen3" else draft_of(kind)
    config = settings(loss={"kind": "mix", "weights": {"ce": 0.4, "forward_kl": 0.6}})
    step = MlxStep(draft, config) if other else ParallelStep(draft, config, torch.float32)
    slope, ends = slopes(step, random_masks(draft.model, K - 1, size=0.3))
    assert ends == pytest.approx(slope, rel=0.03, abs=1e-3)


def test_lessons_name_what_the_target_said() -> None:
    """Each mask learns the answer's token at its place, in ids of the head behind which the prompt's other tokens stand."""
    import torch

    draft, known = draft_of("restricted"), example(3)
    step = ParallelStep(draft, settings(), torch.float32)
    groups = Groups(starts=np.array([5, 5, 7], np.int32), steps=np.array([0, 1, 0], np.int32))
    lesson = step.vocab.lesson(known, groups)
    ids = [*range(0, VOCAB, 2), *lesson.extra.tolist()]
    assert set(lesson.extra.tolist()) == {t for t in known.tokens[: known.start].tolist() if t % 2}
    said = {i: int(known.tokens[p]) for i, p in enumerate((6, 7, 8))}
    assert {int(i): ids[label] for i, label in zip(lesson.rows, lesson.known["labels"], strict=True)} == {
        i: token for i, token in said.items() if token in ids
    }


def copying(kind: str) -> Any:
    """A draft that says the last token again: nothing is added to its embedding."""
    draft = draft_of("llama" if kind == "quantised" else kind)
    for layer in draft.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)
    if kind == "own head":
        draft.model.lm_head.weight = draft.model.model.embed_tokens.weight[draft.token_map]
    if kind == "quantised":
        nn.quantize(draft.model, group_size=32, bits=8)
    return draft


def repeated(count: int, seed: int) -> list[Trajectory]:
    """Answers of one token, again and again: one of two that the prompt ends with."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        token = int(rng.choice([6, 20]))
        prompt = (*rng.integers(0, VOCAB, 3).tolist(), token)
        known = {"prompt_tokens": prompt, "tokens": (token,) * 10, "finish": "length", "max_tokens": 10}
        found.append(Trajectory(sample_id=f"{seed}/{i}", domain="code", **known))
    return found


@pytest.mark.usefixtures("torch_stays_apart")
@pytest.mark.parametrize(("kind", "backend"), [("llama", "auto"), ("own head", "auto"), ("llama", "mlx"), ("quantised", "auto")])
def test_training_raises_what_stands(tmp_path: Path, kind: str, backend: str) -> None:
    """From the one token that the draft knows to more of them, on held-out answers; the folder decodes so, the draft stays as it was."""
    draft, data = copying(kind), (repeated(24, 1), repeated(8, 2))
    before = {n: np.array(a).tobytes() for n, a in tree_flatten(draft.model.parameters())}
    config = settings(optim={"learning_rate": 0.02, "epochs": 3, "backend": backend}, lora={"rank": 8, "scale": 2.0})
    in_torch = kind != "quantised" and backend == "auto" and mx.default_device().type == mx.DeviceType.cpu
    assert isinstance(step_for(draft, config), ParallelStep if in_torch else MlxStep)
    result = train_parallel(draft, data[0], config, validation=data[1], out=tmp_path / "a", name="ahead")
    assert result.accepted
    assert result.before.value == 2, "the draft's own token, and the target's"
    assert result.after.value > 2.5
    assert {n: np.array(a).tobytes() for n, a in tree_flatten(draft.model.parameters())} == before
    info = read_info(tmp_path / "a", draft.hash)
    assert (info.name, info.metric, info.after["code"]) == ("ahead", "tau", result.after.value)
    (found,) = parallel_passes(parallel_drafter(draft, tmp_path / "a"), data[1][:1])
    counts = result.after.counts["code"][0]
    assert simulate_runs(found.runs, K, 10).accepted == counts.accepted


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped after an update and continued: the same masks, byte for byte. What goes on from them begins at what they reach."""

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == 4:
            raise Stop

    config = settings(optim={"epochs": 2, "learning_rate": 0.02, "backend": "auto"}, stop={"every": 3}, parallel={"k": K, "by_length": 0.5})
    data = repeated(24, 1)
    run = partial(train_parallel, copying("llama"), data, config, validation=repeated(8, 2))
    whole = run(out=tmp_path / "a")
    with pytest.raises(Stop):
        run(out=tmp_path / "b", progress=stop)
    run(out=tmp_path / "b", resume=True)
    assert (tmp_path / "a/adapters.safetensors").read_bytes() == (tmp_path / "b/adapters.safetensors").read_bytes()
    short = config.replace(optim={"max_steps": 1})
    more = train_parallel(copying("llama"), data, short, validation=repeated(8, 2), out=tmp_path / "c", start=tmp_path / "a")
    assert more.before.value == whole.after.value


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    """A draft that takes no masks, and settings of other adapters, are refused in one sentence."""
    known = target_trajectories(4), target_trajectories(4, first=500)
    sliding = dataclasses.replace(tiny_draft(), model=tiny_model("gemma3_text"))
    with pytest.raises(HarnessError, match="parallel drafting of 'gemma3_text'"):
        train_parallel(sliding, known[0], settings(), validation=known[1], out=tmp_path)
    for section, name in (({"adapt": {"mine": True}}, "adapt.mine"), ({"lora": {"dora": True}}, "lora.dora")):
        with pytest.raises(ValueError, match=f"parallel.k goes without {name}"):
            settings(**section)
