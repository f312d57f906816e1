"""One BLAS thread per test process: the models are tiny, and as many processes run as there are cores."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """``--benchmark-only`` measures in one process; without it the benchmarks run once each, as tests."""
    if config.option.benchmark_only:
        config.option.benchmark_disable = False
        config.option.numprocesses, config.option.dist = None, "no"
