"""Experiment entries of a suite: the typed kinds, their defaults, and the cells they expand to. Imports only pydantic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, model_validator

from harness.core.drafter_kinds import DRAFTERS, drafter_kind, drafter_kinds, find_kind
from harness.core.errors import did_you_mean
from harness.core.limits import LENIENCE, LOOKUP_NGRAM, DraftLength, Temperature, WarmTemperature
from harness.core.records import Loop, Rule
from harness.core.settings_file import DraftOptions
from harness.core.yamlfile import Strict
from harness.suite.cells import Cell, Recipe

DynamicLength = Literal["dynamic", "auto"]
LENGTHS = (4,)
"""Draft lengths where an entry names none."""

T = TypeVar("T")


def _known_drafter(name: str) -> str:
    if find_kind(name) is None:
        raise ValueError(f"{name!r} is not allowed, {did_you_mean(name, list(drafter_kinds()))}")
    return name


DrafterName = Annotated[str, AfterValidator(_known_drafter), Field(examples=list(DRAFTERS))]
"""A drafter of the package or of an installed one."""


def _distinct(items: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a value that stands twice: its cells would be the same."""
    twice = next((item for i, item in enumerate(items) if item in items[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands here twice, keep one")
    return items


NonEmpty = Annotated[tuple[T, ...], Field(min_length=1, max_length=256, strict=False), AfterValidator(_distinct)]
"""A YAML list with at least one item, each of them once."""

Rank = Annotated[int, Field(ge=1, le=1024)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


Settings = dict[str, Any]
"""Fields of :class:`Cell` that an entry chooses."""


class Experiment(Strict):
    """What every entry may say."""

    kind: str
    """Which experiment this is."""
    name: Label | None = None
    """Label in records and reports; the kind when absent. Needed when a kind occurs twice."""
    domains: NonEmpty[str] | None = None
    """Domains to run on; all when absent."""
    temperatures: NonEmpty[Temperature] = (0.0,)
    """Sampling temperatures; 0 is greedy."""

    @property
    def label(self) -> str:
        """Name of the entry in records and reports."""
        return self.name or self.kind

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        """Yield the settings to run on ``domain``; ``domains`` are all domains of this entry."""
        raise NotImplementedError

    def cells(self, all_domains: Sequence[str]) -> Iterator[Cell]:
        """Expand into cells over the entry's domains, or ``all_domains``."""
        domains = self.domains or tuple(all_domains)
        for domain, temperature in product(domains, self.temperatures):
            for setting in self.settings(domain, domains):
                yield Cell(experiment=self.label, kind=self.kind, domain=domain, temperature=temperature, **setting)


class Speculative(Experiment):
    """What every entry that drafts may say."""

    k: NonEmpty[DraftLength | DynamicLength] = LENGTHS
    """Draft lengths; ``dynamic`` stops at low draft confidence, ``auto`` weighs measured costs."""
    rule: Rule = "match"
    """``match`` accepts a draft token equal to the target's own; ``rejection`` accepts with probability min(1, p/q)."""
    timed: bool = True
    """True decodes with a clock; false takes the counts from replay where replay is exact."""


class DraftSource(Strict):
    """Settings of the drafters that need no trained weights."""

    drafters: NonEmpty[DrafterName]
    """Names of drafters; `harness generate --help` says what each does."""
    layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Target layers of the early-exit draft; a quarter of them when absent."""
    ngram: Annotated[int, Field(ge=1, le=16)] = LOOKUP_NGRAM
    """Longest suffix that prompt lookup searches."""
    options: DraftOptions | None = None
    """Options of the drafters that have any, as in a settings file: suffix lengths and threshold of a memory, suffixes of a hybrid."""

    @model_validator(mode="after")
    def _somebodys(self) -> DraftSource:
        known = {name for drafter in self.drafters for name in drafter_kind(drafter).options}
        if stray := sorted(set(self._given()) - known):
            raise ValueError(f"options.{stray[0]} is an option of none of these drafters")
        return self

    def _given(self) -> dict[str, Any]:
        return {} if self.options is None else self.options.given()

    def source(self, drafter: str) -> Settings:
        """Cell fields that matter for ``drafter``."""
        own = drafter_kind(drafter).options
        options = {name: value for name, value in self._given().items() if name in own}
        settings = {name: options.pop(name, getattr(self, name)) if name in own else None for name in ("layers", "ngram")}
        return {"drafter": drafter, **settings, "options": tuple(options.items())}


def _takes_a_draft(name: str) -> str:
    if not drafter_kind(name).takes_draft:
        raise ValueError(f"{name!r} runs no draft that an adapter could change")
    return name


class Around(Strict):
    """What adapters run in."""

    around: NonEmpty[Annotated[DrafterName, AfterValidator(_takes_a_draft)]] = ("generic",)
    """Drafters whose draft is adapted: ``generic`` is the draft alone, ``hybrid`` has lookup before it, and so on."""

    @property
    def outers(self) -> list[str | None]:
        """As :attr:`Cell.around` has them."""
        return [None if name == "generic" else name for name in self.around]


class TrainsAdapters(Strict):
    """Settings of the entries that train adapters."""

    training: str = "default"
    """Training config: a name in ``configs/training`` or a path."""
    train_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Training prompts per domain, from the train split."""

    @property
    def recipe(self) -> Recipe:
        """How the adapters are made."""
        return Recipe(training=self.training, samples=self.train_samples)


class TakesShipped(TrainsAdapters):
    """Settings of the entries that train adapters where none come with the package."""

    shipped: bool = True
    """A domain takes the adapter of its name that comes with the package for the pair's draft, and trains one only where there is none."""

    @property
    def recipe(self) -> Recipe:
        """How the adapters are made."""
        return dataclasses.replace(super().recipe, shipped=self.shipped)


class Baseline(Experiment):
    """Target-only decoding: the reference of every speedup."""

    kind: Literal["baseline"]

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        yield {"drafter": None, "k": None}


class Drafters(Speculative, DraftSource):
    """Several drafters side by side, interleaved prompt by prompt."""

    kind: Literal["drafters"]

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for drafter, k in product(self.drafters, self.k):
            yield {**self.source(drafter), "k": k, "rule": self.rule, "timed": self.timed}


class GenericDraft(Speculative):
    """The pair's own draft model."""

    kind: Literal["generic_draft"]
    loop: Loop = "own"
    """``mlx-lm`` runs mlx-lm's own loop, which reports no per-round details and knows only the rule ``match``."""

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("mode") not in ("detailed", "fast") or "loop" in data:
            return data
        loop = "own" if data["mode"] == "detailed" else "mlx-lm"
        return {**{name: value for name, value in data.items() if name != "mode"}, "loop": loop}

    @model_validator(mode="after")
    def _their_rule(self) -> GenericDraft:
        if self.loop == "mlx-lm" and (self.rule != "match" or not self.timed or not all(isinstance(k, int) for k in self.k)):
            raise ValueError("loop mlx-lm needs rule: match, timed: true and numbers for k")
        return self

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for k in self.k:
            yield {"drafter": "generic", "k": k, "rule": self.rule, "loop": self.loop, "timed": self.timed}


class PromptLookup(Speculative):
    """Drafts copied from earlier text: no draft model."""

    kind: Literal["prompt_lookup"]
    ngram: Annotated[int, Field(ge=1, le=16)] = LOOKUP_NGRAM
    """Longest suffix searched."""

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for k in self.k:
            yield {"drafter": "lookup", "k": k, "rule": self.rule, "timed": self.timed, "ngram": self.ngram}


class DomainAdapters(Speculative, TakesShipped, Around):
    """One LoRA adapter of the draft per domain: of the package, or trained on the target's answers to the train split."""

    kind: Literal["domain_adapters"]
    rank: Rank | None = None
    """Adapter rank, of adapters that are trained in any case; the training config's when absent."""
    cross: bool = True
    """Also measure every adapter on the other domains (replay only)."""

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for trained_on, around, k in product(domains if self.cross else [domain], self.outers, self.k):
            timed = self.timed and trained_on == domain
            own = {"drafter": "adapter", "adapter_domain": trained_on, "rank": self.rank, "recipe": self.recipe, "around": around}
            yield {**own, "k": k, "rule": self.rule, "timed": timed}


class InstalledAdapters(Speculative, Around):
    """Adapters of the pair, as `harness adapters list` shows them: nothing is trained."""

    kind: Literal["adapters"]
    adapters: NonEmpty[Label]
    """Their names."""

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for name, around, k in product(self.adapters, self.outers, self.k):
            yield {"drafter": "adapter", "installed": name, "around": around, "k": k, "rule": self.rule, "timed": self.timed}


class Router(Speculative, TakesShipped, Around):
    """A router that picks the adapter for each prompt."""

    kind: Literal["router"]
    router: str = "default"
    """Router config: a name in ``configs/router`` or a path."""
    router_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Prompts per domain, from the train split beyond the adapters' own, that the router learns from."""

    @property
    def recipe(self) -> Recipe:
        """How the adapters and the router are made."""
        return dataclasses.replace(super().recipe, router=self.router, router_samples=self.router_samples)

    @model_validator(mode="after")
    def _decoded(self) -> Router:
        if not self.timed:
            raise ValueError("a router is always decoded with a clock: leave timed out")
        return self

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for around, k in product(self.outers, self.k):
            yield {"drafter": "router", "recipe": self.recipe, "k": k, "rule": self.rule, "around": around}


class AblationK(Drafters):
    """Acceptance and speed over the draft length."""

    kind: Literal["ablation_k"]  # type: ignore[assignment]
    drafters: NonEmpty[DrafterName] = ("generic",)
    k: NonEmpty[DraftLength] = (1, 2, 3, 4, 6, 8)
    timed: bool = False


class AblationRank(Speculative, TrainsAdapters):
    """Acceptance over the adapter rank."""

    kind: Literal["ablation_rank"]
    ranks: NonEmpty[Rank] = (2, 4, 8, 16)
    """Adapter ranks to train."""
    timed: bool = False

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for rank, k in product(self.ranks, self.k):
            own = {"drafter": "adapter", "adapter_domain": domain, "rank": rank, "recipe": self.recipe}
            yield {**own, "k": k, "rule": self.rule, "timed": self.timed}


class AdaptiveRounds(Speculative, TrainsAdapters):
    """Rounds of decode, collect the failures, train on them, decode again."""

    kind: Literal["adaptive_rounds"]
    rounds: Annotated[int, Field(ge=1, le=100)] = 3
    """Training rounds; acceptance is measured before the first and after each."""
    timed: bool = False

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for done, k in product(range(self.rounds + 1), self.k):
            own = {"drafter": "adapter", "adapter_domain": domain, "round": done, "recipe": self.recipe}
            yield {**own, "k": k, "rule": self.rule, "timed": self.timed}


class DynamicK(Experiment, DraftSource):
    """Draft lengths chosen while decoding."""

    kind: Literal["dynamic_k"]
    drafters: NonEmpty[DrafterName] = ("generic",)
    """Drafters to run."""
    policies: NonEmpty[DynamicLength] = ("dynamic", "auto")
    """``dynamic`` stops at low draft confidence, ``auto`` weighs measured costs."""
    rule: Rule = "match"
    """Acceptance rule."""

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for drafter, policy in product(self.drafters, self.policies):
            yield {**self.source(drafter), "k": policy, "rule": self.rule}


class Lenience(Experiment):
    """Lossy acceptance with probability min(1, lenience p/q); labelled lossy everywhere."""

    kind: Literal["lenience"]
    values: NonEmpty[Annotated[float, Field(gt=LENIENCE.low, le=LENIENCE.high)]] = (1.5, 2.0)
    """Lenience factors."""
    k: NonEmpty[DraftLength] = LENGTHS
    """Draft lengths."""
    temperatures: NonEmpty[WarmTemperature] = (1.0,)
    """Sampling temperatures; at 0 lenience changes nothing."""

    def settings(self, domain: str, domains: Sequence[str]) -> Iterator[Settings]:
        for value, k in product(self.values, self.k):
            yield {"drafter": "generic", "k": k, "rule": "rejection", "lenience": value}


AnyExperiment = Annotated[
    Baseline
    | Drafters
    | GenericDraft
    | PromptLookup
    | DomainAdapters
    | InstalledAdapters
    | Router
    | AblationK
    | AblationRank
    | AdaptiveRounds
    | DynamicK
    | Lenience,
    Field(discriminator="kind"),
]
"""A suite entry; its ``kind`` decides which keys it may have."""

EXPERIMENTS: tuple[type[Experiment], ...] = get_args(get_args(AnyExperiment)[0])
"""Every kind of entry."""
