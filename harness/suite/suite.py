"""Suite files: what one evaluation run decodes. YAML -> validated, resolved :class:`Suite`. No mlx import."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, ValidationError, model_validator

from harness.core.drafter_kinds import check_needs, needs_memory, needs_parallel
from harness.core.errors import HarnessError, did_you_mean
from harness.core.files import reason, sha256
from harness.core.limits import MAX_TOKENS, DraftContext
from harness.core.paths import expand, find_config
from harness.core.problems import Problem, fail
from harness.core.settings_file import DraftOptions
from harness.core.terminal import say
from harness.core.yamlfile import Seed, Strict, YamlFile, apply_overrides, read_yaml, set_value, validate
from harness.datasets import check_dataset
from harness.datasets.spec import DatasetSpec
from harness.datasets.splits import SPLITS
from harness.suite.cells import Cell
from harness.suite.experiments import EXPERIMENTS, AnyExperiment, Label

if TYPE_CHECKING:
    from harness.models.naming import NamedPair

MAX_CELLS = 5000
"""Most cells that one entry may ask for."""


LATER = ("prompts", "clocked", "clock_tokens", "repeats", "race", "draft_context")
"""Keys that suites have not always had: at their default they leave the hash as it was, and with it the references of the gate."""
LATER_PROMPT_KEYS = ("name", "config", "part", "prompt", "reference", "turns")
"""The same for keys of a domain."""
LATER_ENTRY_KEYS = {"options": None, "shipped": True}
"""The same for keys of an entry, and their defaults."""


class Suite(Strict):
    """One evaluation: prompts of several domains, and the experiments to run on them."""

    name: Label
    """Name of the suite; run folders start with it."""
    description: str = ""
    """One sentence for readers of the report."""
    models: str = "smollm2"
    """Model pair: a name in ``configs/models``, a YAML file, ``TARGET`` or ``TARGET+DRAFT`` (hub names, folders, ``.gguf`` files)."""
    seed: Seed = 0
    """Seed of sampling, training and generated datasets."""
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = MAX_TOKENS
    """Longest answer per prompt."""
    draft_context: DraftContext | None = None
    """Of a longer prompt a draft reads only so many of its last tokens. Answers stay the target's. None is what the pair says."""
    prompts: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Prompts of every domain that has no ``limit`` of its own; None is all."""
    clocked: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Prompts per domain that are decoded with a clock. Counts of all prompts then come from replay along the target's answers, which it
    gives in batches. None decodes every prompt."""
    clock_tokens: Annotated[int, Field(ge=2, le=32_768)] | None = None
    """Longest answer with a clock, where ``clocked`` is set: a clock needs rounds, not ends. None is ``max_tokens``."""
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    """How often a prompt is decoded in a cell, to see the spread of the clock."""
    race: bool = False
    """Clock only what can still win, where ``clocked`` is set: first what its counts and measured costs promise, and from prompt to prompt
    no longer what is shown to be slower than the best."""
    domains: Annotated[dict[Label, DatasetSpec], Field(min_length=1)]
    """Domain name to the dataset its prompts come from."""
    experiments: Annotated[list[AnyExperiment], Field(min_length=1)]
    """What to run; entries are independent and share trajectories."""

    @model_validator(mode="after")
    def _can_race(self) -> Suite:
        if self.race and (self.clocked is None or self.repeats > 1):
            raise ValueError("race needs clocked, and repeats of 1")
        if self.race and not all(not cell.temperature and (cell.replayable or not cell.drafter) for cell in self.cells()):
            raise ValueError("race compares greedy cells of this project's loop: leave out temperatures, lenience and loop mlx-lm")
        return self

    def cells(self) -> list[Cell]:
        """Return every cell of every experiment, in suite order."""
        return [cell for entry in self.experiments for cell in entry.cells(list(self.domains))]

    def resolved(self) -> dict[str, Any]:
        """Return the suite as plain JSON types with every default filled in; dataset files carry their SHA-256."""
        data = self.model_dump(mode="json")
        for domain in data["domains"].values():
            if domain["path"]:
                domain["sha256"] = sha256(Path(domain["path"]))
        return data

    def hash(self) -> str:
        """SHA-256 (hex) of everything that decides what is decoded: descriptions and file locations do not count."""
        return resolved_hash(self.resolved())

    def only(self, domains: Sequence[str]) -> Suite:
        """Return the suite restricted to ``domains``; entries left without a domain are dropped.

        Raises:
            HarnessError: a name is no domain of the suite, or no experiment is left.
        """
        for name in domains:
            if name not in self.domains:
                raise HarnessError(
                    f"--domains: the suite has no domain {name!r}, {did_you_mean(name, list(self.domains))}", "Fix the name."
                )
        kept = []
        for entry in self.experiments:
            own = None if entry.domains is None else tuple(d for d in entry.domains if d in domains)
            if own is None or own:
                kept.append(entry.model_copy(update={"domains": own}))
        if not domains or not kept:
            raise HarnessError("--domains leaves nothing to run", f"Name some of: {', '.join(self.domains)}.")
        return self.model_copy(update={"domains": {d: s for d, s in self.domains.items() if d in domains}, "experiments": kept})

    def running(self, experiments: Sequence[str]) -> Suite:
        """Return the suite with these entries alone, and its baselines, which every speedup needs.

        Args:
            experiments: labels, or kinds.

        Raises:
            HarnessError: a name is no entry of the suite.
        """
        labels = {entry.label: entry.kind for entry in self.experiments}
        for name in experiments:
            if name not in (*labels, *labels.values()):
                raise HarnessError(f"--experiments: the suite has no entry {name!r}, {did_you_mean(name, list(labels))}", "Fix the name.")
        if not experiments:
            raise HarnessError("--experiments leaves nothing to run", f"Name some of: {', '.join(labels)}.")
        kept = [e for e in self.experiments if e.label in experiments or e.kind in (*experiments, "baseline")]
        return self.model_copy(update={"experiments": kept})


def resolved_hash(resolved: Mapping[str, Any]) -> str:
    """:meth:`Suite.hash` of what :meth:`Suite.resolved` returned, as a run's manifest keeps it."""
    absent = {name: Suite.model_fields[name].default for name in LATER}
    data = {name: value for name, value in resolved.items() if name != "description" and not (name in absent and value == absent[name])}
    data["domains"] = {
        name: {key: value for key, value in spec.items() if key != "path" and not (key in LATER_PROMPT_KEYS and value is None)}
        for name, spec in data["domains"].items()
    }
    entries = data.get("experiments", [])
    data["experiments"] = [{k: v for k, v in entry.items() if LATER_ENTRY_KEYS.get(k, ...) != v} for entry in entries]
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recorded_suite(resolved: Mapping[str, Any]) -> Suite:
    """The suite behind what :meth:`Suite.resolved` returned; its dataset files need not exist any more.

    Raises:
        HarnessError: it does not fit the schema of today's suites.
    """
    try:
        domains = {name: {key: value for key, value in spec.items() if key != "sha256"} for name, spec in resolved["domains"].items()}
        return Suite.model_validate({**resolved, "domains": domains})
    except (ValidationError, AttributeError, KeyError) as error:
        raise HarnessError(
            f"the manifest's suite is none of this version: {reason(error)}", "Read the run with the version that made it."
        ) from None


def load_suite(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    models: str | None = None,
    limit: int | None = None,
    domains: Sequence[str] | None = None,
    experiments: Sequence[str] | None = None,
    fallback: bool = False,
) -> Suite:
    """Read, override and check a suite; nothing heavy is imported and no model or dataset is loaded.

    Args:
        name_or_path: a YAML file, or the name of one in ``suites/``.
        overrides: ``a.b=value`` texts, applied in order; they win over the file.
        models: replaces the model pair.
        limit: replaces the prompt limit of every domain.
        domains: keeps only these domains.
        experiments: keeps only these entries, and baselines.
        fallback: cells that need a draft are left out later where the pair has none, so nothing is wrong with them.

    Raises:
        HarnessError: every problem of the file at once (file, line, key, nearest valid key), a pair or dataset that cannot be read.
    """
    file = read_yaml(find_config(str(name_or_path), "suites"))
    apply_overrides(file, overrides)
    if models is not None:
        set_value(file, ("models",), models, f"--models {models}")
    if limit is not None:
        _set_limit(file, limit)
    _locate_paths(file)
    suite = _with_prompts(validate(Suite, file))
    _note_old_keys(file)
    kept = suite if domains is None else suite.only(domains)
    kept = kept if experiments is None else kept.running(experiments)
    fail(file.path, [*_cross_check(suite, file), *_check_references(suite, file, list(kept.domains), fallback)])
    return kept


def _note_old_keys(file: YamlFile) -> None:
    for entry in file.data["experiments"]:
        if "mode" in entry:
            say(f"note: {file.path}: `mode: {entry['mode']}` is now written `loop: own` or `loop: mlx-lm`", err=True)


def _with_prompts(suite: Suite) -> Suite:
    """``prompts`` as the limit of every domain that has none."""
    if suite.prompts is None:
        return suite
    domains = {name: spec if spec.limit else spec.model_copy(update={"limit": suite.prompts}) for name, spec in suite.domains.items()}
    return suite.model_copy(update={"domains": domains})


def _set_limit(file: YamlFile, limit: int) -> None:
    if limit < 1:
        raise HarnessError(f"--limit {limit}: a run needs at least one prompt per domain", "Give --limit 1 or more.")
    for name, spec in _mappings(file):
        if isinstance(spec, dict):
            set_value(file, ("domains", name, "limit"), limit, f"--limit {limit}")


def _locate_paths(file: YamlFile) -> None:
    """Make dataset paths absolute: relative to the suite's folder where such a file or folder exists, else to the working directory."""
    for _, spec in _mappings(file):
        if isinstance(spec, dict) and isinstance(spec.get("path"), str):
            written = expand(spec["path"])
            beside = file.path.parent / written
            spec["path"] = str((beside if os.path.exists(beside) else written).absolute())
        if (
            isinstance(spec, dict)
            and isinstance(spec.get("name"), str)
            and os.path.isdir(beside := file.path.parent / expand(spec["name"]))
        ):
            spec["name"] = str(beside.absolute())


def _mappings(file: YamlFile) -> Iterable[tuple[str, Any]]:
    domains = file.data.get("domains")
    return list(domains.items()) if isinstance(domains, dict) else []


def _cross_check(suite: Suite, file: YamlFile) -> Iterable[Problem]:
    """Yield what no single key shows: prompts in two domains, repeated labels, unknown domains."""
    parts: set[tuple[str | None, ...]] = set()
    for name, spec in suite.domains.items():
        source = (spec.dataset, spec.path, spec.name, spec.config, spec.part, spec.prompt)
        own = {(*source, split) for split in (SPLITS if spec.split == "all" else (spec.split,))}
        if own & parts:
            where = spec.path or spec.name or spec.dataset
            yield file.problem(("domains", name), f"another domain already uses these prompts of {where}")
        parts |= own
    seen: set[str] = set()
    for i, entry in enumerate(suite.experiments):
        if entry.label in seen:
            yield file.problem(("experiments", i), f"another entry is already called {entry.label!r}; give this one its own name")
        seen.add(entry.label)
        if next(islice(entry.cells(list(suite.domains)), MAX_CELLS, None), None) is not None:
            yield file.problem(("experiments", i), f"this asks for more than {MAX_CELLS} cells; shorten its lists")
        for j, domain in enumerate(entry.domains or ()):
            if domain not in suite.domains:
                yield file.problem(("experiments", i, "domains", j), f"no domain {domain!r}, {did_you_mean(domain, list(suite.domains))}")


def _check_references(suite: Suite, file: YamlFile, domains: Sequence[str], fallback: bool) -> Iterable[Problem]:
    """Yield what the suite names but cannot be read: model pair, datasets of ``domains``, training and router configs."""
    from harness.models.head_config import check_head
    from harness.models.naming import find_pair

    pairs: list[NamedPair] = []
    yield from _try(file, ("models",), lambda: pairs.append(find_pair(suite.models)))
    for name in domains:
        yield from _try(file, ("domains", name), lambda name=name: check_dataset(suite.domains[name], name))
    drafters = {cell.outer for entry in suite.experiments for cell in entry.cells(list(suite.domains)) if cell.outer}
    for name in drafters if pairs else ():
        if needs_parallel(name) or all(map(needs_memory, drafters)):  # else a run leaves cells without a memory out
            yield from _try(file, ("experiments",), lambda name=name: check_needs(pairs[0].name, name))
        yield from _try(file, ("experiments",), lambda name=name: check_head(pairs[0], name))
    for i, entry in enumerate(suite.experiments):
        cells = [cell for cell in entry.cells(list(suite.domains)) if cell.domain in domains]
        if pairs and pairs[0].config.draft is None and not fallback and any(cell.needs_draft for cell in cells):
            yield file.problem(
                ("experiments", i),
                f"{entry.label} needs a draft model, and the pair {suite.models} has none; name one as TARGET+DRAFT, "
                "or leave such cells out with --fallback",
            )
        for key in ("training", "router"):
            value = getattr(entry, key, None)
            if value is not None:
                yield from _try(file, ("experiments", i, key), lambda value=value, key=key: find_config(value, key))


def _try(file: YamlFile, path: tuple[str | int, ...], check: Any) -> Iterable[Problem]:
    try:
        check()
    except HarnessError as error:
        yield file.problem(path, error.problem)


def json_schema() -> str:
    """JSON schema of suite files for editors, as checked in at ``suites/schema.json``."""
    schema = Suite.model_json_schema()
    models: tuple[type[Strict], ...] = (Suite, DatasetSpec, DraftOptions, *EXPERIMENTS)
    for name, definition in {"Suite": schema, **schema["$defs"]}.items():
        for model in (m for m in models if m.__name__ == name):
            _describe(definition, model)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2, sort_keys=True) + "\n"


def _describe(definition: dict[str, Any], model: type[Strict]) -> None:
    """Put the docstrings under the fields of ``model`` and its bases into its schema ``definition``."""
    for base in reversed([b for b in model.__mro__ if issubclass(b, Strict)]):
        body = cast(ast.ClassDef, ast.parse(inspect.getsource(base)).body[0]).body
        for field, doc in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                definition["properties"][cast(ast.Name, field.target).id]["description"] = doc.value.value
