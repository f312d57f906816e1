"""PEFT exchange: the round trip is exact, and the numbers are PEFT's own formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapting import forward, tiny_draft
from test_adapters import TOKENS, random_adapter

from harness.adapt.adapters.peft import export_peft, import_peft
from harness.adapt.training.bank import AdapterBank
from harness.core.errors import HarnessError
from harness.models.mlx_names import mx


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


def write_peft(folder: Path, arrays: dict[str, np.ndarray], **config: object) -> None:
    """A PEFT folder; ``arrays`` are named below ``base_model.model.model.layers``."""
    folder.mkdir()
    stored = {f"base_model.model.model.layers.{name}": mx.array(a) for name, a in arrays.items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), stored)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}))


def lora_arrays(rank: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """A and B of two layers' v_proj (32 -> 16)."""
    rng = np.random.default_rng(seed)
    shapes = {f"{i}.self_attn.v_proj.lora_{n}.weight": s for i in (0, 2) for n, s in (("A", (rank, 32)), ("B", (16, rank)))}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({}, 4, 2.0),
        ({"use_rslora": True}, 4, 4.0),
        ({"rank_pattern": {"v_proj": 4}, "alpha_pattern": {}}, 4, 2.0),
        ({"rank_pattern": {"self_attn.v_proj": 2}}, 2, 4.0),
        ({"r": 8, "rank_pattern": {"v_proj": 4}, "alpha_pattern": {"v_proj": 2}}, 4, 0.5),
        ({"rank_pattern": {"0.self_attn.v_proj": 4}, "alpha_pattern": {"roj": 1}}, 4, 2.0),
        ({"init_lora_weights": "gaussian", "bias": "none", "modules_to_save": None, "loftq_config": {}, "peft_version": "0.17"}, 4, 2.0),
        ({"layers_to_transform": [2, 0], "layers_pattern": "layers", "megatron_core": "megatron.core", "lora_bias": False}, 4, 2.0),
    ],
)
def test_what_is_accepted_gives_the_logits_of_pefts_formula(tmp_path: Path, config: dict, rank: int, scale: float) -> None:
    """W + scale * B A put into the weights by hand gives the same logits as the imported adapter."""
    draft, arrays = tiny_draft(), lora_arrays(rank)
    write_peft(tmp_path / "peft", arrays, **config)
    import_peft(tmp_path / "peft", tmp_path / "b", draft)
    bank = AdapterBank(draft, {"b": tmp_path / "b"})
    bank.activate("b")
    imported = forward(draft.model, TOKENS)
    bank.activate(None)
    plain = forward(draft.model, TOKENS)
    for i in (0, 2):
        layer, name = draft.model.model.layers[i].self_attn.v_proj, f"{i}.self_attn.v_proj.lora_"
        layer.weight = layer.weight + mx.array(scale * arrays[f"{name}B.weight"] @ arrays[f"{name}A.weight"])
    np.testing.assert_allclose(imported, forward(draft.model, TOKENS), atol=1e-4)
    assert np.abs(imported - plain).max() > 0.1


def test_dora_follows_its_formula(tmp_path: Path) -> None:
    """DoRA is m * (W + s B A) / |W + s B A|, the norm over each output row."""
    draft, arrays = tiny_draft(), lora_arrays()
    arrays |= {f"{i}.self_attn.v_proj.lora_magnitude_vector": np.random.default_rng(i).uniform(1, 3, 16).astype(np.float32) for i in (0, 2)}
    write_peft(tmp_path / "peft", arrays, use_dora=True)
    import_peft(tmp_path / "peft", tmp_path / "b", draft)
    bank = AdapterBank(draft, {"b": tmp_path / "b"})
    bank.activate("b")
    imported = forward(draft.model, TOKENS)
    bank.activate(None)
    for i in (0, 2):
        layer, name = draft.model.model.layers[i].self_attn.v_proj, f"{i}.self_attn.v_proj.lora_"
        moved = np.array(layer.weight) + 2.0 * arrays[f"{name}B.weight"] @ arrays[f"{name}A.weight"]
        layer.weight = mx.array(arrays[f"{name}magnitude_vector"][:, None] * moved / np.linalg.norm(moved, axis=1, keepdims=True))
    np.testing.assert_allclose(imported, forward(draft.model, TOKENS), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"peft_type": kind}, str(kind)) for kind in ("IA3", "VERA", "ADALORA", "LOHA", None, ["LORA"])),
        *(({"bias": value}, "bias") for value in ("all", "lora_only", True, 1)),
        *(
            ({"init_lora_weights": v}, "init_lora_weights")
            for v in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", 1, {})
        ),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"an_option_of_tomorrow": 0.5}, "an_option_of_tomorrow"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
        ({"rank_pattern": {"v_proj": 2}}, "rank_pattern"),
        ({"rank_pattern": {"(v|v)*_proj": 2}}, "rank_pattern"),
        ({"rank_pattern": [4]}, "rank_pattern"),
        ({"alpha_pattern": {"0.self_attn.v_proj": 2}}, "alpha_pattern"),
        *(({"r": value}, " r = ") for value in (0, -4, 4.0, "4", True, None, 10**9)),
        ({"r": 8}, "rank 8"),
        *(({"lora_alpha": value}, "lora_alpha") for value in (None, 0, -1, "16", True, [8], 1e300)),
        *(({"lora_dropout": value}, "lora_dropout") for value in (1, -0.1, "0", None)),
        *(({flag: value}, flag) for flag in ("use_dora", "use_rslora") for value in (1, "true", None)),
        ({"use_dora": True}, "matrices A and B"),
    ],
)
def test_options_that_would_change_the_logits_are_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    """Whatever is not computed here is named in one sentence; nothing is written."""
    write_peft(tmp_path / "peft", lora_arrays(), **change)
    with pytest.raises(HarnessError, match=message) as caught:
        import_peft(tmp_path / "peft", tmp_path / "b", tiny_draft())
    assert "\n" not in caught.value.problem
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.self_attn.v_proj.lora_A.weight": None}, "matrices A and B"),
        ({"0.self_attn.v_proj.lora_magnitude_vector": np.ones(16, np.float32)}, "matrices A and B"),
        ({"0.self_attn.v_proj.lora_embedding_A": np.ones((4, 32), np.float32)}, "not a LoRA"),
        ({"0.self_attn.v_proj.lora_A.weight": np.full((4, 32), np.nan, np.float32)}, "not finite"),
        ({"0.self_attn.v_proj.lora_A.weight": np.ones((2, 32), np.float32)}, "rank"),
        ({"0.self_attn.v_proj.lora_A.weight": np.ones((4, 31), np.float32)}, "does not fit"),
        ({f"7.self_attn.v_proj.lora_{n}.weight": np.ones(s, np.float32) for n, s in (("A", (4, 32)), ("B", (16, 4)))}, "layer 7"),
        ({f"0.nothing.lora_{n}.weight": np.ones(s, np.float32) for n, s in (("A", (4, 32)), ("B", (16, 4)))}, "nothing"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_belong_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    """Half an update, a foreign array or a value that is no number would load without a word."""
    arrays = {name: array for name, array in {**lora_arrays(), **change}.items() if array is not None}
    write_peft(tmp_path / "peft", arrays)
    with pytest.raises(HarnessError, match=message):
        import_peft(tmp_path / "peft", tmp_path / "b", tiny_draft())


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
    with pytest.raises(HarnessError, match=r"cannot read .*adapter_model.safetensors"):
        import_peft(tmp_path / "peft", tmp_path / "b", draft)
    with pytest.raises(HarnessError, match=r"cannot read .*adapter_config.json"):
        import_peft(tmp_path, tmp_path / "b", draft)
