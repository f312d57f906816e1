"""Training state in one file, replaced atomically: adapter, best adapter, optimiser and position. A kill leaves the old or the new one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.records import SCHEMA_VERSION
from harness.core.text import printable
from harness.models.mlx_names import mx
from harness.models.tensors import load_arrays, save_arrays

FILE = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after ``step`` updates. Random numbers and the data order follow from seed and step, so neither is stored."""

    step: int
    """Updates done."""
    weights: Mapping[str, mx.array]
    """Adapter arrays."""
    best: Mapping[str, mx.array]
    """Adapter arrays of the best evaluation; empty when none beat the start."""
    optimiser: Mapping[str, mx.array]
    """Flattened optimiser state."""
    progress: Mapping[str, Any]
    """JSON values the trainer keeps: losses, evaluations, seconds."""


@dataclass(frozen=True)
class _State:
    """What the file's metadata says."""

    fingerprint: str
    """Run it belongs to."""
    step: int
    """Updates done."""
    progress: dict[str, Any]
    """The trainer's own."""


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Write the checkpoint of the run that ``fingerprint`` names."""
    groups = {"weights": checkpoint.weights, "best": checkpoint.best, "optimiser": checkpoint.optimiser}
    arrays = {f"{group}/{name}": array for group, members in groups.items() for name, array in members.items()}
    state = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "step": checkpoint.step, "progress": dict(checkpoint.progress)}
    save_arrays(folder / FILE, arrays, {"state": json.dumps(state)})


def load(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Read the checkpoint; None when there is none.

    Raises:
        HarnessError: unreadable, of a newer version, or of a run with other data, settings or draft.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    advice = "Delete it and train anew."
    arrays, metadata = load_arrays(path, advice=advice)
    data = files.this_version(files.parse_json(metadata.get("state", ""), str(path), advice=advice), str(path), advice=advice)
    state = files.typed(_State, data, str(path), advice=advice)
    if state.fingerprint != fingerprint:
        raise HarnessError(
            f"{path} belongs to a run with other data, settings or draft", "Resume with the same ones, or train without resuming."
        )
    groups: dict[str, dict[str, mx.array]] = {"weights": {}, "best": {}, "optimiser": {}}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        if group not in groups:
            raise HarnessError(f"{path}: {printable(name, 100)} belongs to no part of a checkpoint", advice)
        groups[group][rest] = array
    return Checkpoint(step=state.step, progress=state.progress, **groups)
