"""Command line: fast, quiet about its insides, and strict about exit codes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness import __version__
from harness.cli import COMMANDS, load_command, main
from harness.core.errors import CheckFailed, HarnessError

HEAVY = ("mlx", "torch", "transformers", "datasets", "sklearn", "numpy", "pandas", "scipy")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "t.yaml"
    path.write_text("name: t\ndomains:\n  code: {dataset: humaneval, limit: 2}\nexperiments:\n  - kind: baseline\n", encoding="utf-8")
    return path


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    code = caught.value.code
    out, err = capsys.readouterr()
    return (0 if code is None else int(code)), out, err


def fresh(code: str) -> tuple[str, float]:
    """Run Python code in a new interpreter; return its output and the seconds of processor time it took."""
    before = os.times()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    return out.stdout, after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["validate", "{suite}"]])
def test_fast_commands_import_nothing_heavy(suite: Path, arguments: list[str]) -> None:
    """Help and validation must answer at once, also on a machine where mlx or torch is broken."""
    arguments = [a.format(suite=suite) for a in arguments]
    code = (
        f"import sys\nfrom harness.cli import main\ntry:\n    main({arguments!r})\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out, seconds = fresh(code)
    assert out.splitlines()[-1] == "HEAVY []"
    assert seconds < 2


def test_help_lists_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """The command table is the one list of commands."""
    code, out, _ = run("--help", capsys=capsys)
    places = [out.find(f"│ {name} ") for name in COMMANDS]
    assert code == 0
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, (target, _) in COMMANDS.items()
        if target.split(":")[0] in ("harness.cli.run", "harness.cli.validate", "harness.cli.generate")
    ],
)
def test_every_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each --help has an example, its first line is the one of the command table, and every option has a help text."""
    code, out, _ = run(name, "--help", capsys=capsys)
    assert code == 0
    assert f"Example: harness {name}" in " ".join(out.split())
    module, _, attribute = COMMANDS[name][0].partition(":")
    assert getattr(importlib.import_module(module), attribute).__doc__.splitlines()[0] == COMMANDS[name][1]
    assert [p.name for p in load_command(name).params if not getattr(p, "help", None)] == []


@pytest.mark.parametrize(
    ("words", "found"),
    [("harness cho", "choose"), ("harness run --exp", "--experiments"), ("harness cache l", "ls"), ("harness export --to pe", "peft")],
)
def test_shells_complete(words: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, commands inside them, options and their values, though each command is imported only when it is needed."""
    settings = {"_HARNESS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == [found]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Bug reports start with this line."""
    assert run("--version", capsys=capsys) == (0, f"{__version__}\n", "")


def test_validate_prints_ok_and_the_plan(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan shows what --set and --limit really did."""
    code, out, err = run("validate", str(suite), "--limit", "3", "--set", "max_tokens=9", capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "ok"
    assert "at most 9 tokens" in out
    assert "3 prompts of humaneval" in out
    assert "1 cells, 3 prompts, 3 timed answers" in out


def test_validate_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The output can be written straight into suites/schema.json."""
    code, out, _ = run("validate", "--schema", capsys=capsys)
    assert code == 0
    assert json.loads(out)["title"] == "Suite"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate"], "no suite given"),
        (["validate", "no-such-suite"], "no suite file 'no-such-suite'"),
        (["validate", "{suite}", "--limit", "0"], "--limit 0: a run needs at least one prompt"),
        (["validate", "{suite}", "--models", "smolm2"], "did you mean 'smollm2'?"),
        (["validate", "{suite}", "--domains", "cod"], "did you mean 'code'?"),
        (["run", "{suite}", "--set", "max_token=3"], "did you mean 'max_tokens'?"),
        (["run", "{suite}", "--set", "max_tokens"], "expected KEY=VALUE"),
        (["generate", " "], "the prompt is empty"),
        (["generate", "x", "--drafter", "genric"], "did you mean 'generic'?"),
        (["generate", "x", "-k", "many"], "k is 'many'"),
        (["collect", "{suite}", "--out", "x", "--split", "tests"], "did you mean 'test'?"),
        (["collect", "none.jsonl", "--out", "x"], "cannot read none.jsonl: no such file"),
    ],
)
def test_wrong_input_exits_2_with_one_message(suite: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear message on standard error, no traceback, nothing on standard output, exit code 2, no model loaded."""
    code, out, err = run(*(a.format(suite=suite) for a in arguments), capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert err.count("error:") == 1


@pytest.mark.parametrize("arguments", [["nonsense"], ["validate", "--nonsense"], ["run"], ["generate", "x", "--max-tokens", "0"]])
def test_usage_errors_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands and options, missing arguments and bad numbers are wrong input too."""
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--debug", "validate", "nope"], ["validate", "nope", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A developer needs the traceback; the flag works before and after the command."""
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert "Traceback" in err
    assert "no suite file" in err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (HarnessError("bad input", "fix it"), 2, "error: bad input\nfix it\n"),
        (CheckFailed("regression", "look"), 1, "error: regression\nlook\n"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("a bug"), 2, "fault of the harness"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, suite: Path
) -> None:
    """Scripts and CI rely on these codes; a crash must not look like a failed check."""
    calls = fake_runner(monkeypatch, error)
    got, _, err = run("run", str(suite), "--results", str(suite.parent / "r"), capsys=capsys)
    assert calls
    assert got == code
    assert text in err


def fake_runner(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> list[dict[str, Any]]:
    """Replace the runner by one that notes its arguments and raises ``error``."""
    calls: list[dict[str, Any]] = []

    def run_suite(suite: Any, **settings: Any) -> None:
        calls.append({"suite": suite, **settings})
        if error:
            raise error

    module = ModuleType("harness.run.runner")
    module.run_suite = run_suite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harness.run.runner", module)
    return calls


def test_run_hands_its_options_to_the_runner(suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command adds no logic of its own: what was typed is what the runner gets."""
    calls = fake_runner(monkeypatch)
    folder = suite.parent / "deep" / "results"
    code, _, _ = run("run", str(suite), "--results", str(folder), "--resume", "r1", "--offline", "--limit", "4", capsys=capsys)
    assert code == 0
    (call,) = calls
    assert (call["resume"], call["offline"], call["results_dir"]) == ("r1", True, folder)
    assert call["suite"].domains["code"].limit == 4


def test_plan_stops_before_the_runner(suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--plan loads nothing and writes nothing."""
    calls = fake_runner(monkeypatch)
    code, out, _ = run("run", str(suite), "--plan", "--results", str(suite.parent / "r"), capsys=capsys)
    assert (code, calls) == (0, [])
    assert "baseline: 1 cells" in out
    assert not (suite.parent / "r").exists()


def test_unwritable_results_stop_before_any_model(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An hour of decoding must not end in a permission error."""
    code, _, err = run("run", str(suite), "--results", str(suite / "inside-a-file"), capsys=capsys)
    assert code == 2
    assert "inside-a-file" in err
    assert "Traceback" not in err


def test_report_of_a_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped run name lists the runs there are."""
    code, _, err = run("report", "nope", "--results", str(tmp_path), capsys=capsys)
    assert code == 2
    assert "no run 'nope'" in err


def test_interrupt_of_the_whole_process_exits_130(suite: Path) -> None:
    """Ctrl-C in a terminal, as a signal to a real process."""
    code = (
        "import sys, types, time\nmodule = types.ModuleType('harness.run.runner')\n"
        "def run_suite(*a, **k):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "module.run_suite = run_suite\nsys.modules['harness.run.runner'] = module\n"
        f"from harness.cli import main\nmain(['run', {str(suite)!r}, '--results', {str(suite.parent / 'r')!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line == "ready\n" for line in process.stdout)
    time.sleep(0.1)
    process.send_signal(2)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(("source", "folder"), [("suites/tiny.yaml", "tiny-smollm2"), ("own.jsonl", "own-smollm2")])
def test_collect_has_a_folder_of_its_own(
    source: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --out the answers go to a folder named after suite and pair, and the command says so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites").mkdir()
    (tmp_path / "own.jsonl").write_text('{"prompt": "Name a fruit.", "split": "train"}\n')
    (tmp_path / "suites/tiny.yaml").write_text(
        "name: t\ndomains:\n  a: {dataset: local, path: ../own.jsonl}\nexperiments: [{kind: baseline}]\n"
    )
    outs: list[Path] = []
    monkeypatch.setattr("harness.models.pair.load_pair", lambda *_, **__: None)
    monkeypatch.setattr("harness.answers.collect.collect", lambda *_, out, **__: outs.append(out) or [])
    code, out, err = run("collect", source, "--split", "all", capsys=capsys)
    assert (code, outs) == (0, [Path("answers", folder)]), err
    assert f"answers/{folder}" in err
    assert f"answers/{folder}" in out


def test_a_suites_seed_makes_the_generated_prompts_of_training(tmp_path: Path) -> None:
    """``train``, ``train-router`` and ``collect`` read the prompts that a run of the suite would."""
    from harness.cli.generate import read_samples, source_seed
    from harness.datasets import DatasetSpec, load_samples

    text = "name: t\nseed: 5\ndomains:\n  math: {dataset: wordproblems, size: 60}\nexperiments: [{kind: baseline}]\n"
    (tmp_path / "t.yaml").write_text(text)
    found = read_samples(str(tmp_path / "t.yaml"), split="train", limit=None, offline=True)
    spec = DatasetSpec(dataset="wordproblems", size=60, split="train")
    assert found == load_samples(spec, domain="math", seed=5)
    assert found != load_samples(spec, domain="math", seed=0)
    assert (source_seed(str(tmp_path / "t.yaml")), source_seed("x.jsonl")) == (5, 0)


@pytest.mark.parametrize("name", ["quick", "quick.yaml", "suites/quick.yaml"])
def test_a_shipped_suite_is_found_by_any_of_its_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From any folder."""
    monkeypatch.chdir(tmp_path)
    assert run("validate", name, capsys=capsys)[0] == 0
