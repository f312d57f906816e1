"""The BLAS preload: active where it is needed, and reported truthfully where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.models import blas

REPOSITORY = Path(__file__).parents[1]
needs_mkl = pytest.mark.skipif(not blas.needs_mkl() or blas.find_mkl() is None, reason="MKL is for Linux x86-64")


def run(code: str, library: str = "mkl") -> str:
    """Run ``code`` in a fresh Python, where nothing was imported yet; return what it printed."""
    environment = {**os.environ, "HARNESS_BLAS": library}
    environment.pop("MKL_THREADING_LAYER", None)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


@needs_mkl
def test_mkl_answers_for_mlx() -> None:
    """The whole point: about 200 times faster matrix products."""
    assert run("from harness.models import blas; print(blas.blas_name())") == "mkl"


@needs_mkl
def test_mkl_shares_the_threads_of_torch_whichever_comes_first() -> None:
    """With Intel's OpenMP, which MKL takes before torch is there, every thread that computed in torch would leave its workers behind."""
    code = "from harness.models.blas import mx; a = mx.ones((256, 256)); mx.eval(a @ a); print(open('/proc/self/maps').read())"
    loaded = run(code)
    assert "libmkl_gnu_thread" in loaded
    assert "libmkl_intel_thread" not in loaded


@pytest.mark.skipif(not blas.needs_mkl(), reason="MKL is for Linux x86-64")
def test_without_mkl_the_reference_is_named() -> None:
    """The report must not claim MKL when it is absent: doctor's advice hangs on it."""
    hide = "import sys; sys.prefix = sys.base_prefix = '/nowhere'; import site; site.USER_BASE = '/nowhere'; "
    assert run(hide + "from harness.models import blas; print(blas.find_mkl(), blas.blas_name())") == "None reference"


@needs_mkl
def test_mlx_imported_first_is_noticed() -> None:
    """A preload after mlx has bound its product changes nothing, so it must not be reported as MKL."""
    assert run("import mlx.core; from harness.models import blas; print(blas.blas_name())") == "reference"


def test_preload_twice_is_harmless() -> None:
    """Any module may import the loader again."""
    assert blas.preload() == blas.preload()


@pytest.mark.skipif(not blas.needs_mkl(), reason="Linux x86-64 only")
def test_a_named_library_is_taken_and_a_broken_one_survived() -> None:
    """``HARNESS_BLAS`` decides; a path that does not load leaves the reference, which doctor reports."""
    assert run("from harness.models import blas; print(blas.preload(), blas.blas_name())", "/nowhere/lib.so") == "None reference"
    mkl = blas.find_mkl()
    if mkl is not None:
        assert run("from harness.models import blas; print(blas.preload())", str(mkl)) == str(mkl)


@pytest.mark.skipif(not blas.needs_mkl(), reason="Linux x86-64 only")
def test_blis_is_for_amd_processors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere MKL stays the choice even where BLIS is installed."""
    tried: list[str] = []
    monkeypatch.setattr(blas, "_loads", lambda name: tried.append(name) or False)
    monkeypatch.delenv("HARNESS_BLAS", raising=False)
    monkeypatch.setattr(blas, "is_amd", lambda: False)
    assert blas.preload() is None
    assert not any("blis" in name for name in tried)
    monkeypatch.setattr(blas, "is_amd", lambda: True)
    blas.preload()
    assert any("blis" in name for name in tried)


def test_weights_by_columns_are_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another memory order must change nothing but speed: products, slices, adapters and what is saved stay equal."""
    mx, nn = blas.mx, blas.nn
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8, bias=False))
    x = mx.random.normal((3, 24))
    before, rows = model(x), model.layers[0].weight[mx.array([3, 1])]
    monkeypatch.setattr(blas, "blas_name", lambda: "blis")
    blas.lay_out(model)
    assert mx.allclose(model(x), before, atol=1e-5)
    assert mx.array_equal(model.layers[0].weight[mx.array([3, 1])], rows)
    monkeypatch.setattr(blas, "blas_name", lambda: "mkl")
    assert blas.by_columns(rows) is rows


def test_a_library_that_does_not_load_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken MKL must not stop the harness; doctor tells."""
    broken = tmp_path / "lib" / "libmkl_rt.so.3"
    broken.parent.mkdir()
    broken.write_bytes(b"no library")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("HARNESS_BLAS", "mkl")
    if blas.needs_mkl():
        assert blas.find_mkl() == broken
    assert blas.preload() is None


def test_the_newest_mkl_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's version is no part of the code."""
    (tmp_path / "lib").mkdir()
    for name in ("libmkl_rt.so.2", "libmkl_rt.so.4"):
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = blas.find_mkl()
    assert found is not None
    assert found.name == "libmkl_rt.so.4"
