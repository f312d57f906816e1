"""Names from outside show as they were written in Markdown, HTML, CSV and XML, and never act."""

from __future__ import annotations

import dataclasses
import html as entities
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from comparing import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_gate import draws, stored

from harness.core.errors import HarnessError
from harness.core.settings_file import load_settings
from harness.core.text import odd_character, printable
from harness.report import load_run
from harness.report.cells_csv import render_csv
from harness.report.escape import cells, code, html, markdown, spreadsheet
from harness.report.gate_output import junit, summary
from harness.report.html import render_html
from harness.report.markdown import render
from harness.report.sections.recommendation import recommendation_json, settings_yaml
from harness.report.verify import recompute
from harness.results.gate import Verdict

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])
"""GitHub's Markdown, raw HTML on, as far as this renderer has it; addresses that become links by themselves are looked for by hand."""
PIECES = st.sampled_from(
    [*"\\`*_[]()<>#+-.!|~$&:;\"'=@ \n\t\r\x0b\x1b\u2028\u202e\x00aZ1ä", "<script>", "](", "]: ", "://", "www.", "&lt;", "# ", "1. ", "---",
     "http://a.b", "![", "<!--", "```", "||", "\\|", "__", "**"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=12).map("".join)
HOSTILE = ["<script>alert(1)</script>", "a\n\n# Heading", "x | y", "`code` **bold**", "![i](http://evil.example/i.png)", "[l](http://evil)",
           "\x1b[31mred\x1b[0m", "\u202egnp.exe", "=cmd|' /C calc'!A0", "[red]r[/red][link=http://x]y[/link]:bomb:"]  # fmt: skip


def shown(rendered: str) -> str:
    """The text of a rendered paragraph that holds no other element."""
    found = re.fullmatch(r"<p>(.*)</p>\n", rendered, re.DOTALL)
    assert found, rendered
    assert not re.search("<[^>]*>", found[1]), rendered
    return entities.unescape(found[1])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS)
def test_text_is_text_in_a_paragraph_a_heading_an_item_and_a_cell(text: str) -> None:
    """A renderer of Markdown gives back the text, on one line, without any element inside; a cell is read back from its row."""
    line, escaped = printable(" ".join(text.split())), markdown(text)
    if not line:
        return
    assert shown(GITHUB.render(escaped)) == line
    assert re.sub("<h2>(.*)</h2>", "<p>\\1</p>", GITHUB.render(f"## x {escaped}")).count("<") == 2
    assert GITHUB.render(f"- {escaped}").count("<") == 4
    assert GITHUB.render(f"| a |\n| --- |\n| {escaped} |").count("<td>") == 1
    assert cells(f"| {escaped} | 1 |") == [line, "1"]
    assert not re.search(r"(?<!\\)(://|[`<|$])|(?i:www)\.", escaped)
    assert "<code>" + entities.escape(line, quote=False).replace('"', "&quot;") in GITHUB.render(code(text)).replace("<code> ", "<code>")
    assert not set(html(text)) & set('<>"\x1b\u202e\0')


def test_ordinary_texts_stay_readable() -> None:
    """Numbers, intervals and names of drafters need no escape."""
    for text in (
        "early_exit",
        "1.21x [1.10, 1.33]",
        "-0.05 [-0.10, -0.01]",
        "rate 0.6 -> 0.5",
        "speedup [95%]",
        "code lookup K=4 (a, replay)",
    ):
        assert markdown(text) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_reports_show_hostile_names_as_text(name: str, tmp_path: Path) -> None:
    """Suite, pair, machine, experiment, domain and sample names of a run that someone sent: every report shows them, none acts."""
    records = [dataclasses.replace(r, experiment=name, domain=name, sample_id=f"{name}{r.sample_id}") for r in draws(6, 0, temperature=0.0)]
    facts = {"pair": name, "suite": {"name": name}, "machine": {"processor": name}, "packages": {name: name}, "models": {name: name}}
    folder = stored(tmp_path / "run", records, measured={"status": "finished", "skipped": [name]}, **facts)
    run = load_run(folder)
    report = render(run)
    texts = {
        "report": report,
        "compare": compare(folder, folder),
        "gate": summary([Verdict(cell=name, what="counts", outcome="same", detail=name)], name, name),
    }
    for text in texts.values():
        rendered = GITHUB.render(text)
        assert not re.search(r"<(script|img|a|strong|em)\b", rendered.replace("<strong>1 comparison, no regression</strong>", ""))
        assert "Heading" not in re.findall(r"<h1>(.*?)</h1>", rendered)
        assert "\x1b" not in text
        assert "\u202e" not in text
    wrong, checked = recompute(report, run, folder)
    assert not wrong
    assert checked > 0

    class Elements(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found.append(tag)
            if tag == "a":
                assert re.fullmatch(r"#[a-z-]+", dict(attributes)["href"] or "")

    Elements.found = []
    page = Elements()
    page.feed(render_html(run))
    assert page.found.count("script") == 2
    assert not {"img", "iframe", "link"} & set(page.found)
    assert not re.search(r"(?m)(^|,)\"?[=@+]", render_csv(run.rows))
    (tmp_path / "settings.yaml").write_text(settings_yaml(run))
    if odd_character(name) is None:
        assert load_settings(tmp_path / "settings.yaml").models == run.models
    else:
        with pytest.raises(HarnessError, match="cannot stand here"):
            load_settings(tmp_path / "settings.yaml")
    assert json.loads(recommendation_json(run))["command"] == run.recommendation.command


def test_a_spreadsheet_computes_nothing() -> None:
    """Text that begins like a formula gets an apostrophe; numbers, also negative ones, stay numbers."""
    given = ["=1+1", "+1", "-x", "@x", "\tx", "\rx", "code", "", None, -1.5, 3]
    assert [spreadsheet(value) for value in given] == ["'=1+1", "'+1", "'-x", "'@x", "'\tx", "'\rx", "code", "", None, -1.5, 3]


@pytest.mark.parametrize("name", [*HOSTILE, "a\ufffeb\uffffc\x00\ud800"])
def test_junit_is_well_formed(name: str) -> None:
    """CI's parser must read the file whatever a cell is called."""
    root = ET.fromstring(junit([Verdict(cell=name, what="counts", outcome="changed", detail=name)]).partition("\n")[2].encode())
    assert root.find("testcase/failure") is not None
