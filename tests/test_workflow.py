"""The GitHub workflow runs what the project has: existing commands, flags and files, and the same checks as the project's own CI."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
JOB: dict[str, Any] = WORKFLOW["jobs"]["check"]
LINES = [line.strip() for step in JOB["steps"] for line in step.get("run", "").splitlines()]
COMMANDS = [shlex.split(line) for line in LINES if line.startswith("harness ")]


def test_both_systems_and_the_oldest_and_newest_python() -> None:
    """The supported range in pyproject.toml is what is tested, on Linux and on Apple silicon."""
    low, high = re.findall(r"[\d.]+", re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text()).group(1))  # type: ignore[union-attr]
    newest = f"3.{int(high.split('.')[1]) - 1}"
    assert JOB["strategy"]["matrix"] == {"os": ["ubuntu-latest", "macos-latest"], "python": [low, newest]}
    assert WORKFLOW[True] == {"push": {"branches": ["main"]}, "pull_request": None, "workflow_dispatch": None}  # YAML reads "on" as true


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: " ".join(a[:2]))
def test_commands_and_flags_exist(arguments: list[str]) -> None:
    """A renamed command or flag must fail here, not on the next push."""
    from harness.cli import app

    result = CliRunner().invoke(app, [arguments[1], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    assert [flag for flag in arguments if flag.startswith("-") and flag not in result.output] == []


def test_gate_reaches_summary_and_artifact() -> None:
    """A failed gate is read in the job summary and kept as JUnit XML; both must get the file the gate writes."""
    (gate,) = (a for a in COMMANDS if a[1] == "check")
    assert gate[gate.index("--summary") + 1] == "$GITHUB_STEP_SUMMARY"
    (upload,) = (s for s in JOB["steps"] if s.get("uses", "").startswith("actions/upload-artifact"))
    assert gate[gate.index("--junit") + 1] in upload["with"]["path"].split()
    (run,) = (a for a in COMMANDS if a[1] == "run")
    suite = yaml.safe_load((ROOT / run[2]).read_text(encoding="utf-8"))
    assert any(f"results/{suite['name']}-*" in line for line in LINES)
    assert (ROOT / "configs/models" / f"{run[run.index('--models') + 1]}.yaml").is_file()
    assert gate[gate.index("--against") + 1] == "results/reference/smollm2.json"


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", "python -m pytest"])
def test_same_checks_as_the_own_ci(command: str) -> None:
    """The workflow and .ci/run must not drift apart."""
    assert command in LINES
    assert command in [line.removesuffix(" &") for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()]
