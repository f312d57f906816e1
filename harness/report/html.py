"""One self-contained HTML file: table, findings and charts. Needs no network; everything is inside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from harness.core.files import write_atomic
from harness.core.paths import cache_dir
from harness.report import tables
from harness.report.charts import Figure, figures
from harness.report.details import details
from harness.report.escape import html
from harness.report.findings import findings, unfinished
from harness.report.markdown import title as report_title
from harness.report.profile_tables import profile_figure
from harness.report.tables import Table
from harness.results.store import Manifest
from harness.results.summary import CellRow

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


def render_html(rows: Sequence[CellRow], manifest: Manifest, router: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as text.

    Args:
        rows: from :func:`harness.results.summary.summarise`.
        manifest: of the run.
        router: from :func:`harness.results.router_rows.compare_router`.
    """
    charts = [figure for figure in (*figures(rows, router), profile_figure(rows)) if figure is not None]
    specs = [{**figure.chart.to_dict(), "config": _CONFIG} for figure in charts]
    sections = [
        _section("Findings", "", "<ul>" + "".join(f"<li>{html(s)}</li>" for s in findings(rows, manifest.measured)) + "</ul>"),
        *(_figure(i, figure) for i, figure in enumerate(charts)),
        _section("Details", "", "".join(_folded(table) for table in details(rows, manifest.measured, router))),
    ]
    first = _section("Result", "95% intervals over prompts; speedup is paired per prompt.", _table(tables.first_table(rows)))
    script = "const specs = " + _json(specs) + ";\nspecs.forEach((s, i) => vegaEmbed('#figure-' + i, s, " + _json(_OPTIONS) + "));"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html(report_title(manifest))}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{html(report_title(manifest))}</h1><p class="sub">{html(_subtitle(manifest))}</p>'
        + "".join(f'<p class="warn">{html(sentence)}</p>' for sentence in unfinished(rows, manifest))
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
