"""``harness train``: adapt the draft of a pair to what it gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.generate import OfflineOption, PairOption, source_seed
from harness.cli.validate import TrackOption
from harness.core.limits import BATCH, MAX_TOKENS
from harness.core.paths import PARALLEL
from harness.core.progress import NowAndThen, note, notes_to
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.adapt.training.campaign import Campaign, Prompts
    from harness.adapt.training.outcome import TrainProgress
    from harness.adapt.training_config import TrainingConfig
    from harness.core.tracking import Tracker


@notes_to(partial(say, err=True))
def train(
    source: Annotated[str, typer.Argument(metavar="SUITE|FILE", help="Where the prompts come from: a suite, or a JSONL file.")] = "full",
    models: PairOption = "smollm2",
    domain: Annotated[str | None, typer.Option(help="Train on this domain's failures; all domains without it.")] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Training settings: a name in configs/training or a path; `default` or, with --parallel, `parallel` without it."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA update; the config's without it.")] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", metavar="K", min=2, max=32, help="Train masks for drafts of K tokens in one pass, in place of a LoRA."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Collect, train and evaluate this many times.")] = 1,
    name: Annotated[str | None, typer.Option(help="Adapter name; the domain, `mixed` or `parallel` without it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Training prompts per domain.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the target.")] = MAX_TOKENS,
    batch: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = BATCH,
    answers: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Train on answers of `harness collect` or `harness distill`; decode none."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a training setting.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Working folder; the user's cache without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    offline: OfflineOption = False,
    track: TrackOption = None,
) -> None:
    """Train a LoRA adapter on what the draft gets wrong; keep it only if acceptance on validation prompts rises.

    With --parallel K the draft stays as it is and learns to propose K tokens in one pass: the drafter parallel.

    Test prompts are never trained on: near-duplicates are refused.

    Example: `harness train suites/full.yaml --domain code --rank 8 --rounds 2`
    """
    from harness.adapt.training_config import load_training_config
    from harness.core.tracking import check_tracker, tracking

    settings = load_training_config(config or ("default" if parallel is None else "parallel"), set_ or [])
    settings = settings if parallel is None else settings.replace(parallel={"k": parallel})
    settings = settings if rank is None else settings.replace(lora={"rank": rank})
    settings = settings.seeded(source_seed(source))
    check_tracker(track)
    prompts = read_prompts(source, limit=limit, offline=offline)
    from harness.adapt.training.campaign import train_pair
    from harness.models.pair import load_pair

    chosen = name or domain or ("mixed" if settings.parallel.k is None else PARALLEL)
    with tracking(track, f"train {chosen}", {"models": models, "source": source, "rounds": rounds, **settings.model_dump()}) as tracker:
        result = train_pair(
            load_pair(models, offline=offline, lazy=answers is not None),  # with answers at hand the target may not be needed
            prompts,
            settings,
            name=chosen,
            rounds=rounds,
            domain=domain,
            out=out,
            max_tokens=max_tokens,
            batch=batch,
            resume=resume,
            answers=answers,
            progress=_progress(settings, tracker),
        )
        _track(result, tracker)
    say(summary(result, settings.stop.metric))


def _progress(settings: TrainingConfig, tracker: Tracker) -> Callable[[int, TrainProgress], None]:
    """Tells every update to the tracker; those with a new validation are noted, and others now and then."""
    updates, metric, timer = count(1), settings.stop.metric, NowAndThen()

    def told(number: int, step: TrainProgress) -> None:
        values = {"round": number, "loss": step.loss, "tokens_per_s": step.tokens_per_s, f"validation/{metric}": step.value}
        tracker.log(values, step=next(updates))
        if timer.due(always=step.step % settings.stop.every == 0 or step.step == step.total):
            note(
                f"round {number}, update {step.step}/{step.total}: loss {step.loss:.3f}, "
                f"{metric} {step.value:.3f} (best {step.best:.3f}), {step.tokens_per_s:.0f} tok/s"
            )

    return told


def _track(result: Campaign, tracker: Tracker) -> None:
    rows = [
        (str(r.round), r.verdict, d, f"{r.before[d]:.4f}", f"{r.after[d]:.4f}", str(r.steps), str(r.tokens))
        for r in result.records
        for d in r.before
    ]
    tracker.table("Rounds", ("round", "verdict", "domain", "before", "after", "updates", "tokens"), rows)
    if result.adapter is not None:
        tracker.file(result.adapter / "metadata.json")


def read_prompts(source: str, *, limit: int | None, offline: bool) -> Prompts:
    """Load the prompts of a suite or a file by split; validation is not limited."""
    from harness.adapt.training.campaign import Prompts
    from harness.cli.generate import read_samples

    train, validation, test = (
        read_samples(source, split=split, limit=limit if split == "train" else None, offline=offline)
        for split in ("train", "validation", "test")
    )
    return Prompts(train=train, validation=validation, test=test)


def summary(result: Campaign, metric: str) -> str:
    """One line per round and domain, and where the adapter is."""
    lines = []
    for record in result.records:
        cases = f"{record.failures} failure and {record.replayed} replay cases" if record.failures else f"{record.replayed} answers"
        lines.append(f"round {record.round}: {record.verdict}; {cases}, {record.steps} updates in {record.train_s:.0f} s")
        lines += [f"  {d}: {metric} {record.before[d]:.3f} -> {record.after[d]:.3f}" for d in record.before]
    if not result.records:
        lines.append("nothing to train on: no generation was below the acceptance threshold (adapt.threshold)")
    lines.append(f"adapter: {result.adapter}" if result.adapter else "no adapter was kept")
    return "\n".join(lines)
