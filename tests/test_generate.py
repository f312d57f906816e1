"""``harness generate`` with adapters and the router: what is printed, and what is refused before any model loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import install_adapter
from test_cli import run
from tiny import tiny_pair

from harness import api
from harness.adapt.routers import routed


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny pair with an adapter ``poems``, in a cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    loaded = tiny_pair(tmp_path, noise=0.1)
    install_adapter(loaded, "poems")
    return loaded


def test_adapter_and_router_print_the_same_answer(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer is the target's own with every drafter; standard error says who drafted and what routing and swapping cost."""
    from routing.features import PromptFeatures
    from routing.outcomes import Arm
    from routing.policy import PromptRouter
    from routing.routers import KNNRouter

    prompts = [f"poem number {i}" for i in range(12)]
    router = PromptRouter(PromptFeatures("none"), KNNRouter(), arms=(Arm("generic", 2), Arm("poems", 2)), fallback=None)
    router.fit(prompts, np.tile([1.0, 2.0], (12, 1)))
    folders = {"poems": api.installed(pair.name)["poems"]}
    routed.save_router(router, routed.router_path(pair.name), run_id="t", adapter_hashes=routed.hash_adapters(folders))
    common = ["generate", "poem number 3", "--models", str(tmp_path / "tiny.yaml"), "--max-tokens", "16"]
    expected = api.generate(pair, "poem number 3", drafter=None, max_tokens=16).text
    printed = {}
    for name, options in {"plain": ["--drafter", "none"], "adapter": ["--adapter", "poems", "-k", "2"], "router": ["--route"]}.items():
        code, out, err = run(*common, *options, capsys=capsys)
        assert (code, out) == (0, expected + "\n"), name
        printed[name] = err
    assert "swapped" not in printed["plain"]
    assert "adapter swapped in" in printed["adapter"]
    assert "routed to" not in printed["adapter"]
    assert "routed to poems in" in printed["router"]
    own = api.generate(pair, "poem number 3", drafter="poems", k=2, max_tokens=16)
    for name in ("adapter", "router"):
        assert f"accepted {own.accepted} of {own.drafted} drafted" in printed[name], "the router's draft length is 2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "poem"], "did you mean 'poems'?"),
        (["--adapter", "generic"], "no adapter 'generic'"),
        (["--route"], "train-router"),
        (["--route", "--adapter", "poems"], "exclude each other"),
        (["--drafter", "lookup", "--adapter", "poems"], "lookup+poems is no drafter"),
        (["--drafter", "router"], "--drafter router"),
    ],
)
def test_refused_before_loading(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """A typing error costs no seconds of loading."""
    monkeypatch.setattr(api, "load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, err = run("generate", "x", "--models", str(tmp_path / "tiny.yaml"), *options, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err


def test_no_adapter_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty cache is said to be empty; nothing is suggested that is not there. What comes with the package is."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    code, _, err = run("generate", "x", "--models", "qwen-coder", "--adapter", "code", capsys=capsys)
    assert code == 2
    assert "none is installed" in err
    assert "harness train" in err
    code, _, err = run("generate", "x", "--models", "smollm2", "--adapter", "cod", capsys=capsys)
    assert code == 2
    assert "code" in err
    assert "none is installed" not in err
