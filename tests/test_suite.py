"""Suites: every shipped file is valid, every mistake is located, cells and hashes mean what they say."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import HarnessError
from harness.core.paths import shipped_root
from harness.suite.experiments import EXPERIMENTS
from harness.suite.suite import Suite, json_schema, load_suite

SHIPPED = sorted((shipped_root() / "suites").glob("*.yaml"))


def content(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "t",
        "domains": {"code": {"dataset": "humaneval", "limit": 2}, "math": {"dataset": "wordproblems", "limit": 3}},
        "experiments": [{"kind": "baseline"}, {"kind": "prompt_lookup", "k": [2, 4]}],
    }
    return {**base, **changes}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "t.yaml"
    path.write_text(yaml.safe_dump(content(**changes), sort_keys=False), encoding="utf-8")
    return path


def refuse(path: Path | str, *overrides: str, **flags: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        load_suite(path, overrides, **flags)
    return str(caught.value)


def test_schema_file_is_current() -> None:
    """Editors read suites/schema.json: it must describe the code as it is. Rewrite it with `harness validate --schema`."""
    assert (shipped_root() / "suites" / "schema.json").read_text(encoding="utf-8") == json_schema()


def test_schema_explains_every_key() -> None:
    """An editor shows these descriptions: a key without one is undocumented."""
    schema = json.loads(json_schema())
    definitions = {"Suite": schema, **schema["$defs"]}
    assert [f"{name}.{key}" for name, d in definitions.items() for key, p in d["properties"].items() if not p.get("description")] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_suites_are_valid(path: Path) -> None:
    """A suite that ships must load by name, name itself, and tell editors its schema."""
    suite = load_suite(path.stem)
    assert suite.name == path.stem
    assert suite.cells()[0].drafter is None
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")


def test_full_suite_runs_every_kind() -> None:
    """The full suite is the one place that runs everything: no kind may be forgotten (lookup is a drafter; installed adapters differ)."""
    kinds = {entry.kind for entry in load_suite("full").experiments}
    assert kinds >= {e.model_fields["kind"].annotation.__args__[0] for e in EXPERIMENTS} - {"prompt_lookup", "adapters"}


def test_defaults_and_cells(tmp_path: Path) -> None:
    """Cells are the product of domains, temperatures and settings, in file order, with the defaults of one place."""
    suite = load_suite(
        write(tmp_path, experiments=[{"kind": "baseline", "temperatures": [0.0, 1.0]}, {"kind": "prompt_lookup", "k": [2, 4]}])
    )
    assert (suite.models, suite.seed, suite.max_tokens) == ("smollm2", 0, 256)
    cells = [(c.experiment, c.domain, c.drafter, c.k, c.temperature, c.ngram, c.timed) for c in suite.cells()]
    assert cells == [
        ("baseline", "code", None, None, 0.0, None, True),
        ("baseline", "code", None, None, 1.0, None, True),
        ("baseline", "math", None, None, 0.0, None, True),
        ("baseline", "math", None, None, 1.0, None, True),
        ("prompt_lookup", "code", "lookup", 2, 0.0, 3, True),
        ("prompt_lookup", "code", "lookup", 4, 0.0, 3, True),
        ("prompt_lookup", "math", "lookup", 2, 0.0, 3, True),
        ("prompt_lookup", "math", "lookup", 4, 0.0, 3, True),
    ]


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        ({"kind": "drafters", "drafters": ["lookup", "early_exit", "hybrid"], "k": [1, 2]}, 12),
        ({"kind": "generic_draft", "loop": "mlx-lm", "domains": ["code"]}, 1),
        ({"kind": "domain_adapters"}, 4),
        ({"kind": "domain_adapters", "cross": False}, 2),
        ({"kind": "router"}, 2),
        ({"kind": "ablation_k"}, 12),
        ({"kind": "ablation_rank"}, 8),
        ({"kind": "adaptive_rounds", "rounds": 2}, 6),
        ({"kind": "dynamic_k"}, 4),
        ({"kind": "lenience"}, 4),
    ],
)
def test_cell_counts(tmp_path: Path, entry: dict[str, Any], count: int) -> None:
    """The plan a user approves is this product, for every kind."""
    cells = load_suite(write(tmp_path, experiments=[entry])).cells()
    assert len(cells) == len(set(cells)) == count


def test_lossy_cells_are_marked(tmp_path: Path) -> None:
    """Only lenience above 1 is lossy, always under the rejection rule and above temperature 0."""
    suite = load_suite(write(tmp_path, experiments=[{"kind": "baseline"}, {"kind": "dynamic_k"}, {"kind": "lenience"}]))
    for cell in suite.cells():
        assert cell.lossy == (cell.kind == "lenience")
        assert not cell.lossy or (cell.rule == "rejection" and cell.temperature > 0)


def test_every_mistake_at_once(tmp_path: Path) -> None:
    """One run of validate must show all mistakes, also those in references, each with its line."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\nseeds: 3\nmax_tokens: '64'\ndomains:\n  code: {dataset: humaneval, limit: 0}\n  math: {dataset: wordproblem}\n"
        "experiments:\n  - kind: prompt_lookup\n    kk: [4]\n    temperatures: [1e-5]\n  - kind: ablation_ks\n",
        encoding="utf-8",
    )
    message = refuse(path)
    for line, text in (
        (2, "seeds: unknown key, did you mean 'seed'?"),
        (3, "max_tokens: expected a whole number, got the text '64'"),
        (5, "domains.code.limit: must be greater than or equal to 1, got 0"),
        (6, "domains.math.dataset: 'wordproblem' is not allowed, did you mean 'wordproblems'?"),
        (9, "experiments[0].kk: unknown key, did you mean 'k'?"),
        (10, "experiments[0].temperatures[0]: expected a number, got the text '1e-5' (YAML wants a point and a sign: write 1.0e-5)"),
        (11, "experiments[1]: unknown kind 'ablation_ks', did you mean 'ablation_k'?"),
    ):
        assert f"bad.yaml:{line}: {text}" in message
    assert message.startswith("7 problems in")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "smolm2"}, "did you mean 'smollm2'?"),
        ({"experiments": [{"kind": "baseline"}, {"kind": "baseline"}]}, "another entry is already called 'baseline'"),
        ({"experiments": [{"kind": "baseline", "domains": ["cod"]}]}, "no domain 'cod', did you mean 'code'?"),
        ({"experiments": [{"kind": "router", "training": "nothing"}]}, "no training file 'nothing'"),
        ({"experiments": []}, "this is empty"),
        ({"experiments": [{"kind": "generic_draft", "loop": "mlx-lm", "rule": "rejection"}]}, "loop mlx-lm needs rule: match"),
        ({"experiments": [{"kind": "lenience", "temperatures": [0.0]}]}, "must be greater than 0"),
        ({"experiments": [{"kind": "lenience", "values": [1]}]}, "must be greater than 1"),
        ({"experiments": [{"kind": "baseline", "name": "a/b"}]}, "should match pattern"),
        ({"domains": {}}, "domains: this is empty"),
        ({"domains": {"a": {"dataset": "humaneval"}, "b": {"dataset": "humaneval", "split": "all"}}}, "domains.b: another domain already"),
        ({"domains": {"my/domain": {"dataset": "chat"}}}, "should match pattern"),
        ({"experiments": [{"kind": "drafters", "drafters": ["lookup"], "k": [2, "4{"]}]}, "experiments[0].k[1]: expected a whole number"),
        ({"experiments": [{"kind": "router", "router": 3}]}, "experiments[0].router: expected text, got 3"),
        ({"experiments": [{"kind": "drafters", "drafters": ["lookup"], "k": [2, 2]}]}, "experiments[0].k: 2 stands here twice, keep one"),
        (
            {"experiments": [{"kind": "lenience", "values": [1 + i / 99 for i in range(1, 99)], "k": list(range(1, 64))}]},
            "more than 5000 cells",
        ),
        ({"domains": {"x": {"dataset": "chat", "limit": 10**12}}}, "domains.x.limit: must be less than or equal to 1000000"),
        ({"seed": 10**18}, "seed: must be less than or equal to 4294967295"),
        ({"seed": -1}, "seed: must be greater than or equal to 0"),
        ({"experiments": [{"kind": "lenience", "values": [float("inf")]}]}, "expected a finite number"),
        ({"name": "x" * 81}, "name: "),
        ({"domains": {"x": {"dataset": "local", "path": "none.jsonl"}}}, "none.jsonl: no such file"),
    ],
)
def test_mistakes_across_keys(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Names that lead nowhere and settings that contradict each other stop before any model loads."""
    assert message in refuse(write(tmp_path, **changes))


def test_empty_dataset_is_refused(tmp_path: Path) -> None:
    """An empty file must not become a run without samples."""
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no prompts" in refuse(write(tmp_path, domains={"x": {"dataset": "local", "path": "empty.jsonl"}}))


def test_flags_beat_the_file(tmp_path: Path) -> None:
    """Precedence is flags, then --set, then the file, then defaults."""
    path = write(tmp_path, max_tokens=100)
    suite = load_suite(
        path, ["max_tokens=7", "domains.code.limit=9", "experiments.1.k=[1]"], models="qwen-coder", limit=5, domains=["code"]
    )
    assert (suite.max_tokens, suite.models, list(suite.domains)) == (7, "qwen-coder", ["code"])
    assert suite.domains["code"].limit == 5
    assert {c.k for c in suite.cells()} == {None, 1}


@pytest.mark.parametrize(
    ("overrides", "flags", "message"),
    [
        (["max_token=3"], {}, "--set max_token=3: max_token: unknown key, did you mean 'max_tokens'?"),
        (["experiments.1.k=4"], {}, "--set experiments.1.k=4: experiments[1].k: expected a list"),
        (["experiments.7.k=[4]"], {}, "no item 7 in experiments"),
        ([], {"limit": 0}, "--limit 0: a run needs at least one prompt"),
        ([], {"limit": -3}, "--limit -3"),
        ([], {"models": "smolm2"}, "--models smolm2: models: no pair or model"),
        ([], {"domains": ["cod"]}, "no domain 'cod', did you mean 'code'?"),
        ([], {"domains": []}, "leaves nothing to run"),
    ],
)
def test_bad_flags(tmp_path: Path, overrides: list[str], flags: dict[str, Any], message: str) -> None:
    """A mistyped flag is an error that names the flag."""
    assert message in refuse(write(tmp_path), *overrides, **flags)


def test_domain_filter_reaches_the_entries(tmp_path: Path) -> None:
    """Entries with domains of their own keep only the chosen ones, and vanish when none is left."""
    entries = [{"kind": "baseline"}, {"kind": "prompt_lookup", "domains": ["math"]}, {"kind": "router", "domains": ["math", "code"]}]
    suite = load_suite(write(tmp_path, experiments=entries), domains=["code"])
    assert [(c.kind, c.domain) for c in suite.cells()] == [("baseline", "code"), ("router", "code")]


def test_missing_suite_names_the_nearest() -> None:
    """A mistyped suite name is the most common mistake of all."""
    assert "did you mean 'quick'?" in refuse("quik")


def test_paths_are_relative_to_the_suite_and_not_part_of_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files elsewhere are the same suite; other content is another one."""
    hashes = []
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "p.jsonl").write_text(json.dumps({"prompt": text}))
        hashes.append(load_suite(write(folder, domains={"x": {"dataset": "local", "path": "p.jsonl"}})).hash())
    assert hashes[0] == hashes[1] != hashes[2]
    monkeypatch.chdir(tmp_path / "a")
    other = tmp_path / "suites"
    other.mkdir()
    assert load_suite(write(other, domains={"x": {"dataset": "local", "path": "p.jsonl"}})).hash() == hashes[0]


def leaf_paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all scalars of a nested structure."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return [path] if items is None else [p for key, item in items for p in leaf_paths(item, (*path, key))]


def test_hash_changes_with_every_setting_and_only_with_settings(tmp_path: Path) -> None:
    """Runs are compared by this hash: a setting it misses would let different runs pass as equal."""
    suite = load_suite(write(tmp_path, description="a", experiments=[{"kind": "baseline"}, {"kind": "drafters", "drafters": ["lookup"]}]))
    assert suite.hash() == Suite.model_validate(json.loads(json.dumps(suite.model_dump(mode="json")))).hash()
    assert suite.hash() == suite.model_copy(update={"description": "b"}).hash()
    resolved = suite.resolved()
    changed = {suite.hash()}
    paths = [p for p in leaf_paths(resolved) if p[-1] not in ("description", "path")]
    for path in paths:
        data = json.loads(json.dumps(resolved))
        holder = data
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = "changed"
        fake = suite.model_copy()
        object.__setattr__(fake, "resolved", lambda data=data: data)
        changed.add(fake.hash())
    assert len(changed) == len(paths) + 1


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_never_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever one value of a suite is replaced with, the result is a valid suite or one HarnessError."""
    tree = content(seed=1, max_tokens=8, models="smollm2", description="x")
    path = data.draw(st.sampled_from(leaf_paths(tree)))
    junk = (
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text("ab:#", max_size=4) | st.lists(st.integers(0, 2), max_size=2)
    )
    holder: Any = tree
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = data.draw(junk | st.dictionaries(st.text("ab"), st.integers(), max_size=2))
    file = tmp_path / "damaged.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with contextlib.suppress(HarnessError):
        load_suite(file).cells()


def test_the_old_key_mode_is_read_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``mode`` was the name of ``loop``."""
    (tmp_path / "s.yaml").write_text(
        "name: s\nmodels: smollm2\ndomains: {chat: {dataset: chat}}\n"
        "experiments: [{kind: baseline}, {kind: generic_draft, mode: fast, k: [2]}, {kind: generic_draft, mode: detailed, name: own}]\n"
    )
    suite = load_suite(tmp_path / "s.yaml")
    assert {cell.loop for cell in suite.cells() if cell.drafter} == {"mlx-lm", "own"}
    assert capsys.readouterr().err.count("is now written") == 2


def test_the_shipped_reference_belongs_to_the_shipped_suite() -> None:
    """A key that suites get later must not make the gate refuse its references; a value of it that decides something must count."""
    reference = json.loads((shipped_root() / "results/reference/smollm2.json").read_text())
    suite = load_suite("regression")
    assert suite.hash() == reference["suite_hash"]
    assert suite.model_copy(update={"repeats": 2}).hash() != suite.hash()


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [(["b"], ["baseline", "b"]), (["ablation_k"], ["baseline", "a", "b"]), (["baseline"], ["baseline"])],
)
def test_experiments_can_be_picked(wanted: list[str], kept: list[str]) -> None:
    """By name or by kind; the baseline stays, a wrong name and no name are errors."""
    entries = [{"kind": "baseline"}, {"kind": "ablation_k", "name": "a"}, {"kind": "ablation_k", "name": "b"}, {"kind": "prompt_lookup"}]
    suite = Suite.model_validate({"name": "x", "domains": {"code": {"dataset": "humaneval"}}, "experiments": entries})
    assert [entry.label for entry in suite.running(wanted).experiments] == kept
    with pytest.raises(HarnessError, match="did you mean 'a'"):
        suite.running(["aa"])
    with pytest.raises(HarnessError, match="leaves nothing to run"):
        suite.running([])
