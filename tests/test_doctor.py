"""The doctor's verdicts: broken is broken, a missing hub is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import doctor
from harness.doctor import Check, check_blas, check_disk, check_hub, check_rise, examine, is_broken, measure_speed


def test_reference_blas_on_linux_x86_is_broken_with_advice() -> None:
    """It costs a factor of 200 and one pip command repairs it."""
    check = check_blas("reference", True, None)
    assert (check.status, "pip install mkl" in check.advice) == ("broken", True)
    assert "not active" in check_blas("reference", True, Path("/x/libmkl_rt.so.3")).advice


@pytest.mark.parametrize(
    ("name", "needed", "status"), [("mkl", True, "ok"), ("accelerate", False, "ok"), ("metal", False, "ok"), ("reference", False, "note")]
)
def test_other_blas_verdicts(name: str, needed: bool, status: str) -> None:
    """Where MKL does not exist, the reference BLAS is no fault of the user."""
    assert check_blas(name, needed, None).status == status


def test_amd_is_told_of_the_faster_library() -> None:
    """MKL is no fault there, but verification of several tokens costs up to twice as much as with BLIS."""
    check = check_blas("mkl", True, Path("/x/libmkl_rt.so.3"), amd=True)
    assert (check.status, "libblis" in check.advice) == ("note", True)
    assert check_blas("blis", True, None, amd=True).status == "ok"


@pytest.mark.parametrize(("after", "status"), [(1.0, "ok"), (1.4, "ok"), (2.1, "note")])
def test_verification_that_has_become_slower_is_told(after: float, status: str) -> None:
    """Twice the cost of verifying is the difference between 1.26x and 0.77x, and nothing else shows it."""
    check = check_rise(1.2, after)
    assert (check.status, f"{after:.2f}" in check.value, bool(check.advice)) == (status, True, status == "note")


@pytest.mark.parametrize(("free", "status"), [(0.5e9, "broken"), (5e9, "note"), (50e9, "ok")])
def test_disk_verdicts(free: float, status: str) -> None:
    """Below 1 GB not even the small pair fits."""
    assert check_disk(int(free), Path("/cache")).status == status


def test_an_unreachable_hub_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped pairs do not need the hub."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert check_hub(1.0).status == "note"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not asked" in check_hub(1.0).value


def test_a_failing_check_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is read exactly when things are broken. A cache of its own, as it reads every converted model that it finds."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))

    def fail() -> list[Check]:
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "_mlx", fail)
    monkeypatch.setattr(doctor, "_sandbox", lambda: [])
    monkeypatch.setattr(doctor, "check_hub", lambda timeout: Check(name="hub", status="note", value=""))
    checks = examine()
    assert is_broken(checks)
    assert any("boom" in check.value for check in checks)
    assert {"system", "memory", "disk", "hub"} <= {check.name for check in checks}


def test_only_broken_fails() -> None:
    """Exit code 1 is for what needs repair."""
    assert not is_broken([Check(name="a", status="ok", value=""), Check(name="b", status="note", value="")])
    assert is_broken([Check(name="a", status="broken", value="")])


def test_speed_is_measured_quickly() -> None:
    """Numbers are positive and the whole measurement is short enough to run every time."""
    speed = measure_speed(0.05)
    assert speed.gflops > 0
    assert speed.gb_per_s > 0
