"""The one place that touches the ``datasets`` library: quiet, and with its cache inside the harness's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from harness.core.errors import HarnessError
from harness.core.paths import cache_dir


def _library() -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def from_rows(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return an in-memory ``datasets.Dataset`` of plain rows; nothing is written and nothing is fetched."""
    return _library().Dataset.from_list([dict(row) for row in rows])


def from_hub(repository: str, config: str | None, split: str, *, offline: bool) -> Any:
    """Return one split of a hub dataset, cached on disk after the first call.

    Raises:
        HarnessError: not reachable, not cached when ``offline``, or a local folder without readable data.
    """
    library = _library()
    try:
        with _hub_switched_off() if offline else nullcontext():
            return library.load_dataset(repository, config, split=split, cache_dir=str(cache_dir() / "datasets"))
    except Exception as error:  # the library wraps network, cache and format errors in many types
        if os.path.isdir(repository):
            problem = f"cannot read the data files in {repository}: {_first_line(error.__cause__ or error)}"
            raise HarnessError(problem, "Give a folder of JSONL, CSV or Parquet files, or one such file with `path:`.") from error
        raise HarnessError(
            f"cannot load {repository} from the hub: {_first_line(error)}",
            "Check the network, or give a local JSONL file with `path:`, or use dataset wordproblems, which needs no network.",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _hub_switched_off() -> Iterator[None]:
    """Set the libraries' offline switches, which they otherwise read from the environment at import, and restore them."""
    import datasets.config
    import huggingface_hub.constants

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
