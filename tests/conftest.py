"""One BLAS thread per test process: the models are tiny, and as many processes run as there are cores. No clock on single examples."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """``--benchmark-only`` measures in one process; without it the benchmarks run once each, as tests."""
    if config.option.benchmark_only:
        config.option.benchmark_disable = False
        config.option.numprocesses, config.option.dist = None, "no"


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What the harness says is going on during the test."""
    from harness.core.progress import notes_to

    found: list[str] = []
    with notes_to(found.append):
        yield found


@pytest.fixture
def torch_stays_apart() -> Iterator[None]:
    """Fails the test when torch computes anything on this thread, the one that decodes, and not behind :func:`routing.apart.apart`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        """Sees every operation of its own thread."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    with Watch():
        yield
    assert seen == []


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The real pair, loaded once in a process; not to be changed."""
    from harness import load_pair

    return load_pair("smollm2")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one run of the fake engine with sampling, replay and two domains, its report beside it; not to be changed."""
    from test_runner import fake_generate, make_engine, make_suite, run

    experiments = [
        {"kind": "baseline", "temperatures": [0.0, 1.0]},
        {"kind": "drafters", "drafters": ["lookup", "early_exit"]},
        {"kind": "ablation_k", "k": [1, 2, 4]},
        {"kind": "generic_draft", "name": "sampled", "temperatures": [1.0], "rule": "rejection"},
    ]
    engine = make_engine(generate=lambda *a, **k: dataclasses.replace(fake_generate(*a, **k), draft_s=0.01))
    return run(tmp_path_factory.mktemp("run"), suite=make_suite(limit=6, experiments=experiments), engine=engine, report=True)
