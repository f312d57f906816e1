"""The card beside an export: what it is, what it was trained on, what it gained and how surely, how it was made, its licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.adapt.shelf import Shelved
from harness.core import files
from harness.core.stats import Estimate
from harness.export.source import Source
from harness.models.pair_config import HubSource, ModelConfig
from harness.report.escape import code, markdown
from harness.report.sections.recommendation import paragraph
from harness.report.tables import interval
from harness.results.summary import CellRow

CARD = "README.md"
"""The name that model hubs show."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card says beside the source."""

    form: str
    """What was written, in a few words."""
    library: str
    """``library_name`` of the front matter."""
    hashes: Mapping[str, str]
    """What -> SHA-256."""
    kept: int | None
    """Tokens that a cut's own head names; None for a whole head."""
    adapter: Shelved | None
    draft_card: Path | None
    """Card of the draft that was cut from its target; None where there is none."""
    command: str
    """What made the export."""
    version: str
    """Of this package."""
    flags: str
    """How to serve it; empty for what no engine serves."""


def card(source: Source, facts: Facts) -> str:
    """The card in Markdown with the front matter of a model hub."""
    chosen = source.config.target if source.part == "target" or source.config.draft is None else source.config.draft
    licence = chosen.license or source.config.target.license
    parts = [
        _front(source, facts, licence),
        f"# {markdown(_title(source))}",
        _what(source, facts),
        "\n".join([
            *(f"- {what}: sha256 {code(digest)}" for what, digest in facts.hashes.items()),
            f"- made by: {code(facts.command)}, specdraft-harness {facts.version}",
            f"- licence of the weights: {markdown(licence) if licence else 'that of the models they come from'}",
        ]),
        _head(facts),
        _adapter(facts.adapter),
        _measured(source),
        f"## Serving\n\n```bash\n{facts.flags.rstrip()}\n```" if facts.flags else "",
        _draft_card(facts.draft_card),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(source: Source, facts: Facts, licence: str) -> str:
    data: dict[str, Any] = {"library_name": facts.library, "tags": ["speculative-decoding", "draft-model"]}
    if re.fullmatch(r"[\w.+-]+", licence):
        data["license"] = licence.lower()
    if bases := [name for model in (source.config.target, source.config.draft) if (name := _hub_name(model))]:
        data["base_model"] = bases
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---"


def _hub_name(model: ModelConfig | None) -> str | None:
    sources = model.parsed(Path()) if model else []
    return next((found.repo for found in sources if isinstance(found, HubSource)), None)


def _title(source: Source) -> str:
    if source.part == "target":
        return f"Target of {source.pair}"
    if not source.has_weights:
        return f"Settings for {source.pair}"
    return f"Draft for the target of {source.pair}" + (f", adapter {source.adapter}" if source.adapter else "")


def _what(source: Source, facts: Facts) -> str:
    if source.part == "target":
        return f"{facts.form}. The model whose output is wanted."
    if not source.has_weights:
        return f"{facts.form}."
    about = "It proposes tokens for its target, which decides every one of them: it changes how fast the output comes, not the output."
    return f"{facts.form}. {about} It belongs to this target alone, or to one with the same tokenizer."


def _head(facts: Facts) -> str:
    if facts.kept is None:
        return ""
    return (
        "## Output head\n\n"
        f"The draft was trained to propose {facts.kept} of the vocabulary's tokens. The row of every other token is the mean of their "
        "rows, so its logit is the mean of theirs and never the highest. Under sampling such tokens keep a little probability, which "
        "costs some acceptance and never changes the output. In the harness the draft also proposes tokens that stand in prompt and "
        "answer; a plain head cannot know these, so acceptance elsewhere is a little lower."
    )


def _adapter(adapter: Shelved | None) -> str:
    if adapter is None:
        return ""
    info = adapter.info
    data = f"{info.examples} examples" if info.examples else "examples that its file does not tell"
    lines = [
        "## Adapter",
        f"{markdown(info.name)}: rank {info.rank}, trained on {data} of {markdown(info.domain) if info.domain else 'mixed domains'}"
        + (f" (hash {code(info.data_hash)})" if info.data_hash else "")
        + (f", {info.steps} updates in {info.train_s:.0f} s" if info.steps else "")
        + (f", with the settings {code(str(info.settings['name']))}" if "name" in info.settings else "")
        + ".",
    ]
    rows = [f"| {markdown(d)} | {info.before[d]:.3f} | {info.after[d]:.3f} |" for d in info.before if d in info.after]
    if rows:
        head = (f"| domain | {info.metric} before | after |", "| --- | ---: | ---: |")
        lines += ["Acceptance on validation prompts:", "\n".join([*head, *rows])]
    if adapter.gain is not None:
        where = f"on {markdown(info.domain)}" if info.domain else "over all of them"
        lines.append(f"The rise {where} is {adapter.gain.signed()} with its 95% interval.")
    return "\n\n".join(lines)


def _measured(source: Source) -> str:
    """What the run measured of the exported way of drafting."""
    if source.run is None:
        return ""
    adapter = source.adapter
    rows = [
        row
        for row in source.run.shown
        if (row.adapter == adapter if adapter else row.drafter == source.drafter) and row.rate is not None and not row.lossy
    ]
    head = (
        "| domain | K | temperature | prompts | acceptance rate | tokens per target pass | speedup |",
        "|---|---:|---:|---:|---|---|---|",
    )
    lines = ["## Measured", paragraph(source.run)]
    if rows:
        lines.append("\n".join([*head, *map(_row, rows)]))
    manifest = source.run.manifest
    lines.append(f"Run {code(manifest.run)} on {markdown(str(manifest.machine.get('processor', 'an unnamed processor')))}.")
    return "\n\n".join(lines)


def _row(row: CellRow) -> str:
    speed: Estimate | None = row.speed
    parts = (
        markdown(row.domain), str(row.k), f"{row.temperature:g}", str(row.n), interval(row.rate), interval(row.tau, 2),
        interval(speed, 2, "x") if speed else "not timed",
    )  # fmt: skip
    return f"| {' | '.join(parts)} |"


def _draft_card(path: Path | None) -> str:
    """The draft's own card, its headings one level down."""
    if path is None:
        return ""
    lines = [f"#{line}" if line.startswith("#") else line for line in files.read_text(path).strip().splitlines()]
    return "\n".join(lines)
