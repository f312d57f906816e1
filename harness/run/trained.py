"""Adapters and routers that a suite asks for: of the package, found in the cache by content, or trained before decoding starts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapt.shelf import find, refuse_seen, seen_prompts
from harness.core.errors import HarnessError
from harness.core.progress import NowAndThen, note
from harness.core.protocols import LoadedPair
from harness.core.records import Generation, Sample, Trajectory
from harness.models.cache_key import cache_folder, cache_key, pair_facts
from harness.run.chain_task import ChainTask, Crew
from harness.run.prepared import Check, Prepared
from harness.suite.cells import Cell, Recipe
from harness.suite.chains import Chain, adapter_names, chain_of, domain_chain, needed_chains

if TYPE_CHECKING:
    from harness.adapt.routers.arms import Replaying
    from harness.adapt.training.rounds import RoundRecord
    from harness.adapt.training_config import TrainingConfig
    from harness.suite.suite import Suite

VALIDATION_PROMPTS = 16
"""Validation prompts per domain, at most: they decide early stopping and whether a round is kept."""


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """The draft after some rounds of a chain, or with an adapter of the package."""

    name: str
    """Unique within the run."""
    folder: Path | None
    """None: no round raised validation acceptance, so the draft is used as it is."""
    hash: str | None
    """SHA-256 of the weights."""
    domain: str
    """Whose failures it was trained on."""
    metric: str
    """What the rounds' ``before`` and ``after`` are: ``alpha``, ``rate`` or ``tau``."""
    rounds: tuple[RoundRecord, ...]
    """What training did; nothing where the adapter comes with the package."""

    def facts(self) -> dict[str, Any]:
        """Plain JSON types for the manifest."""
        rounds = [{**asdict(r), "adapter": None} for r in self.rounds]
        return {"hash": self.hash, "domain": self.domain, "metric": self.metric, "rounds": rounds}


@dataclass(kw_only=True)
class Trained:
    """Everything trained that the cells of one run use, and the adapters that were there before."""

    adapters: Mapping[tuple[Chain, int], TrainedAdapter] = field(default_factory=dict)
    """(chain, rounds done) -> adapter."""
    bank: Any = None
    """:class:`harness.adapt.training.bank.AdapterBank` with every adapter that was kept, and the installed ones."""
    routers: Mapping[tuple[Recipe, int | str], Any] = field(default_factory=dict)
    """(recipe, K) -> fitted router; None where there is no adapter to choose."""
    router_facts: Mapping[str, Any] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)
    """Adapters that were there before, those of the package too, and the SHA-256 of their weights."""
    shipped: Collection[str] = ()
    """Domains whose adapters come with the package."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folder of every adapter in the bank, by name."""
    swaps: Sequence[Any] = ()
    """:class:`harness.adapt.training.bank.SwapRow` per policy."""

    def adapter(self, cell: Cell) -> str | None:
        """Name of the adapter that a cell's drafter runs with; None is the plain draft, also where no round was kept."""
        if cell.drafter != "adapter" or cell.round == 0 or cell.installed:
            return cell.installed
        found = self.adapters[chain_of(cell, self.shipped), cell.round or 1]
        return found.name if found.folder else None

    def drafter(self, name: str | None, pair: Any = None, around: str | None = None) -> Any:
        """Drafter object for an adapter's name, inside another drafter of the pair where one is named; None is the plain draft."""
        from harness.decode.making import around_draft

        draft = self.bank.drafter(name)
        return draft if around is None else around_draft(pair, around, draft)

    def activate(self, name: str | None) -> None:
        """Put an adapter, or the plain draft, in place: outside of what is timed."""
        if self.bank is not None:
            self.bank.activate(name)

    def route(self, pair: LoadedPair, cell: Cell, prompt: str | list[dict[str, str]], **settings: Any) -> Generation:
        """Decode one prompt with the drafter that the cell's router picks; its times count in the wall time.

        Where no adapter was kept there is nothing to choose, and the plain draft runs.
        """
        from harness.adapt.routers.routed import route_and_decode
        from harness.decode.generation import generate

        if self.routers[_router_key(cell)] is None:
            return generate(pair, prompt, drafter=self.drafter(None, pair, cell.around), **settings)
        router = self.routers[_router_key(cell)]
        return route_and_decode(pair, prompt, router=router, bank=self.bank, around=cell.around, **settings)

    def choose(self, cell: Cell, prompt: str | list[dict[str, str]]) -> str:
        """What the cell's router would take for a prompt, by the name that :mod:`harness.adapt.routers.arms` gives it."""
        from harness.adapt.routers.routed import route

        router = self.routers[_router_key(cell)]
        return "generic" if router is None else route(prompt, router=router, bank=self.bank).drafter

    def facts(self) -> dict[str, Any]:
        """Plain JSON types for the manifest."""
        adapters = {a.name: a.facts() for a in self.adapters.values()}
        made = {"adapters": adapters, "routers": dict(self.router_facts), "swaps": [asdict(s) for s in self.swaps]}
        return {**made, "installed": dict(self.installed)}


def _router_key(cell: Cell) -> tuple[Recipe, int | str]:
    assert cell.recipe is not None
    assert cell.k is not None
    return (cell.recipe, cell.k)


def train_for(
    pair: LoadedPair,
    suite: Suite,
    cells: Sequence[Cell],
    samples: Sequence[Sample],
    load_samples: Any,
    check: Check,
    crew: Crew | None = None,
) -> Trained:
    """Train, or find in the package or the cache, what the cells of a suite need.

    Args:
        pair: loaded pair.
        suite: names the datasets whose train and validation splits are used.
        cells: the suite's cells.
        samples: the prompts that will be evaluated: a training prompt close to one of them is refused.
        load_samples: :func:`harness.datasets.load_samples`, knowing whether it may use the network.
        check: called between two steps; raising from it stops the training where it can be resumed.
        crew: who does the work elsewhere; this process where None.

    Raises:
        HarnessError: no draft to adapt, an adapter that is not here or has a name twice, a split without prompts, or a leak.
    """
    from harness.adapt.adapters.adapter_folder import weights_hash
    from harness.adapt.adapters.names import adaptable, shipped
    from harness.adapt.training.bank import AdapterBank, swap_costs

    along = {} if pair.draft is None else shipped(pair.name, pair.draft.hash)
    chains, here = needed_chains(cells, list(suite.domains), along), installed_adapters(cells, pair.name)
    if not chains and not here:
        return Trained()
    draft = adaptable(pair)
    material = Prepared(pair, suite, samples, load_samples, check, crew)
    names = adapter_names(chains)
    taken = {chain.domain: along[chain.domain] for chain in chains if chain.shipped}
    for name, place in here.items():
        if name in names.values() and taken.get(name) != place:
            how = "takes the package's" if name in taken else "trains an"
            raise HarnessError(f"the suite {how} adapter {name!r}, and one of that name is installed", "Run the two entries apart.")
    for name, place in {**taken, **here}.items():
        refuse_seen(name, place, samples)
    adapters = {(chain, 1): _shipped_adapter(chain.domain, along[chain.domain]) for chain in chains if chain.shipped}
    for chain, records in _train_chains(material, {c: rounds for c, rounds in chains.items() if not c.shipped}, names):
        metric = _config(chain, suite.seed).stop.metric
        for done in range(1, chains[chain] + 1):
            own = tuple(records[:done])
            folder = Path(own[-1].adapter) if own and own[-1].adapter else None
            digest = weights_hash(folder) if folder else None
            adapters[chain, done] = TrainedAdapter(
                name=names[chain, done], folder=folder, hash=digest, domain=chain.domain, metric=metric, rounds=own
            )
    folders = {a.name: a.folder for a in adapters.values() if a.folder}
    swaps = () if not folders else swap_costs(draft, folders) if crew is None else crew.swaps(folders)
    trained = Trained(
        adapters=adapters,
        bank=AdapterBank(draft, {**folders, **here}, policy="cached"),
        swaps=swaps,
        installed={name: weights_hash(place) for name, place in {**taken, **here}.items()},
        shipped=frozenset(along),
        folders={**folders, **here},
    )
    _fit_routers(trained, material, cells)
    return trained


def _shipped_adapter(domain: str, folder: Path) -> TrainedAdapter:
    from harness.adapt.adapters.adapter_folder import read_info, weights_hash

    return TrainedAdapter(name=domain, folder=folder, hash=weights_hash(folder), domain=domain, metric=read_info(folder).metric, rounds=())


def installed_adapters(cells: Iterable[Cell], pair: str) -> dict[str, Path]:
    """Name -> folder of the installed adapters that cells run with.

    Raises:
        HarnessError: the pair has none of that name; names the nearest.
    """
    return {name: find(pair, name) for name in dict.fromkeys(cell.installed for cell in cells) if name}


def check_configs(cells: Sequence[Cell], pair: str) -> None:
    """Read the training and router configs that cells name, and look for the adapters, before anything is loaded.

    Raises:
        HarnessError: an unknown key or a wrong value, with file and line, a router that needs costs, which a run has none of when it
            trains, or an adapter that the pair does not have.
    """
    from harness.adapt.routers.routed import load_router_config
    from harness.adapt.training_config import load_training_config

    installed_adapters(cells, pair)
    recipes = {cell.recipe for cell in cells if cell.recipe is not None}
    for name in sorted({recipe.training for recipe in recipes}):
        load_training_config(name)
    for name in sorted({recipe.router for recipe in recipes if recipe.router is not None}):
        if load_router_config(name).reward == "speedup":
            raise HarnessError(
                f"router config {name!r} has reward speedup, which needs costs, and a run has none when it fits its routers",
                "Use reward tau, or train the router with `harness train-router`.",
            )


def routes_to_memory(cell: Cell) -> bool:
    """Whether a cell's router may choose the pair's memory."""
    from harness.adapt.routers.routed import load_router_config

    return cell.drafter == "router" and cell.recipe is not None and load_router_config(cell.recipe.router).memory


def _config(chain: Chain, seed: int) -> TrainingConfig:
    from harness.adapt.training_config import load_training_config

    config = load_training_config(chain.training).seeded(seed)
    return config if chain.rank is None else config.replace(lora={"rank": chain.rank})


def _train_chains(
    material: Prepared, chains: Mapping[Chain, int], names: Mapping[tuple[Chain, int], str]
) -> Iterator[tuple[Chain, list[RoundRecord]]]:
    """Run the rounds of every chain, or read the finished ones."""

    def task(chain: Chain) -> ChainTask:
        return _chain_task(material, chain, _config(chain, material.suite.seed), chains[chain], names[chain, 1])

    if material.crew is not None:
        yield from zip(chains, material.crew.train([task(chain) for chain in chains]), strict=True)
        return
    for chain in chains:
        yield chain, _train_chain(material, chain, task(chain))


def _chain_task(material: Prepared, chain: Chain, config: TrainingConfig, rounds: int, name: str) -> ChainTask:
    train, validation = material.prompts("train", chain.samples), material.prompts("validation", VALIDATION_PROMPTS)
    if not any(s.domain == chain.domain for s in validation):
        raise HarnessError(f"domain {chain.domain!r} has no validation prompts", "Use a dataset with a train and a validation split.")
    return ChainTask(
        name=name,
        config=config,
        rounds=rounds,
        domain=chain.domain,
        folder=_address(material, chain.domain, config, train, validation),
        train=material.answers(train, config.adapt.top_k),
        validation=material.answers(validation, config.adapt.top_k),
        prompts={s.id: s.prompt for s in train},
    )


def _train_chain(material: Prepared, chain: Chain, task: ChainTask) -> list[RoundRecord]:
    """Run the rounds of one chain here."""
    from harness.adapt.training.rounds import Known

    timer, draft, stop = NowAndThen(at_once=True), material.pair.draft, task.config.stop
    assert draft is not None

    def progress(number: int, step: Any) -> None:
        if timer.due(always=step.step % stop.every == 0 or step.step == step.total):
            note(f"training {task.name}: round {number} of {task.rounds}, update {step.step} of {step.total}, best {step.best:.3f}")
        material.check()

    return task.run(draft, task.folder, material.known.setdefault(chain.samples, Known()), progress)


def _address(material: Prepared, domain: str, config: TrainingConfig, train: Sequence[Sample], validation: Sequence[Sample]) -> Path:
    """Folder of a chain's adapters. Prompts count by their token ids: what the tokenizer or the template makes of a text decides."""
    pair = material.pair
    prompts = {
        split: [[s.id, s.domain, pair.encode(s.asked)] for s in samples]
        for split, samples in (("train", train), ("validation", validation))
    }
    settings = {"config": config.model_dump(mode="json"), "domain": domain, "max_tokens": material.suite.max_tokens}
    return cache_folder("trained", pair.name, cache_key(kind="adapters", **settings, **prompts, **pair_facts(pair)))


def _fit_routers(trained: Trained, material: Prepared, cells: Sequence[Cell]) -> None:
    """Fit one router per (config, K) on prompts that no adapter was trained on."""
    wanted = {_router_key(cell): cell for cell in cells if cell.drafter == "router"}
    if not wanted:
        return
    from harness.adapt.memory_sources import HeldOut
    from harness.adapt.routers.arms import Replaying, arm_names
    from harness.adapt.routers.fitting import prompt_groups
    from harness.adapt.routers.routed import fit_router, load_router_config, outcome_table
    from harness.adapt.training.bank import kept_rows
    from harness.models.pair_config import pair_k

    routers: dict[tuple[Recipe, int | str], Any] = {}
    facts: dict[str, Any] = {}
    for (recipe, k), cell in wanted.items():
        config = load_router_config(recipe.router).seeded(material.suite.seed)
        fixed = k if isinstance(k, int) else pair_k(material.pair)
        arms = [trained.adapters[domain_chain(cell, domain, trained.shipped), 1] for domain in material.suite.domains]
        prompts = _router_prompts(material, recipe, arms)
        if not prompts:
            raise HarnessError(
                "no training prompts are left for the router", "Lower train_samples, or use datasets with larger train splits."
            )
        hashes = {a.name: a.hash for a in arms if a.hash}
        held_out = HeldOut.of(material.pair, prompts) if config.memory else None
        names = arm_names(list(hashes), memory=held_out is not None)
        facts[f"{recipe.router} K={k}"] = {"prompts": len(prompts), "arms": names}
        routers[recipe, k] = None
        if len(names) == 1:
            continue
        answers = material.answers(prompts)
        note(f"fitting the router on {len(prompts)} prompts, arms: {', '.join(names)}")
        folders, crew, how = {a.name: a.folder for a in arms if a.folder}, material.crew, Replaying(k=fixed, memory=held_out)
        here = partial(how, material.pair, trained.bank, answers, folders)
        replay = here if crew is None else partial(crew.replay, folders, answers, how)
        table = outcome_table(kept_rows(_outcomes(material.pair, answers, hashes, how), replay), prompts)
        routers[recipe, k] = fit_router(table, config, k=fixed, adapter_hashes=hashes, groups=prompt_groups(table, prompts))
    trained.routers, trained.router_facts = routers, facts


def _router_prompts(material: Prepared, recipe: Recipe, arms: Sequence[TrainedAdapter]) -> list[Sample]:
    """Prompts that no arm was trained on: adapters of the package may know the train split, so validation prompts stand in for it."""
    prompts = material.prompts("train", recipe.router_samples, skip=recipe.samples)
    shipped = [arm.folder for arm in arms if arm.folder is not None and not arm.rounds]
    seen = {sample for folder in shipped for sample in seen_prompts(folder, prompts)}
    further = material.prompts("validation", recipe.router_samples) if seen else []
    return [s for s in prompts if s.id not in seen] + further


def _outcomes(pair: LoadedPair, answers: Sequence[Trajectory], adapters: Mapping[str, str], how: Replaying) -> Path:
    """File of what the arms of a router over adapters (name -> hash) would do along answers."""
    texts = [[t.sample_id, t.domain, t.prompt_tokens, t.tokens] for t in answers]
    memory = how.memory and [how.memory.hash, sorted(how.memory.left_out)]
    key = cache_key(kind="outcomes", adapters=adapters, k=how.k, memory=memory, answers=texts, **pair_facts(pair))
    return cache_folder("trained", pair.name, key) / "outcomes.json"
