"""A draft with another tokenizer: its text, put into the target's tokens, changes how fast an answer comes and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny import EOS, SPECIALS, write_model

from harness import api
from harness.adapt.adapters.names import adaptable
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.calibrate import calibrate
from harness.decode.drafters import Request
from harness.decode.generation import generate
from harness.decode.kept import KeptCaches
from harness.decode.length import Costs
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.replay import replay
from harness.decode.sampling import Sampling
from harness.decode.translated import TranslatedDrafter
from harness.models.blas import ints
from harness.models.pair import load_pair, load_tokenizer
from harness.models.translation import Translation

LETTERS = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
"""Printable ASCII, space and line end, as byte-level tokenizers write them."""
OTHERS = ("<pad>", "<|im_start|>", "</s>")
"""Specials of the draft: one that the target has too, and another end."""
MERGES = ("th", "in", "Ġa", "ab", "an", "er", "ĠĠ", "12")
ROWS = len(SPECIALS) + len(LETTERS)


def write_tokenizer(folder: Path, specials: Sequence[str], letters: Sequence[str], merges: Sequence[str] = (), **changes: Any) -> None:
    """A byte-level tokenizer whose first ids are ``specials``, ``letters`` and ``merges``; the bytes that are no letter come last."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(letters))
    vocab = {token: i for i, token in enumerate([*specials, *letters, *merges, *rest])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(pair[0], pair[1]) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    data = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps({**data, **changes}))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[EOS]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def write_translated(folder: Path, *, noise: float = 0.0, merges: Sequence[str] = (), more: str = "") -> Path:
    """A pair whose draft is its target under other ids, disturbed by ``noise``; ``merges`` are tokens that the draft alone has."""
    target, draft = (write_model(folder / name, vocab_size=ROWS) for name in ("target", "draft"))
    write_tokenizer(target, SPECIALS, LETTERS)
    write_tokenizer(draft, OTHERS, LETTERS[::-1], merges)
    rng, weights = np.random.default_rng(3), load_file(draft / "model.safetensors")
    names = [*SPECIALS, *LETTERS]
    twins = {"<pad>": "<|endoftext|>", "</s>": "<|im_end|>"}
    table = weights["model.embed_tokens.weight"]
    rows = [table[names.index(twins.get(token, token))] for token in (*OTHERS, *LETTERS[::-1])]
    weights["model.embed_tokens.weight"] = np.stack([*rows, *rng.normal(0, 0.2, (len(merges), table.shape[1]))])
    weights = {n: (w + noise * rng.normal(0, 0.3, w.shape)).astype(np.float32) if w.ndim > 1 else w for n, w in weights.items()}
    save_file(weights, draft / "model.safetensors", metadata={"format": "mlx"})
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "vocab_size": ROWS + len(merges)}))
    path = folder / "pair.yaml"
    path.write_text(f"target:\n  sources: ['path:target']\ndraft:\n  sources: ['path:draft']\n{more}")
    return path


@pytest.fixture(scope="module", params=["twin", "noisy", "merging"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A draft that says what its target says, one that often does, and one that also cuts text in other places."""
    given = {"twin": {}, "noisy": {"noise": 0.06}, "merging": {"noise": 0.03, "merges": MERGES}}[request.param]
    found = load_pair(str(write_translated(tmp_path_factory.mktemp(request.param), **given)))
    found.about = request.param  # type: ignore[attr-defined]
    return found


PROMPTS = ["the end\nof a ban", "12 + 12 =", "in there, an other\n\n  line"]


def ids(pair: Any, text: str) -> list[int]:
    """A prompt without markers."""
    return list(pair.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("drafter", ["generic", "hybrid", "cascade"])
def test_decoding_gives_the_targets_answer_and_replay_counts_it(pair: Any, drafter: str) -> None:
    """Whatever the draft says and however it cuts it; replay walks the same rounds, at every length."""
    drafted = accepted = 0
    for text in PROMPTS[:2]:
        prompt = ids(pair, text)
        plain = generate(pair, prompt, drafter=None, max_tokens=24)
        answer = Trajectory(sample_id="a", domain="x", prompt_tokens=tuple(prompt), tokens=plain.tokens, finish=plain.finish, max_tokens=24)
        costs = Costs(c=0.1, v=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5))
        for row in replay(pair, [answer], [drafter], [4, "dynamic", "auto"], costs=costs):
            real = generate(pair, prompt, drafter=drafter, k=row.k, max_tokens=24, costs=costs)
            assert real.tokens == plain.tokens
            assert (row.accept_lengths, row.draft_lengths, row.rejected) == (real.accept_lengths, real.draft_lengths, real.rejected)
            drafted, accepted = drafted + real.drafted, accepted + real.accepted
    assert 0 < accepted < drafted or pair.about == "twin"
    assert pair.about != "twin" or drafter != "generic" or accepted > 0.9 * drafted > 0


def test_sampled_proposals_have_no_distribution(pair: Any) -> None:
    """The rule then takes a proposal for certain, as it takes what a lookup found: exact for any text, whoever wrote it."""
    drafter = resolve_drafter(pair, "generic")
    prompt = ids(pair, PROMPTS[0])
    drafter.begin(prompt)
    warm = drafter.propose(prompt, Request(k=4, sampling=Sampling(temperature=1.0), with_logq=True))
    cold = drafter.propose(prompt, Request(k=4))
    assert warm is not None
    assert cold is not None
    assert warm.logq is None
    assert ints(warm.tokens) == ints(cold.tokens)
    for rule in ("match", "rejection"):
        assert generate(pair, prompt, drafter="cascade", rule=rule, temperature=1.0, max_tokens=24).emitted > 0


def test_confidences_are_those_of_the_drafts_own_tokens(pair: Any) -> None:
    """A target's token is as sure as all of the draft's tokens that begin in it; no chance is counted twice or lost."""
    drafter = resolve_drafter(pair, "generic")
    prompt, seen = ids(pair, PROMPTS[2]), list[tuple[float, ...]]()

    def keep_going(confidences: tuple[float, ...]) -> bool:
        seen.append(confidences)
        return True

    proposal = drafter.propose(prompt, Request(k=6, keep_going=keep_going))
    assert proposal is not None
    assert len(proposal.confidences) == proposal.k
    assert all(0 < chance <= 1 for chance in proposal.confidences)
    assert np.prod(proposal.confidences) >= np.prod(seen[-1]) * 0.999


def test_a_conversation_is_read_on(pair: Any) -> None:
    """The draft's cache of one turn serves the next, and the answer is the same."""
    first = ids(pair, PROMPTS[1])
    caches = KeptCaches()
    answer = generate(pair, first, max_tokens=12, caches=caches)
    second = [*first, *answer.tokens, *ids(pair, "\nand then")]
    drafter = resolve_drafter(pair, "generic")
    assert isinstance(drafter, TranslatedDrafter)
    drafter.caches = caches
    drafter.begin(second)
    again = generate(pair, second, max_tokens=12, caches=caches)
    assert caches.reused >= len(first)
    assert again.tokens == generate(pair, second, drafter=None, max_tokens=12).tokens


def test_a_draft_beyond_its_own_positions_is_silent(pair: Any) -> None:
    """It counts in its own tokens; the answer goes on without it."""
    assert pair.draft.translation is not None
    drafter = TranslatedDrafter(pair.draft.model, pair.draft.translation, rows=ROWS, context_tokens=20)
    prompt = ids(pair, "a" * 15)
    plain = generate(pair, prompt, drafter=None, max_tokens=16)
    cut = generate(pair, prompt, drafter=drafter, k=2, max_tokens=16)
    assert cut.tokens == plain.tokens
    assert cut.draft_lengths[-2:] == (0, 0)


def test_what_needs_the_targets_ids_is_refused(pair: Any) -> None:
    """Adapters, a smaller head and mlx-lm's loop take token ids for what they are not here; calibration takes the draft as it is."""
    with pytest.raises(HarnessError, match="adapters learn from the target's tokens"):
        adaptable(pair)
    with pytest.raises(HarnessError, match="vocab names ids of the target"):
        resolve_drafter(pair, "generic", DrafterOptions(vocab=50))
    with pytest.raises(HarnessError, match="needs a draft with the target's tokenizer"):
        generate(pair, [5, 6], loop="mlx-lm", max_tokens=4)
    assert calibrate(pair, resolve_drafter(pair, "hybrid"), max_k=1, repeats=1).costs.c > 0


def test_sessions_and_the_api_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session drafts with it and learns nothing."""
    from harness import Session

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    found = load_pair(str(write_translated(tmp_path)))
    with Session.from_config(pair=found, max_tokens=8) as session:
        answer = session.generate("Hello there")
        assert session.learner is None
        assert answer.drafter == "generic"
        assert answer.tokens == api.generate(found, "Hello there", drafter=None, max_tokens=8).tokens
        with pytest.raises(HarnessError, match="no draft that can learn"):
            session.train()


def test_it_is_said_and_can_be_forbidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A note names the first difference; with ``translate: false`` and with ``draft_vocab`` the pair is refused before weights."""
    found = load_pair(str(write_translated(tmp_path)))
    assert found.draft is not None
    assert found.draft.translation is not None
    assert "is translated: its text is put into the target's tokens, since token id 2 is" in capsys.readouterr().err
    assert found.draft.translation.reason.startswith("token id 2 is")
    for more, message in (("translate: false\n", "do not share a tokenizer"), ("draft_vocab: v.json\n", "a tokenizer of its own")):
        with pytest.raises(HarnessError, match=message):
            load_pair(str(write_translated(tmp_path / message[:4], more=more)))


def test_a_report_says_it(tmp_path: Path) -> None:
    """Who reads how often a draft was rejected must know that it speaks another language and read only a part."""
    import io

    from rich.console import Console

    from harness.results.manifest import read_manifest
    from harness.results.reading import read_records
    from harness.run.runner import reports_folder, run_suite
    from harness.suite.suite import load_suite

    write_translated(tmp_path, noise=0.05)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say the end."}\n{"prompt": "Count to 12."}\n')
    (tmp_path / "s.yaml").write_text(
        f"name: t\nmodels: {tmp_path}/pair.yaml\nmax_tokens: 12\ndraft_context: 8\n"
        f"domains:\n  x: {{dataset: local, split: all, path: {tmp_path}/p.jsonl}}\n"
        "experiments:\n  - kind: baseline\n  - {kind: generic_draft, k: [2], loop: mlx-lm}\n"
        "  - {kind: ablation_k, k: [3]}\n  - {kind: dynamic_k, policies: [auto]}\n"
    )
    folder = run_suite(load_suite(tmp_path / "s.yaml"), results_dir=tmp_path / "results", console=Console(file=io.StringIO()))
    manifest = read_manifest(folder)
    assert manifest.models["translated"]
    assert manifest.models["draft_context"] == "8"
    assert manifest.measured.skipped == ("generic_draft",)
    assert all(check["equal"] for check in manifest.measured.spot_checks)
    assert all(record.divergence is None for record in read_records(folder))
    report = (reports_folder(folder) / "report.md").read_text(encoding="utf-8")
    assert "The draft is translated: it has another tokenizer" in report
    assert "The draft reads the last 8 tokens of a longer prompt." in report


# --- the translation itself ---


def written(folder: Path, name: str, **given: Any) -> Any:
    """A loaded tokenizer."""
    place = write_model(folder / name)
    write_tokenizer(place, **given)
    return load_tokenizer(place, None)


def spaced(folder: Path) -> Any:
    """One that puts a space before every text, as SentencePiece does; it knows ASCII alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    place = write_model(folder / "spaced")
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *map(chr, range(33, 127)), "\n", "▁", "▁a", "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a"), ("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.save(str(place / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    return load_tokenizer(place, None)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Plain bytes, bytes that grow together, and one that puts a space before every text."""
    folder = tmp_path_factory.mktemp("tokenizers")
    plain = written(folder, "plain", specials=SPECIALS, letters=LETTERS)
    merged = written(folder, "merged", specials=OTHERS, letters=LETTERS[::-1], merges=MERGES)
    return {"plain": plain, "merged": merged, "spaced": spaced(folder)}


ASCII = st.text(alphabet="abinrth12 \n.", max_size=20)


@pytest.mark.parametrize(("target", "draft"), [("plain", "merged"), ("merged", "plain"), ("merged", "spaced"), ("spaced", "merged")])
@given(before=ASCII, new=ASCII)
@settings(max_examples=30, deadline=None)
def test_text_comes_through(tokenizers: dict[str, Any], target: str, draft: str, before: str, new: str) -> None:
    """What the draft adds to a text is what the target's tokens add, wherever either cuts it; only a word that would grow into the
    context of a tokenizer with spaces of its own is given up."""
    one, two = tokenizers[target], tokenizers[draft]
    translation = Translation(one, two, "test")
    before = f"x{before}"
    context = list(one.encode(before, add_special_tokens=False))
    text = translation.text(context)
    assert text == before
    heard, whole = translation.heard(text), list(two.encode(before + new, add_special_tokens=False))
    start = [two.bos_token_id] if draft == "spaced" and two.encode("")[:1] == [two.bos_token_id] else []
    assert heard == [*start, *two.encode(before, add_special_tokens=False)]
    drawn = whole[len(heard) - len(start) :]
    if [*heard, *drawn] != [*start, *whole] or not drawn:
        return  # the draft's own cut of the whole is another: it would not have said this
    said = translation.said(context, heard, translation.spoken(drawn))
    assert one.decode([*context, *said]) == before + new or (target == "spaced" and not said)


@given(st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_lines_are_cut_as_the_whole_is(tokenizers: dict[str, Any], text: str) -> None:
    """Lines are cut apart so that only the last one has to be cut again in every round."""
    translation = Translation(tokenizers["plain"], tokenizers["merged"], "test")
    if not any(marker in text for marker in OTHERS):
        assert translation.heard(text) == list(tokenizers["merged"].encode(text, add_special_tokens=False))


def test_markers_pass_where_both_know_them(tokenizers: dict[str, Any]) -> None:
    """The draft reads markers of its own, no names of the target's; its end of answer is the target's, and nothing follows it."""
    plain, merged = tokenizers["plain"], tokenizers["merged"]
    translation = Translation(plain, merged, "test")
    read = translation.text(plain.encode("<|im_start|>user\nhi<|im_end|>\n", add_special_tokens=False))
    assert read == "<|im_start|>user\nhi\n"
    assert translation.heard(read)[0] == OTHERS.index("<|im_start|>")
    letters, end = list(merged.encode("ab", add_special_tokens=False)), OTHERS.index("</s>")
    context = list(plain.encode("x", add_special_tokens=False))
    heard = translation.heard("x")
    assert translation.spoken([*letters, end, *letters]) == [*letters, end]
    assert translation.said(context, heard, [*letters, end]) == [*plain.encode("ab", add_special_tokens=False), EOS]
    assert translation.spoken([*letters, OTHERS.index("<|im_start|>"), end]) == letters


def test_a_character_that_is_not_whole_waits(tokenizers: dict[str, Any]) -> None:
    """Half a character is no text: the draft is not asked behind it, and does not say it."""
    plain, merged = tokenizers["plain"], tokenizers["merged"]
    translation = Translation(plain, merged, "test")
    bytes_ = list(merged.encode("aé", add_special_tokens=False))
    context = list(plain.encode("x", add_special_tokens=False))
    assert translation.said(context, translation.heard("x"), bytes_[:-1]) == list(plain.encode("a", add_special_tokens=False))
    assert translation.said(context, translation.heard("x"), bytes_) == list(plain.encode("aé", add_special_tokens=False))
