"""How to serve what was exported: command lines of mlx-lm's server, llama.cpp's server and vLLM."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.core import files
from harness.core.limits import LOOKUP_NGRAM
from harness.export.source import Part, Source
from harness.models.pair_config import HubSource, PathSource

FLAGS = "flags.txt"
MLX_OWNER = "mlx-community/"
"""Begins the names of hub repositories whose weights were converted for mlx-lm."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model on a command line."""

    words: tuple[str, ...]
    """What names it: a hub name, the user's own path, what was exported, or llama.cpp's options for these."""
    first: tuple[str, ...] = ()
    """A comment with the command that writes it, where that is left to do."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The models of an export as each engine names them."""

    draft: Model
    target: Model
    """For mlx-lm."""
    plain_target: Model
    """For vLLM, which does not read what is quantised in mlx's way."""
    draft_gguf: Model
    target_gguf: Model


def places(source: Source, written: Path | None, form: str) -> Places:
    """Where the models of an export are. A path in this program's cache is none of them: elsewhere it means nothing.

    Args:
        source: what was exported.
        written: the folder or GGUF file; None where it has no weights.
        form: ``mlx``, ``gguf`` or ``peft``.
    """
    own = _target(source, Places(
        draft=_unwritten(source, "draft", "mlx"), target=_unwritten(source, "target", "mlx"),
        plain_target=_unwritten(source, "target", "mlx"), draft_gguf=_unwritten(source, "draft", "gguf"),
        target_gguf=_unwritten(source, "target", "gguf"),
    ))  # fmt: skip
    if written is None or form == "peft":
        return own
    folder, file = Model(words=(str(written),)), Model(words=("-m", str(written)))
    if source.part == "draft":
        return replace(own, draft=folder) if form == "mlx" else replace(own, draft_gguf=Model(words=(str(written),)))
    return replace(own, target=folder, plain_target=folder) if form == "mlx" else replace(own, target_gguf=file)


def _unwritten(source: Source, part: Part, form: Literal["mlx", "gguf"]) -> Model:
    """A model that is neither on a hub nor among the user's own files, with the command that writes it."""
    source = source if source.part == part else replace(source, part=part, drafter="generic", adapter=None)
    adapter, folder = ["--adapter", source.adapter] if source.adapter else [], f"{part.upper()}-{form}"
    command = ["harness", "export", source.models, *adapter, "--part", part, "--to", form, "--dtype", "float16", "--out", folder]
    path = folder if form == "mlx" else f"{folder}/{source.name}-float16.gguf"
    return Model(words=(path,) if form == "mlx" or part == "draft" else ("-m", path), first=(f"# first: {shlex.join(command)}",))


def _target(source: Source, places: Places) -> Places:
    """The target under the first name that its pair gives it, of each form."""
    for found in reversed(source.config.target.parsed(source.base)):
        if isinstance(found, HubSource) and found.file is not None:
            places = replace(places, target_gguf=Model(words=("-hf", found.repo, "-hff", found.file)))
        elif isinstance(found, HubSource):
            target = Model(words=(found.repo,))
            places = replace(places, target=target, plain_target=places.plain_target if found.repo.startswith(MLX_OWNER) else target)
        elif isinstance(found, PathSource) and found.path.is_file():
            places = replace(places, target_gguf=Model(words=("-m", str(found.path))))
        elif isinstance(found, PathSource):
            target, config = Model(words=(str(found.path),)), files.read_json(found.path / "config.json")
            places = replace(places, target=target, plain_target=places.plain_target if "quantization" in config else target)
    return places


def flags(source: Source, places: Places) -> str:
    """The text of ``flags.txt``: one command line per engine, with what it needs first in a comment."""
    no_draft = source.part == "target" and source.config.draft is None
    if source.adapter is None and (no_draft or source.drafter in ("lookup", "memory")):
        return _lookup(source, places)
    if not source.has_weights:
        return f"# Nothing to add to an engine: {_why(source)}.\n"
    p, k = places, str(source.k)
    speculative = {"model": p.draft.words[0], "num_speculative_tokens": source.k, "method": "draft_model"}
    llama = [*p.target_gguf.words, "--spec-type", "draft-simple", "--spec-draft-model", *p.draft_gguf.words, "--spec-draft-n-max", k]
    return "\n".join([
        "# mlx-lm", *p.draft.first, *p.target.first,
        _line("mlx_lm.server", "--model", *p.target.words, "--draft-model", *p.draft.words, "--num-draft-tokens", k),
        "# llama.cpp", *p.draft_gguf.first, *p.target_gguf.first,
        _line("llama-server", *llama, "--spec-draft-p-min", "0"),
        "# vLLM", *p.draft.first, *p.plain_target.first,
        _line("vllm", "serve", *p.plain_target.words, "--speculative-config", json.dumps(speculative)),
    ])  # fmt: skip


def _lookup(source: Source, places: Places) -> str:
    p, ngram = places, source.settings.options.ngram if source.settings else None
    options = {"method": "ngram", "num_speculative_tokens": source.k, "prompt_lookup_max": ngram or LOOKUP_NGRAM}
    sizes = ["--spec-ngram-simple-size-n", str(ngram or LOOKUP_NGRAM), "--spec-ngram-simple-size-m", str(source.k)]
    return "\n".join([
        "# Lookup in the text so far needs no model.",
        "# llama.cpp", *p.target_gguf.first,
        _line("llama-server", *p.target_gguf.words, "--spec-type", "ngram-simple", *sizes),
        "# vLLM", *p.plain_target.first,
        _line("vllm", "serve", *p.plain_target.words, "--speculative-config", json.dumps(options)),
    ])  # fmt: skip


def _line(*words: str) -> str:
    return shlex.join(words) + "\n"


def _why(source: Source) -> str:
    if source.drafter is None:
        return "the target alone is recommended"
    return f"the drafter {source.drafter} exists in this project alone"
