"""Training steps in torch: the gradients of mlx in float32, close to them in bfloat16, and only where they help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
from adapting import VOCAB, difference, quick_config, target_trajectories, tiny_draft

from harness.adapt.adapters.surface import adapter_weights, attached, head
from harness.adapt.training.examples import Batch, from_trajectory, make_batch
from harness.adapt.training.hidden import PrefixCache
from harness.adapt.training.losses import weighted_loss
from harness.adapt.training.material import inverse_ids
from harness.adapt.training.measure import output_hidden
from harness.adapt.training.torch_step import TorchStep, torch_step
from harness.adapt.training.trainer import train_adapter
from harness.adapt.training_config import TrainingConfig
from harness.answers import torch_llama
from harness.decode.replay import replay_model
from harness.models.mlx_names import mx, nn, tree_flatten, tree_map

SHARE = 0.1
ON_CPU = mx.default_device().type == mx.DeviceType.cpu


def draft_of(family: str) -> Any:
    """A tiny draft; the Qwen2 has biases that are not zero, the cut a head of its own that names every other token."""
    draft = tiny_draft(token_map=np.arange(0, VOCAB, 2) if family == "cut" else None)
    if family == "qwen2":
        draft.model = tiny_llama.make_qwen2()
        draft.model.update(tree_map(lambda w: w / 6 if w.ndim == 2 else w, draft.model.parameters()))
    return draft


def batch_of_two_lengths(draft: Any) -> Batch:
    """Six examples, half of them padded, with the top 8 tokens of the target, in the draft's ids."""
    examples = [from_trajectory(t) for t in (*target_trajectories(3), *target_trajectories(3, answer=9, first=50))]
    return make_batch(examples, inverse_ids(draft))


def both(draft: Any, config: TrainingConfig, dtype: Any, spoil: Any = None) -> tuple[tuple[float, dict], tuple[float, dict]]:
    """Loss and gradients of one batch in mlx and in torch, at random updates."""
    batch, depth = batch_of_two_lengths(draft), len(draft.model.layers) - (config.lora.num_layers if config.lora.num_layers > 0 else 3)
    step = TorchStep(draft.model, config, dtype)
    cache = PrefixCache(draft.model, depth, folder=None, model_hash="x", dtype="float32")
    arrays = [mx.array(a) for a in (batch.labels, batch.weights, batch.top_tokens, batch.top_p)]
    with attached(draft.model, config.lora):
        mx.random.seed(4)
        draft.model.load_weights([(n, mx.random.normal(a.shape) * 0.1) for n, a in adapter_weights(draft.model).items()], strict=False)
        prefix = cache.batch(batch)

        def loss() -> mx.array:
            return weighted_loss(head(draft.model, output_hidden(cache, batch, prefix=prefix)), *arrays, config.loss.parts()) * SHARE

        value, grads = nn.value_and_grad(draft.model, loss)()
        states = np.array(prefix) if depth else None
        if spoil is not None:
            states = spoil(states)
        found, own = step(batch, states, SHARE, adapter_weights(draft.model))
    return (value.item(), {n: np.array(g) for n, g in tree_flatten(grads)}), (found, {n: np.array(g) for n, g in own.items()})


@pytest.mark.parametrize("family", ["llama", "qwen2", "cut"])
@pytest.mark.parametrize(
    ("lora", "loss"),
    [
        ({"num_layers": 2}, {}),
        ({"num_layers": -1}, {"kind": "ce"}),
        ({"num_layers": 1, "keys": ["self_attn.k_proj", "mlp.up_proj"]}, {"kind": "reverse_kl"}),
        ({"num_layers": 2, "keys": ["self_attn.q_proj", "mlp.down_proj"]}, {"weights": {"ce": 0.2, "forward_kl": 0.3, "js": 0.5}}),
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
def test_gradients_are_those_of_mlx(family: str, lora: dict, loss: dict, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss, any set of layers, with the states below given or computed, and answers and logits in one piece or many."""
    import torch

    if pieces:
        monkeypatch.setattr("harness.adapt.training.losses.LOGIT_BYTES", 4 * VOCAB * 7)
        monkeypatch.setattr("harness.adapt.training.torch_step.TOKENS_AT_ONCE", 100)
    config = quick_config(lora={"rank": 4, **lora}, loss=loss)
    (value, grads), (found, own) = both(draft_of(family), config, torch.float32)
    assert found == pytest.approx(value, rel=1e-5)
    assert difference(grads, own) < 1e-3


def test_wrong_states_show() -> None:
    """The comparison can fail: states shifted by one position give other gradients."""
    import torch

    config = quick_config(lora={"rank": 4, "num_layers": 2})
    (_, grads), (_, own) = both(tiny_draft(), config, torch.float32, spoil=lambda h: np.roll(h, 1, axis=1))
    assert difference(grads, own) > 0.05


def test_bfloat16_points_the_same_way() -> None:
    """Rounded products disturb the gradient by little: the angle to the exact one is small."""
    import torch

    config = quick_config(lora={"rank": 4, "num_layers": 2})
    (value, grads), (found, own) = both(tiny_draft(), config, torch.bfloat16)
    assert found == pytest.approx(value, rel=0.01)
    exact, rounded = (np.concatenate([g[n].ravel() for n in sorted(g)]) for g in (grads, own))
    assert exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded) > 0.995


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_states_below_are_those_of_mlx(family: str) -> None:
    """What the cache keeps: equal in float32."""
    import torch

    draft = draft_of(family)
    step = TorchStep(draft.model, quick_config(lora={"num_layers": 1}), torch.float32)
    example = from_trajectory(target_trajectories(1)[0])
    cache = PrefixCache(draft.model, 2, folder=None, model_hash="x", dtype="float32")
    np.testing.assert_allclose(step.states(example.tokens[:-1]), cache.states(example), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("torch_stays_apart")
@pytest.mark.skipif(not ON_CPU, reason="torch computes only where mlx runs on a CPU")
def test_training_in_torch(tmp_path: Path) -> None:
    """Acceptance rises as replay counts it, the base stays whole, and the states are kept apart from mlx's."""
    draft = tiny_draft()
    before = {n: np.array(a).tobytes() for n, a in tree_flatten(draft.model.parameters())}
    config = quick_config(lora={"num_layers": 2}, optim={"backend": "auto"}, adapt={"mine": False})
    data = target_trajectories(48), target_trajectories(24, first=500)
    seen: list[Any] = []
    where = {"out": tmp_path / "a", "cache_folder": tmp_path / "h", "progress": seen.append}
    result = train_adapter(draft, data[0], config, validation=data[1], **where)
    assert result.accepted
    assert (seen[-1].value, seen[-1].best) == (result.evaluations[-1].value, result.after.value)
    assert result.after.value > result.before.value + 0.03
    assert {n: np.array(a).tobytes() for n, a in tree_flatten(draft.model.parameters())} == before
    folders = [len(list(folder.glob("*.npy"))) for folder in (tmp_path / "h").iterdir()]
    assert sorted(folders) == [24, 48], "validation states from mlx, training states from torch"
    from mlx_lm.tuner.utils import load_adapters

    load_adapters(draft.model, str(tmp_path / "a"))
    draft.model.eval()
    rows = replay_model("x", draft.model, None, data[1], [3])
    accepted, rejected = sum(r.accepted for r in rows), sum(r.rejected for r in rows)
    assert accepted / (accepted + rejected) == pytest.approx(result.after.value, abs=1e-9)


@pytest.mark.skipif(not ON_CPU, reason="torch computes only where mlx runs on a CPU")
def test_resumed_training_in_torch_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped after an update and continued: the same adapter, byte for byte."""

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == 7:
            raise Stop

    config = quick_config(lora={"num_layers": 2}, optim={"backend": "auto", "epochs": 2, "bias_correction": True}, adapt={"mine": False})
    data = target_trajectories(48), target_trajectories(24, first=500)
    whole = {"validation": data[1], "cache_folder": tmp_path / "h"}
    train_adapter(tiny_draft(), data[0], config, out=tmp_path / "a", **whole)
    with pytest.raises(Stop):
        train_adapter(tiny_draft(), data[0], config, out=tmp_path / "b", progress=stop, **whole)
    train_adapter(tiny_draft(), data[0], config, out=tmp_path / "b", resume=True, **whole)
    assert (tmp_path / "a" / "adapters.safetensors").read_bytes() == (tmp_path / "b" / "adapters.safetensors").read_bytes()


@pytest.mark.skipif(not ON_CPU, reason="torch computes only where mlx runs on a CPU")
def test_the_rest_stays_on_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the step does not cover, or has no memory for, is left to mlx without a word."""
    auto = quick_config(optim={"backend": "auto"})
    assert isinstance(torch_step(tiny_draft(), auto), TorchStep)
    assert torch_step(tiny_draft(), quick_config()) is None
    assert torch_step(tiny_draft(), auto.replace(lora={"dora": True})) is None
    assert torch_step(tiny_draft(), auto.replace(lora={"dropout": 0.1})) is None
    assert torch_step(tiny_draft(), auto.replace(optim={"gradient_checkpointing": True})) is None
    assert isinstance(torch_step(tiny_draft(token_map=np.arange(0, VOCAB, 2)), auto), TorchStep)
    assert torch_step(tiny_draft(quantised="affine 8"), auto) is None
    monkeypatch.setattr(torch_llama, "MEMORY_SHARE", 0.0)
    assert torch_step(tiny_draft(), auto) is None
