"""Training rounds: replay the draft over the target's answers, train on what it got wrong, keep what helps, repeat with the new draft.

The target's greedy answers do not depend on the draft, so they are collected once; each round finds its failure cases by replaying
the current draft over them, which gives the counts that decoding would.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from harness.adapt.adapters.adapter_folder import METADATA, QUANTISED, WEIGHTS, copy_beside, load_into, read_info, read_lora, weights_path
from harness.adapt.adapters.surface import attached
from harness.adapt.training.acceptance import DomainCounts
from harness.adapt.training.buffer import ReplayBuffer, mix
from harness.adapt.training.examples import Example, from_case, from_trajectory
from harness.adapt.training.failures import CONTEXT_TOKENS, Case, Disagreement, FailureStore, case_id, is_failure
from harness.adapt.training.hidden import PrefixCache, prefix_cache
from harness.adapt.training.material import Material
from harness.adapt.training.measure import count, favourites
from harness.adapt.training.outcome import TrainProgress, TrainResult
from harness.adapt.training.parallel_training import train_parallel
from harness.adapt.training.trainer import train_adapter
from harness.adapt.training_config import TrainingConfig
from harness.core.errors import HarnessError
from harness.core.files import read_stored, write_atomic
from harness.core.machine import utc_now
from harness.core.protocols import LoadedDraft
from harness.core.records import SCHEMA_VERSION, Trajectory
from harness.core.stats import Estimate

Proposals = dict[tuple[Path | None, int], list[tuple[np.ndarray, np.ndarray]]]
"""Adapter folder (None: plain draft) and cached blocks to what the draft proposes for every training answer, and its probabilities."""


@dataclass
class Known:
    """What replays gave that other rounds over the same answers would repeat."""

    proposals: Proposals = field(default_factory=dict)
    validations: dict[tuple[Path | None, int, int, int], DomainCounts] = field(default_factory=dict)
    """Validation acceptance; the key is that of proposals, K, and the longest example in tokens."""


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One training round."""

    round: int
    """From 1."""
    accepted: bool
    """False: validation acceptance did not rise and the previous adapter stayed."""
    failures: int
    """Failure cases of the draft the round started from; 0 when mistakes were not looked for."""
    replayed: int
    """Accepted cases mixed in; all answers trained on when mistakes were not looked for."""
    before: Mapping[str, float]
    """Validation metric by domain at the start."""
    after: Mapping[str, float]
    """Validation metric by domain of the draft after the round."""
    steps: int
    """Updates done."""
    tokens: int
    """Prompt and answer tokens trained on."""
    train_s: float
    """Seconds in updates."""
    adapter: str | None
    """Folder of the adapter in use after the round; None is the plain draft."""
    gain: Estimate | None = None
    """Rise of the metric at the best checkpoint, kept or not, with its interval over validation prompts; older records have None."""

    @property
    def verdict(self) -> str:
        """What became of the round's adapter, and why."""
        verdict = "accepted" if self.accepted else "rejected, the old draft stays"
        if self.gain is None or self.gain.value == 0:
            return verdict
        noise = "" if self.gain.excludes(0) else ", within noise"
        return f"{verdict} ({self.gain.signed()} on validation prompts{noise})"


@dataclass(frozen=True, kw_only=True)
class _Rounds:
    """What the file of round records holds."""

    rounds: tuple[RoundRecord, ...]


def run_rounds(
    draft: LoadedDraft,
    train: Sequence[Trajectory] | Sequence[Example],
    validation: Sequence[Trajectory],
    config: TrainingConfig,
    *,
    rounds: int,
    out: Path,
    domain: str | None = None,
    prompts: Mapping[str, str] | None = None,
    synthetic: frozenset[str] = frozenset(),
    resume: bool = False,
    cache_folder: Path | None = None,
    progress: Callable[[int, TrainProgress], None] | None = None,
    known: Known | None = None,
    min_failures: int = 1,
) -> list[RoundRecord]:
    """Run training rounds and return their records; adapters are in ``out/round-1``, ``out/round-2`` and so on.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        train: the target's answers to training prompts of all domains; only without ``config.adapt.mine`` may they be examples.
        validation: answers to validation prompts.
        config: settings.
        rounds: number of rounds; they end early where fewer than ``min_failures`` failure cases are left to train on.
        out: folder of the failure store, the replay buffer, the records and the adapters.
        domain: train on the failures of this domain (the replay buffer keeps cases of all); None takes all.
        prompts: sample id -> user turn, noted in the failure cases.
        synthetic: ids of samples the target wrote.
        resume: keep finished rounds and continue inside an interrupted one.
        cache_folder: see :func:`harness.adapt.training.trainer.train_adapter`.
        progress: called with the round and the trainer's progress.
        known: of earlier calls with the same draft, ``train`` and ``validation``; used and filled in.

    Raises:
        HarnessError: as the trainer's.
    """
    if rounds < 1:
        raise HarnessError(f"rounds is {rounds}", "Ask for at least 1.")
    state = out / "rounds.json"
    if not resume:
        for name in ("rounds.json", "failures.jsonl", "buffer.jsonl"):
            (out / name).unlink(missing_ok=True)
    records = read_rounds(state)
    store = FailureStore(out / "failures.jsonl")
    buffer = ReplayBuffer(out / "buffer.jsonl", capacity=config.adapt.buffer_cases, seed=config.optim.seed)
    hidden = prefix_cache(draft, config, cache_folder)
    known = known or Known()
    given = {(t.sample_id, t.tokens): t for t in train if isinstance(t, Trajectory)}
    for number in range(len(records) + 1, rounds + 1):
        current = Path(records[-1].adapter) if records and records[-1].adapter else None
        failures: list[Case] = []
        material: Sequence[Material] = [t for t in train if domain is None or t.domain == domain]
        if config.adapt.mine:
            cases = cases_from_replay(
                draft,
                cast("Sequence[Trajectory]", train),
                k=config.stop.k,
                adapter=current,
                cache=hidden,
                round_=number - 1,
                prompts=prompts,
                synthetic=synthetic,
                known=known.proposals,
            )
            failures = _sort_cases(cases, store, buffer, config, domain)
            mixed = mix(failures, buffer.cases(), failure_fraction=config.adapt.failure_fraction, seed=config.optim.seed + number)
            weight = config.loss.failure_weight
            examples = [from_case(c, weight, given.get((c.sample_id, c.output_tokens))) for c in mixed]
            material = examples if len(failures) >= min_failures else []
        if not material:
            break
        start = (current, hidden.depth, config.stop.k, config.optim.max_tokens)
        result = (train_adapter if config.parallel.k is None else train_parallel)(
            draft,
            material,
            config.replace(optim={"seed": config.optim.seed + number}),
            validation=validation,
            out=out / f"round-{number}",
            name=f"round-{number}",
            domain=domain,
            start=current,
            resume=resume,
            cache_folder=cache_folder,
            progress=partial(progress, number) if progress else None,
            before=known.validations.get(start),
        )
        known.validations[start] = result.before.counts
        if result.adapter is not None:
            ended = (result.adapter, *start[1:])
            known.validations[ended] = result.after.counts
        records.append(record_round(number, result, config, len(failures), len(material) - len(failures), current))
        write_rounds(state, records)
    return records


def _sort_cases(cases: list[Case], store: FailureStore, buffer: ReplayBuffer, config: TrainingConfig, domain: str | None) -> list[Case]:
    """Store failure cases, offer the others to the buffer once; return the failures to train on."""
    failures = []
    for case in cases:
        if is_failure(case, config.adapt.threshold):
            store.append(case)
            if domain is None or case.domain == domain:
                failures.append(case)
        else:
            buffer.add(case)
    return failures


def record_round(
    number: int, result: TrainResult, config: TrainingConfig, failures: int, replayed: int, current: Path | None
) -> RoundRecord:
    """Return the record of a round that started from ``current``."""
    metric = config.stop.metric
    adapter = result.adapter if result.accepted else current
    return RoundRecord(
        round=number,
        accepted=result.accepted,
        failures=failures,
        replayed=replayed,
        before={d: a.value(metric) for d, a in result.before.by_domain.items()},
        after={d: a.value(metric) for d, a in (result.after if result.accepted else result.before).by_domain.items()},
        steps=result.steps,
        tokens=result.tokens,
        train_s=result.train_s,
        adapter=str(adapter) if adapter is not None else None,
        gain=result.gain,
    )


def write_rounds(path: Path, records: Sequence[RoundRecord]) -> None:
    """Replace the file of round records; adapters beside it are named relative to it, so that the folder can move."""

    def place(adapter: str | None) -> str | None:
        own = adapter is not None and Path(adapter).absolute().parent == path.absolute().parent
        return Path(adapter).name if own and adapter is not None else adapter

    rows = {"schema_version": SCHEMA_VERSION, "rounds": [{**asdict(r), "adapter": place(r.adapter)} for r in records]}
    write_atomic(path, json.dumps(rows, indent=2).encode())


def read_rounds(path: Path) -> list[RoundRecord]:
    """Read the round records; none when the file does not exist.

    Raises:
        HarnessError: damaged, or written by a newer version.
    """
    if not path.exists():
        return []
    stored: _Rounds = read_stored(_Rounds, path, advice="Delete it, or train without resuming.")
    return [replace(r, adapter=_located(path.parent, r.adapter)) for r in stored.rounds]


def _located(folder: Path, adapter: str | None) -> str | None:
    """Where an adapter that a record in ``folder`` names is now; older records hold the whole path of where it was then."""
    if adapter is None:
        return None
    moved = folder / Path(adapter).name
    return str(moved if os.path.isdir(moved) or not os.path.isabs(adapter) else adapter)


def cases_from_replay(
    draft: LoadedDraft,
    trajectories: Sequence[Trajectory],
    *,
    k: int,
    adapter: Path | None = None,
    cache: PrefixCache | None = None,
    round_: int = 0,
    prompts: Mapping[str, str] | None = None,
    synthetic: frozenset[str] = frozenset(),
    known: Proposals | None = None,
) -> list[Case]:
    """Return one case per trajectory: the counts at draft length ``k`` and every position where the draft's favourite is wrong.

    Args:
        draft: :class:`harness.models.pair.Draft`.
        trajectories: the target's greedy answers.
        k: draft length.
        adapter: adapter folder to replay with; None is the plain draft.
        cache: hidden states of blocks that no adapter changes, of training with the same settings; None computes everything.
        round_: round number noted in the cases.
        prompts: sample id -> user turn.
        synthetic: ids of samples the target wrote.
        known: :attr:`Known.proposals` of earlier calls over the same answers, used and filled in.
    """
    known = {} if known is None else known
    key = (adapter, cache.depth if cache else 0)
    if key not in known:
        known[key] = _proposals(draft, trajectories, adapter, cache)
    name = adapter.name if adapter is not None else "generic"
    return [
        _case(t, proposed, confidence, k, name, round_, (prompts or {}).get(t.sample_id, ""), t.sample_id in synthetic)
        for t, (proposed, confidence) in zip(trajectories, known[key], strict=True)
    ]


def _proposals(
    draft: LoadedDraft,
    trajectories: Sequence[Trajectory],
    adapter: Path | None,
    cache: PrefixCache | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    lora, weights = read_lora(adapter) if adapter is not None else (None, {})
    with attached(draft.model, lora) if lora is not None else nullcontext():
        if adapter is not None:
            read_info(adapter, draft.hash)
            load_into(draft.model, weights, adapter)
        draft.model.eval()
        cache = cache or PrefixCache(draft.model, 0, folder=None, model_hash=draft.hash)
        return favourites(draft, cache, [from_trajectory(t) for t in trajectories], confidence=True)


def _case(
    t: Trajectory, proposed: np.ndarray, confidence: np.ndarray, k: int, drafter: str, round_: int, prompt: str, synthetic: bool
) -> Case:
    answer = np.asarray(t.tokens)
    match = proposed == answer
    counts = count(match, k, t.max_tokens)
    sequence = (*t.prompt_tokens, *t.tokens)
    start = len(t.prompt_tokens)
    disagreements = tuple(
        Disagreement(
            position=i,
            draft_token=int(proposed[i]),
            target_token=int(answer[i]),
            draft_p=float(confidence[i]),
            target_p=float(np.exp(t.logprobs[i])) if t.logprobs is not None else None,
            context_tokens=tuple(int(x) for x in sequence[max(0, start + i - CONTEXT_TOKENS) : start + i]),
        )
        for i in np.flatnonzero(~match).tolist()
    )
    return Case(
        id=case_id(t.prompt_tokens, t.tokens, drafter, round_),
        sample_id=t.sample_id,
        domain=t.domain,
        prompt=prompt,
        prompt_tokens=t.prompt_tokens,
        output_tokens=t.tokens,
        accepted=counts.accepted,
        drafted=counts.drafted,
        rejected=counts.rejected,
        timestamp=utc_now(),
        drafter=drafter,
        round=round_,
        synthetic=synthetic,
        disagreements=disagreements,
    )


def install(adapter: Path, folder: Path, name: str) -> Path:
    """Copy a finished adapter to the folder users find it in, under ``name``; the metadata last."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_path(adapter)
    for file in {METADATA, WEIGHTS, QUANTISED} - {weights.name}:
        (folder / file).unlink(missing_ok=True)
    shutil.copyfile(weights, folder / weights.name)
    copy_beside(adapter, folder, name=name)
    return folder
