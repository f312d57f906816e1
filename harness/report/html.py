"""One self-contained HTML file: recommendation, tables, charts, texts. Needs no network; everything is inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from harness.report.escape import html
from harness.report.figures import Figure
from harness.report.markdown import DEFINITIONS, HOW, facts, title
from harness.report.page import CONFIG, OPTIONS, POLICY, SCRIPT, STYLE, vega
from harness.report.run import Run
from harness.report.sections import SECTIONS, figures, findings, recommendation, result
from harness.report.tables import COLOURED, Table, Text
from harness.results.manifest import Manifest


def render_html(run: Run) -> str:
    """The page as text."""
    parts = list(_parts(run))
    specs = [{**figure.chart.to_dict(), "config": CONFIG} for figure in figures(run)]
    links = "".join(f'<a href="#{name}">{html(text)}</a>' for name, text, _ in parts)
    body = "".join(f'<section id="{name}"><h2>{html(text)}</h2>{content}</section>' for name, text, content in parts)
    script = f"const specs = {_json(specs)};\nconst options = {_json(OPTIONS)};\n{SCRIPT}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html(title(run.manifest))}</title><style>{STYLE}</style></head><body><nav><div>{links}</div></nav><main>"
        f'<h1>{html(title(run.manifest))}</h1><p class="sub">{html(_subtitle(run.manifest))}</p>'
        + (f'<p class="warn">{html(run.unfinished)}</p>' if run.unfinished else "")
        + body
        + f"</main><script>{vega()}</script><script>{script}</script></body></html>\n"
    )  # fmt: skip


def _parts(run: Run) -> Iterator[tuple[str, str, str]]:
    """Every part of the page in order: name for links, heading, content."""
    number = 0
    for section in SECTIONS:
        charts = section.figures(run)
        tables = [table for table in section.tables(run) if table.rows or section is result]
        content = "".join(_figure(number + i, figure, section.TITLE) for i, figure in enumerate(charts))
        number += len(charts)
        if section is recommendation:
            yield _name(section.TITLE), section.TITLE, _recommendation(run)
        elif section is result:
            note = '<p class="caption">95% intervals over prompts; speedup is paired per prompt. ★ is what to use.</p>'
            yield _name(section.TITLE), section.TITLE, note + "".join(map(_table, tables)) + content
            yield "findings", "Findings", "<ul>" + "".join(f"<li>{html(sentence)}</li>" for sentence in findings(run)) + "</ul>"
            yield (
                "legend",
                "How to read it",
                _definitions(DEFINITIONS) + f'<p class="caption"><br>{html(" ".join(HOW.replace("`", "").split()))}</p>',
            )
        elif charts or tables:
            yield _name(section.TITLE), section.TITLE, content + _tables(tables, section.TITLE)
    yield "run", "The run", _definitions(facts(run.manifest))


def _name(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def _recommendation(run: Run) -> str:
    paragraph = f'<p class="main">{html(recommendation.paragraph(run))}</p>'
    return f'{paragraph}<pre class="command">{html(run.recommendation.command)}</pre>'


def _definitions(entries: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{html(name)}</dt><dd>{html(text)}</dd>" for name, text in entries.items()) + "</dl>"


def _subtitle(manifest: Manifest) -> str:
    machine = manifest.machine
    parts = [manifest.started, str(machine.get("processor")), f"{machine.get('cores')} cores", str(machine.get("blas")), manifest.run]
    return " · ".join(part for part in parts if part and part != "None")


def _figure(number: int, figure: Figure, heading: str) -> str:
    own = "" if figure.title == heading else f"<h3>{html(figure.title)}</h3>"
    return f'{own}<p class="caption">{html(figure.caption)}</p><div class="chart" id="figure-{number}"></div>'


def _tables(tables: Sequence[Table], heading: str) -> str:
    """Tables of a section, unfolded on a click; those that the section is about stand open."""
    return "".join(
        f"<details{' open' if table.open else ''}><summary>{html('Table' if table.title == heading else table.title)}</summary>"
        f"{_table(table)}</details>"
        for table in tables
    )


def _table(table: Table) -> str:
    css = [' class="l"' if i < table.left else "" for i in range(len(table.headers))]
    head = "".join(f"<th{c}>{html(h)}</th>" for c, h in zip(css, table.headers, strict=True))
    lines, group = [], None
    for i, row in enumerate(table.rows):
        text = table.texts[i] if table.texts else None
        marks = ["win"] if i == table.marked else []
        marks += ["new"] if group is not None and row[0] != group and not table.texts else []
        marks += ["has"] if text else []
        group = row[0]
        mark = f' class="{" ".join(marks)}"' if marks else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td{c}>{html(cell)}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>")
        lines += [f'<tr class="text"><td colspan="{len(row)}">{_text(text)}</td></tr>'] if text else []
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _text(text: Text) -> str:
    start = " ".join(text.prompt.split())
    answer = "".join(f'<mark class="{by}">{html(part)}</mark>' if by else html(part) for part, by in text.answer)
    seen = [by for by in COLOURED if any(by == own for _, own in text.answer)]
    legend = ", ".join(["Answer", *(f'<mark class="{by}">{by}</mark>' for by in seen), "the rest is the target's own"])
    shown = f'<b class="label">{legend}</b><pre>{answer}</pre>' if answer else ""
    summary = html(start if len(start) <= 90 else f"{start[:89]}…")
    return f'<details><summary>{summary}</summary><b class="label">Prompt</b><pre>{html(text.prompt)}</pre>{shown}</details>'


def _json(value: Any) -> str:
    """JSON that cannot end a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")
