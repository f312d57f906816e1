"""The weights of an export under their Hugging Face names, with the configuration that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.export.source import Source
from harness.models.blas import mx
from harness.models.folder import read_config
from harness.models.mlx_names import tree_flatten, tree_unflatten
from harness.models.pair import load_weights
from harness.models.sources import Progress
from harness.models.weights import ModelFolder, locate

NAMED_ALIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose weights mlx-lm keeps under the names that transformers gives them."""
SHORT = ("float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model ready to be written."""

    arrays: Mapping[str, mx.array]
    """Name -> array, floating point."""
    config: Mapping[str, Any]
    """``config.json``, dtype left out."""
    stored: str
    """Type of numbers the model came in, ``float32`` where it does not say."""
    tokenizer: Path
    """Folder with the tokenizer's files."""
    hash: str
    """SHA-256 of the model that the weights come from, any adapter apart."""
    target_hash: str
    """SHA-256 of the pair's target."""
    kept: int | None
    """Tokens that a cut's own head names; None for a model with its whole head."""


def load_for_export(source: Source, *, offline: bool = False, progress: Progress | None = None) -> Weights:
    """Load a pair's draft or target, put the adapter into it, and give a cut a head over the whole vocabulary.

    Raises:
        HarnessError: it cannot be had, or is of an architecture whose weights other programs name in another way.
    """
    from harness.models.fetching import show_progress

    with show_progress(progress) as report:
        target = locate(source.config.target, source.base, offline=offline, progress=report)
        chosen = source.config.draft if source.part == "draft" else source.config.target
        folder = target if source.part == "target" else locate(chosen, source.base, offline=offline, progress=report) if chosen else None
    if target is None or folder is None:
        raise HarnessError(f"the {source.part} of {source.pair!r} is not on this machine", "Fetch it with `harness models pull`.")
    if folder.is_cut:
        return _cut(source, target, folder)
    config = read_config(folder.path)
    kind = config.get("model_type")
    if kind not in NAMED_ALIKE:
        raise HarnessError(
            f"a {kind} model is not exported (only {', '.join(NAMED_ALIKE)})", f"Other programs read its folder as it is: {folder.path}"
        )
    quantised = any(config.get(key) for key in ("quantization", "quantization_config"))
    model, _ = load_weights(folder, "float32" if source.adapter_folder or quantised else "stored", source.part)
    if source.adapter_folder:
        _fuse(model, source.adapter_folder, folder.hash)
    return Weights(
        arrays=dict(tree_flatten(model.parameters())), config=config, stored=_stored(config), tokenizer=folder.path,
        hash=folder.hash, target_hash=target.hash, kept=None,
    )  # fmt: skip


def _cut(source: Source, target: ModelFolder, folder: ModelFolder) -> Weights:
    """A cut as a llama of its own: the target's embeddings, the cut's blocks, its head spread over the whole vocabulary."""
    from harness.models.cut import load_cut

    model, config = load_weights(target, "float32", "target")
    draft = load_cut(folder.path, model)
    if source.adapter_folder:
        _fuse(draft.model, source.adapter_folder, draft.hash)
    assert draft.token_map is not None
    arrays = dict(tree_flatten(draft.model.parameters()))
    embedding = arrays["model.embed_tokens.weight"]
    arrays["lm_head.weight"] = whole_head(arrays["lm_head.weight"], draft.token_map, len(embedding))
    own = {"num_hidden_layers": len(draft.model.layers), "tie_word_embeddings": False, "vocab_size": len(embedding)}
    kept = {key: value for key, value in config.items() if key != "layer_types"}
    return Weights(
        arrays=arrays, config={**kept, **own}, stored="float32", tokenizer=target.path, hash=draft.hash, target_hash=target.hash,
        kept=len(draft.token_map),
    )  # fmt: skip


def whole_head(rows: mx.array, token_map: mx.array, vocab: int) -> mx.array:
    """An output head over ``vocab`` tokens (vocab, dim) out of one over some of them (kept, dim).

    A token that the draft cannot propose gets the mean of the kept rows, so its logit is the mean of the kept logits: never above the
    highest of them, whatever the state, and equal to it only where all are equal.
    """
    whole = mx.repeat(rows.mean(axis=0, keepdims=True), vocab, axis=0)
    whole[token_map] = rows
    return whole


def _fuse(model: Any, adapter: Path, draft_hash: str) -> None:
    from harness.adapt.adapters.adapter_folder import read_info
    from harness.adapt.training.bank import fuse, updated_modules

    read_info(adapter, draft_hash)
    fused = {path: fuse(module) for path, module in updated_modules(model, adapter).items()}
    model.update_modules(tree_unflatten(list(fused.items())))


def _stored(config: Mapping[str, Any]) -> str:
    named = config.get("dtype") or config.get("torch_dtype")
    return named if named in (*SHORT, "float32") else "float32"
