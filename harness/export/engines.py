"""How to serve what was exported: command lines of mlx-lm's server, llama.cpp's server and vLLM."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from harness.export.source import Source
from harness.models.pair_config import HubSource

FLAGS = "flags.txt"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the models are, as far as they are known."""

    target: str
    """Hub name or folder of the target."""
    draft: str | None
    """Folder of the draft in Hugging Face's form."""
    gguf: str | None
    """GGUF file of the draft."""
    target_gguf: str | None = None
    """GGUF file of the target."""


def target_place(source: Source, folder: Path | None) -> str:
    """The target as an engine names it: its hub name where its weights are there as safetensors, else its folder."""
    first = source.config.target.parsed(source.base)[0]
    if isinstance(first, HubSource) and first.file is None:
        return first.repo
    return str(folder) if folder is not None else "TARGET"


def flags(source: Source, places: Places) -> str:
    """The text of ``flags.txt``: one command line per engine, with what it needs first in a comment."""
    if source.drafter in ("lookup", "memory") and source.adapter is None:
        return _lookup(source, places)
    if not source.has_weights:
        return f"# Nothing to add to an engine: {_why(source)}.\n"
    k, target = source.k, shlex.quote(places.target)
    adapter = f" --adapter {shlex.quote(source.adapter)}" if source.adapter else ""
    models = shlex.quote(source.models)
    folder, gguf = shlex.quote(places.draft or "DRAFT"), shlex.quote(places.gguf or "DRAFT.gguf")
    write = f"# first: harness export {models}{adapter} --to "
    needs_folder = [] if places.draft else [f"{write}mlx --out DRAFT"]
    speculative = json.dumps({"model": places.draft or "DRAFT", "num_speculative_tokens": k, "method": "draft_model"})
    lines = [
        "# mlx-lm",
        *needs_folder,
        f"mlx_lm.server --model {target} --draft-model {folder} --num-draft-tokens {k}",
        "",
        "# llama.cpp",
        *([] if places.gguf else [f"{write}gguf --out DRAFT-gguf"]),
        *_target_gguf(models, places),
        f"llama-server -m {shlex.quote(places.target_gguf or 'TARGET.gguf')} --spec-type draft-simple --spec-draft-model {gguf} "
        f"--spec-draft-n-max {k} --spec-draft-p-min 0",
        "",
        "# vLLM",
        *needs_folder,
        f"vllm serve {target} --speculative-config {shlex.quote(speculative)}",
    ]
    return "\n".join(lines) + "\n"


def _target_gguf(models: str, places: Places) -> list[str]:
    return [] if places.target_gguf else [f"# TARGET.gguf is the target as GGUF, by: harness export {models} --part target --to gguf"]


def _lookup(source: Source, places: Places) -> str:
    ngram = source.settings.options.ngram if source.settings else None
    options = {"method": "ngram", "num_speculative_tokens": source.k, "prompt_lookup_max": ngram or 3}
    lines = [
        "# Lookup in the text so far needs no model.",
        "# llama.cpp",
        *_target_gguf(shlex.quote(source.models), places),
        f"llama-server -m TARGET.gguf --spec-type ngram-simple --spec-ngram-simple-size-n {ngram or 3} "
        f"--spec-ngram-simple-size-m {source.k}",
        "",
        "# vLLM",
        f"vllm serve {shlex.quote(places.target)} --speculative-config {shlex.quote(json.dumps(options))}",
    ]
    return "\n".join(lines) + "\n"


def _why(source: Source) -> str:
    if source.drafter is None:
        return "the target alone is recommended"
    return f"the drafter {source.drafter} exists in this project alone"
