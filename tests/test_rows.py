"""Target and draft whose output layers differ in size: the draft keeps to ids the target has, and reads those it lacks without harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tiny_model
from test_opened import answers
from tiny import write_model
from toy import ToyPair, toy_draft

from harness.adapt.training.material import inverse_ids
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.calibrate import calibrate
from harness.decode.forced import forced_passes
from harness.decode.generation import generate
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.sampling import Sampling, log_softmax
from harness.models.blas import mx, nn
from harness.models.forward import PrunedHead
from harness.models.opened import Fitted, vocabulary_rows
from harness.models.pair import load_pair

SIZES = [(64, 64), (64, 65), (64, 96), (64, 2000), (65, 64), (96, 40)]
"""(target rows, draft rows)."""


def draft_of(target: nn.Module, family: str, rows: int) -> nn.Module:
    """The target with noise; rows it lacks are so large that an unmasked draft would propose little else."""
    from mlx.utils import tree_map

    draft = tiny_model(family, seed=1, vocab_size=rows)
    mx.random.seed(2)

    def mixed(own: mx.array, theirs: mx.array) -> mx.array:
        common = theirs[: len(own)] + 0.1 * mx.std(theirs) * mx.random.normal(theirs[: len(own)].shape)
        return common if len(own) <= len(theirs) else mx.concatenate([common, 5 * own[len(theirs) :]])

    draft.update(tree_map(mixed, draft.parameters(), target.parameters()))
    mx.eval(draft.parameters())
    return draft


def pair_of(sizes: tuple[int, int], family: str = "llama") -> ToyPair:
    """A pair of those sizes; its prompts and answers hold ids that only the larger one has."""
    target = tiny_model(family, vocab_size=sizes[0])
    return ToyPair(target, toy_draft(draft_of(target, family, sizes[1])), context_tokens=128)


@pytest.mark.parametrize(
    ("sizes", "family"),
    [
        *((sizes, "llama") for sizes in SIZES),
        *((sizes, f) for f in ("llama untied", "seed_oss", "gemma3") for sizes in (SIZES[2], SIZES[-1])),
    ],
)
def test_greedy_answers_are_the_targets(sizes: tuple[int, int], family: str) -> None:
    """In every loop and every form of the draft; seed_oss cannot be opened and is masked from outside."""
    pair = pair_of(sizes, family)
    prompt = [9, sizes[0] - 1, 33, 9, sizes[0] - 1]
    plain = generate(pair, prompt, drafter=None, max_tokens=16)
    assert generate(pair, prompt, drafter="generic", k=3, max_tokens=16, loop="mlx-lm").tokens == plain.tokens
    answers(pair, prompt, "generic")
    answers(pair, prompt, "hybrid")
    assert vocabulary_rows(pair.draft.model) == min(sizes)
    if family != "seed_oss":
        answers(pair, prompt, resolve_drafter(pair, "generic", DrafterOptions(vocab=(3, 9, 20))))
    for rule in ("match", "rejection"):
        g = generate(pair, prompt, k=3, max_tokens=24, rule=rule, temperature=1.0, detailed=True)
        assert max(g.tokens) < sizes[0]
        assert max(p.draft_token for p in g.positions) < min(sizes)
        assert g.accepted > 0
    assert calibrate(pair, resolve_drafter(pair, "generic"), max_k=2, repeats=1).draft_step_s


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_replay_scores_the_masked_distribution(sizes: tuple[int, int]) -> None:
    """q is normalised over the common ids; a token that the draft lacks never stands."""
    pair = pair_of(sizes)
    prompt, tokens = (9, 33), (12, sizes[0] - 1, 7, 7)
    logits = pair.draft.model(mx.array([[*prompt, *tokens[:1], min(sizes[0], sizes[1]) - 1, *tokens[2:-1]]]))[0, 1:, : min(sizes)]
    drafter = resolve_drafter(pair, "generic")
    t = Trajectory(sample_id="a", domain="d", prompt_tokens=prompt, tokens=tokens, finish="length", max_tokens=4)
    (forced,) = forced_passes(drafter.model, drafter.token_map, [t], Sampling(temperature=1.0))
    known = [x if x < min(sizes) else 0 for x in tokens]
    expected = np.array(mx.take_along_axis(log_softmax(logits), mx.array(known)[:, None], axis=-1)[:, 0])
    expected[[x >= min(sizes) for x in tokens]] = -np.inf
    assert forced.logq is not None
    np.testing.assert_allclose(forced.logq, expected, atol=1e-4)


@pytest.mark.parametrize("rows", [264, 300, 4000, 262])
def test_a_loaded_pair_is_fitted_once(tmp_path: Path, rows: int) -> None:
    """The loaded draft has the target's ids or fewer, so training and adapters see no others either."""
    write_model(tmp_path / "target")
    write_model(tmp_path / "draft", noise=0.05, vocab_size=rows)
    (tmp_path / "tiny.yaml").write_text("target:\n  sources: ['path:target']\ndraft:\n  sources: ['path:draft']\nk: 2\n")
    pair = load_pair(str(tmp_path / "tiny.yaml"))
    assert pair.draft is not None
    model = pair.draft.model
    assert vocabulary_rows(model) == len(model.model.embed_tokens.weight) == min(rows, 264)
    plain = generate(pair, "hello", drafter=None, max_tokens=24)
    g = generate(pair, "hello", max_tokens=24)
    assert (g.tokens, g.k) == (plain.tokens, 2)
    assert g.drafted > 0
    inverse = inverse_ids(pair.draft)
    assert (inverse is None) == (rows >= 264)
    if inverse is not None:
        assert inverse[258:].tolist() == [258, 259, 260, 261, -1, -1]
    mx.eval(model(mx.array([[263, 5]])))


class Table:
    """A draft that cannot be opened: logits of the next token depend on the current one alone."""

    layers = ()

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return mx.arange(self.rows) * 1.0 + mx.zeros((*tokens.shape, 1))

    def make_cache(self) -> list:
        return []


def test_drafts_that_cannot_be_fitted_say_so() -> None:
    """Maps to ids the target lacks, or of another length than the draft's output, would index beyond the arrays."""
    pair = pair_of((64, 64))
    fitted = ModelDrafter(Table(99))
    resolve_drafter(pair, fitted)
    assert isinstance(fitted.model, Fitted)
    assert fitted.model(mx.array([[70, 3]])).shape == (1, 2, 64)
    for model, ids in ((Table(3), [1, 2, 64]), (Table(4), [1, 2, 3])):
        with pytest.raises(HarnessError, match="maps its"):
            generate(pair, [3], drafter=ModelDrafter(model, mx.array(ids)), max_tokens=4)
    with pytest.raises(HarnessError, match="maps its"):
        generate(pair, [3], drafter=ModelDrafter(PrunedHead(tiny_model("llama", vocab_size=99), [1, 98])), max_tokens=4)


class Wild:
    """A drafter of a user's own."""

    name = "wild"

    def begin(self, prompt: list[int]) -> None:
        pass

    def propose(self, context: list[int], request: Any) -> Any:
        from harness.decode.drafters import Proposal

        return Proposal(mx.array([5, 64][: request.k], dtype=mx.int32)) if request.k else None


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_a_foreign_drafter_that_proposes_other_ids_is_named(rule: str) -> None:
    """Its ids would be read beyond the target's embedding, and could be emitted."""
    with pytest.raises(HarnessError, match="'wild' proposed token 64"):
        generate(pair_of((64, 64)), [3], drafter=Wild(), k=2, rule=rule, temperature=1.0, max_tokens=9)
