"""One BLAS thread per test process: the models are tiny, and as many processes run as there are cores. No clock on single examples."""

import os

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
