"""What is released is what was tested: one version everywhere, notes from the changelog, a wheel that works in an empty folder."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml
from shown import ROOT, parse

NOTES = runpy.run_path(str(ROOT / ".github/release_notes.py"))
SCRIPT = (ROOT / ".ci/wheel").read_text(encoding="utf-8")


def copy_of_the_facts(folder: Path, changelog: str) -> Path:
    """A folder with the version's two places and another changelog."""
    for name in ("pyproject.toml", "harness/core/version.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    return folder


def test_one_version() -> None:
    """Project and package agree, and the changelog names no later one; what comes next is on top."""
    project, package = NOTES["versions"]()
    assert project == package
    first, *released = NOTES["sections"]((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert first in ("Unreleased", package)
    order = [tuple(map(int, version.split("."))) for version in (package, *released)]
    assert order == sorted(order, reverse=True)


def test_a_tag_gets_its_section(tmp_path: Path) -> None:
    """The notes are the section of the tag's version; a tag of another version, or of one without a section, releases nothing."""
    version, _ = NOTES["versions"]()
    changelog = f"# Changelog\n\n## Unreleased\n\n- later\n\n## [{version}] - 2026-12-01\n\n- this\n\n## 0.0.1\n\n- old\n"
    root = copy_of_the_facts(tmp_path, changelog)
    assert NOTES["notes"](f"v{version}", root) == "- this"
    with pytest.raises(SystemExit, match=r"tag v9\.9\.9, but pyproject\.toml"):
        NOTES["notes"]("v9.9.9", root)
    copy_of_the_facts(tmp_path, "# Changelog\n\n## Unreleased\n\n- later\n")
    with pytest.raises(SystemExit, match="rename its section Unreleased"):
        NOTES["notes"](f"v{version}", root)


def test_workflows_use_the_wheel_that_they_publish() -> None:
    """Both build it by the same script; only a tag publishes, and only what that script has used."""
    ci, release = (yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")) for name in ("ci", "release"))
    for job in (ci["jobs"]["wheel"], release["jobs"]["build"]):
        assert ".ci/wheel dist" in [step.get("run") for step in job["steps"]]
    assert release[True] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["publish"]["needs"] == "build"
    uses = [step.get("uses", "") for job in ci["jobs"].values() for step in job["steps"]]
    assert not any("publish" in used for used in uses)


@pytest.mark.parametrize("line", re.findall(r"^ *(harness [^>\n]*)", SCRIPT, flags=re.M))
def test_commands_of_the_script_exist(line: str) -> None:
    """A renamed option must fail here, not on the next push."""
    parse(line)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    """Built, installed with what it needs and nothing else, and used: a choice, a server with it, the quick suite, all verified."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([ROOT / ".ci/wheel", tmp_path / "dist"], env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every file of the report follows from the records") == 2
    assert "served with" in done.stdout
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1
