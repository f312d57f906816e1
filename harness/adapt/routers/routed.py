"""The bridge to ``routing``: typed config, outcome tables from replay, training, router files in the cache, and routed decoding.

Imports nothing heavy at the top: suites check router configs with it. Errors of ``routing`` leave here as :class:`HarnessError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.adapt.routers.arms import GENERIC, PLAIN, arm_drafter, arm_names, arm_parts, costs_of
from harness.core import files
from harness.core.errors import HarnessError
from harness.core.limits import joined_seed
from harness.core.paths import cache_dir, found_memory
from harness.core.protocols import LoadedPair
from harness.core.records import Generation, Record, Sample
from harness.core.round_sources import MODEL, accepted_by
from harness.core.yamlfile import Seed, Strict, load_config
from routing.routing_error import RoutingError

if TYPE_CHECKING:
    import numpy as np

    from harness.adapt.training.bank import AdapterBank
    from harness.decode.length import Costs
    from harness.decode.replay import ReplayRow
    from routing.outcomes import Arm, OutcomeTable
    from routing.policy import Decision, PromptRouter


class RouterConfig(Strict):
    """A file in ``configs/router``."""

    name: str = "default"
    """For readers; the file's name when absent."""
    encoder: str = "minilm"
    """What reads the prompt: ``minilm``, ``mpnet``, ``tfidf`` (no torch), ``none`` (length and cues only), or a local folder."""
    max_prompt_tokens: int = Field(64, ge=8, le=8192)
    """Prompt tokens the encoder reads; they bound the routing time."""
    components: int | None = Field(None, ge=1, le=4096)
    """Project the text features on this many principal components; None keeps them whole."""
    router: Literal["auto", "logistic", "mlp", "boosting", "knn"] = "auto"
    """Estimator; ``auto`` lets grouped cross-validation choose."""
    reward: Literal["tau", "speedup"] = "tau"
    """What a choice is worth: tokens per target pass, or the speedup that the rounds promise at measured costs."""
    memory: bool = True
    """Choose among the pair's memory too, where it has one: alone, and before the plain draft and each adapter."""
    fallback: Literal["generic", "plain", "memory", "memory_hybrid"] | None = "generic"
    """Taken when the router is unsure or the prompt unfamiliar; ``plain`` decodes without a draft, and a memory that the pair does not have
    leaves it to the plain draft; None never abstains."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Least probability of beating the fallback; ``auto`` takes the threshold that pays on held-out training prompts."""
    familiar: float | None = Field(0.99, gt=0, le=1)
    """A prompt further from every training prompt than this share of the training prompts is from the others takes the fallback."""
    folds: int = Field(5, ge=2, le=50)
    """Folds of calibration, selection and evaluation."""
    seed: Seed = 0
    """Seed of folds and estimators."""

    @model_validator(mode="after")
    def _plain_needs_a_clock(self) -> RouterConfig:
        if self.fallback == PLAIN and self.reward != "speedup":
            raise ValueError("fallback plain needs reward speedup: by tau alone plain decoding never wins")
        return self

    def seeded(self, seed: int) -> RouterConfig:
        """Return the same settings for a suite with this seed: its own seed counts too."""
        return self.model_copy(update={"seed": joined_seed(self.seed, seed)})


def load_router_config(name_or_path: str = "default", overrides: Sequence[str] = ()) -> RouterConfig:
    """Read a router config by name (``configs/router``) or path; ``overrides`` are ``router=knn`` strings.

    Raises:
        HarnessError: no such file, broken YAML, an unknown key or a wrong value; names file and line.
    """
    return load_config(RouterConfig, name_or_path, "router", overrides)


@contextlib.contextmanager
def routing_errors() -> Iterator[None]:
    """Turn :class:`RoutingError` into :class:`HarnessError`, advice kept."""
    try:
        yield
    except RoutingError as error:
        raise HarnessError(error.problem, error.advice) from error


def outcome_table(rows: Sequence[ReplayRow], samples: Sequence[Sample], costs: Costs | None = None) -> OutcomeTable:
    """Outcomes of every drafter on every prompt, from :class:`harness.adapt.routers.arms.Replaying`.

    Args:
        rows: replayed cells.
        samples: the prompts the trajectories came from; more than needed are fine.
        costs: what the rounds took, for the reward ``speedup``.

    Raises:
        HarnessError: no rows, a row whose sample is not given, or impossible counts.
    """
    from routing.outcomes import from_rows

    known = {sample.id: sample for sample in samples}
    missing = [row.sample_id for row in rows if row.sample_id not in known]
    if missing:
        raise HarnessError(f"no sample {missing[0]!r} for a replayed row", "Pass the samples the trajectories were collected from.")
    with routing_errors():
        return from_rows([outcome(row, known[row.sample_id], row.drafter, costs) for row in rows], source="the replay")


def outcome(row: ReplayRow | Record, sample: Sample, arm: str, costs: Costs | None) -> dict[str, Any]:
    """An answer's counts as a row of an outcome table; what its rounds took, and who proposed, where it has its rounds."""
    found = {name: getattr(row, name) for name in ("sample_id", "domain", "k", "rounds", "drafted", "accepted", "emitted")}
    found |= {"prompt": sample.prompt, "drafter": arm}
    if len(row.draft_lengths) != row.rounds:
        return found
    sources = row.sources or [MODEL] * len(row.draft_lengths)
    spent = None if costs is None else costs.answer_cost(row.draft_lengths, sources)
    return {**found, "spent": spent, "proposed": accepted_by(zip(sources, row.accept_lengths, strict=True))}


def router_arms(table: OutcomeTable, config: RouterConfig, k: int | str, adapters: Sequence[str]) -> tuple[Arm, ...]:
    """The plain draft, the named adapters, both with the memory where the table has it, and plain decoding where it is the fallback.

    Raises:
        HarnessError: nothing to choose, or the table lacks the plain draft or an adapter at this draft length.
    """
    from routing.outcomes import PLAIN as NO_DRAFT
    from routing.outcomes import Arm

    drafts = arm_names(adapters, memory=False)
    names = [name for name in arm_names(adapters, memory=config.memory) if name in drafts or name in table.drafters]
    if len(names) == 1:
        raise HarnessError("a router needs at least one adapter, or a memory, to choose", "Train an adapter with `harness train`.")
    for name in names:
        if name not in table.drafters or k not in table.ks:
            held = ", ".join(f"{d} at K = {', '.join(map(str, table.ks))}" for d in table.drafters)
            raise HarnessError(f"there are no outcomes of {name!r} at K = {k}", f"Replay it on these prompts; there are: {held}.")
    return (*(Arm(name, k) for name in names), *([Arm(NO_DRAFT)] if config.fallback == PLAIN else []))


def make_router(config: RouterConfig, arms: Sequence[Arm], *, offline: bool = False) -> PromptRouter:
    """The untrained router a config describes."""
    from routing.features import PromptFeatures
    from routing.policy import PromptRouter
    from routing.routers import AutoRouter, BoostingRouter, KNNRouter, LogisticRouter, MLPRouter

    kinds = {
        "auto": lambda: AutoRouter(n_splits=config.folds, random_state=config.seed),
        "logistic": LogisticRouter,
        "mlp": lambda: MLPRouter(random_state=config.seed),
        "boosting": lambda: BoostingRouter(random_state=config.seed),
        "knn": KNNRouter,
    }
    features = PromptFeatures(config.encoder, max_tokens=config.max_prompt_tokens, n_components=config.components, offline=offline)
    fallbacks = () if config.fallback is None else (config.fallback, GENERIC)
    fallback = next((arm.name for name in fallbacks for arm in arms if arm.drafter == name), None)
    return PromptRouter(
        features,
        kinds[config.router](),
        arms=tuple(arms),
        fallback=fallback,
        min_confidence=config.min_confidence,
        familiar=config.familiar,
        n_splits=config.folds,
        random_state=config.seed,
    )


def fit_router(
    table: OutcomeTable,
    config: RouterConfig,
    *,
    k: int | str,
    adapter_hashes: Mapping[str, str],
    groups: np.ndarray | None = None,
    offline: bool = False,
) -> PromptRouter:
    """Train a router on every arm's outcome.

    Args:
        table: from :func:`outcome_table`, with costs for the reward ``speedup``.
        config: settings.
        k: draft length of the arms.
        adapter_hashes: the adapters to choose from, with their content hashes (:func:`hash_adapters`).
        groups: (n,) labels of prompts that folds must not split; equal prompts share one by default.
        offline: fetch no encoder.

    Raises:
        HarnessError: nothing to choose, missing outcomes or prompts, no costs for ``speedup``, or the encoder cannot be had.
    """
    arms = router_arms(table, config, k, sorted(adapter_hashes))
    if table.prompts is None:
        raise HarnessError("the outcome table has no prompt texts", "Pass the samples it was made from.")
    with routing_errors():
        rewards = table.rewards(arms, config.reward)
        router = make_router(config, arms, offline=offline).fit(table.prompts, rewards, table.groups() if groups is None else groups)
    router.shares_ = {arm.name: table.shares([arm]) for arm in arms if table.proposed}
    return router


def router_path(pair_name: str) -> Path:
    """File of a pair's router in the user's cache."""
    return cache_dir() / "routers" / f"{pair_name}.safetensors"


def hash_adapters(folders: Mapping[str, Path]) -> dict[str, str]:
    """Adapter name -> SHA-256 of its shape and weights.

    Raises:
        HarnessError: an adapter's file cannot be read.
    """
    return {name: _content_hash(Path(folder)) for name, folder in folders.items()}


def _content_hash(folder: Path) -> str:
    from harness.adapt.adapters.adapter_folder import CONFIG, weights_path

    digest = hashlib.sha256()
    for path in (folder / CONFIG, weights_path(folder)):
        data = files.read_bytes(path, advice="Train it again with `harness train`.")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def save_router(router: PromptRouter, path: Path, *, run_id: str, adapter_hashes: Mapping[str, str]) -> Path:
    """Write a router with the hashes of its adapters and the id of the run or data it learned from.

    Raises:
        HarnessError: a name that could be a path, or a router too large.
    """
    from routing.persist import save_router as save

    used = {arm_parts(arm.drafter)[1] for arm in router.arms_}
    with routing_errors():
        return save(router, path, run_id=run_id, adapter_hashes={n: h for n, h in adapter_hashes.items() if n in used})


def load_router(
    pair_name: str,
    folders: Mapping[str, Path] | None = None,
    *,
    path: Path | None = None,
    encoder: str | None = None,
    offline: bool = False,
    check_features: bool = True,
) -> PromptRouter:
    """Read a pair's router and check that it was trained with exactly the adapters that are here.

    Args:
        pair_name: whose router.
        folders: adapter name -> folder; None takes the installed ones.
        path: the file; None takes :func:`router_path`.
        encoder: folder of the sentence encoder, for routers trained with a local one.
        offline: fetch no encoder.
        check_features: load the encoder now and check that it is the one of the training.

    Raises:
        HarnessError: no router, a damaged or newer file, other adapters, another encoder.
    """
    from harness.adapt.adapters.names import installed
    from routing.persist import load_router as load

    path = router_path(pair_name) if path is None else path
    folders = installed(pair_name) if folders is None else folders
    if not path.is_file():
        raise HarnessError(f"no router for pair {pair_name!r} at {path}", "Train one with `harness train-router`.")
    hashes = hash_adapters(folders)
    known = [PLAIN, *arm_names(list(hashes), memory=found_memory(pair_name) is not None)]
    with routing_errors():
        file = load(path, arms=known, adapter_hashes=hashes, encoder=encoder, offline=offline, check_features=check_features)
    return file.router


@dataclass(frozen=True)
class Routed:
    """One routed prompt, its adapter in place."""

    decision: Decision
    """Choice, scores and reasons."""
    route_s: float
    """Seconds to embed the prompt and to choose."""
    swap_s: float
    """Seconds to put the adapter into the draft; 0 for plain decoding."""

    @property
    def drafter(self) -> str:
        """Name of the arm, as :mod:`harness.adapt.routers.arms` has it."""
        return self.decision.arm.drafter


def route(prompt: str | Sequence[Any], *, router: PromptRouter, bank: AdapterBank) -> Routed:
    """Choose for one prompt and make the chosen adapter active.

    Args:
        prompt: text, or chat messages, of which the last user turn counts.
        router: trained.
        bank: holds every adapter of the router.

    Raises:
        HarnessError: token ids instead of text, or an adapter that the bank lacks.
    """
    text = _routed_text(prompt)
    start = time.perf_counter()
    with routing_errors():
        decision = router.decide(text)
    route_s = time.perf_counter() - start
    arm = decision.arm.drafter
    swap_s = 0.0 if arm == PLAIN else bank.activate(arm_parts(arm)[1]).swap_s
    return Routed(decision, route_s, swap_s)


def route_and_decode(
    pair: LoadedPair,
    prompt: str | Sequence[Any],
    *,
    router: PromptRouter,
    bank: AdapterBank,
    k: Any = None,
    around: str | None = None,
    on_route: Callable[[Routed], None] | None = None,
    **settings: Any,
) -> Generation:
    """Route a prompt, then decode it with the chosen adapter.

    Args:
        pair: loaded pair whose draft the bank holds.
        prompt: text or chat messages.
        router: trained.
        bank: holds every adapter of the router.
        k: draft length or policy; None takes the draft length the router was trained for.
        around: the drafter that the chosen draft runs in, such as ``hybrid``; None leaves that to the choice.
        on_route: told the choice before decoding starts.
        **settings: as for :func:`harness.decode.generation.generate`, without ``drafter``.

    Returns:
        The answer. ``route_s`` and ``swap_s`` are filled in and counted in ``ttft_s`` and ``wall_s``; ``drafter`` is the choice.

    Raises:
        HarnessError: a drafter in ``settings``, another pair's bank, or what routing and decoding refuse.
    """
    from harness.decode.generation import generate

    if "drafter" in settings:
        raise HarnessError("a routed answer takes no drafter", "Leave the drafter out, or decode without the router.")
    if bank.draft is not pair.draft:
        raise HarnessError("the adapters belong to another draft than the pair's", "Build the AdapterBank from pair.draft.")
    routed = route(prompt, router=router, bank=bank)
    if on_route:
        on_route(routed)
    name = routed.drafter
    drafter = arm_drafter(pair, bank, name, around)
    if settings.get("costs") is not None:
        settings["costs"] = costs_of(name, settings["costs"], around)
    answer = generate(pair, prompt, drafter=drafter, k=routed.decision.arm.k if k is None else k, **settings)
    spent = routed.route_s + routed.swap_s
    return dataclasses.replace(
        answer,
        drafter=None if drafter is None else name,
        route_s=routed.route_s,
        swap_s=routed.swap_s,
        ttft_s=answer.ttft_s + spent,
        wall_s=answer.wall_s + spent,
    )


def _routed_text(prompt: str | Sequence[Any]) -> str:
    """The text a choice rests on."""
    if isinstance(prompt, str):
        return prompt
    turns = [m.get("content") for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"]
    if not turns or not isinstance(turns[-1], str):
        raise HarnessError("the router needs the prompt as text", "Pass a string, or messages with a user turn.")
    return turns[-1]
