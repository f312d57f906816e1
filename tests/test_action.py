"""The composite action for other repositories: the guide's files and the action's own script, run here as a runner would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml
from tiny import write_pair

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
GUIDE = [textwrap.dedent(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```", (ROOT / "docs/ci.md").read_text(), flags=re.S | re.M)]
STEPS = {step.get("id") or step.get("name"): step for step in ACTION["runs"]["steps"]}


def test_inputs_and_script_fit() -> None:
    """The workflow of the guide names inputs that exist, every input is used, and none is put into a script as text."""
    workflow: dict[Any, Any] = yaml.safe_load(GUIDE[1])
    given = workflow["jobs"]["gate"]["steps"][1]["with"]
    assert given.keys() <= ACTION["inputs"].keys()
    assert {name for name, i in ACTION["inputs"].items() if i.get("required")} <= given.keys()
    assert len(GUIDE[1].strip().splitlines()) <= 10
    text = json.dumps(ACTION["runs"])
    assert all(f"inputs.{name}" in text for name in ACTION["inputs"])
    assert not any("${{" in step.get("run", "") for step in ACTION["runs"]["steps"])


def test_a_repository_gates_its_own_pair_and_prompts(tmp_path: Path) -> None:
    """Without a reference: it is written and the job fails. With it: the job passes, its summary holds verdict and report."""
    suite = yaml.safe_load(GUIDE[0])
    suite |= {"models": str(write_pair(tmp_path / "pair")), "max_tokens": 12}
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(suite))
    prompts = [{"prompt": f"Count {n} apples and {n * n} pears", "id": f"p{n}"} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    first = gate(tmp_path, "one")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "There is no gate.json yet" in first.stdout
    (tmp_path / "one/temp/specdraft/reference/gate.json").rename(tmp_path / "gate.json")
    second = gate(tmp_path, "two", UNDECIDED="true")
    assert second.returncode == 0, second.stdout + second.stderr
    summary = (tmp_path / "two/summary").read_text()
    assert "## Acceptance" in summary
    outputs = dict(line.split("=", 1) for line in (tmp_path / "two/output").read_text().splitlines())
    assert (Path(outputs["folder"]) / "results" / outputs["run"] / "records.jsonl").is_file()
    assert "<testsuite" in (Path(outputs["folder"]) / "gate.xml").read_text()


def gate(folder: Path, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the action's script with the environment that a runner gives it."""
    step, here = STEPS["gate"], folder / name
    (here / "bin").mkdir(parents=True)
    (here / "bin/harness").write_text(f'#!/bin/sh\nexec {sys.executable} -m harness "$@"\n')
    (here / "bin/harness").chmod(0o755)
    defaults = {"SUITE": "gate.yaml", "REFERENCE": "gate.json", "MODELS": "", "CLOCK": "false", "UNDECIDED": "false"}
    assert defaults.keys() | {"HARNESS_CACHE"} == step["env"].keys()
    runner = {
        "PATH": f"{here / 'bin'}:{os.environ['PATH']}", "RUNNER_TEMP": str(here / "temp"), "GITHUB_OUTPUT": str(here / "output"),
        "GITHUB_STEP_SUMMARY": str(here / "summary"), "HARNESS_CACHE": str(folder / "cache"),
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **runner, **defaults, **inputs}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
