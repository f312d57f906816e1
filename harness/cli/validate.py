"""``harness validate``: check a suite and show its plan, in a fraction of a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from harness.core.terminal import say
from harness.core.tracking import TrackerName

if TYPE_CHECKING:
    from harness.suite.suite import Suite

# Options that `validate` and `run` share.
ModelsOption = Annotated[
    str | None, typer.Option("--models", metavar="PAIR", help="Model pair instead of the suite's, also TARGET or TARGET+DRAFT.")
]
TrackOption = Annotated[
    TrackerName | None, typer.Option("--track", help="Tell an experiment tracker too; its package comes with the extra of that name.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", metavar="N", help="Prompts per domain, at least 1.")]
DomainsOption = Annotated[str | None, typer.Option("--domains", metavar="A,B", help="Only these domains of the suite.")]
ExperimentsOption = Annotated[
    str | None, typer.Option("--experiments", metavar="A,B", help="Only these entries of the suite, by name or kind, and its baseline.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one key of the suite; repeatable.")]


def validate(
    suite: Annotated[str | None, typer.Argument(metavar="SUITE", help="A YAML file, or a name in suites/.")] = None,
    models: ModelsOption = None,
    limit: LimitOption = None,
    domains: DomainsOption = None,
    experiments: ExperimentsOption = None,
    set_: SetOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of suite files and exit.")] = False,
) -> None:
    """Check a suite file without loading any model.

    Every problem is reported at once with its file, line and key.

    Example: `harness validate suites/quick.yaml --set max_tokens=32`
    """
    from harness.core.errors import HarnessError
    from harness.suite.suite import json_schema

    if schema:
        say(json_schema(), end="")
    elif suite is None:
        raise HarnessError("no suite given", "Run for example `harness validate suites/quick.yaml`.")
    else:
        loaded = load(suite, models=models, limit=limit, domains=domains, experiments=experiments, overrides=set_)
        say("\n".join(["ok", *describe(loaded)]))


def load(
    suite: str,
    *,
    models: str | None,
    limit: int | None,
    domains: str | None,
    experiments: str | None = None,
    overrides: list[str] | None,
    fallback: bool = False,
) -> Suite:
    """Load a suite with the options that `validate` and `run` share."""
    from harness.models.naming import pair_name
    from harness.run.trained import check_configs
    from harness.suite.suite import load_suite

    kept = {"domains": _names(domains), "experiments": _names(experiments)}
    loaded = load_suite(suite, overrides or (), models=models, limit=limit, fallback=fallback, **kept)
    check_configs(loaded.cells(), pair_name(loaded.models))
    return loaded


def _names(text: str | None) -> list[str] | None:
    """Names between commas; None where the option is not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


MANY = 10**9
"""More prompts than any dataset has."""


def describe(suite: Suite, counts: Mapping[str, int | None] | None = None) -> list[str]:
    """Return the lines of a short plan: prompts per domain (``counts`` where counted), cells per experiment, answers to decode."""
    cells, sizes = suite.cells(), {name: (counts or {}).get(name) or spec.limit for name, spec in suite.domains.items()}
    lines = [f"{suite.name}: models {suite.models}, at most {suite.max_tokens} tokens, seed {suite.seed}, hash {suite.hash()[:12]}"]
    for name, spec in suite.domains.items():
        lines.append(f"  domain {name}: {sizes[name] or 'all'} prompts of {spec.path or spec.dataset}, split {spec.split}")
    for label, count in Counter(c.experiment for c in cells).items():
        timed = sum(c.timed for c in cells if c.experiment == label)
        lines.append(f"  {label}: {count} cells, {timed} timed")
    if all(sizes.values()):
        answers = sum(min(sizes[c.domain] or 0, suite.clocked or MANY) for c in cells if c.timed) * suite.repeats
        lines.append(f"{len(cells)} cells, {sum(n or 0 for n in sizes.values())} prompts, {answers} timed answers")
    else:
        lines.append(f"{len(cells)} cells")
    return lines
