"""PEFT exchange: the round trip is exact, and the numbers are PEFT's own formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapting import forward, tiny_draft
from test_adapters import TOKENS, random_adapter

from harness.adapt.adapters import AdapterBank
from harness.adapt.peft import export_peft, import_peft
from harness.adapt.trees import mx
from harness.errors import HarnessError


@pytest.mark.parametrize(("layers", "dora", "keys"), [(2, False, None), (3, True, None), (1, False, ["self_attn.q_proj", "mlp.up_proj"])])
def test_round_trip(tmp_path: Path, layers: int, dora: bool, keys: list[str] | None) -> None:
    """Out and in again: the same logits to 1e-6."""
    draft = tiny_draft()
    random_adapter(tmp_path / "a", draft, 1, layers=layers, dora=dora, keys=keys)
    export_peft(tmp_path / "a", tmp_path / "peft", base_model="tiny")
    import_peft(tmp_path / "peft", tmp_path / "b", draft)
    bank = AdapterBank(draft, {n: tmp_path / n for n in "ab"})
    bank.activate("a")
    first = forward(draft.model, TOKENS)
    bank.activate("b")
    np.testing.assert_allclose(forward(draft.model, TOKENS), first, atol=1e-6)
    bank.activate(None)


def test_exported_numbers_follow_peft(tmp_path: Path) -> None:
    """PEFT computes y + alpha / r * B (A x), with A (r, in) and B (out, r): recomputed here with numpy from the exported file."""
    draft = tiny_draft()
    random_adapter(tmp_path / "a", draft, 1, layers=1, keys=["mlp.gate_proj"])
    export_peft(tmp_path / "a", tmp_path / "peft")
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    arrays = {n: np.array(a) for n, a in mx.load(str(tmp_path / "peft/adapter_model.safetensors")).items()}
    stem = "base_model.model.model.layers.2.mlp.gate_proj"
    assert sorted(arrays) == [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"]
    a, b = arrays[f"{stem}.lora_A.weight"], arrays[f"{stem}.lora_B.weight"]
    assert (a.shape, b.shape) == ((4, 32), (64, 4))
    assert (config["target_modules"], config["layers_to_transform"]) == (["gate_proj"], [2])
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    layer = draft.model.model.layers[2].mlp.gate_proj
    expected = x @ np.array(layer.weight).T + config["lora_alpha"] / config["r"] * (x @ a.T @ b.T)
    bank = AdapterBank(draft, {"a": tmp_path / "a"})
    bank.activate("a")
    np.testing.assert_allclose(np.array(draft.model.model.layers[2].mlp.gate_proj(mx.array(x))), expected, atol=1e-4)


def test_import_of_partial_and_rank_stabilised(tmp_path: Path) -> None:
    """An adapter of one middle layer with rsLoRA's scale: the other blocks must stay without effect."""
    draft = tiny_draft()
    rng = np.random.default_rng(0)
    stem = "base_model.model.model.layers.1.self_attn.v_proj"
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((4, 32), (16, 4)))
    (tmp_path / "peft").mkdir()
    arrays = {f"{stem}.lora_A.weight": mx.array(a), f"{stem}.lora_B.weight": mx.array(b)}
    mx.save_safetensors(str(tmp_path / "peft/adapter_model.safetensors"), arrays)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True}
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(config))
    import_peft(tmp_path / "peft", tmp_path / "b", draft)
    bank = AdapterBank(draft, {"b": tmp_path / "b"}, policy="fuse")
    bank.activate("b")
    fused = forward(draft.model, TOKENS)
    bank.activate(None)
    layer = draft.model.model.layers[1].self_attn.v_proj
    layer.weight = layer.weight + mx.array(8 / 2 * b @ a)
    np.testing.assert_allclose(fused, forward(draft.model, TOKENS), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_unsupported_options_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    """Options that would silently change the result are named."""
    draft = tiny_draft()
    random_adapter(tmp_path / "a", draft, 1)
    export_peft(tmp_path / "a", tmp_path / "peft")
    path = tmp_path / "peft/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(HarnessError, match=message):
        import_peft(tmp_path / "peft", tmp_path / "b", draft)


def test_pickled_wrong_and_missing_weights_are_refused(tmp_path: Path) -> None:
    """Only safetensors is read; shapes are checked against the draft."""
    draft = tiny_draft()
    random_adapter(tmp_path / "a", draft, 1, layers=3)
    export_peft(tmp_path / "a", tmp_path / "peft")
    with pytest.raises(HarnessError, match="fit"):
        import_peft(tmp_path / "peft", tmp_path / "b", tiny_draft(layers=2))
    weights = tmp_path / "peft/adapter_model.safetensors"
    weights.rename(tmp_path / "peft/adapter_model.bin")
    with pytest.raises(HarnessError, match="pickled"):
        import_peft(tmp_path / "peft", tmp_path / "b", draft)
    weights.write_bytes(b"junk")
    with pytest.raises(HarnessError, match="damaged"):
        import_peft(tmp_path / "peft", tmp_path / "b", draft)
    with pytest.raises(HarnessError, match="holds no PEFT adapter"):
        import_peft(tmp_path, tmp_path / "b", draft)
