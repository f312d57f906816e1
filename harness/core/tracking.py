"""Experiment trackers behind one small interface: Trackio, Weights & Biases, MLflow. Each is imported when it is asked for, none is needed.

Where a tracker keeps things, and as whom, its own settings say (``TRACKIO_DIR``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI`` and so on).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.core.errors import HarnessError
from harness.core.terminal import say

TrackerName = Literal["trackio", "wandb", "mlflow"]
PROJECT = "specdraft-harness"
"""Project or experiment that runs are kept under."""


class Tracker(Protocol):
    """What commands tell a tracker."""

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers, at an update of training or of the whole run."""

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of text."""

    def file(self, path: Path) -> None:
        """A file to keep with the run."""

    def finish(self) -> None:
        """Everything was told."""


class NoTracker:
    """Keeps nothing."""

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Nothing."""

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Nothing."""

    def file(self, path: Path) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class _Trackio:
    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._library = _library("trackio")
        self._library.init(project=PROJECT, name=name, config=dict(config), embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        self._library.log(dict(values), step=step)

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._library.log({name: self._library.Table(columns=list(headers), data=[list(row) for row in rows])})

    def file(self, path: Path) -> None:
        self._library.log_artifact(str(path), name=path.name, type="file")

    def finish(self) -> None:
        self._library.finish()


class _Wandb:
    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        library = self._library = _library("wandb")
        known = any(os.environ.get(key) for key in ("WANDB_MODE", "WANDB_API_KEY"))
        self._run = library.init(project=PROJECT, name=name, config=dict(config), mode=None if known else "offline")

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._run.log({name: self._library.Table(columns=list(headers), data=[list(row) for row in rows])})

    def file(self, path: Path) -> None:
        artifact = self._library.Artifact(f"{self._run.id}-{path.name}", type="file")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._library = _library("mlflow")
        self._library.set_experiment(PROJECT)
        self._library.start_run(run_name=name)
        self._library.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        self._library.log_metrics({re.sub(r"[^\w\-. /:]", "_", name): value for name, value in values.items()}, step=step)

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        columns = {header or str(i): [row[i] for row in rows] for i, header in enumerate(headers)}
        self._library.log_table(columns, "tables/" + re.sub(r"[^\w\-. ]", "_", name) + ".json")

    def file(self, path: Path) -> None:
        self._library.log_artifact(str(path))

    def finish(self) -> None:
        self._library.end_run()


class _Careful:
    """Passes everything on until the tracker fails: that is said once, and the work goes on without it.

    Args:
        name: of the tracker.
        tracker: who is told.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        self._tell(lambda: self._tracker.log(values, step))

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._tell(lambda: self._tracker.table(name, headers, rows))

    def file(self, path: Path) -> None:
        self._tell(lambda: self._tracker.file(path))

    def finish(self) -> None:
        self._tell(self._tracker.finish)

    def _tell(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:
            say(f"note: {self._name} keeps nothing from here on: {_first_line(error)}", err=True)
            self._tracker = NoTracker()


TRACKERS: dict[TrackerName, Callable[[str, Mapping[str, Any]], Tracker]] = {"trackio": _Trackio, "wandb": _Wandb, "mlflow": _MLflow}


def check_tracker(tracker: TrackerName | None) -> None:
    """Refuse a tracker that is not installed, before hours of work that it should keep; imports nothing.

    Raises:
        HarnessError: names the package.
    """
    if tracker is not None and importlib.util.find_spec(tracker) is None:
        raise _missing(tracker)


@contextmanager
def tracking(tracker: TrackerName | None, name: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """A tracker for the duration of a block; without one, nothing is kept.

    Args:
        tracker: which one.
        name: the run's name.
        config: settings to keep with it; nested ones under names with dots.

    Raises:
        HarnessError: its package is not installed, or it cannot begin.
    """
    if tracker is None:
        yield NoTracker()
        return
    try:
        opened = _Careful(tracker, TRACKERS[tracker](name, _flat(config)))
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(f"{tracker} does not begin: {_first_line(error)}", "Check its settings, or leave out --track.") from error
    try:
        yield opened
    finally:
        opened.finish()


def _library(name: TrackerName) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name) from error


def _missing(name: TrackerName) -> HarnessError:
    return HarnessError(
        f"the package {name} is not installed", f"Install it: pip install 'specdraft-harness[{name}]', or leave out --track."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) or value is None else str(value)
    return found
