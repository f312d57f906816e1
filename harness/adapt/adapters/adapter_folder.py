"""Adapter folders: mlx-lm's two files (so ``mlx_lm.generate --adapter-path`` loads them) and ``metadata.json``.

Importing it loads no mlx, so that names can be checked before any model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from harness.adapt.training_config import LoraConfig
from harness.core import files
from harness.core.errors import HarnessError
from harness.core.paths import adapters_root
from harness.core.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from harness.models.mlx_names import mx

WEIGHTS, CONFIG, METADATA = "adapters.safetensors", "adapter_config.json", "metadata.json"
AGAIN = "Train or import the adapter again."


class _Config(BaseModel):
    """What mlx-lm's ``adapter_config.json`` says; keys of its trainer beside these change nothing here."""

    fine_tune_type: Literal["lora", "dora"] = "lora"
    """Kind of the update."""
    num_layers: int
    """Blocks that carry one, counted from the output; -1 is all of them."""
    lora_parameters: LoraConfig
    """Its shape."""


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What ``metadata.json`` says."""

    name: str
    """Name users choose it by."""
    draft_hash: str
    """Draft the adapter belongs to."""
    draft_name: str
    """The draft's name."""
    domain: str | None
    """Domain it was trained for; None is a mix."""
    rank: int
    """Rank of the update."""
    data_hash: str
    """Hash of the training examples."""
    examples: int
    """Number of training examples."""
    metric: str
    """Acceptance measure of ``before`` and ``after``."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Validation acceptance by domain of the draft that training started from."""
    after: Mapping[str, float] = field(default_factory=dict)
    """Validation acceptance by domain with this adapter."""
    steps: int = 0
    """Updates up to the best checkpoint."""
    train_s: float = 0.0
    """Seconds of training."""
    created: str = ""
    """ISO 8601, UTC."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The training configuration."""


def adapter_folder(pair: str, name: str) -> Path:
    """Return the cache folder of a pair's adapter.

    Raises:
        HarnessError: a name with other characters than letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise HarnessError(f"{name!r} is not a usable adapter name", "Use letters, digits, dots, dashes and underscores.")
    return adapters_root(pair) / name


def write_adapter(folder: Path, weights: Mapping[str, mx.array], lora: LoraConfig, num_layers: int, info: AdapterInfo) -> None:
    """Write an adapter folder; the metadata last, so a folder with metadata is complete."""
    parameters: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
    if lora.keys is not None:
        parameters["keys"] = sorted(lora.keys)
    config = {"fine_tune_type": "dora" if lora.dora else "lora", "num_layers": num_layers, "lora_parameters": parameters}
    _write(folder, weights, config, info)


def write_parallel(folder: Path, weights: Mapping[str, mx.array], scale: float, info: AdapterInfo) -> None:
    """Write a folder of kind ``parallel``: masks and the LoRA that acts at them, as :mod:`harness.models.parallel_masks` reads it."""
    from harness.models.parallel_masks import MASKS, MaskInfo

    config = asdict(MaskInfo(draft_hash=info.draft_hash, masks=len(weights[MASKS]), scale=scale))
    _write(folder, weights, config, info)


def _write(folder: Path, weights: Mapping[str, mx.array], config: Mapping[str, Any], info: AdapterInfo) -> None:
    from harness.models.tensors import save_arrays

    (folder / METADATA).unlink(missing_ok=True)
    save_arrays(folder / WEIGHTS, weights)
    files.write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    row = {"schema_version": SCHEMA_VERSION, **asdict(info)}
    files.write_atomic(folder / METADATA, (json.dumps(row, indent=2) + "\n").encode())


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) of an adapter's weights.

    Raises:
        HarnessError: they cannot be read.
    """
    return files.sha256(folder / WEIGHTS, advice=AGAIN)


def read_info(folder: Path, draft_hash: str | None = None) -> AdapterInfo:
    """Read ``metadata.json`` and check that the adapter belongs to the draft.

    Raises:
        HarnessError: no adapter there, a newer version, or another draft's adapter.
    """
    path = folder / METADATA
    info: AdapterInfo = files.read_stored(AdapterInfo, path, advice="Train one with `harness train`, or name another folder.")
    if draft_hash is not None and info.draft_hash != draft_hash:
        raise HarnessError(
            f"adapter {info.name!r:.100} was trained on draft {info.draft_name!r:.100} ({info.draft_hash[:12]!a}), "
            f"not on this one ({draft_hash[:12]})",
            "Use it with its own draft, or train it again with `harness train`.",
        )
    return info


def read_lora(folder: Path) -> tuple[LoraConfig, dict[str, mx.array]]:
    """Return an adapter's shape and arrays.

    Raises:
        HarnessError: missing or malformed files.
    """
    from harness.models.tensors import load_arrays

    path = folder / CONFIG
    data = files.read_json(path, advice=AGAIN)
    if data.get("fine_tune_type") == "parallel":
        raise HarnessError(f"the adapter in {folder} drafts in parallel: it is no change of the draft's weights", "Use it as a drafter.")
    config = files.typed(_Config, data, str(path), advice=AGAIN)
    shape = config.lora_parameters.model_copy(update={"num_layers": config.num_layers, "dora": config.fine_tune_type == "dora"})
    lora = files.typed(LoraConfig, shape.model_dump(), str(path), advice=AGAIN)
    return lora, load_arrays(folder / WEIGHTS, finite=True, advice=AGAIN)[0]


def load_into(model: Any, weights: Mapping[str, mx.array], source: Path) -> None:
    """Put arrays into a model whose updates are attached.

    Raises:
        HarnessError: names or shapes differ from the attached updates.
    """
    from harness.adapt.adapters.surface import adapter_weights

    expected = {name: array.shape for name, array in adapter_weights(model).items()}
    wrong = sorted(name for name in expected.keys() | weights.keys() if name not in weights or expected.get(name) != weights[name].shape)
    if wrong:
        raise HarnessError(f"the adapter in {source} does not fit the draft at {wrong[0]}", "Use it with the draft it was trained on.")
    model.load_weights(list(weights.items()), strict=False)


def list_adapters(folder: Path) -> dict[str, Path]:
    """Return name -> folder of the complete adapters inside ``folder``."""
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{METADATA}"))}
