"""The charts of a report as files: SVG for documents, PNG for everything else."""

from __future__ import annotations

from pathlib import Path

from harness.core.files import write_atomic
from harness.report.page import CONFIG
from harness.report.run import Run
from harness.report.sections import figures

FOLDER = "charts"
SCALE = 1.5
"""Pixels of a PNG per pixel of the chart."""


def write_pictures(run: Run, out: Path) -> Path:
    """Write every chart to ``out/charts``, and remove what an earlier report left there.

    Raises:
        OSError: the folder cannot be written.
    """
    import vl_convert

    folder, names = out / FOLDER, set[str]()
    for figure in figures(run):
        spec = {**figure.chart.to_dict(), "config": {**CONFIG, "background": "white", "font": "DejaVu Sans, sans-serif"}}
        svg = vl_convert.vegalite_to_svg(spec)
        write_atomic(folder / f"{figure.name}.svg", svg)
        write_atomic(folder / f"{figure.name}.png", vl_convert.svg_to_png(svg, scale=SCALE))
        names |= {f"{figure.name}.svg", f"{figure.name}.png"}
    for old in folder.glob("*.*") if folder.is_dir() else ():
        if old.suffix in (".svg", ".png") and old.name not in names:
            old.unlink()
    return folder
