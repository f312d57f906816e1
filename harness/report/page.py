"""What the HTML page looks like and does by itself: style, scripts, the policy that keeps it from the network."""

from __future__ import annotations

import contextlib
import functools
from importlib.metadata import version

from harness.core.files import write_atomic
from harness.core.paths import cache_dir

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --line: #dfe4ea; --accent: #1f66b0; --page: #f5f7f9; --box: #fff;
  --win: #e8f1fb; --draft: #d5ebd9; --lookup: #d6e4f7; --memory: #f6e3c0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --soft: #9aa7b4; --line: #323c48; --accent: #7db5f0; --page: #12171d;
  --box: #1a2129; --win: #1d3048; --draft: #22492d; --lookup: #20406b; --memory: #5a4312; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 48px; }
body { margin: 0; color: var(--ink); background: var(--page); }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--line); white-space: nowrap;
  overflow-x: auto; }
nav div { max-width: 1360px; margin: 0 auto; padding: 8px 24px; font-size: 14px; }
nav a { margin-right: 16px; } a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
main { max-width: 1360px; margin: 0 auto; padding: 24px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 20px; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 20px 0 2px; }
p.sub, p.caption { color: var(--soft); margin: 0 0 12px; overflow-wrap: anywhere; } p.caption { font-size: 14px; }
p.warn { font-weight: 600; } p.main { font-size: 18px; margin: 0 0 12px; }
section { background: var(--box); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; margin: 20px 0; }
#recommendation { border-left: 5px solid var(--accent); }
code, pre { font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 8px; }
pre.command { background: var(--page); border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; }
ul { margin: 0; padding-left: 20px; } li { margin: 4px 0; overflow-wrap: anywhere; }
dl { margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; font-size: 14px; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 6px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .l { text-align: left; }
tr.new td { border-top: 2px solid var(--line); } tr.win td { background: var(--win); font-weight: 600; }
tr.text td { text-align: left; white-space: normal; padding: 0 8px 8px; }
tr.has td { border-bottom: 0; padding-bottom: 0; }
details { font-size: 14px; margin-top: 8px; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
tr.text details { margin: 0; } tr.text summary { color: var(--soft); font-weight: normal; padding: 0; }
tr.text pre { max-height: 320px; overflow-y: auto; } b.label { font-size: 13px; color: var(--soft); }
mark { background: var(--draft); color: inherit; border-radius: 2px; }
#result .l { white-space: normal; }
mark.lookup { background: var(--lookup); } mark.memory { background: var(--memory); }
.chart { width: 100%; overflow-x: auto; }
@media (max-width: 700px) {
  main { padding: 12px 8px 48px; } section { padding: 14px 12px; margin: 12px 0; } nav div { padding: 8px 12px; }
  h1 { font-size: 22px; } p.main { font-size: 16px; } table { font-size: 13px; }
  th, td { padding: 5px 4px; } .l { white-space: normal; }
  #prompts th, #prompts td { padding: 5px 2px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
}
"""

POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
"""The browser itself refuses every request to the outside; Vega compiles its expressions, which needs eval."""

CONFIG = {
    "font": "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelFlush": False,
        "gridColor": "#e8ecf0",
        "domainColor": "#b7c0ca",
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12},
    "header": {"labelFontSize": 13, "labelFontWeight": "bold"},
}
"""Looks of every chart."""

SCRIPT = """
const dark = matchMedia('(prefers-color-scheme: dark)');
function themed(spec) {
  if (!dark.matches) return spec;
  const ink = {labelColor: '#c3ccd6', titleColor: '#c3ccd6'};
  const axis = {...spec.config.axis, ...ink, gridColor: '#2b3540', domainColor: '#4a5663', tickColor: '#4a5663'};
  const legend = {...spec.config.legend, ...ink}, header = {...spec.config.header, ...ink};
  return {...spec, config: {...spec.config, background: null, axis, legend, header}};
}
function fitted(spec, room) {
  if (room >= 1180) return spec;
  const s = JSON.parse(JSON.stringify(spec)), phone = room < 700;
  const narrow = (part, inner) => {
    if (typeof part.width === 'number') part.width = Math.min(part.width, inner);
    (part.layer || []).concat(part.hconcat || [], part.spec ? [part.spec] : []).forEach(p => narrow(p, inner));
    if (part.hconcat) { part.vconcat = part.hconcat; delete part.hconcat; }
    if (part.columns) part.columns = Math.max(1, Math.floor((room - 40) / 370));
    const y = part.encoding && part.encoding.y;
    if (y && y.type === 'nominal') y.axis = {...y.axis, labels: true, ...(phone ? {labelLimit: 120} : {})};
    const colour = part.encoding && part.encoding.color;
    if (phone && colour && colour.legend) colour.legend = {...colour.legend, columns: 2, labelLimit: 150};
  };
  narrow(s, Math.max(140, room - (s.facet ? 60 : phone ? 160 : 340)));
  return s;
}
function draw() {
  specs.forEach((spec, i) => {
    const place = document.getElementById('figure-' + i);
    vegaEmbed(place, themed(fitted(spec, place.clientWidth)), options);
  });
}
dark.addEventListener('change', draw);
draw();
"""

OPTIONS = {"actions": False, "renderer": "svg", "ast": False}


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script that defines ``vegaEmbed``; bundling takes seconds, so cache and process keep it."""
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
