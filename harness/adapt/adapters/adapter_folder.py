"""Adapter folders: mlx-lm's two files (so ``mlx_lm.generate --adapter-path`` loads them) and ``metadata.json``.

A quantised adapter has its weights in a file of another name, which only this project reads.

Importing it loads no mlx, so that names can be checked before any model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from harness.adapt.training_config import LoraConfig
from harness.core import files
from harness.core.errors import HarnessError
from harness.core.paths import adapters_root
from harness.core.records import SCHEMA_VERSION
from harness.datasets.splits import prompt_digest

if TYPE_CHECKING:
    from harness.adapt.adapters.quantised import Bits
    from harness.models.mlx_names import mx

WEIGHTS, CONFIG, METADATA = "adapters.safetensors", "adapter_config.json", "metadata.json"
QUANTISED = "adapters.quantised.safetensors"
"""The weights of a quantised adapter, in place of :data:`WEIGHTS`."""
PROMPTS = "trained_on.txt"
"""Digests of the prompts that an adapter was trained on, where its training left them: a line each."""
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

    for name in (METADATA, QUANTISED):
        (folder / name).unlink(missing_ok=True)
    save_arrays(folder / WEIGHTS, weights)
    files.write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    row = {"schema_version": SCHEMA_VERSION, **asdict(info)}
    files.write_atomic(folder / METADATA, (json.dumps(row, indent=2) + "\n").encode())


def write_anew(adapter: Path, folder: Path, bits: Bits | None) -> None:
    """Write an adapter into an empty folder with so many bits a number, or with whole numbers, as mlx-lm reads it.

    Raises:
        HarnessError: no usable adapter, or DoRA in few bits: its magnitudes differ too little for that.
    """
    from harness.adapt.adapters.quantised import save_quantised
    from harness.models.tensors import save_arrays

    lora, arrays = read_lora(adapter)
    if bits is None:
        save_arrays(folder / WEIGHTS, arrays)
    elif lora.dora:
        raise HarnessError(f"the adapter in {adapter} is DoRA, whose magnitudes do not keep in {bits} bits", "Leave out --bits.")
    else:
        save_quantised(folder / QUANTISED, arrays, bits)
    copy_beside(adapter, folder)


def copy_beside(adapter: Path, folder: Path, **changes: Any) -> None:
    """Copy what stands beside the weights into another folder, the metadata last; ``changes`` replace what it says."""
    shutil.copyfile(adapter / CONFIG, folder / CONFIG)
    (folder / PROMPTS).unlink(missing_ok=True)
    if (adapter / PROMPTS).is_file():
        shutil.copyfile(adapter / PROMPTS, folder / PROMPTS)
    row = files.read_json(adapter / METADATA, advice=AGAIN)
    files.write_atomic(folder / METADATA, (json.dumps({**row, **changes}, indent=2) + "\n").encode())


def write_prompts(folder: Path, prompts: Iterable[str]) -> None:
    """Note in an adapter's folder which prompts it was trained on, by their digests."""
    digests = sorted({prompt_digest(prompt) for prompt in prompts})
    files.write_atomic(folder / PROMPTS, "".join(f"{digest}\n" for digest in digests))


def read_prompts(folder: Path) -> frozenset[str]:
    """Digests of the prompts that an adapter was trained on; none where its training left none.

    Raises:
        HarnessError: the file cannot be read.
    """
    path = folder / PROMPTS
    return frozenset(files.read_text(path, advice=AGAIN).split()) if os.path.lexists(path) else frozenset()


def weights_path(folder: Path) -> Path:
    """File of an adapter's weights, quantised or not; it need not exist."""
    return folder / QUANTISED if os.path.lexists(folder / QUANTISED) else folder / WEIGHTS


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) of an adapter's weights.

    Raises:
        HarnessError: they cannot be read.
    """
    return files.sha256(weights_path(folder), advice=AGAIN)


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
    """Return an adapter's shape and arrays, whole ones also of a quantised adapter.

    Raises:
        HarnessError: missing or malformed files.
    """
    from harness.adapt.adapters.quantised import read_quantised
    from harness.models.tensors import load_arrays

    path = folder / CONFIG
    data = files.read_json(path, advice=AGAIN)
    if data.get("fine_tune_type") == "parallel":
        raise HarnessError(f"the adapter in {folder} drafts in parallel: it is no change of the draft's weights", "Use it as a drafter.")
    config = files.typed(_Config, data, str(path), advice=AGAIN)
    shape = config.lora_parameters.model_copy(update={"num_layers": config.num_layers, "dora": config.fine_tune_type == "dora"})
    lora = files.typed(LoraConfig, shape.model_dump(), str(path), advice=AGAIN)
    weights = weights_path(folder)
    return lora, read_quantised(weights, advice=AGAIN) if weights.name == QUANTISED else load_arrays(weights, finite=True, advice=AGAIN)[0]


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
