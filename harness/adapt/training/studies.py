"""Questions about trained adapters: forgetting, break-even and rank by replay, and what a swap costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from harness.adapt.adapters.folder import WEIGHTS
from harness.adapt.training.acceptance import Acceptance, pool
from harness.adapt.training.bank import AdapterBank
from harness.adapt.training.trainer import train_adapter
from harness.adapt.training_config import Policy, TrainingConfig
from harness.core.errors import HarnessError
from harness.core.progress import NowAndThen
from harness.core.records import Trajectory
from harness.decode.cached import CachedModel
from harness.decode.replay import ReplayRow, replay_row, variant_passes
from harness.models.mlx_names import mx


@dataclass(frozen=True, kw_only=True)
class ForgettingRow:
    """One adapter on one domain."""

    adapter: str
    """Adapter name; ``generic`` is the plain draft."""
    domain: str
    """Domain of the trajectories."""
    acceptance: Acceptance
    """Counts with the adapter."""
    alpha_change: float
    """Alpha minus the plain draft's: negative is forgetting."""


def replay_bank(
    bank: AdapterBank, trajectories: Sequence[Trajectory], ks: Iterable[int], note: Callable[[str], None] | None = None
) -> list[ReplayRow]:
    """Replay the plain draft (``generic``) and every adapter of the bank together; the plain draft is active afterwards.

    ``note`` is told now and then how many answers are done.
    """
    names, ks, timer = (None, *bank.names), list(ks), NowAndThen()

    def progress(done: int) -> None:
        if note and timer.due():
            note(f"  {done} of {len(trajectories)} answers replayed with {len(names)} drafters")

    (model, token_map), depth = bank.draft.proposer, bank.shared_blocks()
    passes = variant_passes(model, token_map, trajectories, lambda tokens: bank.states(tokens, names, depth), progress=progress)
    bank.activate(None)
    return [
        replay_row(name or "generic", t, own[at], k)
        for at, name in enumerate(names)
        for t, own in zip(trajectories, passes, strict=True)
        for k in ks
    ]


def forgetting(rows: Sequence[ReplayRow], k: int) -> list[ForgettingRow]:
    """Return the adapter x domain matrix at draft length ``k`` from :func:`replay_bank`'s rows."""
    cells: dict[tuple[str, str], list[Acceptance]] = {}
    for row in rows:
        if row.k == k:
            cells.setdefault((row.drafter, row.domain), []).append(_acceptance(row))
    table = {key: pool(parts) for key, parts in cells.items()}
    return [
        ForgettingRow(
            adapter=name, domain=domain, acceptance=cell, alpha_change=cell.value("alpha") - table["generic", domain].value("alpha")
        )
        for (name, domain), cell in sorted(table.items())
    ]


def _acceptance(row: ReplayRow) -> Acceptance:
    return Acceptance(
        prompts=1,
        rounds=int(row.rounds),
        drafted=int(row.drafted),
        accepted=int(row.accepted),
        rejected=int(row.rejected),
        emitted=row.emitted,
    )


@dataclass(frozen=True, kw_only=True)
class SwapRow:
    """What one policy of the adapter bank costs."""

    policy: str
    """``fuse``, ``cached`` or ``unfused``."""
    swap_s: float
    """Median seconds of a swap to another adapter, after every adapter was active once."""
    held_bytes: int
    """Memory of all adapter weights held, beyond the draft's own."""
    step_ratio: float
    """Draft step with an adapter active over the plain draft's step."""


def swap_costs(draft: Any, folders: Mapping[str, Path], *, cycles: int = 3) -> list[SwapRow]:
    """Measure the three policies on the same adapters; the plain draft is active afterwards.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        folders: adapter name -> folder, at least one.
        cycles: times that every adapter is made active.
    """
    rows = []
    for policy in get_args(Policy):
        bank = AdapterBank(draft, folders, policy=policy)
        for name in bank.names:
            bank.activate(name)
        swaps: list[float] = []
        steps: dict[bool, list[float]] = {False: [], True: []}
        for name in bank.names * cycles:
            bank.activate(None)
            steps[False].append(_step_s(draft.model))
            swaps.append(bank.activate(name).swap_s)
            steps[True].append(_step_s(draft.model))
        ratio = statistics.median(steps[True]) / statistics.median(steps[False])
        rows.append(SwapRow(policy=policy, swap_s=statistics.median(swaps), held_bytes=bank.held_bytes(), step_ratio=ratio))
        bank.activate(None)
    return rows


def _step_s(model: Any) -> float:
    """Seconds of a one-token step after eight tokens of context; the faster of two."""
    cached = CachedModel(model)
    cached.prefill(list(range(1, 9)))
    times = []
    for token in (9, 10, 11):
        began = time.perf_counter()
        mx.eval(mx.argmax(cached.forward(mx.array([token], dtype=mx.int32)), axis=-1))
        times.append(time.perf_counter() - began)
    return min(times[1:])


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """When training has paid for itself."""

    train_s: float
    """Seconds of training."""
    saved_s_per_1000_tokens: float
    """Decoding seconds saved per 1,000 emitted tokens; negative when decoding became slower."""
    break_even_tokens: float | None
    """Emitted tokens after which the saved time equals the training time; None when nothing is saved."""


def break_even(train_s: float, *, before_s_per_1000: float, after_s_per_1000: float) -> BreakEven:
    """Divide training seconds by the seconds saved per 1,000 tokens.

    Args:
        train_s: seconds of training.
        before_s_per_1000: decoding seconds per 1,000 emitted tokens with the old draft.
        after_s_per_1000: the same with the adapter.
    """
    saved = before_s_per_1000 - after_s_per_1000
    return BreakEven(train_s=train_s, saved_s_per_1000_tokens=saved, break_even_tokens=1000 * train_s / saved if saved > 0 else None)


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """One rank of the ablation."""

    rank: int
    """Rank of the update."""
    accepted: bool
    """True when validation acceptance rose."""
    before: float
    """Validation metric of the plain draft."""
    after: float
    """Validation metric of the best checkpoint."""
    steps: int
    """Updates up to the best checkpoint."""
    train_s: float
    """Seconds of training."""
    adapter_bytes: int | None
    """Size of the adapter's weights; None when rejected."""


def rank_ablation(
    draft: Any,
    train: Sequence[Trajectory],
    validation: Sequence[Trajectory],
    config: TrainingConfig,
    *,
    out: Path,
    ranks: Sequence[int] = (2, 4, 8, 16, 32),
    domain: str | None = None,
    cache_folder: Path | None = None,
) -> list[RankRow]:
    """Train one adapter per rank on the same data in the same order, in ``out/rank-R``; the hidden-state cache is shared."""
    if not ranks:
        raise HarnessError("no rank is given", "Give at least one, such as 8.")
    rows = []
    for rank in ranks:
        folder = out / f"rank-{rank}"
        settings = config.replace(lora={"rank": rank})
        result = train_adapter(draft, train, settings, validation=validation, out=folder, domain=domain, cache_folder=cache_folder)
        rows.append(
            RankRow(
                rank=rank,
                accepted=result.accepted,
                before=result.before.value,
                after=result.after.value,
                steps=result.after.step,
                train_s=result.train_s,
                adapter_bytes=(folder / WEIGHTS).stat().st_size if result.accepted else None,
            )
        )
    return rows
