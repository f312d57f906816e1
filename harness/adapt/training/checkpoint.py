"""Training state in one file, replaced atomically: weights, best weights, optimiser and position. A kill leaves the old or the new one.

Adapters are trained in mlx, distilled drafts in torch; both keep their arrays here under ``weights/``, ``best/`` and ``optimiser/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.records import SCHEMA_VERSION
from harness.core.text import printable
from harness.models.mlx_names import mx
from harness.models.tensors import load_arrays, read_header, save_arrays

FILE = "checkpoint.safetensors"
ADVICE = "Delete it and train anew."


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
class State:
    """What the file's metadata says."""

    fingerprint: str
    """Run it belongs to."""
    step: int
    """Updates done."""
    progress: dict[str, Any] = field(default_factory=dict)
    """The trainer's own."""


def metadata(state: State) -> dict[str, str]:
    """What stands in the header of the file."""
    return {"state": json.dumps({"schema_version": SCHEMA_VERSION, **vars(state)})}


def read_state(folder: Path, fingerprint: str | None) -> State | None:
    """Read the header of the checkpoint of the run that ``fingerprint`` names, of any run for None; None when there is none.

    Raises:
        HarnessError: unreadable, of a newer version, or of a run with other data, settings or models.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    text = read_header(path, advice=ADVICE).metadata.get("state", "")
    data = files.this_version(files.parse_json(text, str(path), advice=ADVICE), str(path), advice=ADVICE)
    state: State = files.typed(State, data, str(path), advice=ADVICE)
    if fingerprint is not None and state.fingerprint != fingerprint:
        raise HarnessError(f"{path} belongs to a run with other data, settings or models", "Undo the change, or delete it and train anew.")
    return state


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Write the checkpoint of the run that ``fingerprint`` names."""
    groups = {"weights": checkpoint.weights, "best": checkpoint.best, "optimiser": checkpoint.optimiser}
    arrays = {f"{group}/{name}": array for group, members in groups.items() for name, array in members.items()}
    save_arrays(folder / FILE, arrays, metadata(State(fingerprint, checkpoint.step, dict(checkpoint.progress))))


def load(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Read the checkpoint; None when there is none.

    Raises:
        HarnessError: as :func:`read_state`.
    """
    state = read_state(folder, fingerprint)
    if state is None:
        return None
    arrays, _ = load_arrays(folder / FILE, advice=ADVICE)
    groups: dict[str, dict[str, mx.array]] = {"weights": {}, "best": {}, "optimiser": {}}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        if group not in groups:
            raise HarnessError(f"{folder / FILE}: {printable(name, 100)} belongs to no part of a checkpoint", ADVICE)
        groups[group][rest] = array
    return Checkpoint(step=state.step, progress=state.progress, **groups)
