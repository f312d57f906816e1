"""Folders whose layers are stored in different numbers of bits, as makers of small models write them, do all that others do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import forward, put_adapter
from tiny import write_model

from harness.adapt.training.bank import AdapterBank
from harness.core.records import Trajectory
from harness.decode.generation import generate
from harness.decode.making import DrafterOptions
from harness.decode.replay import replay
from harness.models import pair as pair_module

FORMS: dict[str, Any] = {
    "embed_tokens": {"group_size": 32, "bits": 8},
    "v_proj": False,
    "down_proj": {"group_size": 64, "bits": 6},
    "layers.0.": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "layers.1.": {"group_size": 32, "bits": 3},
}
"""Part of a layer's path to how it is stored, the first that fits; the others take 4 bits in groups of 64."""
TOKENS = [5, 9, 33, 7, 101]


def write_mixed(folder: Path, *, noise: float = 0.0) -> Any:
    """Write a model folder with these forms; return the same model in memory."""
    from mlx_lm.utils import load_model, quantize_model, save_model

    write_model(folder, noise=noise, hidden_size=64, intermediate_size=128)
    model, config = load_model(folder)

    def form(path: str, module: Any) -> Any:
        return next((form for part, form in FORMS.items() if part in path), True)

    model, config = quantize_model(model, config, group_size=64, bits=4, quant_predicate=form)
    for path, _ in model.named_modules():
        if path.endswith("v_proj"):
            config["quantization"][path] = False
    (folder / "model.safetensors").unlink()
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_a_pair_of_mixed_folders(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Target and draft are what was stored; drafting, replay, a smaller head, adapters and fusing give the target's answers."""
    loaded = pair_module.load_weights
    monkeypatch.setattr(pair_module, "load_weights", lambda folder, _, *more, **how: loaded(folder, dtype, *more, **how))
    models = [write_mixed(tmp_path / name, noise=noise) for name, noise in (("target", 0.0), ("draft", 0.05))]
    pair = pair_module.load_pair(f"{tmp_path}/target+{tmp_path}/draft")
    assert pair.draft is not None
    for ours, stored in zip((pair.target, pair.draft.model), models, strict=True):
        np.testing.assert_allclose(
            forward(ours, TOKENS), forward(stored, TOKENS), rtol=1e-2, atol=1e-2 * np.abs(forward(stored, TOKENS)).max()
        )
    put_adapter(tmp_path / "code", pair.draft)
    prompt = pair.encode("name three fruits")
    plain = generate(pair, prompt, drafter=None, max_tokens=24)
    answer = Trajectory(sample_id="a", domain="x", prompt_tokens=tuple(prompt), tokens=plain.tokens, finish=plain.finish, max_tokens=24)
    for options in (None, DrafterOptions(vocab=120)):
        (row,) = replay(pair, [answer], ["generic"], [3], options=options)
        real = generate(pair, prompt, k=3, max_tokens=24, options=options)
        assert real.tokens == plain.tokens
        assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)
        assert real.accepted > 0
    logits = {}
    for policy in ("unfused", "fuse", "cached"):
        bank = AdapterBank(pair.draft, {"code": tmp_path / "code"}, policy=policy)  # type: ignore[arg-type]
        adapted = generate(pair, prompt, drafter=bank.drafter("code"), k=3, max_tokens=24)
        assert adapted.tokens == plain.tokens
        logits[policy] = forward(pair.draft.model, TOKENS)
        bank.activate(None)
    for policy in ("fuse", "cached"):
        np.testing.assert_allclose(logits[policy], logits["unfused"], rtol=1e-2, atol=1e-2 * np.abs(logits["unfused"]).max())
    assert not np.allclose(forward(pair.draft.model, TOKENS), logits["unfused"], atol=1e-3)
    assert generate(pair, prompt, drafter="early_exit", max_tokens=24).tokens == plain.tokens
