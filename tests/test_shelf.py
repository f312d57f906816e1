"""The commands for installed adapters: what they show is what is there, imports decode as the original, removal leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adapting import put_adapter
from test_peft import lora_arrays, write_peft
from test_routing_persist import _fitted
from tiny import tiny_pair, write_pair
from typer.testing import CliRunner

from harness import generate
from harness.adapt.adapters.adapter_folder import adapter_folder, weights_hash
from harness.adapt.routers.routed import router_path
from harness.adapt.shelf import find, shelved
from harness.cli.adapters import adapters_app
from harness.core.errors import HarnessError
from routing.persist import save_router


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    """A pair whose draft has an installed adapter called ``code``."""
    loaded = tiny_pair(tmp_path / "pair")
    put_adapter(adapter_folder("tiny", "code"), loaded.draft, domain="code", before={"code": 0.5}, after={"code": 0.625})
    return loaded


def run(*arguments: object) -> str:
    """Output of a command that works."""
    result = CliRunner().invoke(adapters_app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_says_what_is_there(pair: Any, tmp_path: Path) -> None:
    """Pair, domain, rank, gain with its interval, hash and users; two pairs; nothing for a pair without any."""
    folder = find("tiny", "code")
    record = {
        "round": 1, "accepted": True, "failures": 3, "replayed": 2, "before": {"code": 0.5}, "after": {"code": 0.625}, "steps": 4,
        "tokens": 90, "train_s": 1.0, "adapter": "round-1", "gain": {"value": 0.125, "low": 0.05, "high": 0.2, "n": 9, "error": 0.03},
    }  # fmt: skip
    (folder / "rounds.json").write_text(json.dumps({"schema_version": 1, "rounds": [record]}))
    (tmp_path / "cache/sessions/tiny/code-0123456789ab").mkdir(parents=True)
    (tmp_path / "cache/sessions/tiny/code-b-0123456789ab").mkdir(parents=True)
    put_adapter(adapter_folder("other", "chat"), pair.draft, name="chat")
    text = run("list")
    assert "tiny/code: code, rank 4, alpha code 0.500 -> 0.625, gain +0.125 [+0.050, +0.200]" in text
    assert "other/chat: mixed, rank 4" in text
    only = json.loads(run("list", "--models", tmp_path / "pair/tiny.yaml", "--json"))
    assert [(a["name"], a["gain"]["low"], a["used_by"]) for a in only] == [("code", 0.05, ["session code-0123456789ab"])]
    assert only[0]["sha256"] == weights_hash(folder)
    write_pair(tmp_path / "bare").rename(tmp_path / "bare/bare.yaml")
    assert "no adapters" in run("list", "--models", tmp_path / "bare/bare.yaml")


def test_router_is_named_as_user(pair: Any) -> None:
    """Who removes an adapter learns that a router needs it."""
    save_router(_fitted(), router_path("tiny"), run_id="r", adapter_hashes={"code": "ab" * 32})
    assert shelved("tiny")[0].used_by == ("router",)
    router_path("tiny").write_bytes(b"no router")
    assert shelved("tiny")[0].used_by == ()


@pytest.mark.parametrize("form", ["own", "peft"])
def test_what_goes_out_comes_in_the_same(pair: Any, tmp_path: Path, form: str) -> None:
    """An exported adapter, and a copied folder, decode as the original does under another name."""
    models = tmp_path / "pair/tiny.yaml"
    source = find("tiny", "code")
    if form == "peft":
        source = tmp_path / "peft"
        run("export", "code", "--models", models, "--out", source)
    run("import", source, "--models", models, "--name", "copy", "--domain", "code")
    first, second = (generate(pair, "Sort the names", drafter=name, max_tokens=24) for name in ("code", "copy"))
    assert (first.accept_lengths, first.tokens) == (second.accept_lengths, second.tokens)
    assert {a.name: a.info.domain for a in shelved("tiny")} == {"code": "code", "copy": "code"}
    assert sorted(p.name for p in find("tiny", "copy").parent.iterdir()) == ["code", "copy"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("code", {}, "has an adapter 'code'"),
        ("lookup", {}, "a drafter's own name"),
        ("a/b", {}, "not a usable adapter name"),
        ("new", {"use_qalora": True}, "use_qalora"),
        ("new", {"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_imports_that_are_refused(pair: Any, tmp_path: Path, name: str, change: dict, message: str) -> None:
    """A taken or impossible name, and options without an equal here; nothing is left behind."""
    write_peft(tmp_path / "peft", lora_arrays(), **change)
    arguments = ["import", str(tmp_path / "peft"), "--models", str(tmp_path / "pair/tiny.yaml"), "--name", name]
    result = CliRunner().invoke(adapters_app, arguments)
    assert isinstance(result.exception, HarnessError)
    assert message in result.exception.problem
    assert [a.name for a in shelved("tiny")] == ["code"]
    assert [p.name for p in find("tiny", "code").parent.iterdir()] == ["code"]


def test_another_drafts_adapter_is_refused(pair: Any, tmp_path: Path) -> None:
    """A folder of this project names its draft."""
    put_adapter(tmp_path / "foreign", pair.draft, draft_hash="f" * 64)
    result = CliRunner().invoke(adapters_app, ["import", str(tmp_path / "foreign"), "--models", str(tmp_path / "pair/tiny.yaml")])
    assert isinstance(result.exception, HarnessError)
    assert "was trained on draft" in result.exception.problem


def test_remove_asks_first(pair: Any, tmp_path: Path) -> None:
    """Without --yes and without a person nothing is deleted; with it the folder is gone, and the name unknown."""
    models = tmp_path / "pair/tiny.yaml"
    result = CliRunner().invoke(adapters_app, ["remove", "code", "--models", str(models)])
    assert isinstance(result.exception, HarnessError)
    folder = find("tiny", "code")
    assert "removed code" in run("remove", "code", "--models", models, "--yes")
    assert not folder.exists()
    with pytest.raises(HarnessError, match="no adapter 'code'"):
        find("tiny", "code")
