"""The one place that touches the ``datasets`` library: quiet, and with its cache inside the harness's own."""

from __future__ import annotations

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
        HarnessError: not reachable, or not cached when ``offline``.
    """
    library = _library()
    try:
        with _hub_switched_off() if offline else nullcontext():
            return library.load_dataset(repository, config, split=split, cache_dir=str(cache_dir() / "datasets"))
    except Exception as error:  # the library wraps network, cache and format errors in many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(
            f"cannot load {repository} from the hub: {reason}",
            "Check the network, or give a local JSONL file with `path:`, or use dataset wordproblems, which needs no network.",
        ) from error


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
