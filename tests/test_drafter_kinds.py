"""The table of drafters: what it says is true of the drafters themselves, and one of another package takes part everywhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from heads import headed
from masks import install_parallel
from rich.console import Console
from tiny import tiny_pair, write_pair
from toy import toy_model, toy_pair
from typer.testing import CliRunner

from harness import api
from harness.adapt.adapters.names import check_drafter
from harness.cli import app
from harness.core import drafter_kinds as kinds
from harness.core.errors import HarnessError
from harness.core.paths import memory_path
from harness.core.records import Trajectory
from harness.decode.calibrate import calibrate
from harness.decode.drafters import Drafter
from harness.decode.length import AutoK, Costs
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.memory import Answer, write_memory
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.run.runner import run_suite
from harness.suite.suite import load_suite

FOREIGN = Path(__file__).parent / "foreign"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package in ``tests/foreign`` is installed."""
    monkeypatch.syspath_prepend(str(FOREIGN))
    kinds._installed.cache_clear()
    yield
    kinds._installed.cache_clear()


def point(folder: Path, line: str) -> None:
    """Write a package that brings the drafter of ``line``."""
    info = folder / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.drafters]\n{line}\n")


@pytest.mark.parametrize("name", kinds.DRAFTERS)
def test_traits_are_the_drafters_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table says of a drafter must hold for the object: a wrong trait would load no draft, or never ask the drafter."""
    kind, pair = kinds.DRAFTERS[name], headed()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    said = Answer(sample_id="s", domain="x", prompt="p", before=(), tokens=(1, 2, 3))
    write_memory(memory_path(pair.name), pair.name, pair.target_hash, [said])
    install_parallel(pair)
    drafter = resolve_drafter(pair, name)
    assert drafter.name == name
    assert getattr(drafter, "free", False) == kind.free
    assert set(kind.options) <= DrafterOptions.__dataclass_fields__.keys()
    pair.draft = None
    if kind.needs_draft:
        with pytest.raises(HarnessError, match="has no draft model"):
            resolve_drafter(pair, name)
    else:
        assert resolve_drafter(pair, name).name == name


def test_names_are_known_without_mlx() -> None:
    """Help, suites and checks list drafters before any model: that must not cost the import of mlx."""
    code = "import sys, harness.core.drafter_kinds as k, harness.suite.suite; assert k.drafter_kinds(); print('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_help_names_every_drafter() -> None:
    """The help text comes from the table, so a new drafter is in it."""
    text = CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}).output
    assert [f"{name} ({kind.summary})" for name, kind in kinds.DRAFTERS.items() if f"{name} ({kind.summary})" not in text] == []


def test_the_documented_package_is_the_tested_one() -> None:
    """What docs/architecture.md shows as a whole package must be what runs below."""
    page = (FOREIGN.parent.parent / "docs/architecture.md").read_text(encoding="utf-8")
    assert f"```python\n{(FOREIGN / 'alternating_drafter.py').read_text(encoding='utf-8')}```\n" in page


@pytest.mark.usefixtures("foreign")
def test_a_foreign_drafter_decodes_and_replays_alike(tmp_path: Path) -> None:
    """By its name alone: greedy output is the target's, replay counts what decoding counts, ``auto`` takes its measured costs."""
    pair = tiny_pair(tmp_path)
    check_drafter(pair.name, "alternating")
    for i in range(8):
        prompt = [5 + i, 9, 5 + i, 9]
        plain = api.generate(pair, prompt, drafter=None, max_tokens=20)
        answer = Trajectory(sample_id="a", domain="x", prompt_tokens=tuple(prompt), tokens=plain.tokens, finish=plain.finish, max_tokens=20)
        for row in api.replay(pair, [answer], ["alternating"], [1, 2, 5]):
            real = api.generate(pair, prompt, drafter="alternating", k=row.k, max_tokens=20)
            assert real.tokens == plain.tokens
            assert real.drafter == "alternating"
            assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)
    auto = api.generate(pair, prompt, drafter="alternating", k="auto", max_tokens=20)
    assert auto.tokens == plain.tokens


@pytest.mark.usefixtures("foreign")
def test_a_foreign_drafter_runs_in_a_suite(tmp_path: Path) -> None:
    """Decoded with a clock, under ``auto`` and replayed, without a word about it in the package."""
    write_pair(tmp_path / "pair", draft=False)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"id": str(i), "prompt": f"abab {i}"}) + "\n" for i in range(2)))
    own = {"drafters": ["alternating"]}
    experiments = [
        {"kind": "baseline"},
        {"kind": "drafters", **own},
        {"kind": "dynamic_k", "policies": ["auto"], **own},
        {"kind": "ablation_k", "k": [2], **own},
    ]
    content = {"name": "t", "models": str(tmp_path / "pair/tiny.yaml"), "max_tokens": 12, "experiments": experiments}
    content["domains"] = {"x": {"dataset": "local", "split": "all", "path": str(tmp_path / "p.jsonl")}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    folder = run_suite(load_suite(tmp_path / "s.yaml"), results_dir=tmp_path / "results", console=Console(file=io.StringIO()))
    records = read_records(folder)
    assert [(r.experiment, r.method) for r in records if r.drafter == "alternating"].count(("ablation_k", "replay")) == 2
    assert {r.experiment for r in records} == {"baseline", "drafters", "dynamic_k", "ablation_k"}
    assert all(r.divergence is None for r in records)
    assert all(check["equal"] for check in read_manifest(folder).measured.spot_checks)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("broken = no_such_module:KIND", "cannot read the installed drafter 'broken': No module named 'no_such_module'"),
        ("odd = json:dumps", "the installed drafter 'odd' is function, no DrafterKind"),
        ("lookup = alternating_drafter:KIND", "an installed package brings a second drafter called 'lookup'"),
    ],
)
@pytest.mark.usefixtures("foreign")
def test_a_broken_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    """Somebody else's mistake must name the package to remove, not end in a traceback."""
    point(tmp_path, line)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HarnessError) as caught:
        kinds.drafter_kinds()
    assert str(caught.value) == f"{message}\nUpdate or remove the package 'bad'."


def test_an_unknown_drafter_names_the_nearest(tmp_path: Path) -> None:
    """A typo in a suite or a call is found before a model loads."""
    with pytest.raises(HarnessError, match="unknown drafter 'lokup': did you mean 'lookup'"):
        kinds.drafter_kind("lokup")
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"name": "t", "domains": {"c": {"dataset": "chat"}}, "experiments": [{"kind": "drafters", "drafters": ["lokup"]}]})
    )
    with pytest.raises(HarnessError, match=r"drafters\[0\]: 'lokup' is not allowed, did you mean 'lookup'"):
        load_suite(tmp_path / "s.yaml")


class Slow:
    """A drafter that needs twice the target's time per token, and says nothing of its source."""

    name = "slow"

    def __init__(self, target: object) -> None:
        self.inner: Drafter = resolve_drafter(toy_pair(), "early_exit")
        self.asked = 0

    def begin(self, prompt: list[int]) -> None:
        self.inner.begin(prompt)

    def propose(self, context: list[int], request: object) -> object:
        self.asked += 1
        return self.inner.propose(context, request)  # type: ignore[arg-type]


def test_the_cost_of_an_unknown_drafter_is_measured() -> None:
    """``auto`` must not take a drafter it does not know for free."""
    slow = Slow(toy_model())
    assert calibrate(toy_pair(), slow, max_k=2, repeats=1).costs.c > 0  # type: ignore[arg-type]
    assert slow.asked == 2
    assert calibrate(toy_pair(), resolve_drafter(toy_pair(), "lookup"), max_k=2, repeats=1).costs.c == 0


def test_auto_counts_an_unknown_source_as_a_draft() -> None:
    """Its acceptance decides how long its drafts are, as that of the pair's draft does."""
    policy = AutoK(Costs(c=0.3, v=(1.0, 1.1, 1.2, 1.3)))
    before = policy.alpha()
    policy.update(drafted=3, accepted=0, confidences=(), source="alternating")
    assert policy.alpha() < before
