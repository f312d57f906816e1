"""One self-contained HTML file: table, findings and charts. Needs no network; everything is inside."""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import version
from typing import Any

from harness.core.files import write_atomic
from harness.core.paths import cache_dir
from harness.report.escape import html
from harness.report.figures import Figure
from harness.report.markdown import title as report_title
from harness.report.run import Run
from harness.report.sections import SECTIONS, details, figures, findings
from harness.report.tables import Table
from harness.results.store import Manifest

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5b6875; --line: #dfe4ea; --accent: #2f6fb3; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f5f7f9; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 0 0 4px; }
p.sub, p.caption { color: var(--soft); margin: 0 0 16px; } p.caption { font-size: 14px; } p.warn { font-weight: 600; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; margin: 20px 0; overflow-x: auto; }
ul { margin: 0; padding-left: 20px; } li { margin: 4px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .l { text-align: left; }
tr.new td { border-top: 2px solid #c3ccd6; }
details { font-size: 14px; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
"""

_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
"""The browser itself refuses every request to the outside; Vega compiles its expressions, which needs eval."""

_OPTIONS = {"actions": False, "renderer": "svg", "ast": False}

_CONFIG = {
    "font": "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e8ecf0", "domainColor": "#b7c0ca"},
    "legend": {"labelFontSize": 12, "titleFontSize": 12},
    "header": {"labelFontSize": 13, "labelFontWeight": "bold"},
}


def render_html(run: Run) -> str:
    """The page as text."""
    charts = figures(run)
    specs = [{**figure.chart.to_dict(), "config": _CONFIG} for figure in charts]
    sections = [
        _section("Findings", "", "<ul>" + "".join(f"<li>{html(s)}</li>" for s in findings(run)) + "</ul>"),
        *(_figure(i, figure) for i, figure in enumerate(charts)),
        _section("Details", "", "".join(_folded(table) for table in details(run))),
    ]
    note = "95% intervals over prompts; speedup is paired per prompt."
    first = _section(SECTIONS[0].TITLE, note, "".join(_table(table) for table in SECTIONS[0].tables(run)))
    script = "const specs = " + _json(specs) + ";\nspecs.forEach((s, i) => vegaEmbed('#figure-' + i, s, " + _json(_OPTIONS) + "));"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html(report_title(run.manifest))}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{html(report_title(run.manifest))}</h1><p class="sub">{html(_subtitle(run.manifest))}</p>'
        + (f'<p class="warn">{html(run.unfinished)}</p>' if run.unfinished else "")
        + first + "".join(sections)
        + f"</main><script>{_vega()}</script><script>{script}</script></body></html>\n"
    )  # fmt: skip


def _subtitle(manifest: Manifest) -> str:
    machine = manifest.machine
    parts = [manifest.started, str(machine.get("processor")), f"{machine.get('cores')} cores", str(machine.get("blas")), manifest.run]
    return " · ".join(part for part in parts if part and part != "None")


def _section(title: str, caption: str, body: str) -> str:
    note = f'<p class="caption">{html(caption)}</p>' if caption else ""
    return f"<section><h2>{html(title)}</h2>{note}{body}</section>"


def _figure(i: int, figure: Figure) -> str:
    return _section(figure.title, figure.caption, f'<div id="figure-{i}"></div>')


def _folded(table: Table) -> str:
    return f"<details><summary>{html(table.title)}</summary>{_table(table)}</details>"


def _table(table: Table) -> str:
    css = ['class="l"' if i < table.left else "" for i in range(len(table.headers))]
    head = "".join(f"<th {c}>{html(h)}</th>" for c, h in zip(css, table.headers, strict=True))
    lines, group = [], None
    for row in table.rows:
        mark = ' class="new"' if group is not None and row[0] != group else ""
        group = row[0]
        lines.append(f"<tr{mark}>" + "".join(f"<td {c}>{html(cell)}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _json(value: Any) -> str:
    """JSON that cannot end a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script that defines ``vegaEmbed``; bundling takes seconds, so the cache keeps it."""
    import vl_convert

    cached = cache_dir() / f"vega-bundle-{version('vl-convert-python')}.js"
    if cached.is_file():
        return cached.read_text(encoding="utf-8")
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    bundle = bundle.replace("</script", "<\\/script")
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, bundle)
    return bundle
