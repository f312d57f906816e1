"""``harness generate`` and ``harness collect``: one prompt, or the target's answers to many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.records import Generation, Sample

PairOption = Annotated[str, typer.Option("--models", metavar="PAIR", help="Model pair: a name in configs/models or a path.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what is in the cache.")]


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The user turn; - reads it from standard input.")],
    models: PairOption = "smollm2",
    drafter: Annotated[str, typer.Option(help="generic, lookup, early_exit, hybrid, or none for plain decoding.")] = "generic",
    k: Annotated[str, typer.Option("-k", "--k", metavar="N", help="Draft length: a number, dynamic or auto.")] = "4",
    mode: Annotated[str, typer.Option(help="detailed (this project's loop) or fast (mlx-lm's loop).")] = "detailed",
    rule: Annotated[str, typer.Option(help="match or rejection.")] = "match",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    offline: OfflineOption = False,
) -> None:
    """Answer one prompt with speculative decoding and show the counts.

    The answer goes to standard output, the counts to standard error.

    Example: `harness generate "Write a haiku" --drafter lookup -k 4 --max-tokens 64`
    """
    import sys

    from harness.errors import HarnessError

    one_of("--drafter", drafter, ("generic", "lookup", "early_exit", "hybrid", "none"))
    one_of("--mode", mode, ("detailed", "fast"))
    one_of("--rule", rule, ("match", "rejection"))
    if not k.isdigit():
        one_of("-k", k, ("dynamic", "auto"))
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise HarnessError("the prompt is empty", "Write the prompt in quotes after `harness generate`.")
    from harness.decode.api import generate as decode
    from harness.models.pair import load_pair

    pair = load_pair(models, offline=offline, draft=drafter in ("generic", "hybrid"))
    printer = _Printer(pair)
    result = decode(
        pair,
        text,
        drafter=None if drafter == "none" else drafter,
        k=int(k) if k.isdigit() else k,
        mode=mode,
        rule=rule,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        on_step=printer.show,
    )
    typer.echo("")
    typer.echo(summary(result), err=True)


def one_of(flag: str, value: str, known: Sequence[str]) -> None:
    """Check a choice before anything is loaded.

    Raises:
        HarnessError: ``value`` is not in ``known``; names the nearest.
    """
    if value not in known:
        from harness.errors import HarnessError, did_you_mean

        raise HarnessError(f"{flag} {value}: {did_you_mean(value, list(known))}", f"Use one of: {', '.join(known)}.")


class _Printer:
    """Prints an answer as it grows."""

    def __init__(self, pair: Any) -> None:
        self.pair = pair
        self.tokens: list[int] = []
        self.printed = ""

    def show(self, step: Any) -> None:
        """Print what the tokens of ``step`` add; an incomplete character waits for its remaining bytes."""
        self.tokens.extend(step.tokens)
        text = self.pair.decode(self.tokens).rstrip("\ufffd")
        if text.startswith(self.printed):
            typer.echo(text[len(self.printed) :], nl=False)
            self.printed = text


def summary(result: Generation) -> str:
    """One line of counts and times."""
    parts = [
        f"{result.emitted} tokens in {result.wall_s:.2f} s ({result.emitted / result.wall_s:.1f} tok/s)",
        f"first after {result.ttft_s:.2f} s",
    ]
    if result.drafter is not None:
        rate = f"{result.accepted / result.drafted:.3f}" if result.drafted else "none drafted"
        parts += [
            f"accepted {result.accepted} of {result.drafted} drafted ({rate})",
            f"{result.emitted / result.rounds:.2f} tokens per target pass",
        ]
    return ", ".join(parts)


def collect(
    source: Annotated[str, typer.Argument(metavar="SUITE|FILE", help="A suite, or a JSONL file with a prompt per line.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the trajectories; finished batches there are kept.")],
    models: PairOption = "smollm2",
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts per domain.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = 32,
    top_k: Annotated[int, typer.Option(min=1, help="Target probabilities kept per token.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of sampling and of generated datasets.")] = 0,
    offline: OfflineOption = False,
) -> None:
    """Write the target's answers to prompts: the raw material of training.

    Example: `harness collect suites/quick.yaml --split train --limit 100 --out trajectories`
    """
    samples = read_samples(source, split=split, limit=limit, seed=seed, offline=offline)
    from rich.progress import track

    from harness.decode.collect import collect as rollouts
    from harness.models.pair import load_pair
    from harness.store import check_writable

    check_writable(out)
    pair = load_pair(models, offline=offline, draft=False)
    answers = rollouts(pair, samples, max_tokens=max_tokens, temperature=temperature, batch=batch, top_k=top_k, out=out, seed=seed)
    tokens = sum(len(t.tokens) for t in track(answers, total=len(samples), description="collecting"))
    typer.echo(f"{len(samples)} answers, {tokens} tokens in {out}")


def read_samples(source: str, *, split: str, limit: int | None, seed: int, offline: bool) -> Sequence[Sample]:
    """Load the prompts of a suite's domains, or of one JSONL file."""
    from harness.datasets import DatasetSpec, load_samples
    from harness.suite import load_suite

    one_of("--split", split, ("train", "validation", "test", "all"))
    specs: dict[str | None, DatasetSpec] = {}
    if source.removesuffix(".gz").endswith(".jsonl"):
        specs[None] = DatasetSpec(dataset="local", path=source)
    else:
        specs.update(load_suite(source).domains)
    changed = {name: spec.model_copy(update={"split": split, "limit": limit or spec.limit}) for name, spec in specs.items()}
    return [s for name, spec in changed.items() for s in load_samples(spec, domain=name, seed=seed, offline=offline)]
