"""The trainer: acceptance rises, shortcuts do not change the mathematics, a kill loses nothing, the base stays whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
from adapting import VOCAB, difference, forward, quick_config, target_trajectories, tiny_draft, tiny_llama
from scipy.special import softmax

from harness.adapt.adapters.surface import adapter_weights, attached, check_surface, head, run_blocks
from harness.adapt.training.examples import data_hash, epoch_batches, from_trajectory, make_batch, truncate
from harness.adapt.training.hidden import PrefixCache, fill
from harness.adapt.training.judged import Course
from harness.adapt.training.loop import learning_rate
from harness.adapt.training.losses import weighted_loss
from harness.adapt.training.measure import acceptance, favourites, output_hidden
from harness.adapt.training.trainer import _Run, train_adapter
from harness.core import stats
from harness.core.errors import HarnessError
from harness.decode.replay import replay_model
from harness.models.mlx_names import mx, nn, tree_flatten

TRAIN = 48
LORA = {"rank": 8, "scale": 2.0, "num_layers": 2}


@pytest.fixture
def data() -> tuple[Any, Any]:
    return target_trajectories(TRAIN), target_trajectories(24, first=500)


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in mx.load(str(folder / "adapters.safetensors")).items()}


def state_of(model: Any) -> dict[str, bytes]:
    return {name: np.array(array).tobytes() for name, array in tree_flatten(model.parameters())}


@pytest.mark.parametrize("quantised", ["", "affine 8"])
def test_training_raises_replayed_acceptance(tmp_path: Path, data: Any, quantised: str) -> None:
    """The purpose of it all, checked by the independent replay of the decode package; the base is bit for bit what it was."""
    draft = tiny_draft(quantised=quantised)
    before = state_of(draft.model)
    result = train_adapter(draft, data[0], quick_config(), validation=data[1], out=tmp_path / "a", cache_folder=tmp_path / "h")
    assert result.accepted
    assert result.after.value > result.before.value + 0.03
    assert state_of(draft.model) == before
    alphas = []
    for adapted in (False, True):
        if adapted:
            from mlx_lm.tuner.utils import load_adapters

            load_adapters(draft.model, str(tmp_path / "a"))  # mlx-lm reads what we wrote
            draft.model.eval()
        rows = replay_model("x", draft.model, None, data[1], [3])
        accepted, rejected = sum(r.accepted for r in rows), sum(r.rejected for r in rows)
        alphas.append(accepted / (accepted + rejected))
    assert alphas == pytest.approx([result.before.value, result.after.value], abs=1e-9)


def test_pruned_vocabulary(tmp_path: Path, data: Any) -> None:
    """A draft with a pruned head trains on the positions it can produce and counts the others as misses."""
    kept = np.arange(0, VOCAB, 2)
    draft = tiny_draft(token_map=kept)
    result = train_adapter(draft, data[0], quick_config(), validation=data[1], out=tmp_path / "a", cache_folder=tmp_path / "h")
    assert result.accepted
    inverse = np.full(VOCAB, -1, dtype=np.int32)
    inverse[kept] = np.arange(len(kept))
    examples = [from_trajectory(t) for t in data[1]]
    found = favourites(draft, PrefixCache(draft.model, 0, folder=None, model_hash=""), examples, confidence=True)
    for example, (proposed, p) in zip(examples, found, strict=True):
        logits = forward(draft.model, example.tokens[:-1])[example.start - 1 :]
        assert (proposed == kept[logits.argmax(-1)]).all()
        wrong = proposed != example.answer
        assert p[wrong] == pytest.approx(softmax(logits, axis=-1).max(-1)[wrong], abs=1e-5)
        assert np.isnan(p[~wrong]).all()
        assert wrong.any()
        assert not (proposed % 2 == 1).any()
    batch = make_batch(examples[:2], inverse)
    assert (batch.labels >= 0).all()
    assert (batch.top_p.sum(axis=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("own_head", [False, True])
def test_measured_acceptance_is_that_of_the_head_that_decodes(data: Any, own_head: bool) -> None:
    """A head that follows the prompt must be scored by training as replay scores it, or rounds are judged by another draft."""
    kept = np.arange(0, VOCAB, 2)
    draft = tiny_draft(token_map=kept if own_head else None)
    draft.vocab = tuple(kept.tolist())
    examples = [from_trajectory(t) for t in data[1]]
    counts = acceptance(draft, PrefixCache(draft.model, 0, folder=None, model_hash=""), examples, 3)
    rows = replay_model("x", *draft.proposer, data[1], [3])
    assert [(c.accepted, c.drafted) for c in counts["code"]] == [(r.accepted, r.drafted) for r in rows]
    proposed = np.concatenate([p for p, _ in favourites(draft, PrefixCache(draft.model, 0, folder=None, model_hash=""), examples)])
    assert (proposed % 2 == 1).any(), "tokens of the prompt are proposed though the fixed head lacks them"


def gradients(draft: Any, cached: bool, folder: Path, spoil: Any = None) -> dict[str, np.ndarray]:
    """Gradients of one batch, by the trainer's parts, or by one plain pass over model, mask and all."""
    examples = [from_trajectory(t) for t in (*target_trajectories(3), *target_trajectories(3, answer=9, first=50))]
    batch = make_batch(examples)
    arrays = [mx.array(a) for a in (batch.labels, batch.weights, batch.top_tokens, batch.top_p)]
    parts = {"ce": 0.5, "forward_kl": 0.5}
    mx.random.seed(3)
    with attached(draft.model, quick_config(lora=LORA).lora):
        mx.random.seed(4)
        draft.model.load_weights([(n, mx.random.normal(a.shape) * 0.1) for n, a in adapter_weights(draft.model).items()], strict=False)
        if cached:
            cache = PrefixCache(draft.model, 1, folder=folder, model_hash="x", dtype="float32")
            fill(cache, examples)
            assert fill(cache, examples) == 0
            prefix = cache.batch(batch)
            if spoil is not None:
                prefix = spoil(prefix)

            def loss() -> mx.array:
                return weighted_loss(head(draft.model, output_hidden(cache, batch, prefix=prefix)), *arrays, parts)
        else:

            def loss() -> mx.array:
                logits = draft.model(mx.array(batch.tokens))
                return weighted_loss(logits.reshape(-1, VOCAB)[mx.array(batch.rows)], *arrays, parts)

        _, grads = nn.value_and_grad(draft.model, loss)()
        return {name: np.array(g) for name, g in tree_flatten(grads)}


def test_cached_prefix_has_the_gradients_of_the_full_pass(tmp_path: Path) -> None:
    """The shortcut must not change the mathematics; a wrong prefix must show, or the test proves nothing."""
    plain = gradients(tiny_draft(), False, tmp_path)
    assert difference(plain, gradients(tiny_draft(), True, tmp_path)) < 1e-4
    assert difference(plain, gradients(tiny_draft(), True, tmp_path, spoil=lambda h: mx.roll(h, 1, axis=1))) > 1e-2


@pytest.mark.parametrize(("corrected", "size"), [(False, 0.1 / 0.001**0.5), (True, 1.0)])
def test_bias_correction(tmp_path: Path, data: Any, corrected: bool, size: float) -> None:
    """Adam's first update is the rate itself in every weight when its moments are corrected, and three times that when not."""
    draft, rate = tiny_draft(), 1e-3
    optimisation = {"learning_rate": rate, "warmup_steps": 0, "clip_norm": 0.0, "bias_correction": corrected}
    config, examples = quick_config(optim=optimisation), [from_trajectory(t) for t in data[0][:8]]
    with attached(draft.model, config.lora):
        course = Course(draft=draft, train=examples, held_out=examples[:1], config=config, domain=None, out=tmp_path)
        run = _Run(course, tmp_path / "h")
        run.update()
        changed = [float(mx.abs(a).max().item()) for n, a in adapter_weights(draft.model).items() if n.endswith("lora_b")]
    assert changed == pytest.approx([size * rate] * len(changed), rel=0.01)


def test_padding_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding on the right is invisible; blocks run without a causal mask are caught before training."""
    draft = tiny_draft()
    short, long = from_trajectory(target_trajectories(1, answer=6)[0]), from_trajectory(target_trajectories(2)[1])
    cache = PrefixCache(draft.model, 0, folder=None, model_hash="")
    alone = np.array(head(draft.model, output_hidden(cache, make_batch([short]))))
    together = np.array(head(draft.model, output_hidden(cache, make_batch([short, long]))))[: len(alone)]
    np.testing.assert_allclose(alone, together, atol=1e-4)
    check_surface(draft.model)
    import harness.adapt.adapters.surface as surface

    def unmasked(blocks: list[Any], hidden: mx.array) -> mx.array:
        for block in blocks:
            hidden = block(hidden, None, None)
        return hidden

    monkeypatch.setattr(surface, "run_blocks", unmasked)
    with pytest.raises(HarnessError, match="block by block"):
        check_surface(draft.model)


def test_cache_keeps_the_loss_curve(tmp_path: Path, data: Any) -> None:
    """float32 states equal training without the cache to 1e-3 in every update's loss; float16 stays near."""
    curves = {}
    for label, cache in {"none": {"enabled": False}, "f32": {"dtype": "float32"}, "f16": {"dtype": "float16"}}.items():
        config = quick_config(lora=LORA, cache=cache).replace(optim={"epochs": 2})
        out = tmp_path / label
        curves[label] = np.array(
            train_adapter(tiny_draft(), data[0], config, validation=data[1], out=out, cache_folder=tmp_path / "h").losses
        )
    assert np.abs(curves["f32"] - curves["none"]).max() < 1e-3
    assert np.abs(curves["f16"] - curves["none"]).max() < 5e-2
    assert len(list((tmp_path / "h").glob("*/*.npy"))) == 2 * (TRAIN + 24)


def test_loss_curve_equals_mlx_lm(tmp_path: Path, data: Any) -> None:
    """Plain cross-entropy, same batches, same start: our losses are mlx-lm's own."""
    from mlx_lm.tuner.trainer import default_loss

    from harness.models.mlx_names import optim

    config = quick_config(lora=LORA, loss={"kind": "ce"}).replace(
        optim={"epochs": 2, "learning_rate": 0.003, "warmup_steps": 0, "final_fraction": 1.0, "clip_norm": 0.0}
    )
    ours = train_adapter(tiny_draft(), data[0], config, validation=data[1], out=tmp_path / "a", cache_folder=tmp_path / "h").losses
    draft = tiny_draft()
    theirs = []
    mx.random.seed(0)
    with attached(draft.model, config.lora):
        draft.model.train()
        optimiser = optim.AdamW(learning_rate=0.003, weight_decay=0.0)
        step = nn.value_and_grad(draft.model, default_loss)
        for epoch in range(2):
            for group in epoch_batches([from_trajectory(t) for t in data[0]], 8, seed=0, epoch=epoch):
                tokens = mx.array(np.stack([e.tokens for e in group]))
                spans = mx.array([[e.start, len(e.tokens)] for e in group])
                (loss, _), grads = step(draft.model, tokens, spans)
                optimiser.update(draft.model, grads)
                theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_memory_savers_change_nothing(tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient checkpointing, accumulation and logits in pieces only trade time for memory: the losses stay."""
    base = quick_config(lora=LORA).replace(optim={"max_steps": 4, "batch_size": 48})
    losses = []
    for label, change in {"a": {}, "b": {"gradient_checkpointing": True}, "c": {"batch_size": 8, "accumulate": 6}}.items():
        out = tmp_path / label
        config = base.replace(optim=change)
        losses.append(train_adapter(tiny_draft(), data[0], config, validation=data[1], out=out, cache_folder=tmp_path / "h").losses)
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], atol=1e-4)
    monkeypatch.setattr("harness.adapt.training.losses.LOGIT_BYTES", 4 * VOCAB * 100)  # 100 of 768 rows at a time
    common: dict[str, Any] = {"validation": data[1], "cache_folder": tmp_path / "h"}
    np.testing.assert_allclose(train_adapter(tiny_draft(), data[0], base, out=tmp_path / "d", **common).losses, losses[0], atol=1e-4)


def test_a_useless_round_is_rejected_and_the_old_adapter_stays(tmp_path: Path, data: Any) -> None:
    """A learning rate of practically nothing cannot gain: the adapter already in the folder must survive."""
    out = tmp_path / "a"
    common: dict[str, Any] = {"validation": data[1], "out": out, "cache_folder": tmp_path / "h"}
    first = train_adapter(tiny_draft(), data[0], quick_config(), **common)
    kept = (out / "adapters.safetensors").read_bytes()
    idle = quick_config(optim={"learning_rate": 1e-12, "max_steps": 10})
    second = train_adapter(tiny_draft(), data[0], idle, start=out, **common)
    assert first.accepted
    assert not second.accepted
    assert second.adapter is None
    assert second.before.value == pytest.approx(first.after.value)
    assert (out / "adapters.safetensors").read_bytes() == kept


def test_gain_has_an_interval_and_noise_can_be_refused(tmp_path: Path, data: Any) -> None:
    """The interval is the paired one over validation prompts, of independent replays; with ``beyond_noise`` only its lower end counts."""
    held_out = target_trajectories(120, first=500)
    common: dict[str, Any] = {"validation": held_out, "cache_folder": tmp_path / "h"}
    result = train_adapter(tiny_draft(), data[0], quick_config(), out=tmp_path / "a", **common)
    draft, sides = tiny_draft(), []
    for _ in range(2):
        rows = sorted(replay_model("x", draft.model, None, held_out, [3]), key=lambda r: r.sample_id)
        sides.append(([r.accepted for r in rows], [r.accepted + r.rejected for r in rows]))
        from mlx_lm.tuner.utils import load_adapters

        load_adapters(draft.model, str(tmp_path / "a"))
        draft.model.eval()
    expected = stats.difference(sides[1], sides[0])
    assert result.gain is not None
    assert expected is not None
    assert result.gain.value == pytest.approx(expected.value) == pytest.approx(result.after.value - result.before.value)
    assert (result.gain.n, result.gain.low is not None) == (120, True)
    low = result.gain.low or 0.0
    assert 0 < low < result.gain.value
    between = (low + result.gain.value) / 2
    for stop, kept in (({"min_gain": between}, True), ({"min_gain": between, "beyond_noise": True}, False), ({"beyond_noise": True}, True)):
        again = train_adapter(tiny_draft(), data[0], quick_config().replace(stop=stop), out=tmp_path / "b", **common)
        assert again.accepted is kept
        assert again.gain is not None
        assert again.gain.value == pytest.approx(result.gain.value)
    few = {**common, "validation": held_out[:4]}
    with pytest.raises(HarnessError, match="needs 5 validation prompts"):
        train_adapter(tiny_draft(), data[0], quick_config().replace(stop={"beyond_noise": True}), out=tmp_path / "c", **few)


def test_early_stop_and_guard(tmp_path: Path, data: Any) -> None:
    """Training ends after ``patience`` evaluations without a gain; a checkpoint that hurts a guarded domain is never the best."""
    idle = quick_config(optim={"learning_rate": 1e-12}, stop={"every": 2, "patience": 3})
    result = train_adapter(tiny_draft(), data[0], idle, validation=data[1], out=tmp_path / "a", cache_folder=tmp_path / "h")
    assert result.steps == 6
    other = list(target_trajectories(12, first=900, domain="math"))
    draft = tiny_draft(noise=0.0)  # perfect at the start: any change can only hurt
    spoiled, held = (
        [dataclasses.replace(t, tokens=tuple((x + 7) % VOCAB for x in t.tokens), top_tokens=None, top_logprobs=None) for t in part]
        for part in data
    )
    free = quick_config(optim={"epochs": 2})
    common: dict[str, Any] = {"validation": [*held, *other], "domain": "code", "cache_folder": tmp_path / "h"}
    assert train_adapter(draft, spoiled, free, out=tmp_path / "b", **common).accepted
    guarded = train_adapter(draft, spoiled, free.replace(stop={"guard_drop": 0.0}), out=tmp_path / "c", **common)
    assert guarded.after.by_domain["math"].value("alpha") == 1.0


def test_resumed_equals_uninterrupted(tmp_path: Path, data: Any) -> None:
    """Stopping at any update and resuming gives the same bits, dropout included."""
    config = quick_config(lora={**LORA, "dropout": 0.1}).replace(optim={"epochs": 3})
    whole = train_adapter(tiny_draft(), data[0], config, validation=data[1], out=tmp_path / "a", cache_folder=tmp_path / "h")

    class Stop(Exception):
        pass

    for at in (4, 7):

        def interrupt(progress: Any, at: int = at) -> None:
            if progress.step == at:
                raise Stop

        with pytest.raises(Stop):
            train_adapter(
                tiny_draft(), data[0], config, validation=data[1], out=tmp_path / "b", resume=True, progress=interrupt,
                cache_folder=tmp_path / "h2",
            )  # fmt: skip
    resumed = train_adapter(
        tiny_draft(), data[0], config, validation=data[1], out=tmp_path / "b", resume=True, cache_folder=tmp_path / "h2"
    )
    assert resumed.losses == whole.losses
    assert resumed.evaluations == whole.evaluations
    ours, theirs = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all((ours[n] == theirs[n]).all() for n in ours | theirs)


def train_in(out: Path) -> None:
    """A training that may be killed and called again; the losses of all its updates go into a file."""
    config = quick_config(lora=LORA).replace(optim={"epochs": 6}, checkpoint_every=1)
    material: dict[str, Any] = {"validation": target_trajectories(24, first=500), "cache_folder": out / "h"}
    result = train_adapter(tiny_draft(), target_trajectories(TRAIN), config, out=out / "a", resume=True, **material)
    (out / "losses").write_text(repr(result.losses))


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_and_resume(tmp_path: Path, kills: int) -> None:
    """kill -9 at random moments: the resumed run ends with the same bits as one never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done, wall_s = forks.finished(train_in, whole)
    assert done
    for moment in np.random.default_rng(5).uniform(0, wall_s, kills):
        if forks.finished(train_in, killed, kill_after_s=float(moment))[0]:
            break
    assert forks.finished(train_in, killed)[0]
    assert (killed / "losses").read_text() == (whole / "losses").read_text()
    ours, theirs = weights_of(whole / "a"), weights_of(killed / "a")
    assert all((ours[n] == theirs[n]).all() for n in ours | theirs)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path, data: Any) -> None:
    """Resuming with other settings would mix two runs."""

    def interrupt(progress: Any) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    common: dict[str, Any] = {"validation": data[1], "out": tmp_path / "a", "cache_folder": tmp_path / "h", "resume": True}
    with pytest.raises(KeyboardInterrupt):
        train_adapter(tiny_draft(), data[0], quick_config(), progress=interrupt, **common)
    with pytest.raises(HarnessError, match="other data, settings or models"):
        train_adapter(tiny_draft(), data[0], quick_config(optim={"learning_rate": 0.02}), **common)
    (tmp_path / "a/checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(HarnessError, match="cannot read"):
        train_adapter(tiny_draft(), data[0], quick_config(), **common)


def test_bad_input_is_refused(tmp_path: Path, data: Any) -> None:
    """Nothing to train on, validation prompts among the training prompts, unknown layers and keys: refused with a reason."""
    common: dict[str, Any] = {"out": tmp_path / "a", "cache_folder": tmp_path / "h"}
    with pytest.raises(HarnessError, match="nothing to train on"):
        train_adapter(tiny_draft(), [], quick_config(), validation=data[1], **common)
    with pytest.raises(HarnessError, match="nothing to validate on"):
        train_adapter(tiny_draft(), data[0], quick_config(), validation=[], **common)
    with pytest.raises(HarnessError, match="is training prompt"):
        train_adapter(tiny_draft(), data[0], quick_config(), validation=data[0][:1], **common)
    with pytest.raises(HarnessError, match="has 3 layers"):
        train_adapter(tiny_draft(), data[0], quick_config(lora={"num_layers": 9}), validation=data[1], **common)
    with pytest.raises(HarnessError, match="no linear layer"):
        train_adapter(tiny_draft(), data[0], quick_config(lora={"keys": ["self_attn.qq"]}), validation=data[1], **common)
    with pytest.raises(HarnessError, match="no validation trajectory of domain"):
        train_adapter(tiny_draft(), data[0], quick_config(), validation=data[1], domain="math", **common)


def test_metadata(tmp_path: Path, data: Any) -> None:
    """The folder says what it belongs to and what it was trained on."""
    result = train_adapter(
        tiny_draft(), data[0], quick_config(), validation=data[1], out=tmp_path / "a", domain="code", cache_folder=tmp_path / "h"
    )
    row = json.loads((tmp_path / "a/metadata.json").read_text())
    assert row["draft_hash"] == tiny_draft().hash
    assert row["data_hash"] == data_hash([from_trajectory(t) for t in data[0]])
    assert (row["domain"], row["rank"], row["examples"]) == ("code", 8, TRAIN)
    assert row["after"]["code"] == result.after.value > row["before"]["code"]
    assert not (tmp_path / "a/checkpoint.safetensors").exists()


def test_damaged_cache_file_is_computed_again(tmp_path: Path) -> None:
    """A torn file in the hidden-state cache must not reach training; neither must one of another length."""
    draft, example = tiny_draft(), from_trajectory(target_trajectories(1)[0])
    cache = PrefixCache(draft.model, 2, folder=tmp_path, model_hash="x", dtype="float32")
    good = np.array(cache.states(example))
    path = next(tmp_path.glob("*/*.npy"))
    expected = run_blocks(list(draft.model.layers[:2]), draft.model.model.embed_tokens(mx.array(example.tokens[None, :-1])))[0]
    np.testing.assert_allclose(good, np.array(expected), atol=1e-5)
    for damage in (path.read_bytes()[:100], b"", b"junk"):
        path.write_bytes(damage)
        assert (np.array(cache.states(example)) == good).all()
    np.save(path, good[:-1])
    assert (np.array(cache.states(example)) == good).all()
    full = PrefixCache(draft.model, 2, folder=tmp_path / "none", model_hash="x", budget_bytes=10)
    full.states(example)
    assert not list((tmp_path / "none").glob("*/*.npy"))


def test_schedule_truncation_and_order() -> None:
    """Warm-up rises from above zero to the peak, then cosine; long examples lose their tail; the order depends on the seed alone."""
    optimisation = quick_config(optim={"learning_rate": 1.0 - 1e-9, "warmup_steps": 4, "final_fraction": 0.1}).optim
    rates = [learning_rate(optimisation, s, 20) for s in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert 0.1 <= rates[-1] < 0.12
    example = from_trajectory(target_trajectories(1)[0])
    cut = truncate(example, 8)
    assert cut is not None
    assert (len(cut.answer), cut.max_tokens, len(cut.top_p)) == (3, 3, 3)
    assert truncate(example, 5) is None
    examples = [from_trajectory(t) for t in target_trajectories(20)]
    orders = [[e.id for b in epoch_batches(examples, 4, seed=s, epoch=e) for e in b] for s, e in ((0, 0), (0, 0), (0, 1))]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_sliding_window_is_refused() -> None:
    """A causal mask over everything would be the wrong mask for such a draft."""
    model = tiny_llama(0)
    model.model.layers[1].use_sliding = True
    with pytest.raises(HarnessError, match="sliding"):
        check_surface(model)


def test_cut_of_a_target(tmp_path: Path, data: Any) -> None:
    """The project's own cut: LoRA fits it, the embeddings it shares with the target stay as they are, the fast path is its forward pass."""

    from harness.models.cut import CutModel

    target = tiny_llama(0)
    before = state_of(target)
    kept = mx.array(np.arange(0, VOCAB - 8, dtype=np.int32))
    cut = CutModel(target, 2, len(kept))
    cut.model.layers = tiny_llama(0, noise=0.3).model.layers[:2]
    cut.lm_head.weight = target.model.embed_tokens.weight[kept]
    check_surface(cut)
    from harness.models.draft import Draft

    draft = Draft(model=cut, token_map=kept, hash="cut", name="cut")
    config = quick_config(lora={"rank": 4, "num_layers": 1})
    result = train_adapter(draft, data[0], config, validation=data[1], out=tmp_path / "a", cache_folder=tmp_path / "h")
    assert result.accepted
    assert state_of(target) == before
