"""What is to be exported: a pair's draft or target, with an adapter or without, or what a run or a settings file recommends."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from harness.adapt.adapters.names import installed
from harness.adapt.shelf import find
from harness.core import files
from harness.core.drafter_kinds import find_kind, split_name
from harness.core.errors import HarnessError
from harness.core.settings_file import DecodeSettings, load_settings
from harness.models.naming import find_pair
from harness.models.pair_config import PairConfig
from harness.report import Run, load_run
from harness.results.manifest import MANIFEST

Part = Literal["draft", "target"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was asked for. Nothing is loaded yet."""

    models: str
    """The pair, as ``--models`` takes it."""
    pair: str
    """Its name."""
    config: PairConfig
    base: Path
    """Folder that the pair's relative paths start from."""
    part: Part
    """Whose weights."""
    drafter: str | None
    """How to draft with it: a drafter's name; None is the target alone."""
    adapter: str | None
    """Adapter that goes into the draft."""
    adapter_folder: Path | None
    k: int
    """Draft length to serve with."""
    settings: DecodeSettings | None
    """The recommendation, where one was given."""
    run: Run | None
    """The run it comes from."""

    @property
    def has_weights(self) -> bool:
        """Whether there is a model to write: a recommendation may be lookup, which has none."""
        if self.part == "target" or self.adapter is not None:
            return True
        kind = find_kind(self.drafter) if self.drafter is not None else None
        return kind is not None and kind.takes_draft

    @property
    def name(self) -> str:
        """In file names: ``smollm2-draft-code``."""
        return "-".join(filter(None, (self.pair, self.part if self.has_weights else "settings", self.adapter)))


def find_source(what: str, *, part: Part = "draft", adapter: str | None = None, results: Path = Path("results")) -> Source:
    """Read what a command line names, before any model loads.

    Args:
        what: a pair's name or file, a run's name or folder, or a settings file such as a report's ``settings.yaml``.
        part: whose weights.
        adapter: installed adapter to put into the draft.
        results: folder of the runs.

    Raises:
        HarnessError: nothing of that name, an adapter that is not here, or a pair without a draft.
    """
    if (folder := _run_folder(what, results)) is not None:
        run = load_run(folder)
        return _of_settings(_recommended(run), run, part, adapter)
    if _is_settings(what):
        return _of_settings(load_settings(what), None, part, adapter)
    return _make(what, part, "generic", adapter, None, None)


def _run_folder(what: str, results: Path) -> Path | None:
    return next((folder for folder in (Path(what), results / what) if os.path.isfile(folder / MANIFEST)), None)


def _recommended(run: Run) -> DecodeSettings:
    from harness.report.sections.recommendation import settings_yaml

    return DecodeSettings.model_validate(yaml.safe_load(settings_yaml(run)))


def _is_settings(what: str) -> bool:
    """A YAML file that is no pair's: it names a pair instead of a target."""
    path = Path(what)
    if path.suffix not in (".yaml", ".yml") or not os.path.isfile(path):
        return False
    with files.reading(path):
        data = yaml.safe_load(files.read_text(path))
    return isinstance(data, dict) and "target" not in data


def _of_settings(settings: DecodeSettings, run: Run | None, part: Part, adapter: str | None) -> Source:
    inner = split_name(settings.drafter or "")[1]
    own = inner if part == "draft" and inner not in ("", "router") and find_kind(settings.drafter) is None else None
    return _make(settings.models, part, settings.drafter, adapter or own, settings, run)


def _make(models: str, part: Part, drafter: str | None, adapter: str | None, settings: DecodeSettings | None, run: Run | None) -> Source:
    named = find_pair(models)
    config, pair = named.config, named.name
    k = settings.k if settings and isinstance(settings.k, int) else config.k
    folder = _adapter_folder(pair, adapter, run) if adapter else None
    source = Source(
        models=models, pair=pair, config=config, base=named.base, part=part, drafter=drafter, adapter=adapter, adapter_folder=folder, k=k,
        settings=settings, run=run,
    )  # fmt: skip
    if part == "target" and adapter:
        raise HarnessError("an adapter belongs to the draft, not to the target", "Leave out --adapter, or export --part draft.")
    if part == "draft" and config.draft is None and source.has_weights:
        raise HarnessError(f"pair {pair!r} has no draft model", "Export --part target, or name a pair with a draft.")
    return source


def _adapter_folder(pair: str, adapter: str, run: Run | None) -> Path:
    if run is None:
        return find(pair, adapter)
    from harness.adapt.routers.fitting import run_adapters

    found = run_adapters(run.manifest, installed(pair))
    if adapter not in found:
        raise HarnessError(
            f"the adapter {adapter!r} of run {run.manifest.run} is not on this machine", "Export where the run was made, or train it again."
        )
    return found[adapter]
