"""Whatever a family does to its logits, parts of a model give what the model gives, or are refused before anything is decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from enumerating import chances, check_sampled_replay
from families import FAMILIES, tiny_model
from mlx_lm.models import llama
from toy import ToyPair, noisy, toy_draft, toy_model

from harness.adapt.adapters.surface import check_surface
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.cached import CachedModel
from harness.decode.generation import generate
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.replay import replay
from harness.models.blas import mx, nn
from harness.models.forward import EarlyExit, PrunedHead
from harness.models.opened import close, head_logits, hidden_states, open_model

TOKENS = mx.array([[3, 9, 5, 1, 60, 2]])
NO_PRUNED_HEAD = {"minicpm", "gpt_neox", "seed_oss"}
"""Families whose output head is no layer of its own."""
OTHER_BLOCKS = {
    "granite",
    "cohere2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "minicpm",
    "gpt_neox",
    "gpt2",
    "internlm2",
    "gemma3",
    "mistral3",
}
"""Families that training cannot run block by block: they scale what is embedded, slide, or are laid out differently."""


def first_layers(family: str, n: int) -> nn.Module:
    """The family's model with all but ``n`` layers taken out of it."""
    model = tiny_model(family)
    text = getattr(model, "language_model", model)
    del next(value for value in text.model.values() if isinstance(value, list) and isinstance(value[0], nn.Module))[n:]
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_give_what_the_model_gives(family: str) -> None:
    """Head, first layers, restricted and widened head, and blocks for training: equal to the model's own call, or refused."""
    model = tiny_model(family)
    logits = model(TOKENS)
    assert open_model(model) is open_model(model) is not None
    np.testing.assert_array_equal(np.array(head_logits(model, hidden_states(model, TOKENS))), np.array(logits))
    early = CachedModel(EarlyExit(model, 2))
    steps = mx.concatenate([early.forward(TOKENS[0, i : i + 2]) for i in (0, 2, 4)])
    assert close(steps, first_layers(family, 2)(TOKENS)[0])
    if family in NO_PRUNED_HEAD:
        with pytest.raises(HarnessError, match="restricted to some tokens of"):
            PrunedHead(model, [1, 5])
    else:
        head = PrunedHead(model, [1, 5, 9, 33]).widened([60, 5, 2]).widened([7])
        assert close(head(TOKENS), logits[..., head.token_map])
        assert head.token_map.tolist() == [1, 5, 9, 33, 60, 2, 7]
    if family in OTHER_BLOCKS:
        with pytest.raises(HarnessError):
            check_surface(model)
    else:
        check_surface(model)


def answers(pair: ToyPair, prompt: list[int], *drafters: Any, tokens: int = 16) -> None:
    """Greedy decoding with each drafter gives the plain answer, and replay its counts."""
    plain = generate(pair, prompt, drafter=None, max_tokens=tokens)
    for drafter in drafters:
        g = generate(pair, prompt, drafter=drafter, k=3, max_tokens=tokens, detailed=True)
        assert g.tokens == plain.tokens
        t = Trajectory(sample_id="a", domain="d", prompt_tokens=tuple(prompt), tokens=g.tokens, finish=g.finish, max_tokens=tokens)
        (row,) = replay(pair, [t], [drafter], [3])
        assert (row.accept_lengths, row.draft_lengths) == (g.accept_lengths, g.draft_lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_drafter_decodes_every_family(family: str) -> None:
    """The answer is the target's, and replay, which applies the head to blocks of states, counts what decoding counts."""
    pair = ToyPair(tiny_model(family), toy_draft(noisy(tiny_model(family))), frozenset({1}))
    prompt = [9, 33, 9, 12, 9, 33]
    drafters = [resolve_drafter(pair, name, DrafterOptions(layers=2)) for name in ("generic", "lookup", "early_exit", "hybrid")]
    if family not in NO_PRUNED_HEAD:
        drafters.append(resolve_drafter(pair, "generic", DrafterOptions(vocab=24)))
    answers(pair, prompt, *drafters)
    plain = generate(pair, prompt, drafter=None, max_tokens=12)
    assert generate(pair, prompt, drafter="generic", k=3, max_tokens=12, loop="mlx-lm").tokens == plain.tokens


@pytest.mark.parametrize(
    ("mode", "group", "bits"),
    [*(("affine", 32, bits) for bits in (2, 3, 4, 5, 6, 8)), ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)],
)
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_heads_of_every_quantisation_are_restricted(family: str, mode: str, group: int, bits: int) -> None:
    """Each form stores its scales in its own way, and only the affine one has offsets."""
    model = tiny_model(family)
    nn.quantize(model, group_size=group, bits=bits, mode=mode)
    head = PrunedHead(model, [1, 5, 9]).widened([60])
    logits = model(TOKENS)[..., head.token_map]
    assert mx.abs(head(TOKENS) - logits).max() < 0.02 * mx.abs(logits).max()
    answers(ToyPair(tiny_model(family), toy_draft(model)), [9, 33, 9], resolve_drafter(ToyPair(model, toy_draft(model)), "generic"))


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2", "phi", "gemma3"])
def test_sampled_replay_expects_what_decoding_does_on_average(family: str) -> None:
    """By the probability of every answer under the target, and what the draft says before it."""
    vocab, prompt, temperature = 5, (3, 1, 4), 1.5
    target, draft = tiny_model(family, vocab_size=vocab), noisy(tiny_model(family, vocab_size=vocab))
    said = chances(draft, prompt, vocab, temperature)
    pair = ToyPair(target, toy_draft(draft))
    check_sampled_replay(pair, "generic", lambda start, guesses: said[start + guesses], prompt=prompt, vocab=vocab, temperature=temperature)


class Biased(llama.Model):
    """A model whose logits depend on more than its last states."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        return super().__call__(inputs, cache) + (inputs[..., None] % 7 == mx.arange(self.args.vocab_size) % 7)


def test_a_model_that_is_more_than_body_and_head_is_used_whole() -> None:
    """Replay of it stays exact; what would need its parts is refused in one sentence before anything is decoded."""
    plain = toy_model(scale=4.0)
    odd = Biased(plain.args)
    odd.update(plain.parameters())
    assert open_model(odd) is None
    pair = ToyPair(plain, toy_draft(odd))
    answers(pair, [9, 33, 9, 12], "generic")
    for drafter, options in (("generic", DrafterOptions(vocab=9)), ("early_exit", DrafterOptions(layers=1))):
        with pytest.raises(HarnessError, match="would not be that of the model") as caught:
            resolve_drafter(ToyPair(odd, toy_draft(odd)), drafter, options)
        assert "\n" not in caught.value.problem


def test_layers_that_do_not_run_alone_are_refused() -> None:
    """Gemma's mask comes from its first global layer; before that one there is none to take it from."""
    model = tiny_model("gemma3_text", sliding_window_pattern=4, num_hidden_layers=6)
    with pytest.raises(HarnessError, match="early exit after 2 layers of 'gemma3_text'"):
        EarlyExit(model, 2)
    EarlyExit(model, 4)
