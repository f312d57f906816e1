"""Verdicts of the regression gate as JUnit XML and as Markdown for a job summary."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.report.escape import markdown
from harness.report.markdown import markdown_table
from harness.report.tables import Table
from harness.results.gate import Verdict

_NO_XML = re.compile("[\ufffe\uffff]")


def junit(verdicts: Sequence[Verdict], *, error: str = "", allow_undecided: bool = False) -> str:
    """JUnit XML with one test case per comparison; an ``error`` that left nothing to compare is one more."""
    failing = [v.failed or (v.undecided and not allow_undecided) for v in verdicts]
    skipped = sum(v.undecided for v in verdicts) if allow_undecided else 0
    counts = {"tests": len(verdicts) + bool(error), "failures": sum(failing), "errors": int(bool(error)), "skipped": skipped}
    suite = ET.Element("testsuite", {"name": "harness check", **{key: str(n) for key, n in counts.items()}})
    for v, fails in zip(verdicts, failing, strict=True):
        case = ET.SubElement(suite, "testcase", classname=f"harness.{v.what}", name=_xml(v.cell))
        if fails or v.undecided:
            element = ET.SubElement(case, "failure" if fails else "skipped", message=_xml(f"{v.outcome}: {v.detail}"))
            element.text = _xml(v.detail)
    if error:
        case = ET.SubElement(suite, "testcase", classname="harness.check", name="comparable")
        ET.SubElement(case, "error", message=_xml(error))
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Text without the characters that XML forbids."""
    return _NO_XML.sub("?", printable(text))


def summary(verdicts: Sequence[Verdict], run: str, reference: str, *, error: str = "", allow_undecided: bool = False) -> str:
    """Markdown: the verdict in one line, then every comparison, failures first; or the ``error`` that left nothing to compare."""
    title = f"## {markdown(run)} against {markdown(reference)}\n\n"
    if error:
        quoted = "\n".join(f"    {line}" for line in printable(error).splitlines())
        return f"{title}**nothing was compared**\n\n{quoted}\n"
    failed, undecided = [v for v in verdicts if v.failed], [v for v in verdicts if v.undecided]
    total = f"{len(verdicts)} comparison{'s' if len(verdicts) != 1 else ''}"
    head = f"{len(failed)} of {total} failed" if failed else f"{total}, no regression"
    if undecided:
        head += f", {len(undecided)} undecided" + (" (allowed)" if allow_undecided else "")
    rest = [v for v in verdicts if not v.failed and not v.undecided]
    rows = tuple((v.cell, v.what, v.outcome, v.detail) for v in (*failed, *undecided, *rest))
    table = markdown_table(Table("", ("cell", "compared", "outcome", "detail"), rows, 4))
    return f"{title}**{head}**\n\n{table}\n"


def plain(
    verdicts: Sequence[Verdict], run: str, reference: str, *, error: HarnessError | None = None, allow_undecided: bool = False
) -> dict[str, Any]:
    """The outcome as plain JSON types; an ``error`` that left nothing to compare stands in ``error``."""
    failed, undecided = sum(v.failed for v in verdicts), sum(v.undecided for v in verdicts)
    return {
        "run": run,
        "reference": reference,
        "passed": error is None and not failed and (allow_undecided or not undecided),
        "failed": failed,
        "undecided": undecided,
        "comparisons": [{**dataclasses.asdict(v), "failed": v.failed} for v in verdicts],
        "error": error and {"problem": error.problem, "advice": error.advice},
    }


def write(path: Path | None, text: str, *, append: bool = False) -> None:
    """Write or append ``text``; nothing happens without a path.

    Raises:
        HarnessError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HarnessError(f"cannot write {path}: {error.strerror or error}", "Choose a file that can be written.") from error
