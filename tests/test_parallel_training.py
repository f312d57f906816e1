"""Training of masks: torch computes what mlx decodes, gradients are right, acceptance rises, a resumed run is the uninterrupted one."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
from adapting import VOCAB, quick_config, target_trajectories, tiny_draft
from masks import random_masks

from harness.adapt.adapters.folder import read_info
from harness.adapt.training.examples import Example, from_trajectory
from harness.adapt.training.parallel import train_parallel
from harness.adapt.training.parallel_step import Groups, ParallelStep, plan_groups
from harness.adapt.training_config import TrainingConfig
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.parallel import parallel_drafter
from harness.decode.parallel_replay import parallel_passes
from harness.decode.simulate import simulate_runs
from harness.models.mlx_names import mx, tree_flatten, tree_map
from harness.models.opened import hidden_states
from harness.models.parallel import with_masks

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
    kept = np.arange(0, VOCAB, 2)
    draft = tiny_draft(token_map=kept if kind == "own head" else None)
    return draft if kind == "llama" else dataclasses.replace(draft, vocab=tuple(kept.tolist()))


def example(index: int = 0) -> Example:
    """An answer of 16 tokens."""
    return from_trajectory(target_trajectories(1, first=index)[0])


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


@pytest.mark.parametrize("kind", ["llama", "qwen2", "own head"])
def test_torch_trains_what_mlx_decodes(kind: str) -> None:
    """States of every mask of an answer are those of a decoding pass that ends with it: a mask off by one would show."""
    import torch

    draft, known = draft_of(kind), example()
    weights = random_masks(draft.model, K - 1)
    groups = plan_groups(known, K - 1, 0.8, np.random.default_rng(0))
    step = ParallelStep(draft, settings(), torch.float32)
    ours = step.states(known, groups, {name: np.array(w) for name, w in weights.items()})
    masked = with_masks(draft, weights, 1.0)
    off = 0
    for start in np.unique(groups.starts):
        rows = np.flatnonzero(groups.starts == start)
        with masked.gate.of(len(rows)):
            tokens = [*known.tokens[:start].tolist(), *[0] * len(rows)]
            theirs = np.array(hidden_states(masked.draft.model, mx.array([tokens]))[0, -len(rows) :])
        np.testing.assert_allclose(ours[rows], theirs, rtol=2e-3, atol=2e-4)
        off += np.abs(ours[rows] - np.roll(theirs, 1, axis=0)).max() > 0.1
    assert off > 3, "neighbouring masks must differ, or the comparison could not fail"


@pytest.mark.parametrize("kind", ["llama", "own head", "restricted"])
def test_gradients_are_the_slope_of_the_loss(kind: str) -> None:
    """Along a random direction, in float32."""
    import torch

    draft, known = draft_of(kind), example()
    rng = np.random.default_rng(1)
    weights = random_masks(draft.model, K - 1, size=0.3)
    step = ParallelStep(draft, settings(loss={"kind": "mix", "weights": {"ce": 0.4, "forward_kl": 0.6}}), torch.float32)
    lesson = step.vocab.lesson(known, plan_groups(known, K - 1, 0.8, rng))
    _, gradients = step(lesson, 0.1, weights)
    direction = {name: rng.normal(0, 1, w.shape).astype(np.float32) for name, w in weights.items()}
    slope = sum(float((np.array(gradients[name]) * d).sum()) for name, d in direction.items())
    size = 1e-3
    ends = [step(lesson, 0.1, {name: w + sign * size * mx.array(direction[name]) for name, w in weights.items()})[0] for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(slope, rel=0.03, abs=1e-3)


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
    draft = draft_of(kind)
    for layer in draft.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)
    if kind == "own head":
        draft.model.lm_head.weight = draft.model.model.embed_tokens.weight[draft.token_map]
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
@pytest.mark.parametrize("kind", ["llama", "own head"])
def test_training_raises_what_stands(tmp_path: Path, kind: str) -> None:
    """From the one token that the draft knows to more of them, on held-out answers; the folder decodes so, the draft stays as it was."""
    draft, data = copying(kind), (repeated(24, 1), repeated(8, 2))
    before = {n: np.array(a).tobytes() for n, a in tree_flatten(draft.model.parameters())}
    config = settings(optim={"learning_rate": 0.02, "epochs": 3}, lora={"rank": 8, "scale": 2.0})
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

    config, data = settings(optim={"epochs": 2, "learning_rate": 0.02}, stop={"every": 3}), repeated(24, 1)
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
    """Quantised weights and settings of other adapters are refused in one sentence."""
    answers = target_trajectories(4), target_trajectories(4, first=500)
    with pytest.raises(HarnessError, match="weights are quantised"):
        train_parallel(tiny_draft(quantised="affine 8"), answers[0], settings(), validation=answers[1], out=tmp_path)
    for section, name in (({"adapt": {"mine": True}}, "adapt.mine"), ({"lora": {"dora": True}}, "lora.dora")):
        with pytest.raises(ValueError, match=f"parallel.k goes without {name}"):
            settings(**section)
