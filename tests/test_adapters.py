"""Adapter bank: every policy gives the adapter's logits, nothing drifts, the base comes back bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import VOCAB, forward, quick_config, target_trajectories, tiny_draft

from harness.adapt.adapters.adapter_folder import AdapterInfo, adapter_folder, list_adapters, read_info, write_adapter
from harness.adapt.adapters.surface import adapted_layers, adapter_weights, attached
from harness.adapt.training import bank as bank_module
from harness.adapt.training.bank import AdapterBank, kept_rows, replay_bank
from harness.core.errors import HarnessError
from harness.decode.forced import length_batches
from harness.decode.replay import replay_model
from harness.models.mlx_names import mx, tree_flatten
from harness.models.tensors import save_arrays

TOKENS = list(range(12))


def random_adapter(
    folder: Path, draft: Any, seed: int, *, layers: int = 2, dora: bool = False, keys: list[str] | None = None
) -> np.ndarray:
    """Write an adapter with random updates; return the logits that mlx-lm's own loader gives with it."""
    lora = quick_config(lora={"rank": 4, "num_layers": layers, "dora": dora, "keys": keys}).lora
    with attached(draft.model, lora):
        mx.random.seed(seed)
        draft.model.load_weights([(n, a + mx.random.normal(a.shape) * 0.1) for n, a in adapter_weights(draft.model).items()], strict=False)
        weights = adapter_weights(draft.model)
        mx.eval(weights)
    info = AdapterInfo(
        name=folder.name, draft_hash=draft.hash, draft_name="tiny", domain=None, rank=4, data_hash="", examples=0, metric="alpha"
    )
    write_adapter(folder, weights, lora, adapted_layers(draft.model, lora), info)
    from mlx_lm.tuner.utils import load_adapters

    fresh = tiny_draft(quantised=draft.hash.rpartition("-")[2]).model
    load_adapters(fresh, str(folder))
    fresh.eval()
    return forward(fresh, TOKENS)


def parameters(model: Any) -> dict[str, bytes]:
    return {name: np.array(array).tobytes() for name, array in tree_flatten(model.parameters())}


@pytest.mark.parametrize("policy", ["fuse", "cached", "unfused"])
@pytest.mark.parametrize("quantised", ["", "affine 8", "mxfp4 4", "nvfp4 4"])
def test_swapping(tmp_path: Path, policy: Any, quantised: str) -> None:
    """Adapters of different shapes, in any order, many times: logits as mlx-lm gives them, and an untouched base in the end."""
    draft = tiny_draft(quantised=quantised)
    before, plain = parameters(draft.model), forward(draft.model, TOKENS)
    expected = {
        "a": random_adapter(tmp_path / "a", draft, 1),
        "b": random_adapter(tmp_path / "b", draft, 2, layers=1, keys=["self_attn.q_proj", "mlp.down_proj"]),
        "c": random_adapter(tmp_path / "c", draft, 3, dora=True),
        None: plain,
    }
    assert np.abs(expected["a"] - plain).max() > 0.1
    bank = AdapterBank(draft, {n: tmp_path / n for n in "abc"}, policy=policy)
    for name in ("a", "b", "a", None, "c", "c", "b", "a", "c", None):
        swap = bank.activate(name)
        assert swap.adapter == bank.active == name
        assert swap.swap_s >= 0
        np.testing.assert_allclose(forward(draft.model, TOKENS), expected[name], atol=2e-4)
    assert parameters(draft.model) == before
    assert (forward(draft.model, TOKENS) == plain).all()
    assert len(bank.swaps) == 10


@pytest.mark.parametrize("bits", [3, 6])
def test_bits_that_share_no_word_evenly(tmp_path: Path, bits: int) -> None:
    """LoRA runs and fuses on them; DoRA, which mlx-lm cannot build there, is refused."""
    draft = tiny_draft(quantised=f"affine {bits}")
    expected = random_adapter(tmp_path / "a", draft, 1)
    bank = AdapterBank(draft, {"a": tmp_path / "a"}, policy="fuse")
    bank.activate("a")
    np.testing.assert_allclose(forward(draft.model, TOKENS), expected, atol=2e-4)
    bank.activate(None)
    with pytest.raises(HarnessError, match=f"DoRA of weights in {bits} bits"):
        random_adapter(tmp_path / "c", draft, 3, dora=True)


def test_memory_and_hits(tmp_path: Path) -> None:
    """``fuse`` holds one fused set, ``cached`` what its budget allows (least recently used out first), ``unfused`` none."""
    draft = tiny_draft()
    folders = {n: tmp_path / n for n in "abc"}
    for seed, (_, folder) in enumerate(folders.items()):
        random_adapter(folder, draft, seed)
    unfused = AdapterBank(draft, folders, policy="unfused")
    updates = unfused.activate("a").held_bytes
    with pytest.raises(HarnessError, match="carries an adapter already"):
        AdapterBank(draft, folders)
    unfused.activate(None)
    fuse = AdapterBank(draft, folders, policy="fuse")
    one = fuse.activate("c").held_bytes - updates
    assert one > 0
    assert [fuse.activate(n).held_bytes for n in "aba"] == [updates + one] * 3
    assert [s.hit for s in fuse.swaps] == [False] * 4
    fuse.activate(None)
    cached = AdapterBank(draft, folders, policy="cached", budget_bytes=2 * one)
    assert [cached.activate(n).hit for n in "abacba"] == [False, False, True, False, False, False]
    assert cached.held_bytes() == updates + 2 * one
    cached.activate(None)
    roomy = AdapterBank(draft, folders, policy="cached", budget_bytes=10 * one)
    assert [roomy.activate(n).hit for n in "abcabc"] == [False] * 3 + [True] * 3
    roomy.activate(None)


def test_wrong_adapters_are_refused(tmp_path: Path) -> None:
    """Another draft's adapter, a missing or damaged one, an unknown name: each refused with advice."""
    draft = tiny_draft()
    random_adapter(tmp_path / "a", draft, 1)
    other = tiny_draft()
    other.hash = "something else"
    with pytest.raises(HarnessError, match="trained on draft 'tiny'"):
        AdapterBank(other, {"a": tmp_path / "a"})
    with pytest.raises(HarnessError, match=r"cannot read .*metadata.json"):
        AdapterBank(draft, {"x": tmp_path / "x"})
    with pytest.raises(HarnessError, match="did you mean 'a'"):
        AdapterBank(draft, {"a": tmp_path / "a"}).activate("aa")
    narrow = tiny_draft(layers=2)
    narrow.hash = draft.hash
    random_adapter(tmp_path / "deep", draft, 1, layers=3)
    with pytest.raises(HarnessError, match="has 2 layers"):
        AdapterBank(narrow, {"deep": tmp_path / "deep"})
    (tmp_path / "a/adapters.safetensors").write_bytes(b"torn")
    with pytest.raises(HarnessError, match=r"cannot read .*adapters.safetensors"):
        AdapterBank(draft, {"a": tmp_path / "a"})
    assert sorted(list_adapters(tmp_path)) == ["a", "deep"]
    assert read_info(tmp_path / "deep").name == "deep"


def test_newer_metadata_is_refused(tmp_path: Path) -> None:
    """A folder written by a later version may mean other things."""
    random_adapter(tmp_path / "a", tiny_draft(), 1)
    path = tmp_path / "a/metadata.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(HarnessError, match="newer"):
        read_info(tmp_path / "a")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x y"])
def test_adapter_names_cannot_leave_the_cache(name: str) -> None:
    """A name becomes a folder name: nothing that could be a path."""
    with pytest.raises(HarnessError, match="adapter name"):
        adapter_folder("pair", name)


def test_records_are_frozen(tmp_path: Path) -> None:
    """A recorded swap cannot be changed afterwards."""
    draft = tiny_draft()
    swap = AdapterBank(draft, {}).activate(None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        swap.swap_s = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("own_head", [False, True])
def test_drafters_replayed_together_are_those_replayed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, own_head: bool
) -> None:
    """Shared blocks run once for all adapters, and every count and near-tie is that of a replay of its own."""
    kept = np.arange(0, VOCAB, 2)
    draft = tiny_draft(token_map=kept if own_head else None)
    draft.vocab = tuple(kept.tolist())
    for seed, (name, depth) in enumerate({"a": layers, "b": 1}.items()):
        random_adapter(tmp_path / name, draft, seed, layers=depth)
    bank = AdapterBank(draft, {name: tmp_path / name for name in "ab"})
    trajectories = target_trajectories(40)
    alone = []
    for name in (None, "a", "b"):
        bank.activate(name)
        alone += replay_model(name or "generic", *draft.proposer, trajectories, [2, 3])
    assert len({(row.k, row.accepted) for row in alone}) > 10, "the adapters differ"
    shared: list[int] = []
    real = bank_module.run_blocks
    monkeypatch.setattr(bank_module, "run_blocks", lambda blocks, hidden: shared.append(len(blocks)) or real(blocks, hidden))
    assert replay_bank(bank, trajectories, [2, 3]) == alone
    some = [row for row in alone if row.drafter != "a"]
    batches = len(list(length_batches([len(t.prompt_tokens) + len(t.tokens) for t in trajectories])))
    file = tmp_path / "rows" / "outcomes.json"
    assert kept_rows(file, lambda: alone) == kept_rows(file, list) == tuple(alone)
    assert sorted(shared) == sorted(([3 - layers] + [layers] * 3) * batches if layers < 3 else [])
    assert replay_bank(bank, trajectories, [2, 3], ["b"]) == some
    assert bank.active is None


def test_drafters_of_a_bank_agree_with_replay(tmp_path: Path) -> None:
    """Drafters of one bank used in turn: each answer is drafted with its own adapter, and decoding counts what replay counts."""
    from tiny import tiny_pair

    from harness.core.records import Trajectory
    from harness.decode.generation import generate

    pair = tiny_pair(tmp_path / "pair")
    lora = quick_config(lora={"rank": 4, "num_layers": 2}).lora
    with attached(pair.draft.model, lora):
        mx.random.seed(1)
        weights = {n: a + mx.random.normal(a.shape) * 0.02 for n, a in adapter_weights(pair.draft.model).items()}
    info = AdapterInfo(name="x", draft_hash=pair.draft.hash, draft_name="d", domain=None, rank=4, data_hash="", examples=0, metric="alpha")
    write_adapter(tmp_path / "x", weights, lora, 2, info)
    bank = AdapterBank(pair.draft, {"x": tmp_path / "x"})
    prompt = pair.encode("count the apples")
    plain = generate(pair, prompt, drafter=None, max_tokens=24)
    trajectory = Trajectory(sample_id="s", domain="d", prompt_tokens=tuple(prompt), tokens=plain.tokens, finish=plain.finish, max_tokens=24)
    expected = {row.drafter: (row.rounds, row.drafted, row.accepted) for row in replay_bank(bank, [trajectory], [3])}
    drafters = {"generic": bank.drafter(None), "x": bank.drafter("x")}
    for name in ("x", "generic", "x"):
        found = generate(pair, prompt, drafter=drafters[name], k=3, max_tokens=24)
        assert found.tokens == plain.tokens
        assert (found.rounds, found.drafted, found.accepted) == expected[name]
    bank.activate(None)


def test_the_same_arrays_are_the_same_bytes(tmp_path: Path) -> None:
    """An adapter that was read back from a checkpoint must be written as one that never left memory: hashes are of bytes."""
    names = [f"model.layers.{i}.{part}.lora_{side}" for i in range(3) for part in ("self_attn.q_proj", "mlp.up_proj") for side in "ab"]
    arrays = {name: mx.full((i + 1, 7), float(i)) for i, name in enumerate(names)}
    save_arrays(tmp_path / "whole.safetensors", arrays)
    save_arrays(tmp_path / "resumed.safetensors", dict(reversed(arrays.items())))
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_adapter_of_another_draft_is_refused_without_its_control_characters(tmp_path: Path) -> None:
    """metadata.json comes from outside; what it calls its draft goes to the terminal."""
    info = AdapterInfo(
        name="x", draft_hash="\x1b[2Jh", draft_name="\x1b[31md\n", domain=None, rank=4, data_hash="", examples=0, metric="alpha"
    )
    (tmp_path / "metadata.json").write_text(json.dumps({"schema_version": 1, **dataclasses.asdict(info)}))
    with pytest.raises(HarnessError, match="was trained on draft") as caught:
        read_info(tmp_path, "other")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in caught.value.problem
