"""Training a head: torch gives what mlx decodes with, step by step, and one run goes from prompts to a head that drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
from heads import said, toy_info
from test_distill import TINY, bank, stored
from tiny_llama import TinyPair
from toy import ToyPair

from harness.answers import torch_llama
from harness.core.errors import HarnessError
from harness.decode.generation import generate
from harness.decode.head import HeadDrafter
from harness.distill import head_fit, lessons, pipeline
from harness.distill.distill_config import HeadConfig, load_distill_config
from harness.models.blas import mx
from harness.models.reading_head import Head, ReadingHead, load_head
from harness.models.taps import Tapped

torch = pytest.importorskip("torch")

HEAD = TINY.model_copy(update={"kind": "head", "head": HeadConfig(vocab=24, taps=(1, 3, 2))})


@pytest.fixture
def target(tmp_path: Path) -> tuple[Path, Any]:
    """A tiny target on disk and in mlx."""
    return tmp_path / "target", tiny_llama.make(tmp_path / "target")


@pytest.mark.parametrize("layers", [1, 2])
def test_every_unrolled_step_is_what_decoding_proposes(target: tuple[Path, Any], layers: int) -> None:
    """At every place and step the logits that are trained are those of a draft that begins there, over lessons of different lengths."""
    folder, model = target
    config, ids = HeadConfig(vocab=8, taps=(1, 3, 2), layers=layers), np.array([0, 3, 5, 8, 20, 33, 50, 95], dtype=np.int32)
    shape, weights = torch_llama.load_llama(folder)
    own_shape, own = head_fit.initial_head(shape, weights, config, ids, seed=4)
    batch = lessons.prepare(stored(5, seed=2))
    head = lessons.vocabulary(ids, 96, context_tokens=True).head(batch)
    forward = head_fit.HeadForward(
        own_shape, weights["embed"], lambda e: head_fit.read_states(shape, weights, (1, 3, 2), e.tokens[:-1]), config
    )
    with torch.no_grad():
        steps = forward(own, batch, head)
    info = toy_info(64, 8, taps=(1, 3, 2), layers=layers, head_dim=16, intermediate=128)
    twin = ReadingHead(info, model)
    twin.load_weights(list(head_fit.head_weights(own_shape, own).items()))
    reading = Head(model=twin, token_map=mx.array(ids), hash="", name="", vocab=tuple(ids.tolist()), tapped=Tapped(model, info.taps))
    assert len(steps) == 3
    for step, (logits, part) in enumerate(steps):
        expected = [
            said(model, reading, e.tokens[:at].tolist(), e.tokens[at : at + step].tolist())[0][: len(ids)]
            for e in batch
            for at in range(e.prompt, len(e.tokens) - step)
        ]
        assert sum(len(e.labels) for e in part) == len(expected) == len(logits)
        np.testing.assert_allclose(logits.cpu().numpy()[:, : len(ids)], np.array(expected), rtol=2e-3, atol=2e-2)


@pytest.mark.usefixtures("torch_stays_apart")
def test_a_whole_run_makes_a_head(target: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    """collect -> train -> ship: a folder that loads and drafts, a card that says what it is; a second run repeats nothing."""
    folder, model = target
    monkeypatch.setattr(pipeline, "training_samples", lambda config: bank(12, "chat"))
    monkeypatch.setattr(pipeline, "held_out_samples", lambda config, n: bank(n, "chat", "validation"))

    def job(**head: Any) -> pipeline.Distillation:
        config = HEAD.model_copy(update={"head": HEAD.head.model_copy(update=head)})
        pair: Any = TinyPair(target=model, eos_token_ids=frozenset({7}))
        return pipeline.Distillation(
            config=config, pair=pair, folder=folder, work=tmp_path / "work", out=tmp_path / "head", command="harness distill h"
        )

    scores = pipeline.distill(job())
    head = load_head(tmp_path / "head", model, "tiny-target")
    pair, prompt = ToyPair(model, eos_token_ids=frozenset({7})), [9, 33, 12]
    plain = generate(pair, prompt, drafter=None, max_tokens=12)
    assert generate(pair, prompt, drafter=HeadDrafter(head), k=3, max_tokens=12).tokens == plain.tokens
    text = (tmp_path / "head/card.md").read_text()
    assert all(part in text for part in (head.hash, "harness distill h", "after 1, 3, 2 blocks", "3 steps of a draft"))
    assert {(s.domain, s.k, s.prompts) for s in scores} == {(d, k, 3) for d in ("chat", "all") for k in (2, 4)}
    steps, before = sum(n.startswith("step") for n in notes), (tmp_path / "head/head.safetensors").read_bytes()
    assert pipeline.distill(job()) == scores
    assert sum(n.startswith("step") for n in notes) == steps
    assert (tmp_path / "head/head.safetensors").read_bytes() == before
    with pytest.raises(HarnessError, match="other data, settings or models"):
        pipeline.distill(job(unrolled=2))


def test_training_lowers_the_loss_of_every_step(target: tuple[Path, Any], tmp_path: Path) -> None:
    """Gradients reach every weight through the chain: random labels are learned by heart, the third step's too."""
    from harness.distill import fit

    folder, _ = target
    ids = np.arange(96, dtype=np.int32)
    shape, weights = torch_llama.load_llama(folder)
    own_shape, own = head_fit.initial_head(shape, weights, HEAD.head, ids, seed=0)
    before = {name: w.clone() for name, w in own.items()}
    examples, rows = lessons.prepare(stored(20)), []
    forward = head_fit.HeadForward(
        own_shape, weights["embed"], lambda e: head_fit.read_states(shape, weights, (1, 3, 2), e.tokens[:-1]), HEAD.head
    )
    config = HEAD.fit.model_copy(update={"epochs": 25.0, "learning_rate": 0.01})
    vocab = lessons.vocabulary(ids, 96, context_tokens=True)
    fit.fit(own_shape, own, weights["embed"], examples, vocab, config, tmp_path, rows.append, forward)
    for name in ("loss", "match_3"):
        first, last = (np.mean([r[name] for r in part if name in r]) for part in (rows[:8], rows[-8:]))
        assert last < 0.6 * first if name == "loss" else last > first + 0.2
    assert [name for name, w in own.items() if torch.equal(w, before[name])] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": HeadConfig(taps=(1, 4))}, r"head\.taps is \[1, 4\], the target has 3 blocks"),
        ({"head": HeadConfig(group_size=128)}, r"head\.group_size is 128, which does not divide the target's width of 64"),
        ({"fit": HEAD.fit.model_copy(update={"start_from": "x"})}, "a head cannot start from a finished draft"),
    ],
)
def test_what_cannot_be_made_is_refused_first(target: tuple[Path, Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Before hours of answers."""
    pair: Any = TinyPair(target=target[1])
    job = pipeline.Distillation(
        config=HEAD.model_copy(update=changes), pair=pair, folder=target[0], work=tmp_path / "w", out=tmp_path, command=""
    )
    with pytest.raises(HarnessError, match=message):
        pipeline.distill(job)
    assert not (tmp_path / "w").exists()


def test_the_shipped_config_makes_a_head() -> None:
    """The file that the documentation names, and places from the command line."""
    config = load_distill_config("smollm2-head", ["head.taps=[1, 2]"])
    assert (config.kind, config.head.taps, config.name) == ("head", (1, 2), "smollm2-head")
