"""Adapter folders: mlx-lm's two files (so ``mlx_lm.generate --adapter-path`` loads them) and ``metadata.json``.

Importing it loads no mlx, so that names can be checked before any model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapt.config import LoraConfig
from harness.errors import HarnessError
from harness.files import read_stored, write_atomic
from harness.paths import cache_dir
from harness.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from harness.adapt.trees import mx

WEIGHTS, CONFIG, METADATA = "adapters.safetensors", "adapter_config.json", "metadata.json"
_ADVICE = "Train one with `harness train`, or name another folder."


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


def adapters_root(pair: str) -> Path:
    """Return the cache folder that holds a pair's adapters."""
    return cache_dir() / "adapters" / pair


def write_adapter(folder: Path, weights: Mapping[str, mx.array], lora: LoraConfig, num_layers: int, info: AdapterInfo) -> None:
    """Write an adapter folder; the metadata last, so a folder with metadata is complete."""
    from harness.adapt.checkpoint import save_arrays

    (folder / METADATA).unlink(missing_ok=True)
    save_arrays(folder / WEIGHTS, weights)
    parameters: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
    if lora.keys is not None:
        parameters["keys"] = sorted(lora.keys)
    config = {"fine_tune_type": "dora" if lora.dora else "lora", "num_layers": num_layers, "lora_parameters": parameters}
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    row = {"schema_version": SCHEMA_VERSION, **asdict(info)}
    write_atomic(folder / METADATA, (json.dumps(row, indent=2) + "\n").encode())


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) of an adapter's weights.

    Raises:
        HarnessError: they cannot be read.
    """
    try:
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise HarnessError(f"cannot read {folder / WEIGHTS}: {error.strerror}", "Train or import the adapter again.") from error


def read_info(folder: Path, draft_hash: str | None = None) -> AdapterInfo:
    """Read ``metadata.json`` and check that the adapter belongs to the draft.

    Raises:
        HarnessError: no adapter there, a newer version, or another draft's adapter.
    """
    path = folder / METADATA
    if not path.is_file():
        raise HarnessError(f"{folder} holds no adapter", _ADVICE)
    info: AdapterInfo = read_stored(AdapterInfo, path, advice=_ADVICE)
    if draft_hash is not None and info.draft_hash != draft_hash:
        raise HarnessError(
            f"adapter {info.name!r} was trained on draft {info.draft_name} ({info.draft_hash[:12]}), not on this one ({draft_hash[:12]})",
            "Use it with its own draft, or train it again with `harness train`.",
        )
    return info


def read_lora(folder: Path) -> tuple[LoraConfig, dict[str, mx.array]]:
    """Return an adapter's shape and arrays.

    Raises:
        HarnessError: missing or malformed files.
    """
    from harness.adapt.trees import mx

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        parameters = config["lora_parameters"]
        lora = LoraConfig(
            rank=parameters["rank"],
            scale=float(parameters["scale"]),
            dropout=float(parameters.get("dropout", 0.0)),
            num_layers=config["num_layers"],
            keys=parameters.get("keys"),
            dora=config.get("fine_tune_type", "lora") == "dora",
        )
        weights = mx.load(str(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise HarnessError(f"{folder} holds no usable adapter: {error}", "Train or import it again.") from error
    return lora, weights


def load_into(model: Any, weights: Mapping[str, mx.array], source: Path) -> None:
    """Put arrays into a model whose updates are attached.

    Raises:
        HarnessError: names or shapes differ from the attached updates.
    """
    from harness.adapt.surface import adapter_weights

    expected = {name: array.shape for name, array in adapter_weights(model).items()}
    wrong = sorted(name for name in expected.keys() | weights.keys() if name not in weights or expected.get(name) != weights[name].shape)
    if wrong:
        raise HarnessError(f"the adapter in {source} does not fit the draft at {wrong[0]}", "Use it with the draft it was trained on.")
    model.load_weights(list(weights.items()), strict=False)


def list_adapters(folder: Path) -> dict[str, Path]:
    """Return name -> folder of the complete adapters inside ``folder``."""
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{METADATA}"))}
