"""A draft cut from its target: a few of the target's layers, its embeddings by reference, a pruned output vocabulary.

On disk a cut is a folder: ``config.json`` and ``draft.safetensors``, as :mod:`harness.models.packed` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.blas import lay_out, mx, nn

# isort: split
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from harness.models.packed import TOKEN_MAP, check_shapes, read_packed, write_packed

if TYPE_CHECKING:
    from harness.models.draft import Draft

SCHEMA_VERSION = 1
"""Version of the folder's layout."""
WEIGHTS = "draft.safetensors"
AGAIN = "Reinstall the package, or run `harness distill` to make the draft again."


@dataclass(frozen=True)
class CutInfo:
    """What ``config.json`` of a cut says, as far as it is read."""

    name: str
    """Name of the draft."""
    target_hash: str
    """Target it was trained for."""
    layers: int
    """Blocks."""
    vocab: int
    """Output ids."""
    hidden: int
    """Width of the target."""
    quantised: dict[str, tuple[int, int]]
    """Kind of layer -> bits and weights per scale."""
    sha256: str
    """Of the weights."""
    context_tokens: bool = False
    """It was trained to propose tokens of prompt and answer too."""
    base: str | None = None
    """Pair it was distilled from."""
    steps: int | None = None
    """Updates it was trained with."""


class CutModel(llama.Model):
    """Llama blocks between the target's embeddings and a small output head.

    ``model(tokens (1, n), cache=cache)`` gives logits (1, n, vocab). The structure is mlx-lm's own (``model.layers``, ``lm_head``),
    so caches, LoRA and fusing work on it as on any Llama.

    Args:
        target: Llama model of mlx-lm; its embedding module is shared, not copied.
        layers: number of blocks.
        vocab: number of output ids.
    """

    def __init__(self, target: nn.Module, layers: int, vocab: int) -> None:
        super().__init__(replace(target.args, num_hidden_layers=layers, layer_types=None, tie_word_embeddings=False))
        self.model.embed_tokens = target.model.embed_tokens
        self.lm_head = nn.Linear(target.args.hidden_size, vocab, bias=False)

    def own_weights(self) -> dict[str, mx.array]:
        """Name -> weight of everything but the shared embeddings."""
        return {name: w for name, w in tree_flatten(self.parameters()) if not name.startswith("model.embed_tokens.")}


def save_cut(
    folder: Path,
    weights: Mapping[str, mx.array],
    token_map: mx.array,
    *,
    name: str,
    target_hash: str,
    quantise: Mapping[str, tuple[int, int]],
    about: Mapping[str, Any] | None = None,
) -> str:
    """Write a cut and return its hash.

    Args:
        folder: created when missing; a cut in it is replaced.
        weights: names as in :meth:`CutModel.own_weights`, floating point.
        token_map: (vocab,) draft id -> target id.
        name: draft's name.
        target_hash: hash of the target it was trained for.
        quantise: last but one part of a weight's name (``down_proj``, ``lm_head``) -> bits (4 or 8) and weights per scale;
            names not listed stay float16.
        about: anything else worth keeping in config.json. ``context_tokens: true`` says that the cut was trained to propose what
            stands in prompt and answer too, through the target's embedding rows.
    """
    sha256 = write_packed(folder / WEIGHTS, weights, token_map, quantise)
    config = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "target_hash": target_hash,
        "layers": sum(key.endswith("input_layernorm.weight") for key in weights),
        "vocab": len(token_map),
        "hidden": weights["model.norm.weight"].shape[0],
        "quantised": {kind: list(form) for kind, form in quantise.items()},
        "sha256": sha256,
        **(about or {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return sha256


def load_cut(folder: Path, target: nn.Module) -> Draft:
    """Load a cut for ``target``.

    Raises:
        HarnessError: files missing, damaged, of a newer version, or made for a target of another shape.
    """
    from harness.models.draft import Draft

    config, arrays = read_cut(folder)
    args = getattr(target, "args", None)
    if getattr(target, "model_type", None) != "llama" or args is None or args.hidden_size != config.hidden:
        raise HarnessError(
            f"the draft in {folder} belongs to a Llama target of width {config.hidden}", "Use it with the pair it was made for."
        )
    token_map = arrays.pop(TOKEN_MAP)
    if not 0 <= int(token_map.min()) <= int(token_map.max()) < args.vocab_size:
        raise HarnessError(f"the draft in {folder} names tokens that the target lacks", "Use it with the pair it was made for.")
    model = CutModel(target, config.layers, config.vocab)
    check_shapes(folder / WEIGHTS, arrays, model.own_weights(), AGAIN)
    dtype = target.model.norm.weight.dtype
    model.load_weights([(key, w.astype(dtype)) for key, w in arrays.items()], strict=False)
    model.eval()
    lay_out(model)
    mx.eval(model.own_weights())
    vocab = tuple(token_map.tolist()) if config.context_tokens else None
    return Draft(model=model, token_map=token_map, hash=config.sha256, name=config.name, vocab=vocab)


def read_cut(folder: Path) -> tuple[CutInfo, dict[str, mx.array]]:
    """Configuration of a cut, and its weights in floating point together with :data:`TOKEN_MAP`.

    Raises:
        HarnessError: files missing, damaged, or of a newer version.
    """
    config = read_cut_config(folder)
    path = folder / WEIGHTS
    arrays = read_packed(path, sha256=config.sha256, vocab=config.vocab, quantised=config.quantised, advice=AGAIN)
    layers = {name.split(".")[2] for name in arrays if name.startswith("model.layers.")}
    if len(layers) != config.layers:
        raise HarnessError(f"{path} holds {len(layers)} layers, config.json says {config.layers}", AGAIN)
    return config, arrays


def read_cut_config(folder: Path) -> CutInfo:
    """``config.json`` of a cut.

    Raises:
        HarnessError: no cut there, unreadable, or written by a newer version.
    """
    path = folder / "config.json"
    data = files.this_version(files.read_json(path, advice=AGAIN), str(path), advice=AGAIN)
    known = {field.name for field in fields(CutInfo)}
    info: CutInfo = files.typed(CutInfo, {key: value for key, value in data.items() if key in known}, str(path), advice=AGAIN)
    return info
