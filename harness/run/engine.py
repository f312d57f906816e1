"""The calls a run makes into models, data and scoring, gathered so that tests can pass their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.protocols import LoadedPair
from harness.core.records import Divergence, Generation, Sample, Trajectory
from harness.run.trained import Trained, train_for
from harness.suite.cells import Cell

if TYPE_CHECKING:
    from harness.answers.collect import Pool

ANSWER_BATCH = 32
"""Prompts that the target answers together."""
TRAINED = ("adapter", "router")
"""Drafters whose step costs what the plain draft's does: adapters are fused."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What :func:`harness.run.runner.run_suite` needs from the rest of the package."""

    load_pair: Callable[..., Any]
    """``load_pair(name, offline=...)``, with ``fallback=True`` where the draft may be left out, and the suite's ``draft_context``."""
    load_samples: Callable[..., list[Sample]]
    """``load_samples(spec, domain=..., seed=..., offline=...)``."""
    generate: Callable[..., Generation]
    """``generate(pair, prompt_tokens, **settings)``."""
    classify: Callable[..., Divergence | None]
    """``classify(pair, prompt_tokens, baseline_tokens, other_tokens)``."""
    answer: Callable[..., Iterable[Trajectory]]
    """``answer(pair, samples, max_tokens)`` -> the target's greedy answers as they come, made in batches and kept in the cache; with
    ``temperature`` and ``seed`` its samples, which keep their probabilities."""
    replay: Callable[..., list[Any]]
    """``replay(pair, trajectories, drafters, ks, **settings)``; drafters are names or drafter objects. For samples also ``temperature``,
    ``rule`` and ``seed``: the rows are of one decoding each."""
    ties: Callable[[Any, Sequence[Trajectory]], list[int]]
    """``ties(pair, trajectories)``: per answer, the positions where another machine's kernels may flip the target's favourite."""
    calibrate: Callable[[Any, Cell, int], tuple[Any, dict[str, Any]]]
    """``calibrate(pair, cell, max_k)`` -> costs for ``k: auto`` and the plain facts for the manifest."""
    verification: Callable[[Any], float]
    """``verification(pair)`` -> v(5) as it is now."""
    settings: Callable[[Cell], dict[str, Any]]
    """Keyword arguments of ``generate`` that a cell's own settings ask for."""
    train: Callable[..., Trained]
    """:func:`harness.run.trained.train_for`."""
    score: Callable[..., Any]
    """``score(sample, text, target_text=...)``."""
    facts: Callable[[], dict[str, Any]]
    """Device and BLAS for the manifest."""
    dtype: Callable[[Any], str]
    """Number format the pair's target computes in."""


def real_engine() -> Engine:
    """The real thing; imports mlx."""
    from harness.datasets import load_samples
    from harness.decode.audit import classify
    from harness.decode.calibrate import verification_cost
    from harness.decode.forced import forced_passes
    from harness.decode.generation import generate
    from harness.decode.making import DrafterOptions
    from harness.decode.replay import replay
    from harness.decode.sampling import Sampling
    from harness.models.blas import blas_name, mx
    from harness.models.opened import number_format
    from harness.models.pair import load_pair
    from harness.scoring import score

    def replayed(*args: Any, temperature: float = 0.0, **how: Any) -> list[Any]:
        return replay(*args, sampling=Sampling(temperature=temperature), **how)

    def settings(cell: Cell) -> dict[str, Any]:
        given: dict[str, Any] = {"layers": cell.layers, "ngram": cell.ngram, **dict(cell.options)}
        given = {name: value for name, value in given.items() if value is not None}
        return {"options": DrafterOptions(**given)} if given else {}

    def ties(pair: LoadedPair, trajectories: Sequence[Trajectory]) -> list[int]:
        return [forced.near_ties() for forced in forced_passes(pair.target, None, trajectories)]

    def facts() -> dict[str, Any]:
        return {"device": str(mx.default_device()), "blas": blas_name()}

    return Engine(
        load_pair=load_pair,
        load_samples=load_samples,
        generate=generate,
        classify=classify,
        answer=answers_by,
        replay=replayed,
        ties=ties,
        calibrate=_calibrate,
        verification=lambda pair: verification_cost(pair.target),
        settings=settings,
        train=train_for,
        score=score,
        facts=facts,
        dtype=lambda pair: number_format(pair.target),
    )


def answers_by(
    pair: LoadedPair,
    samples: Sequence[Sample],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    pool: Pool | None = None,
) -> Iterable[Trajectory]:
    """The target's answers, made in batches here or by a pool, and kept in the cache by temperature and seed."""
    from harness.answers.collect import collect
    from harness.models.cache_key import answers_folder

    how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "batch": ANSWER_BATCH, "seed": seed}
    return collect(pair, samples, **how, out=answers_folder(pair), pool=pool)


def _calibrate(pair: LoadedPair, cell: Cell, max_k: int) -> tuple[Any, dict[str, Any]]:
    from harness.decode.calibrate import calibrate
    from harness.decode.making import DrafterOptions, resolve_drafter

    assert cell.drafter is not None
    name = "generic" if cell.drafter in TRAINED else cell.drafter
    measured = calibrate(pair, resolve_drafter(pair, name, DrafterOptions(layers=cell.layers)), max_k=max_k)
    return measured.costs, measured.to_dict()
