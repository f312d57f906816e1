"""The first screen: what to use, what comes next, what is open, and the command line, in words."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

from harness.core.records import SCHEMA_VERSION
from harness.core.settings_file import DecodeSettings, DraftOptions
from harness.core.stats import MIN_PROMPTS, Estimate
from harness.report.figures import Figure
from harness.report.run import Run
from harness.report.tables import Table, interval
from harness.results.manifest import resume_command
from harness.results.recommend import Choice, Gain, OpenQuestion, Recommendation
from harness.results.summary import ALL

TITLE = "Recommendation"


def tables(run: Run) -> list[Table]:
    """None."""
    return []


def figures(run: Run) -> list[Figure]:
    """None."""
    return []


def sentences(run: Run) -> list[str]:
    """The recommendation; what was not finished says so."""
    r = run.recommendation
    found = [*_main(run), *_install(run), *_elsewhere(r), *_next(r)]
    found += [*_gain("Adapters", r.adapters), *_gain("The router", r.router), *_untimed(r)]
    found += [] if r.question is None else [_open(r.question, r)]
    found += _race(run)
    if r.best is not None and r.best.speedup is not None and not run.manifest.measured.calibration:
        found.append("The run was not warmed up (--no-clock): time it again before relying on its speeds.")
    return [f"So far: {found[0][0].lower()}{found[0][1:]}", *found[1:]] if run.unfinished else found


def paragraph(run: Run) -> str:
    """The sentences as one paragraph."""
    return " ".join(sentences(run))


def _main(run: Run) -> list[str]:
    r = run.recommendation
    if r.best is None and any(row.drafter for row in run.shown):
        return ["No speed is known, so nothing is recommended: no drafter was timed, and the costs of a step were not measured."]
    if r.best is None:
        return ["No drafter ran, so there is nothing to recommend: add drafters to the suite."]
    best, where = r.best, _domains(r.best)
    speed, on = _speed(best), _prompts(r)
    if r.verdict == "faster":
        return [f"Use {best.name}{_warm(best)}: {speed} over the target alone on {on}{where}."]
    if r.verdict == "predicted":
        why = "No drafter was timed: this follows from its acceptance and the measured costs of a step."
        return [f"By prediction, use {best.name}{_warm(best)}: {speed} over the target alone{where}.", why]
    if r.verdict == "target" and best.speedup is None:
        return [f"Use the target alone: no drafter is predicted to be faster. {best.name} comes closest: {speed}{where}."]
    if r.verdict == "target":
        return [f"Use the target alone: nothing ran faster. {best.name} came closest: {speed} on {on}{where}."]
    chance = f", which the best of {r.tried} can reach by chance" if best.speedup and best.speedup.excludes(1.0) else ""
    return [f"Nothing is shown to be faster than the target alone. {best.name} came closest: {speed} on {on}{where}{chance}."]


def _install(run: Run) -> list[str]:
    """What the command line needs first: a run keeps the adapters and the router that it trains to itself."""
    use = run.recommendation.use
    suite, pair, domain = (shlex.quote(str(name)) for name in (run.manifest.suite.get("name"), run.models, run.recommendation.scope))
    first = {
        "adapter": f"Train the adapter for use first: harness train {suite} --models {pair} --domain {domain}.",
        "router": f"Train the router for use first: harness train-router {suite} --models {pair}.",
    }.get(use.drafter or "")
    return [first] if first and use.adapter not in run.manifest.measured.installed else []


def _speed(choice: Choice) -> str:
    return interval(choice.speedup, 2, "x") if choice.speedup else f"{choice.predicted:.2f}x (predicted)"


def _prompts(r: Recommendation) -> str:
    n = r.best.speedup.n if r.best and r.best.speedup else 0
    return f"{n} {'' if r.scope == ALL else r.scope + ' '}prompt{'s' if n != 1 else ''}"


def _domains(choice: Choice) -> str:
    parts = ", ".join(f"{domain} {speed:.2f}x" for domain, speed in choice.domains.items())
    return f" ({parts})" if parts else ""


def _warm(choice: Choice) -> str:
    return f" at temperature {choice.temperature:g}" if choice.temperature else ""


def _elsewhere(r: Recommendation) -> list[str]:
    found = [f"On {domain}, {other.name} is faster still: {_speed(other)}." for domain, other in r.better_on.items()]
    if r.verdict == "faster":
        slow = [f"{domain} ({speed:.2f}x)" for domain, speed in r.use.domains.items() if speed < 1 and domain not in r.better_on]
        found += [f"Not on {' and '.join(slow)}: there the target alone ran faster."] if slow else []
    return found


def _next(r: Recommendation) -> list[str]:
    if r.next_best is None or r.verdict in ("nothing", "target"):
        return []
    behind = ""
    if r.lead is not None and r.lead.excludes(1.0) and r.lead.value > 1:
        behind = f", which takes {r.lead.value:.2f} times as long"
    elif r.lead is not None:
        behind = ", not shown to be slower"
    return [f"Next best: {r.next_best.name}, {_speed(r.next_best)}{behind}."]


def _gain(what: str, gain: Gain | None) -> list[str]:
    if gain is None:
        return []
    s = "" if what == "Adapters" else "s"
    if gain.ratio.excludes(1.0) and gain.speedup > 0:
        return [f"{what} add{s} {gain.speedup:.2f}x to {gain.over}."]
    if gain.ratio.excludes(1.0):
        return [f"{what} cost{s} {-gain.speedup:.2f}x of {gain.over}."]
    return [f"{what} change{s} {gain.over} by {gain.speedup:+.2f}x, which may be chance."]


def _untimed(r: Recommendation) -> list[str]:
    if r.untimed is None:
        return []
    return [f"Not timed, but predicted to be faster: {r.untimed.name}, {r.untimed.predicted:.2f}x."]


def _open(question: OpenQuestion, r: Recommendation) -> str:
    if question.more is None:
        return f"For an interval run at least {MIN_PROMPTS} prompts."
    pair = f"{question.first} or {question.second}"
    return f"About {question.more} more prompts like these would show which is faster, {pair}, if they differ as much as here."


def _race(run: Run) -> list[str]:
    """What a race left out, and what more time would decide."""
    race = run.manifest.measured.race
    if race is None or not race["ended"]:
        return []
    counted = {row.cell for row in run.shown if row.drafter is not None}
    entered, out, prompts = len(race["clocked"]) - 1, len(race["dropped"]), max(race["clocked"].values())
    found = [f"Of {len(counted)} ways of drafting {entered} were clocked, {out} of them only until they were shown to be slower."]
    if race["ended"] == "time" and entered > out:
        found.append(f"The time was up after {prompts} prompts; more of it clocks more: {resume_command(run.manifest)} --minutes N.")
    return found


def recommendation_json(run: Run) -> str:
    """``recommendation.json``: the facts and the paragraph."""
    r = run.recommendation
    data = {"schema_version": SCHEMA_VERSION, "run": run.manifest.run, "finished": run.manifest.finished, "text": paragraph(run)}
    facts = {field.name: _plain(getattr(r, field.name)) for field in dataclasses.fields(r)}
    return json.dumps({**data, **facts}, indent=1, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON types; of an estimate what a reader needs."""
    if isinstance(value, Estimate):
        return {name: getattr(value, name) for name in ("value", "low", "high", "n")}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _inner(use: Choice) -> str | None:
    return use.adapter if use.drafter == "adapter" else use.drafter


def settings_yaml(run: Run) -> str:
    """``settings.yaml``: the recommendation as ``--settings`` takes it."""
    r = run.recommendation
    use = r.use
    settings = DecodeSettings(
        models=run.models,
        drafter=f"{use.around}+{_inner(use)}" if use.around else _inner(use),
        k=use.k,  # type: ignore[arg-type]
        rule=use.rule,  # type: ignore[arg-type]
        temperature=use.temperature,
        loop=use.loop,  # type: ignore[arg-type]
        options=DraftOptions.model_validate({name: value for name, value in use.options.items() if name in DraftOptions.model_fields}),
    )
    return settings.text(f"{run.manifest.run}: {sentences(run)[0]} Use it: harness generate PROMPT --settings FILE")
