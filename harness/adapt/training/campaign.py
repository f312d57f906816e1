"""What ``harness train`` does: prompts, leak check, the target's answers, training rounds, and the adapter put where it is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.adapt.adapters.adapter_folder import adapter_folder, write_prompts
from harness.adapt.adapters.names import adaptable
from harness.adapt.training.examples import Example, from_stored
from harness.adapt.training.outcome import TrainProgress
from harness.adapt.training.rounds import RoundRecord, install, run_rounds
from harness.adapt.training.synth import synthesise
from harness.adapt.training_config import TrainingConfig
from harness.answers.collect import collect, read_answers
from harness.answers.rollout import Decoder
from harness.answers.torch_batch import torch_decoder
from harness.core.errors import HarnessError
from harness.core.limits import BATCH, MAX_TOKENS
from harness.core.progress import counted, note
from harness.core.protocols import LoadedPair
from harness.core.records import Sample, Trajectory
from harness.datasets.splits import leaks, refuse_leaks
from harness.decode.accept import common_prefix
from harness.models.cache_key import answers_folder


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts of all domains by split."""

    train: Sequence[Sample]
    """To learn from."""
    validation: Sequence[Sample]
    """To stop and to accept by."""
    test: Sequence[Sample]
    """Never trained on; only checked for leaks."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What came out."""

    records: tuple[RoundRecord, ...]
    """One per round."""
    adapter: Path | None
    """Where the adapter was installed; None when no round was accepted."""
    trained_prompts: int
    """Training prompts."""
    synthetic_prompts: int
    """How many of them the target wrote."""


def train_pair(
    pair: LoadedPair,
    prompts: Prompts,
    config: TrainingConfig,
    *,
    name: str,
    rounds: int = 1,
    domain: str | None = None,
    out: Path | None = None,
    max_tokens: int = MAX_TOKENS,
    batch: int = BATCH,
    resume: bool = False,
    answers: Path | None = None,
    progress: Callable[[int, TrainProgress], None] | None = None,
) -> Campaign:
    """Train an adapter for a pair's draft and install it under ``name``.

    Args:
        pair: loaded pair with a draft.
        prompts: prompts by split; test prompts leak nowhere.
        config: settings.
        name: adapter name.
        rounds: training rounds.
        domain: domain whose failures are trained on; None is all.
        out: working folder; None is the adapter's folder in the user's cache.
        max_tokens: longest answer of the target.
        batch: prompts answered together.
        resume: continue an interrupted training.
        answers: folder of answers that the target has given to training prompts already: these are trained on, and none are decoded
            for ``prompts.train``.
        progress: told about each update.

    Raises:
        HarnessError: no draft, a leak, no prompts of the domain, or what the trainer refuses.
    """
    draft = adaptable(pair)
    train_answers: list[Trajectory] | list[Example]
    if answers is not None:
        prompts, train_answers = _given(pair, prompts, answers, config.adapt.mine)
    domains = sorted({s.domain for s in prompts.train})
    if domain is not None and domain not in domains:
        raise HarnessError(f"no training prompts of domain {domain!r}", f"There are prompts of: {', '.join(domains)}.")
    folder = adapter_folder(pair.name, name)
    refuse_leaks([*prompts.train, *prompts.validation], prompts.test)
    cached = answers_folder(pair)
    written: list[Sample] = []
    if answers is None:
        decoder = torch_decoder(pair)
        written = _missing_prompts(pair, prompts, config, [domain] if domain else domains, decoder)
        # apart from the exact answers that measurements read
        folder_of = cached / "training" if decoder else cached
        train_answers = _answers(pair, [*prompts.train, *written], config, folder_of, max_tokens, batch, "training", decoder)
    train = [*prompts.train, *written]
    validation_answers = _answers(pair, prompts.validation, config, cached, max_tokens, batch, "validation")
    if config.adapt.mine:
        note(f"replaying the draft over {len(train_answers)} answers, to find where it is wrong")
    records = run_rounds(
        draft,
        train_answers,
        validation_answers,
        config,
        rounds=rounds,
        out=out or folder / "rounds",
        domain=domain,
        prompts={s.id: s.prompt for s in train},
        synthetic=frozenset(s.id for s in written),
        resume=resume,
        progress=progress,
    )
    best = records[-1].adapter if records else None
    if best is not None:
        write_prompts(Path(best), [s.prompt for s in train if config.adapt.mine or domain in (None, s.domain)])
    installed = install(Path(best), folder, name) if best is not None else None
    return Campaign(records=tuple(records), adapter=installed, trained_prompts=len(train), synthetic_prompts=len(written))


def _missing_prompts(
    pair: LoadedPair, prompts: Prompts, config: TrainingConfig, domains: Sequence[str], decoder: Decoder | None
) -> list[Sample]:
    """Let the target write prompts for domains that have too few."""
    written: list[Sample] = []
    for domain in domains:
        own = [s for s in prompts.train if s.domain == domain]
        missing = config.synth.min_prompts - len(own)
        if missing > 0:
            note(f"{domain}: {len(own)} prompts, the target writes {missing} more")
            written += synthesise(
                pair,
                missing,
                domain=domain,
                config=config.synth,
                known=own,
                evaluation=[*prompts.validation, *prompts.test],
                seed=config.optim.seed,
                decoder=decoder,
            )
    return written


def _given(pair: LoadedPair, prompts: Prompts, folder: Path, records: bool) -> tuple[Prompts, list[Trajectory] | list[Example]]:
    """The target's answers in ``folder``, as ``records`` or as examples, and the prompts they answer in place of the training prompts.

    Prompts near a validation or test prompt are left out, and the first of them is named.
    """
    given = list(read_answers(folder, pair.target_hash))
    evaluation = [*prompts.validation, *prompts.test]
    turn = _user_turn(pair)
    found = {
        t.sample_id: Sample(id=t.sample_id, domain=t.domain, prompt=pair.tokenizer.decode(t.prompt_tokens[turn]), split="train")
        for t in given
    }
    left_out: set[str] = set()
    while near := leaks([s for s in found.values() if s.id not in left_out], evaluation):
        left_out |= {train for train, _ in near}
        note(f"left out {len(near)} answers whose prompts are near evaluation prompts, such as {near[0][0]} near {near[0][1]}")
    kept = [t for t in given if t.sample_id not in left_out]
    note(f"{len(kept)} answers in {folder}")
    prompts = replace(prompts, train=[s for s in found.values() if s.id not in left_out])
    return prompts, [t.trajectory() for t in kept] if records else [from_stored(t) for t in kept]


def _user_turn(pair: LoadedPair) -> slice:
    """Where the user's text is among an encoded prompt's tokens: between what all prompts begin and end with."""
    one, other = pair.encode("a"), pair.encode("b")
    head = common_prefix(one, other)
    return slice(head, -common_prefix(one[:head:-1], other[:head:-1]) or None)


def _answers(
    pair: LoadedPair,
    samples: Sequence[Sample],
    config: TrainingConfig,
    out: Path,
    max_tokens: int,
    batch: int,
    what: str,
    decoder: Decoder | None = None,
) -> list[Trajectory]:
    note(f"collecting the target's answers to {len(samples)} {what} prompts")
    found = collect(pair, samples, max_tokens=max_tokens, batch=batch, top_k=config.adapt.top_k, out=out, decoder=decoder)
    found = counted(found, len(samples), "answers")
    return sorted(found, key=lambda t: t.sample_id)
