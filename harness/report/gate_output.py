"""Verdicts of the regression gate as JUnit XML and as Markdown for a job summary."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.files import printable
from harness.gate import Verdict
from harness.report.escape import markdown
from harness.report.markdown import markdown_table
from harness.report.tables import Table

_NO_XML = re.compile("[\ufffe\uffff]")


def junit(verdicts: Sequence[Verdict]) -> str:
    """JUnit XML with one test case per comparison."""
    failures = sum(v.failed for v in verdicts)
    suite = ET.Element("testsuite", name="harness check", tests=str(len(verdicts)), failures=str(failures), errors="0", skipped="0")
    for v in verdicts:
        case = ET.SubElement(suite, "testcase", classname=f"harness.{v.what}", name=_xml(v.cell))
        if v.failed:
            failure = ET.SubElement(case, "failure", message=_xml(f"{v.outcome}: {v.detail}"))
            failure.text = _xml(v.detail)
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Text without the characters that XML forbids."""
    return _NO_XML.sub("?", printable(text))


def summary(verdicts: Sequence[Verdict], run: str, reference: str) -> str:
    """Markdown: the verdict in one line, then every comparison, failures first."""
    failed = [v for v in verdicts if v.failed]
    total = f"{len(verdicts)} comparison{'s' if len(verdicts) != 1 else ''}"
    head = f"**{len(failed)} of {total} failed**" if failed else f"**{total}, no regression**"
    ordered = failed + [v for v in verdicts if not v.failed]
    rows = tuple((v.cell, v.what, v.outcome, v.detail) for v in ordered)
    table = markdown_table(Table("", ("cell", "compared", "outcome", "detail"), rows, 4))
    return f"## {markdown(run)} against {markdown(reference)}\n\n{head}\n\n{table}\n"


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
